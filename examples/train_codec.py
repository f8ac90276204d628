"""Train the networks of the learned codec on any image dataset.

    OMP_NUM_THREADS=1 python examples/train_codec.py --dataset_name parquet \
        --data_files tiny_imagenet/train.parquet --max_steps 30000 --output codec.safetensors

One idea: a codec is trained once, on any images, and then shared by all streams. `LearnedCodec(weights=...)` reads
what ships with the package; this is the command that made it. A run that was stopped goes on from its last checkpoint,
`OUTPUT.checkpoint`. 84 minutes on one core of a busy machine.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import one_line
import torch
from datasets import Image, load_dataset
from safetensors.torch import save_file
from torchvision.transforms.functional import pil_to_tensor
from tqdm.auto import tqdm
from transformers import HfArgumentParser

from hf_wakesleep import CodecTraining, LearnedNetworks

STEPS_AT_ONCE = 200


@dataclass
class CodecArguments:
    """Arguments of this script."""

    dataset_name: str = field(metadata={"help": "Name of the dataset, as for `load_dataset`."})
    data_files: str | None = field(default=None, metadata={"help": "Its files, if `dataset_name` is a format."})
    split: str = field(default="train", metadata={"help": "Split to train on."})
    output: str = field(default="codec.safetensors", metadata={"help": "Where to write the weights."})
    max_steps: int = field(default=30_000, metadata={"help": "Optimizer steps."})
    batch_size: int = field(default=32, metadata={"help": "Crops in a batch."})
    count_batches: int = field(default=500, metadata={"help": "Batches to fit the probability tables to, at the end."})
    seed: int = field(default=0, metadata={"help": "Of everything random."})


def main() -> None:
    """Train, count, and write the weights."""
    (args,) = HfArgumentParser(CodecArguments).parse_args_into_dataclasses()
    dataset = load_dataset(args.dataset_name, data_files=args.data_files, split=args.split)
    column = next(name for name, feature in dataset.features.items() if isinstance(feature, Image))
    images = [pil_to_tensor(image.convert("RGB")) for image in tqdm(dataset[column], desc="reading", mininterval=2)]
    torch.manual_seed(args.seed)
    training = CodecTraining(LearnedNetworks(), images, args.max_steps, batch_size=args.batch_size, seed=args.seed)
    checkpoint = Path(f"{args.output}.checkpoint")
    if checkpoint.is_file():
        training.load_state_dict(torch.load(checkpoint, weights_only=True))
    with tqdm(total=args.max_steps, initial=training.step, desc="training", mininterval=10) as progress:
        while training.step < args.max_steps:
            steps = min(STEPS_AT_ONCE, args.max_steps - training.step)
            loss, rate = training.run(steps)
            progress.update(steps)
            progress.write(f"step {training.step}: loss {loss:.4f}, {rate:.4f} bits per pixel", file=sys.stdout)
            if training.step % 1000 == 0 or training.step == args.max_steps:
                torch.save(training.state_dict(), checkpoint.with_suffix(".tmp"))
                checkpoint.with_suffix(".tmp").replace(checkpoint)
    training.fit_tables(batches=args.count_batches)
    save_file(training.networks.pack(), args.output)
    checkpoint.unlink()


if __name__ == "__main__":
    one_line.run(main)
