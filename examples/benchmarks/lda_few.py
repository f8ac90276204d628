"""Measure LDA with few and unequal images a class: the plain formula beside the shrinkage and means that are chosen.

    OMP_NUM_THREADS=1 python examples/benchmarks/lda_few.py --train_file train.parquet --test_file test.parquet \
        --backbone PATH_OR_HUB_NAME --image_size 128

Every draw makes 21 classes new, with k images each, and takes 30 images of all others; a second table has k images of
all classes. Prints accuracies in %, mean and standard deviation over draws. No training; 2 minutes on one core, nearly
all of them for the features.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from datasets import Dataset, load_dataset
from PIL import Image
from transformers import HfArgumentParser, ViTImageProcessor

from hf_wakesleep import SemiParametricHead, WakeSleepConfig, WakeSleepForImageClassification


@dataclass
class Arguments:
    """What to measure LDA on."""

    train_file: str = field(metadata={"help": "Parquet file of training images."})
    test_file: str = field(metadata={"help": "Parquet file of test images."})
    backbone: str = field(metadata={"help": "Folder or name on the Hub of a pretrained backbone."})
    image_size: int = field(default=128, metadata={"help": "Side of the images in pixels."})
    few: list[int] = field(default_factory=lambda: [1, 2, 3, 5, 10, 30], metadata={"help": "Images k of few."})
    many: int = field(default=30, metadata={"help": "Images of each old class."})
    num_new: int = field(default=21, metadata={"help": "Classes of k images."})
    num_draws: int = field(default=20, metadata={"help": "Draws of new classes and of images."})
    shrinkage: float = field(default=0.3, metadata={"help": "Shrinkage of the plain formula."})


@dataclass
class Features:
    """Features (N, D) and labels (N,) of both splits."""

    train: torch.Tensor
    train_labels: torch.Tensor
    test: torch.Tensor
    test_labels: torch.Tensor


@torch.no_grad()
def see(model: WakeSleepForImageClassification, dataset: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features (N, D) and labels (N,) of a split."""
    config = model.config
    processor = ViTImageProcessor(
        size={"shortest_edge": config.image_size},
        do_center_crop=True,
        crop_size={"height": config.image_size, "width": config.image_size},
        image_mean=config.image_mean,
        image_std=config.image_std,
        resample=Image.Resampling.BICUBIC,
    )
    features = []
    for batch in dataset.iter(64):
        images = [image.convert("RGB") for image in batch["image"]]
        features.append(model.extract_features(processor(images, return_tensors="pt")["pixel_values"]))
    return torch.cat(features).float(), torch.tensor(dataset["label"])


def see_dataset(args: Arguments) -> Features:
    """Return features and labels of both splits."""
    data = load_dataset("parquet", data_files={"train": args.train_file, "test": args.test_file})
    model = WakeSleepForImageClassification.from_backbone(args.backbone, image_size=args.image_size).eval()
    return Features(*see(model, data["train"]), *see(model, data["test"]))


def draw(labels: torch.Tensor, counts: list[int], generator: np.random.Generator) -> torch.Tensor:
    """Return rows of so many random images of each class."""
    rows = [generator.permutation(torch.where(labels == label)[0].numpy()) for label in range(len(counts))]
    return torch.from_numpy(np.concatenate([own[:count] for own, count in zip(rows, counts, strict=True)]))


def answers(features: Features, counts: list[int], generator: np.random.Generator, shrinkage: float) -> dict:
    """Return whether each test image is answered right, by the plain formula and by LDA, and what LDA chose."""
    config = WakeSleepConfig(id2label={label: str(label) for label in range(len(counts))})
    lda = SemiParametricHead(config, features.train.shape[1]).lda
    rows = draw(features.train_labels, counts, generator)
    lda.update(features.train[rows], features.train_labels[rows])
    logits = {"plain": plain(lda.means, lda.covariance(), features.test, shrinkage), "chosen": lda(features.test)}
    right = {name: (values.argmax(dim=-1) == features.test_labels).float() for name, values in logits.items()}
    return right | {"shrinkage": lda.find_shrinkage()}


def plain(means: torch.Tensor, covariance: torch.Tensor, features: torch.Tensor, shrinkage: float) -> torch.Tensor:
    """Return logits (N, C) of LDA with a given shrinkage and class means as they are."""
    variance, identity = covariance.diagonal().mean(), torch.eye(len(covariance))
    shrunk = (1 - shrinkage) * covariance + shrinkage * variance * identity
    weights = torch.linalg.solve(shrunk if variance > 0 else identity, means.T)  # (D, C)
    return features @ weights - 0.5 * (means.T * weights).sum(dim=0)


def measure(features: Features, args: Arguments, few: int, is_equal: bool) -> dict[str, list]:
    """Return what came of all draws: accuracies by rule, on old and new classes or on all, and shrinkages."""
    found, classes = {"plain": [], "chosen": [], "shrinkage": []}, int(features.train_labels.max()) + 1
    for seed in range(args.num_draws):
        generator = np.random.default_rng(seed)
        is_new = torch.full((classes,), is_equal)
        is_new[torch.from_numpy(generator.permutation(classes)[: args.num_new])] = True
        right = answers(features, [few if new else args.many for new in is_new], generator, args.shrinkage)
        groups = [True] if is_equal else [False, True]
        for name in ("plain", "chosen"):
            found[name].append([right[name][is_new[features.test_labels] == group].mean() for group in groups])
        found["shrinkage"].append(right["shrinkage"])
    return found


def print_table(title: str, features: Features, args: Arguments, is_equal: bool) -> None:
    """Print a row for every k."""
    print(f"\n| {title} | plain | chosen | shrinkage chosen |\n|---|---|---|---|")
    for few in args.few:
        found = measure(features, args, few, is_equal)
        cells = [
            " / ".join(_cell(values) for values in zip(*found[name], strict=True)) for name in ("plain", "chosen")
        ]
        print(f"| {few} | {' | '.join(cells)} | {np.mean(found['shrinkage']):.2f} |", flush=True)


def _cell(values: tuple) -> str:
    return f"{100 * np.mean(values):.1f} ± {100 * np.std(values):.1f}"


def main() -> None:
    """Measure and print both tables."""
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    features = see_dataset(args)
    print_table("k images of new classes: old / new", features, args, is_equal=False)
    print_table("k images of all classes", features, args, is_equal=True)


if __name__ == "__main__":
    main()
