"""Measure what decoding a batch of memories costs beside the training step that it is for, and how fast encoding is.

    OMP_NUM_THREADS=1 python examples/benchmarks/decoding.py

decodes 64 codes of photographs of 128 px, by the learned codec and by WebP, and takes a step of a ViT-tiny (forward,
backward, AdamW) on them in float32 and in bfloat16, in turns. Prints medians and the share of a step; on a CPU of
processor time, in which other work on the machine does not count. Steps run on a GPU where there is one, decoding does
not: then medians are of the time that passes. A minute.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from transformers import HfArgumentParser, ViTConfig

from hf_wakesleep import LearnedCodec, WakeSleepConfig, WakeSleepForImageClassification, WebPCodec


@dataclass
class Arguments:
    """What to decode."""

    batch_size: int = field(default=64, metadata={"help": "Codes in a batch."})
    image_size: int = field(default=128, metadata={"help": "Side of the images in pixels."})
    quality: int = field(default=30, metadata={"help": "Quality of the learned codec."})
    webp_quality: int = field(default=1, metadata={"help": "Quality of WebP."})
    dtypes: list[str] = field(
        default_factory=lambda: ["float32", "bfloat16"],
        metadata={"help": "Of the steps. A CPU without AVX-512 takes half a minute for one in bfloat16."},
    )
    repetitions: int = field(default=9, metadata={"help": "How often everything is measured."})


def photographs(count: int, side: int) -> torch.Tensor:
    """Return random crops of scikit-learn's two photographs, scaled down by half: uint8 (B, 3, side, side)."""
    generator, crops = np.random.default_rng(0), []
    for index in range(count):
        photograph = Image.fromarray(load_sample_images().images[index % 2])
        left, top = (int(generator.integers(length - 2 * side + 1)) for length in photograph.size)
        crops.append(np.asarray(photograph.crop((left, top, left + 2 * side, top + 2 * side)).resize((side, side))))
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)


def make_step(args: Arguments, dtype: torch.dtype) -> Callable:
    """Return a function that takes a training step on uint8 images (B, 3, H, W) and waits for its end."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    vit = ViTConfig(
        image_size=args.image_size, hidden_size=192, intermediate_size=768, num_attention_heads=3, num_hidden_layers=12
    )
    model = WakeSleepForImageClassification(WakeSleepConfig(backbone_config=vit, image_size=args.image_size))
    model.grow([f"class {label}" for label in range(100)])
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    labels = torch.arange(args.batch_size, device=device) % 100

    def step(images: torch.Tensor) -> None:
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            logits = model(pixel_values=images.to(device) / 127.5 - 1).classifier_logits
            loss = torch.nn.functional.cross_entropy(logits.float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def main() -> None:
    """Measure everything in turns, and print a table."""
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    images = photographs(args.batch_size, args.image_size)
    work, sizes = {}, {}
    for codec in (LearnedCodec(args.quality), WebPCodec(args.webp_quality)):
        codes = codec.encode(images)
        sizes[codec.name] = sum(map(len, codes)) / len(codes)
        work[codec.name] = lambda codec=codec, codes=codes: codec.decode(codes)
        work[f"encode {codec.name}"] = lambda codec=codec: codec.encode(images)
    steps = {dtype: make_step(args, getattr(torch, dtype)) for dtype in args.dtypes}
    work |= {name: lambda step=step: step(images) for name, step in steps.items()}
    seconds = {name: [] for name in work}
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    for repetition in range(args.repetitions + 1):
        for name, do in work.items():
            start = clock()
            do()
            if repetition:  # the first warms up
                seconds[name].append(clock() - start)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"threads: {torch.get_num_threads()}, {args.batch_size} images of {args.image_size} px")
    shares_of = " | ".join(f"share of a {dtype} step" for dtype in steps)
    print(f"| codec | bytes a code | images encoded a second | ms to decode a batch | {shares_of} |")
    print("|---|---|---|---|" + "---|" * len(steps))
    for name, size in sizes.items():
        shares = " | ".join(f"{median[name] / median[step]:.1%}" for step in steps)
        rate = args.batch_size / median[f"encode {name}"]
        print(f"| {name} | {size:.0f} | {rate:.0f} | {1000 * median[name]:.0f} | {shares} |")
    print(f"steps: {', '.join(f'{1000 * median[step]:.0f} ms in {step}' for step in steps)}")


if __name__ == "__main__":
    main()
