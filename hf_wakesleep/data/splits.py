"""Splits: finds training and evaluation images in a dataset, or holds a stratified share out for evaluation."""

import zlib
from collections.abc import Mapping, Sequence
from numbers import Integral, Real

import numpy as np
from datasets import Dataset, DatasetDict

from .columns import class_names, find_column, label_array, labelled_images, refuse_transform

EVAL_SPLITS = ("test", "validation", "valid", "val", "eval")


def find_splits(dataset: Dataset | DatasetDict) -> dict[str, Dataset]:
    """Return the split `"train"` and, if there is an evaluation split, that one as `"test"`.

    Raises:
        TypeError: If it is no `Dataset` or `DatasetDict`, or a streaming one.
        ValueError: If there is no training split, or a split has a transform.
    """
    if isinstance(dataset, Dataset):
        dataset = {"train": dataset}
    check_splits(dataset)
    if "train" not in dataset:
        raise ValueError(f"Expected a split 'train', found {sorted(dataset)}. Rename the split or pass a `Dataset`.")
    if not len(dataset["train"]):
        raise ValueError("Expected training images, but the split 'train' is empty.")
    evaluation = next((name for name in EVAL_SPLITS if name in dataset), None)
    return {"train": dataset["train"]} | ({} if evaluation is None else {"test": dataset[evaluation]})


def check_splits(splits: Mapping[str, Dataset]) -> None:
    """Raise a `TypeError` for anything but splits of datasets that are at hand, a `ValueError` for a transform."""
    if isinstance(splits, Mapping):
        wrong = [type(split).__name__ for split in splits.values() if not isinstance(split, Dataset)]
    else:
        wrong = [type(splits).__name__]
    if wrong:
        raise TypeError(
            f"Expected a `datasets.Dataset` or `DatasetDict`, got {wrong[0]}. Load it with "
            "`datasets.load_dataset(...)`; a streaming dataset must be materialised first."
        )
    for name, split in splits.items():
        refuse_transform(split, f"the images of the split {name!r}")


def check_split_arguments(eval_fraction: float, seed: int | None) -> None:
    """Raise a `ValueError` for a share or a seed that nothing can be held out with."""
    if not isinstance(eval_fraction, Real) or not 0 < eval_fraction < 1:
        raise ValueError(f"`eval_fraction` must lie in (0, 1), got {eval_fraction!r}.")
    if seed is not None and not (is_integer(seed) and 0 <= seed < 2**32):
        raise ValueError(f"`seed` must be an integer in 0..2**32 - 1, got {seed!r}.")


def is_integer(value) -> bool:
    """Whether a value is an integer, of Python or numpy, but no truth value."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def find_columns(dataset: Dataset, image_column: str | None, label_column: str | None) -> dict[str, str]:
    """Return from the stream's names of columns, `image` and `label`, to those of the dataset."""
    return {"image": find_column(dataset, "image", image_column), "label": find_column(dataset, "label", label_column)}


def class_names_by_column(datasets: Sequence[Dataset], columns: dict[str, str]) -> dict[str, list[str]]:
    """Return the class names of every column but the images, over all datasets."""
    return {new: class_names(datasets, old) for new, old in columns.items() if new != "image"}


def train_and_eval(
    splits: dict[str, Dataset],
    columns: dict[str, str],
    names: dict[str, list[str]],
    eval_fraction: float,
    seed: int,
    *,
    where: str,
) -> tuple[Dataset, Dataset]:
    """Return training and evaluation images with the given columns, all but the images as `ClassLabel`.

    Args:
        splits (`dict[str, Dataset]`): `"train"` and perhaps `"test"`; without it a share of the first is held out.
        columns (`dict[str, str]`): From new to old names of columns.
        names (`dict[str, list[str]]`): Class names of every column but the images.
        eval_fraction (`float`): Share to hold out.
        seed (`int`): Seed of what is held out.
        where (`str`): What to call the images in an error.

    Raises:
        ValueError: If labels or images are missing, or a class is evaluated but not trained.
    """
    train = labelled_images(splits["train"], columns, names)
    if "test" in splits:
        if splits["train"]._fingerprint == splits["test"]._fingerprint:
            raise ValueError(f"The training and the evaluation images of {where} are the same; use different splits.")
        evaluation = labelled_images(splits["test"], columns, names)
    else:
        train, evaluation = stratified_split(train, list(names), eval_fraction, seed)
    check_classes_trained(evaluation, present_classes(train), where=where)
    return train, evaluation


def stratified_split(
    dataset: Dataset, columns: Sequence[str], eval_fraction: float, seed: int
) -> tuple[Dataset, Dataset]:
    """Split a dataset into training and evaluation, the same share of every class (and domain) in both.

    What is held out of a class depends only on the seed, its name and its own rows.

    Args:
        dataset (`datasets.Dataset`): Any.
        columns (`Sequence[str]`): `ClassLabel` columns; images that agree in all of them form a stratum.
        eval_fraction (`float`): Share of evaluation images in (0, 1): at least one of a stratum, never its only one.
        seed (`int`): Seed of what is held out.
    """
    keys = np.stack([label_array(dataset, column) for column in columns], axis=1)  # (N, columns)
    found, strata = np.unique(keys, axis=0, return_inverse=True)  # (S, columns), (N,)
    strata = strata.reshape(-1)
    held_out = np.zeros(len(strata), dtype=bool)
    for number, key in enumerate(found.tolist()):
        names = [dataset.features[column].names[index] for column, index in zip(columns, key, strict=True)]
        # A generator of its own: other strata do not change when rows or classes are added or dropped.
        generator = np.random.RandomState([seed, *(zlib.crc32(name.encode()) for name in names)])
        rows = generator.permutation(np.flatnonzero(strata == number))
        held_out[rows[: min(max(round(eval_fraction * len(rows)), 1), len(rows) - 1)]] = True
    return dataset.select(np.flatnonzero(~held_out)), dataset.select(np.flatnonzero(held_out))


def check_classes_trained(evaluation: Dataset, trained: Sequence[str], where: str) -> None:
    """Raise a `ValueError` if there are evaluation images of classes that are not trained."""
    untrained = sorted(set(present_classes(evaluation)) - set(trained))
    if untrained:
        raise ValueError(
            f"Every class needs training images, but {shorten(untrained)} of {where} only have evaluation images. "
            "Give them training images or drop them."
        )


def present_classes(dataset: Dataset) -> list[str]:
    """Return the names of the classes that have images, in the order of their labels."""
    names = dataset.features["label"].names
    return [names[index] for index in np.unique(label_array(dataset, "label"))]


def shorten(names: Sequence[str], most: int = 5) -> str:
    """Return names as text, the first few of many."""
    shown = ", ".join(repr(name) for name in names[:most])
    return f"[{shown}{', ...' if len(names) > most else ''}]"
