"""Compare what is kept of each class when memory is full: uniform samples or herding, many small codes or a few large.

    OMP_NUM_THREADS=1 python examples/benchmarks/selection.py --train_file train.parquet --test_file test.parquet \
        --backbone PATH_OR_HUB_NAME --image_size 128

learns a stream with a frozen backbone, and after every task fits LDA to the decoded memories alone. Prints, for
every budget (of the codes and their index only), the pooled accuracy after the last task and averaged over all tasks,
mean and standard deviation over class orders. `sample` are uniform samples that differ from order to order; the
reservoir's is always the same. Writes `selection.json` and `selection.png`. 7 minutes on a busy core. With

    --selections herding --codecs learned:0 learned:15 learned:30 learned:47

it compares codes of different sizes instead.
"""

import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from cil_data import codec_of
from datasets import Dataset, load_dataset
from PIL import ImageOps
from tqdm.auto import tqdm
from transformers import HfArgumentParser

from hf_wakesleep import (
    ClassIncrementalStream,
    Codec,
    SemiParametricMemory,
    Task,
    WakeSleepForImageClassification,
    herding_ranks,
)

SELECTIONS = ("reservoir", "sample", "herding")


@dataclass
class Arguments:
    """What to compare the selections on."""

    train_file: str = field(metadata={"help": "Parquet file of training images."})
    test_file: str = field(metadata={"help": "Parquet file of test images."})
    backbone: str = field(metadata={"help": "Folder or name on the Hub of a pretrained backbone."})
    image_size: int = field(default=128, metadata={"help": "Side of the images in pixels."})
    num_tasks: int = field(default=10, metadata={"help": "Number of tasks."})
    codecs: list[str] = field(default_factory=lambda: ["webp:1"], metadata={"help": "Codecs, with their qualities."})
    selections: list[str] = field(
        default_factory=lambda: list(SELECTIONS), metadata={"help": "What is kept: reservoir, sample or herding."}
    )
    seeds: list[int] = field(default_factory=lambda: [1993, 1994, 1995], metadata={"help": "Class orders."})
    budgets: list[int] = field(
        default_factory=lambda: [250_000, 500_000, 1_000_000], metadata={"help": "Bytes for codes and their index."}
    )
    output_dir: str = field(default="out/selection", metadata={"help": "Where table and plot go."})


@dataclass
class Part:
    """Images of one split, each seen by the backbone once for all runs."""

    classes: list[str]  # of N images
    features: torch.Tensor  # (N, D)
    codes: list[bytes]
    remembered: dict[bytes, torch.Tensor]  # features (D,) of what a code decodes to


@torch.no_grad()
def see(model: WakeSleepForImageClassification, images: torch.Tensor) -> torch.Tensor:
    """Return the features (B, D) of uint8 images (B, 3, H, W)."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (model.config.image_mean, model.config.image_std))
    return model.extract_features((images / 255 - mean) / std)


def see_all(model: WakeSleepForImageClassification, dataset: Dataset, codec: Codec | None) -> Part:
    """Return features of a split and, given a codec, its codes and features of what they decode to."""
    side, names = model.config.image_size, dataset.features["label"].names
    part = Part([names[label] for label in dataset["label"]], torch.empty(0), [], {})
    features = []
    for batch in tqdm(dataset.iter(64), total=-(-len(dataset) // 64), leave=False):
        pixels = [np.asarray(ImageOps.fit(image.convert("RGB"), (side, side))) for image in batch["image"]]
        images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
        features.append(see(model, images))
        if codec is not None:
            codes = codec.encode(images)
            part.codes += codes
            part.remembered.update(zip(codes, see(model, torch.stack(codec.decode(codes))), strict=True))
    part.features = torch.cat(features)
    return part


def ranks_of(selection: str, features: torch.Tensor, labels: list[int], generator: np.random.Generator):
    """Return the ranks that `SemiParametricMemory.write` takes."""
    if selection == "herding":
        return herding_ranks(features.numpy(), np.asarray(labels))
    return None if selection == "reservoir" else generator.permutation(len(labels))


def accuracy(model: WakeSleepForImageClassification, memory: SemiParametricMemory, train: Part, test: Part) -> float:
    """Return the accuracy, on the classes seen so far, of LDA fitted to the memories alone."""
    lda = model.head.lda
    lda.reset()
    codes = memory.codes(np.arange(len(memory)))
    lda.update(torch.stack([train.remembered[code] for code in codes]), torch.from_numpy(memory.labels))
    seen = [row for row, name in enumerate(test.classes) if name in memory.classes]
    labels = torch.tensor([memory.classes.index(test.classes[row]) for row in seen])
    return (lda(test.features[seen]).argmax(dim=-1) == labels).float().mean().item()


def learn(model, tasks: list[Task], memory: SemiParametricMemory, train: Part, test: Part, choose) -> list[float]:
    """Return the accuracy after every task of a stream; `choose` gives ranks from features and labels."""
    found = []
    for number, task in enumerate(tasks):
        memory.set_classes([*memory.classes, *task.new_classes], 0)
        rows = [row for row, name in enumerate(train.classes) if name in task.classes]
        labels = [memory.classes.index(train.classes[row]) for row in rows]
        memory.write([train.codes[row] for row in rows], labels, number, choose(train.features[rows], labels))
        found.append(accuracy(model, memory, train, test))
    return found


def plot(found: dict[str, dict[int, list]], path: Path) -> None:
    """Draw the accuracy after the last task over the budget."""
    for name, budgets in found.items():
        last = [np.asarray(runs)[:, -1] * 100 for runs in budgets.values()]
        sizes = [budget / 1e6 for budget in budgets]
        plt.errorbar(sizes, [run.mean() for run in last], [run.std() for run in last], marker="o", label=name)
    plt.xlabel("budget of the codes in MB")
    plt.ylabel("pooled accuracy of LDA in %")
    plt.legend()
    plt.savefig(path, dpi=120)


def main() -> None:
    """Measure all selections and codecs, and write table and plot."""
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    data = load_dataset("parquet", data_files={"train": args.train_file, "test": args.test_file})
    model = WakeSleepForImageClassification.from_backbone(args.backbone, image_size=args.image_size).eval()
    model.grow(data["train"].features["label"].names)
    test = see_all(model, data["test"], None)
    streams = {seed: list(ClassIncrementalStream(data, num_tasks=args.num_tasks, seed=seed)) for seed in args.seeds}
    found = {}
    for name in args.codecs:
        codec = codec_of(name)
        train = see_all(model, data["train"], codec)
        size = sum(map(len, train.codes)) / len(train.codes)
        for selection in args.selections:
            budgets = found[f"{name} ({size:.0f} B), {selection}"] = {budget: [] for budget in args.budgets}
            for budget, runs in budgets.items():
                for seed, tasks in streams.items():
                    choose = partial(ranks_of, selection, generator=np.random.default_rng(seed))
                    runs.append(learn(model, tasks, SemiParametricMemory(codec, budget), train, test, choose))
    print(f"| budget | {' | '.join(found)} |\n|---|{'---|' * len(found)}")
    for budget in args.budgets:
        print(f"| {budget / 1e6} MB | {' | '.join(_cell(np.asarray(runs[budget])) for runs in found.values())} |")
    output_dir = Path(args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "selection.json").write_text(json.dumps(found, indent=2) + "\n")
    plot(found, output_dir / "selection.png")


def _cell(runs: np.ndarray) -> str:
    """Return mean and deviation of accuracies (runs, tasks) after the last task and, in brackets, over all tasks."""
    last, mean = runs[:, -1] * 100, runs.mean(axis=1) * 100
    return f"{last.mean():.1f} ± {last.std():.1f} ({mean.mean():.1f} ± {mean.std():.1f})"


if __name__ == "__main__":
    main()
