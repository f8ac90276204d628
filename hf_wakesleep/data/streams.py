"""Task and TaskStream: the tasks that a model learns one after another, each with its images."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from datasets import ClassLabel, Dataset, Image, concatenate_datasets
from transformers.utils import logging

from .columns import hub_source, label_array, refuse_transform
from .splits import (
    check_split_arguments,
    check_splits,
    class_names_by_column,
    find_columns,
    present_classes,
    shorten,
    train_and_eval,
)

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Task:
    """One step of a stream.

    Args:
        name (`str`): `"task-01"`, `"task-02"`, ..., or the name of its split or domain.
        classes (`tuple[str, ...]`): Every class that the task has training images of.
        new_classes (`tuple[str, ...]`): Those that no earlier task had, in the order in which the head learns them.
        train_dataset (`datasets.Dataset`): Columns `image` (`Image`) and `label` (`ClassLabel`).
        eval_dataset (`datasets.Dataset`): The same columns; no image of it is in any `train_dataset`.
    """

    name: str
    classes: tuple[str, ...]
    new_classes: tuple[str, ...]
    train_dataset: Dataset
    eval_dataset: Dataset

    def fingerprint(self) -> dict:
        """Return what identifies the task, JSON-able: name, classes, numbers of images and a digest of labels."""
        return {
            "name": self.name,
            "classes": list(self.classes),
            "num_train": len(self.train_dataset),
            "num_eval": len(self.eval_dataset),
            "labels": _digest(self.train_dataset, self.eval_dataset),
        }


class TaskStream(Sequence):
    """A sequence of [`Task`], in the order of learning.

    Args:
        tasks (`Sequence[Task]`): The tasks, in the order of learning.
        protocol (`dict`): How the stream was made (kind, seed, ...), JSON-able.

    Raises:
        ValueError: If there is no task, or a task has no training or no evaluation image, other columns, or images
            with a transform.
    """

    columns: Mapping[str, str] = MappingProxyType({})  # from `image` and `label` to those of the dataset, if known

    def __init__(self, tasks: Sequence[Task], protocol: dict):
        if not tasks:
            raise ValueError("A stream must hold at least one task, got none.")
        names = [task.name for task in tasks]
        if len(set(names)) < len(names):
            raise ValueError(
                f"Every task needs a name of its own, got {shorten(names)}. Rename those that come twice."
            )
        for task in tasks:
            for split, dataset in (("training", task.train_dataset), ("evaluation", task.eval_dataset)):
                if len(dataset) == 0:
                    raise ValueError(
                        f"Every task needs images, but {task.name!r} (classes {shorten(task.classes)}) has no "
                        f"{split} image. Merge it with another task, or give it images."
                    )
                _check_columns(dataset, f"the {split} images of {task.name!r}")
        self._tasks = tuple(tasks)
        self.protocol = protocol

    def __len__(self) -> int:
        return len(self._tasks)

    def __getitem__(self, index):
        return self._tasks[index]

    def __iter__(self) -> Iterator[Task]:
        return iter(self._tasks)

    @property
    def classes(self) -> tuple[str, ...]:
        """All classes, in the order of learning."""
        return tuple(name for task in self._tasks for name in task.new_classes)

    def fingerprints(self) -> list[dict]:
        """Return what identifies each task."""
        return [task.fingerprint() for task in self._tasks]

    def joint(self) -> "TaskStream":
        """Return a stream of one task with all images of this one: joint training, the upper bound."""
        classes = self.classes
        task = Task(
            name="task-01",
            classes=classes,
            new_classes=classes,
            train_dataset=concatenate_datasets([task.train_dataset for task in self._tasks]),
            eval_dataset=concatenate_datasets([task.eval_dataset for task in self._tasks]),
        )
        return TaskStream([task], {**self.protocol, "joint": True})

    @classmethod
    def from_splits(
        cls,
        splits: Mapping[str, Dataset],
        eval_splits: Mapping[str, Dataset] | None = None,
        *,
        eval_fraction: float = 0.2,
        seed: int = 0,
        image_column: str | None = None,
        label_column: str | None = None,
        repeats: bool = False,
    ) -> "TaskStream":
        """Build a class-incremental stream from a `DatasetDict` with one split per task, in the order of the splits.

        Args:
            splits (`Mapping[str, Dataset]`): Training images of each task, by the name of the task.
            eval_splits (`Mapping[str, Dataset]`, *optional*): Evaluation images under the same names; held out of
                `splits`, stratified by class, if missing.
            eval_fraction (`float`, defaults to 0.2): Share to hold out.
            seed (`int`, defaults to 0): Seed of what is held out.
            image_column (`str`, *optional*): Found by its type if missing.
            label_column (`str`, *optional*): Found by its type and name if missing.
            repeats (`bool`, defaults to `False`): Whether a later split, or a later run, may bring more images of
                known classes. Splits are then told apart by their names.

        Raises:
            ValueError: If names do not match, a task has no images, or a class comes again without `repeats`.
        """
        check_split_arguments(eval_fraction, seed)
        _check_split_names(splits, eval_splits)
        columns = find_columns(next(iter(splits.values())), image_column, label_column)
        names = class_names_by_column([*splits.values(), *(eval_splits or {}).values()], columns)
        tasks, known = [], []
        for name, dataset in splits.items():
            sources = {"train": dataset} | ({} if eval_splits is None else {"test": eval_splits[name]})
            train, evaluation = train_and_eval(sources, columns, names, eval_fraction, seed, where=repr(name))
            classes = present_classes(train)
            again = [c for c in classes if c in known]
            if again and not repeats:
                raise ValueError(
                    f"Each class must belong to one split, but {shorten(again)} of {name!r} came before. Move its "
                    "images into one split, pass `repeats=True` to teach more images of it later, or use "
                    "DomainIncrementalStream for tasks that share classes."
                )
            new = [c for c in classes if c not in known]
            known += new
            tasks.append(Task(name, tuple(classes), tuple(new), train, evaluation))
        warn_of_empty_classes(names["label"], known)
        kind = "splits with repeats" if repeats else "splits"
        stream = cls(
            tasks, {"kind": kind, "seed": plain_seed(seed), "dataset": hub_source(next(iter(splits.values())))}
        )
        stream.columns = columns
        return stream


def _check_split_names(splits: Mapping[str, Dataset], eval_splits: Mapping[str, Dataset] | None) -> None:
    """Raise an error unless there are splits of datasets, and evaluation splits of the same names if any."""
    for given in (splits, eval_splits or {}):
        check_splits(given)
    if not splits:
        raise ValueError("A stream must hold at least one task, got no split.")
    if eval_splits is not None and set(eval_splits) != set(splits):
        raise ValueError(
            f"`eval_splits` must have the same names as `splits` ({sorted(splits)}), got {sorted(eval_splits)}."
        )


def _check_columns(dataset: Dataset, what: str) -> None:
    """Raise a `ValueError` unless a dataset is what a [`Task`] holds."""
    refuse_transform(dataset, what)
    for column, kind in (("image", Image), ("label", ClassLabel)):
        if not isinstance(dataset.features.get(column), kind):
            raise ValueError(
                f"Expected a column {column!r} of type {kind.__name__} in {what}, found {dict(dataset.features)}. "
                "Build the stream with `TaskStream.from_splits`, which finds and converts columns."
            )


def warn_of_empty_classes(names: Sequence[str], trained: Sequence[str]) -> None:
    """Warn of classes of a `ClassLabel` that have no training image."""
    empty = [name for name in names if name not in set(trained)]
    if empty:
        logger.warning(
            f"{len(empty)} of {len(names)} classes have no training image and are left out: {shorten(empty)}. Give "
            "them images, or cast the labels to a `ClassLabel` without these names."
        )


def plain_seed(seed: int | None) -> int | None:
    """Return a seed as an `int` of Python, which JSON can hold."""
    return None if seed is None else int(seed)


def _digest(*datasets: Dataset) -> str:
    return digest_labels(np.concatenate([label_array(dataset, "label") for dataset in datasets]))


def digest_labels(labels: np.ndarray) -> str:
    """Return a short digest of the labels of images, in their order."""
    return hashlib.sha256(labels.astype("<i8").tobytes()).hexdigest()[:16]
