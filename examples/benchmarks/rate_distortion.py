"""Compare the learned codec with image formats: bytes of an image at equal fidelity.

    python examples/benchmarks/rate_distortion.py --data_files cifar10/test.parquet --image_size 32

prints a table of mean bytes and PSNR of every codec at several qualities, and the Bjontegaard rate of each against
WebP: how many bytes more or fewer it takes, averaged over 23 to 29 dB. Writes `rate_distortion.json` and `.png`. With
`--fit_files TRAIN --fit_steps 300` the learned codec is first fitted to other images of the same kind, and its pixel
table to each quality; without steps only the table is.
"""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from datasets import Image as ImageFeature
from datasets import load_dataset
from PIL import Image, ImageOps
from tqdm.auto import tqdm
from transformers import HfArgumentParser

from hf_wakesleep import LearnedCodec

LOW, HIGH = 23.0, 29.0  # dB


@dataclass
class Arguments:
    """What to compare the codecs on."""

    data_files: str = field(metadata={"help": "Parquet file of test images."})
    image_size: int = field(metadata={"help": "Images are scaled and cropped to this side in pixels."})
    count: int = field(default=500, metadata={"help": "Number of images, spread over the file."})
    fit_files: str | None = field(default=None, metadata={"help": "Parquet file of images to fit the codec to."})
    fit_steps: int = field(default=0, metadata={"help": "Steps of fitting; 0 fits the pixel table only."})
    fit_quality: int = field(default=60, metadata={"help": "Quality that is fitted to, and those around it."})
    fit_layers: str = field(default="outer", metadata={"help": "Layers that are fitted: outer, context or all."})
    output_dir: str = field(default="out/rate_distortion", metadata={"help": "Where table and plot go."})


def load_images(path: str, size: int, count: int) -> list[Image.Image]:
    """Return `count` images of a parquet file, spread evenly, as RGB of `size` x `size` pixels."""
    dataset = load_dataset("parquet", data_files=path, split="train")
    column = next(name for name, feature in dataset.features.items() if isinstance(feature, ImageFeature))
    rows = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int)
    images = [image.convert("RGB") for image in dataset.select(rows)[column]]
    return [image if image.size == (size, size) else ImageOps.fit(image, (size, size)) for image in images]


def to_tensor(image: Image.Image) -> torch.Tensor:
    """Return an image as uint8 of shape (3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def measure(images: list[Image.Image], code: Callable) -> tuple[float, float]:
    """Return mean bytes and mean PSNR in dB of a codec, `code(images) -> (sizes, decoded tensors)`."""
    sizes, decoded = code(images)
    errors = [
        ((to_tensor(image).float() - other.float()) ** 2).mean() for image, other in zip(images, decoded, strict=True)
    ]
    return float(np.mean(sizes)), float(np.mean([10 * np.log10(255**2 / max(error.item(), 1e-3)) for error in errors]))


def by_format(name: str, quality: int, **options) -> Callable:
    """Return a function that codes images in an image format."""

    def code(images):
        sizes, decoded = [], []
        for image in images:
            file = io.BytesIO()
            image.save(file, name, quality=quality, **options)
            sizes.append(len(file.getvalue()))
            decoded.append(to_tensor(Image.open(file).convert("RGB")))
        return sizes, decoded

    return code


def by_codec(codec: LearnedCodec) -> Callable:
    """Return a function that codes images with a learned codec."""

    def code(images):
        codes = codec.encode([to_tensor(image) for image in images])
        return [len(one) for one in codes], codec.decode(codes)

    return code


def bjontegaard(curve: list, reference: list) -> float:
    """Return by what share a curve of (bytes, dB) needs more bytes than another at equal dB; NaN without overlap."""
    curves = [np.array(sorted(points, key=lambda point: point[1])) for points in (curve, reference)]
    low = max(LOW, *(points[0, 1] for points in curves))
    high = min(HIGH, *(points[-1, 1] for points in curves))
    if low >= high:
        return float("nan")
    grid = np.linspace(low, high, 101)
    ours, theirs = (np.interp(grid, points[:, 1], np.log(points[:, 0])) for points in curves)
    return float(np.exp((ours - theirs).mean()) - 1)


def main() -> None:
    """Measure all codecs, and write table and plot."""
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    if args.fit_steps and not args.fit_files:
        raise ValueError("`--fit_steps` needs images to fit the codec to. Pass `--fit_files` too.")
    images = load_images(args.data_files, args.image_size, args.count)
    qualities = (5, 15, 25, 35, 50, 65, 80, 100)
    learned = [LearnedCodec(quality) for quality in qualities]
    if args.fit_files:
        others = [to_tensor(image) for image in load_images(args.fit_files, args.image_size, 2000)]
        weights = LearnedCodec(args.fit_quality).fit(others, steps=args.fit_steps, layers=args.fit_layers).state_dict()
        learned = [LearnedCodec(quality, state_dict=weights).fit(others, steps=0) for quality in qualities]
    codecs = {
        "learned": [by_codec(codec) for codec in learned],
        "WebP": [by_format("WEBP", q, method=6) for q in (0, 2, 5, 10, 20, 35, 50, 75)],
        "JPEG": [by_format("JPEG", q, optimize=True) for q in (1, 5, 10, 20, 35, 50, 75)],
        "AVIF": [by_format("AVIF", q) for q in (1, 10, 20, 30, 40, 55, 70)],
    }
    curves = {
        name: [measure(images, code) for code in tqdm(codes, desc=name, leave=False)] for name, codes in codecs.items()
    }
    rates = {name: bjontegaard(curve, curves["WebP"]) for name, curve in curves.items()}
    for name, curve in curves.items():
        points = "  ".join(f"{size:.0f} B @ {fidelity:.1f} dB" for size, fidelity in curve)
        print(f"{name:8s} {rates[name]:+7.1%}  {points}")
    output_dir = Path(args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "rate_distortion.json").write_text(json.dumps({"curves": curves, "rates": rates}, indent=2) + "\n")
    for name, curve in curves.items():
        plt.plot(*zip(*curve, strict=True), marker="o", label=f"{name} ({rates[name]:+.0%})")
    plt.xscale("log")
    plt.xlabel("bytes of an image")
    plt.ylabel("PSNR in dB")
    plt.title(f"{Path(args.data_files).parent.name}, {args.image_size} px, {len(images)} images")
    plt.legend()
    plt.savefig(output_dir / "rate_distortion.png", dpi=120)


if __name__ == "__main__":
    main()
