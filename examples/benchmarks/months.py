"""Three months of photographs by the recipe, from the shell: accuracy on photographs that no run has seen.

    OMP_NUM_THREADS=1 python examples/benchmarks/months.py --data_dir DATA --backbone PATH_OR_HUB_NAME

makes folders of Caltech-101 (20 classes of 25 JPEGs, 5 of 25, 3 of 5; at most 18 test images of each class), teaches
the first with `train_cil.py` and the others with `continue_from_hub.py`, nothing set but the backbone and 96 pixels,
and prints a table, with LDA and the nearest class mean on the frozen backbone beside it.
"""

import argparse
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, load_dataset
from transformers import AutoImageProcessor

from hf_wakesleep import WakeSleepForImageClassification
from hf_wakesleep.model.head_wakesleep import LinearDiscriminant

EXAMPLES = Path(__file__).parents[1]
MONTHS = ((20, 25), (5, 25), (3, 5))  # classes, and images of each
MOST_TESTED = 18  # images of a class
SIDE = 96


def make_folders(data_dir: Path, folder: Path, seed: int) -> None:
    """Write `month-1`, `month-1-test`, ... with one subfolder of JPEGs per class."""
    files = {split: str(data_dir / "caltech101" / f"{split}.parquet") for split in ("train", "test")}
    images = load_dataset("parquet", data_files=files)
    labels = {split: np.asarray(part["label"]) for split, part in images.items()}
    names = images["train"].features["label"].names
    many = [c for c in range(len(names)) if (labels["train"] == c).sum() >= 25 and (labels["test"] == c).sum() >= 10]
    classes = iter(np.random.default_rng(seed).permutation(many).tolist())
    for month, (num_classes, num_images) in enumerate(MONTHS, start=1):
        for label in [next(classes) for _ in range(num_classes)]:
            for split, count, suffix in (("train", num_images, ""), ("test", MOST_TESTED, "-test")):
                home = folder / f"month-{month}{suffix}" / names[label]
                home.mkdir(parents=True)
                for row in np.flatnonzero(labels[split] == label)[:count].tolist():
                    images[split][row]["image"].convert("RGB").save(home / f"{row}.jpg", quality=95)


def read(folder: Path) -> Dataset:
    """Return the images of a folder."""
    return load_dataset("imagefolder", data_dir=str(folder), drop_labels=False)["train"]


@torch.no_grad()
def features_of(model, processor, images: Dataset) -> tuple[torch.Tensor, list[str]]:
    """Return features (N, D) and names of classes."""
    names, batches = images.features["label"].names, []
    for start in range(0, len(images), 64):
        pictures = [picture.convert("RGB") for picture in images[start : start + 64]["image"]]
        batches.append(model.extract_features(processor(pictures, return_tensors="pt")["pixel_values"]))
    return torch.cat(batches), [names[label] for label in images["label"]]


def shares(answers: list[torch.Tensor], truths: list[torch.Tensor]) -> str:
    """Return the accuracy in every month, in %."""
    return " | ".join(
        f"{100 * (given == right).float().mean().item():.1f}" for given, right in zip(answers, truths, strict=True)
    )


def frozen_rows(backbone: str, processor, folder: Path, month: int) -> list[str]:
    """Return a row of LDA and one of the nearest class mean on the frozen backbone, with all images of all months."""
    model = WakeSleepForImageClassification.from_backbone(backbone, image_size=SIDE).eval()
    train = [features_of(model, processor, read(folder / f"month-{number}")) for number in range(1, month + 1)]
    tests = [features_of(model, processor, read(folder / f"month-{number}-test")) for number in range(1, month + 1)]
    classes = list(dict.fromkeys(name for _, names in train for name in names))
    index = {name: number for number, name in enumerate(classes)}
    features, labels = torch.cat([part for part, _ in train]), torch.tensor([index[n] for _, ns in train for n in ns])
    lda = LinearDiscriminant(features.shape[1], len(classes), None)
    lda.update(features, labels)
    means = torch.stack([features[labels == number].mean(dim=0) for number in range(len(classes))])
    truths = [torch.tensor([index[name] for name in names]) for _, names in tests]
    return [
        f"| LDA, frozen | {shares([lda(part).argmax(dim=-1) for part, _ in tests], truths)} |",
        f"| nearest mean, frozen | {shares([torch.cdist(part, means).argmin(dim=-1) for part, _ in tests], truths)} |",
    ]


def stage_row(stage: Path, processor, folder: Path, month: int, seconds: float) -> str:
    """Return a row of a stage."""
    model = WakeSleepForImageClassification.from_pretrained(stage).eval()
    tests = [features_of(model, processor, read(folder / f"month-{number}-test")) for number in range(1, month + 1)]
    truths = [torch.tensor([model.config.label2id[name] for name in names]) for _, names in tests]
    with torch.no_grad():
        answers = [model.head(part)[0].argmax(dim=-1) for part, _ in tests]
    return f"| by the recipe, {seconds:.0f} s of processor time | {shares(answers, truths)} |"


def main() -> None:
    """Make folders, teach three months, and print the table of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="holds caltech101/train.parquet and test.parquet")
    parser.add_argument("--backbone", required=True, help="pretrained ViT, on the Hub or in a folder")
    parser.add_argument("--output_dir", type=Path, default=Path("out/months"))
    parser.add_argument("--seed", type=int, default=7, help="chooses the classes")
    args = parser.parse_args()
    shutil.rmtree(args.output_dir, ignore_errors=True)
    make_folders(args.data_dir, args.output_dir, args.seed)
    start = [str(EXAMPLES / "train_cil.py"), "--backbone", args.backbone, "--image_size", str(SIDE)]
    for month in range(1, len(MONTHS) + 1):
        out, used = args.output_dir / f"out-{month}", resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        given = ["--image_folder", str(args.output_dir / f"month-{month}"), "--output_dir", str(out)]
        subprocess.run([sys.executable, *start, *given], check=True)
        seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - used
        stage = out / f"task-{month:02d}"
        start = [str(EXAMPLES / "continue_from_hub.py"), str(stage)]
        processor = AutoImageProcessor.from_pretrained(stage)
        print(f"\n| after month {month} | " + " | ".join(f"month {number}" for number in range(1, month + 1)) + " |")
        print("|---" * (month + 1) + "|")
        print(stage_row(stage, processor, args.output_dir, month, seconds))
        print("\n".join(frozen_rows(args.backbone, processor, args.output_dir, month)), flush=True)


if __name__ == "__main__":
    main()
