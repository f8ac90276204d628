"""Look into the memory of a stage: what it recalls, and what every byte of it is for.

    python examples/inspect_memory.py out/digits/task-05
    python examples/inspect_memory.py STAGE --data_files train.parquet

One idea: a memory is a table of codes, and a code turns back into an image. Prints the accounting of bytes and codes
of every class, and writes `memory.png`: some memories of each class and, where their original images are among
those of `--data_files`, the originals above them, with bytes and PSNR. Seconds.
"""

import math
from dataclasses import dataclass, field

import matplotlib.pyplot as plt
import numpy as np
import one_line
import torch
from datasets import Image, load_dataset
from transformers import AutoImageProcessor, HfArgumentParser

from hf_wakesleep import SemiParametricMemory


@dataclass
class Arguments:
    """What to look at."""

    data_files: str | None = field(default=None, metadata={"help": "Parquet file that holds the original images."})
    per_class: int = field(default=4, metadata={"help": "Memories shown of each class."})
    max_classes: int = field(default=8, metadata={"help": "Classes shown."})
    output: str = field(default="memory.png", metadata={"help": "Where the picture goes."})


def find_originals(stage: str, data_files: str | None, memory: SemiParametricMemory) -> dict[bytes, torch.Tensor]:
    """Return original images by their codes: an image is the original of the code that it is encoded to."""
    if data_files is None:
        return {}
    processor = AutoImageProcessor.from_pretrained(stage)
    dataset = load_dataset("parquet", data_files=data_files, split="train")
    column = next(name for name, feature in dataset.features.items() if isinstance(feature, Image))
    originals = {}
    for start in range(0, len(dataset), 256):
        images = [image.convert("RGB") for image in dataset[start : start + 256][column]]
        pixels = processor(images, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"]
        pixels = pixels.round().to(torch.uint8)  # (B, 3, H, W)
        originals.update(zip(memory.codec.encode(pixels), pixels, strict=True))
    return originals


def psnr(image: torch.Tensor, other: torch.Tensor) -> float:
    """Return the peak signal-to-noise ratio of two uint8 images in dB."""
    return 10 * math.log10(255**2 / max(((image.float() - other.float()) ** 2).mean().item(), 1e-3))


def show(axis, image: torch.Tensor, title: str) -> None:
    """Draw an image (3, H, W) with a title."""
    axis.imshow(image.permute(1, 2, 0))
    axis.set_title(title, fontsize=7)


def main() -> None:
    """Print the accounting, and draw memories beside their originals."""
    parser = HfArgumentParser(Arguments)
    parser.add_argument("stage", help="Folder of a stage, or repository on the Hub.")
    args, where = parser.parse_args_into_dataclasses()
    memory = SemiParametricMemory.from_pretrained(where.stage)
    sizes = memory.num_bytes.to_dict()
    print(f"{len(memory)} codes by {memory.codec.name!r}, {memory.codec.settings()}; budget {memory.budget}")
    for name, size in sizes.items():
        print(f"{name:12s} {size:12,d} bytes {size / sizes['total']:7.1%}")
    counts = np.bincount(memory.labels, minlength=len(memory.classes))
    print("\n".join(f"{name}: {count} codes" for name, count in zip(memory.classes, counts, strict=True)))

    originals = find_originals(where.stage, args.data_files, memory)
    shown = [np.flatnonzero(memory.labels == label)[: args.per_class] for label in range(len(memory.classes))]
    shown = shown[: args.max_classes]
    rows = 2 if originals else 1
    figure, axes = plt.subplots(
        rows * len(shown), args.per_class, figsize=(1.6 * args.per_class, 1.7 * rows * len(shown)), squeeze=False
    )
    for axis in axes.flat:
        axis.axis("off")
    for label, places in enumerate(shown):
        codes, (images, _) = memory.codes(places), memory.read(places)
        for column, (code, image) in enumerate(zip(codes, images, strict=True)):
            original = originals.get(code)
            fidelity = "" if original is None else f", {psnr(image, original):.1f} dB"
            show(axes[rows * label + rows - 1][column], image, f"{memory.classes[label]}: {len(code)} B{fidelity}")
            if original is not None:
                show(axes[rows * label][column], original, "original")
    figure.tight_layout()
    figure.savefig(args.output, dpi=120)
    print(f"{args.output}: {'originals above their memories' if originals else 'memories'}")


if __name__ == "__main__":
    one_line.run(main)
