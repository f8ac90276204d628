"""Look into the memory of a stage: what it recalls, and what every byte of it is for.

    python examples/inspect_memory.py out/digits/task-05
    python examples/inspect_memory.py STAGE --data_files train.parquet

One idea: a memory is a table of codes, and a code turns back into an image. Prints the accounting of bytes and codes
of every class, and writes `memory.png`: bytes by kind against the budget, some memories of each class and, where their
original images are among those of `--data_files`, the originals above them, with bytes and PSNR. Seconds.
"""

import math
import textwrap
from dataclasses import dataclass, field

import numpy as np
import one_line
import torch
from datasets import Image, load_dataset
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from transformers import AutoImageProcessor, HfArgumentParser

from hf_wakesleep import SemiParametricMemory

KINDS = {"codes": "#0072B2", "index": "#E69F00", "codec": "#CC79A7", "statistics": "#009E73", "masks": "#777777"}
SIDE, NAME = 1.5, 1.4  # of an image and of the name of a class, in inches


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


def show(axes: Axes, image: torch.Tensor, title: str) -> None:
    """Draw an image (3, H, W) with a title."""
    axes.imshow(image.permute(1, 2, 0))
    axes.set_title(title, fontsize=8, pad=3)


def draw_bytes(axes: Axes, memory: SemiParametricMemory) -> None:
    """Draw what the bytes are for, side by side, up to the budget."""
    sizes, left = memory.num_bytes.to_dict(), 0
    total = sizes.pop("total")
    for kind, size in sizes.items():
        if size:
            axes.barh(0, size, left=left, color=KINDS[kind], label=f"{kind} {size:,}")
            left += size
    axes.set(xlim=(0, max(total, memory.budget or 1)), ylim=(-0.4, 0.4))
    axes.axis("off")
    limit = "no budget" if memory.budget is None else f"{total / memory.budget:.0%} of the budget of {memory.budget:,}"
    title = f"{len(memory):,} codes, {total:,} bytes: {limit}"
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axes.legend(loc="upper left", bbox_to_anchor=(0, 0), ncols=3, frameon=False, fontsize=8, borderaxespad=0.2)


def draw_memories(memory: SemiParametricMemory, originals: dict[bytes, torch.Tensor], args: Arguments) -> Figure:
    """Return a figure with the bytes and, in rows, memories of classes below their originals."""
    counts = np.bincount(memory.labels, minlength=len(memory.classes))
    shown, rows = range(min(args.max_classes, len(memory.classes))), 2 if originals else 1
    width, height = NAME + SIDE * max(args.per_class, 3), 1.4 + 1.15 * SIDE * rows * len(shown)
    figure = Figure(figsize=(width, height))
    draw_bytes(figure.add_axes((0.1 / width, 1 - 0.65 / height, 1 - 0.2 / width, 0.3 / height)), memory)
    for label in shown:
        places = np.flatnonzero(memory.labels == label)[: args.per_class]
        codes, (images, _) = memory.codes(places), memory.read(places)
        top = height - 1.4 - 1.15 * SIDE * rows * label
        name = textwrap.fill(memory.classes[label], 16, max_lines=3, placeholder="…").replace("$", r"\$")
        text = f"{name}\n{counts[label]:,} codes"
        figure.text(0.1 / width, (top - rows * SIDE / 2) / height, text, fontsize=9, va="center")
        for column, (code, image) in enumerate(zip(codes, images, strict=True)):
            original = originals.get(code)
            fidelity = "" if original is None else f", {psnr(image, original):.1f} dB"
            titles = [(image, f"{len(code)} B{fidelity}")]
            for row, (pixels, title) in enumerate([(original, "original")] * (rows - 1) + titles):
                if pixels is not None:
                    place = (NAME + SIDE * column, top - SIDE * (1.15 * row + 0.95), 0.9 * SIDE, 0.9 * SIDE)
                    axes = figure.add_axes(
                        [inches / side for inches, side in zip(place, (width, height) * 2, strict=True)]
                    )
                    axes.axis("off")
                    show(axes, pixels, title)
    return figure


def main() -> None:
    """Print the accounting, and draw memories below their originals."""
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
    draw_memories(memory, originals, args).savefig(args.output, dpi=100)
    print(f"{args.output}: {'originals above their memories' if originals else 'memories'}")


if __name__ == "__main__":
    one_line.run(main)
