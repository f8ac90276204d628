"""TaskStream: a sequence of tasks, made from the splits, classes or domains of `datasets`."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Image, concatenate_datasets
from transformers.utils import logging

from .columns import find_column, hub_source, label_array, refuse_transform
from .splits import (
    as_splits,
    check_held_out,
    check_splits,
    check_trained,
    class_lists,
    find_columns,
    is_whole,
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
        """Return what identifies the task, JSON-able: name, classes, numbers of images, a digest of their labels."""
        return {
            "name": self.name,
            "classes": list(self.classes),
            "num_train": len(self.train_dataset),
            "num_eval": len(self.eval_dataset),
            "labels": _digest(self.train_dataset, self.eval_dataset),
        }


class TaskStream(Sequence):
    """A sequence of [`Task`], with what is needed to tell two streams apart.

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
        """Return a stream of one task that holds all the images of this one: the upper bound for any learner."""
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
            repeats (`bool`, defaults to `False`): Whether classes may come again, in a later split or after a stage
                that knows them: as more images of them. A split is then known by its name.

        Raises:
            ValueError: If names do not match, a task has no images, or a class comes again without `repeats`.
        """
        check_held_out(eval_fraction, seed)
        for given in (splits, eval_splits or {}):
            check_splits(given)
        if not splits:
            raise ValueError("A stream must hold at least one task, got no split.")
        if eval_splits is not None and set(eval_splits) != set(splits):
            raise ValueError(
                f"`eval_splits` must have the same names as `splits` ({sorted(splits)}), got {sorted(eval_splits)}."
            )
        columns = find_columns(next(iter(splits.values())), image_column, label_column)
        names = class_lists([*splits.values(), *(eval_splits or {}).values()], columns)
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
        _warn_of_empty_classes(names["label"], known)
        kind = "splits with repeats" if repeats else "splits"
        stream = cls(tasks, {"kind": kind, "seed": _plain(seed), "dataset": hub_source(next(iter(splits.values())))})
        stream.columns = columns
        return stream


class ClassIncrementalStream(TaskStream):
    """A stream in which every task brings classes of its own.

    Args:
        dataset (`Dataset` or `DatasetDict`): With a training split (`"train"`) and an evaluation split (`"test"`,
            `"validation"`, ...). Without the latter a share of the training images is held out, stratified by class.
        num_tasks (`int`, *optional*): Number of tasks; classes are spread evenly, the first tasks take what is over.
        classes_per_task (`Sequence[int]`, *optional*): Number of classes of each task, instead of `num_tasks`.
        seed (`int`, *optional*): Seed of the class order, `numpy.random.RandomState(seed).permutation(C)` as in PyCIL
            and LAMDA-PILOT. `None` keeps the dataset's own order.
        image_column (`str`, *optional*): Found by its type if missing.
        label_column (`str`, *optional*): Found by its type and name if missing.
        eval_fraction (`float`, defaults to 0.2): Share to hold out if there is no evaluation split.

    Raises:
        ValueError: If columns, labels or numbers do not fit; the message says what was expected.
    """

    def __init__(
        self,
        dataset: Dataset | DatasetDict,
        *,
        num_tasks: int | None = None,
        classes_per_task: Sequence[int] | None = None,
        seed: int | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        eval_fraction: float = 0.2,
    ):
        check_held_out(eval_fraction, seed)
        splits = as_splits(dataset)
        columns = find_columns(splits["train"], image_column, label_column)
        names = class_lists(list(splits.values()), columns)
        train, evaluation = train_and_eval(splits, columns, names, eval_fraction, seed or 0, where="the dataset")
        names = train.features["label"].names
        present = [names.index(name) for name in present_classes(train)]
        sizes = _task_sizes(len(present), num_tasks, classes_per_task)
        _warn_of_empty_classes(names, [names[index] for index in present])
        if classes_per_task is None and min(sizes) < max(sizes):
            logger.warning(
                f"{len(present)} classes cannot be spread evenly over {num_tasks} tasks, which have {sizes} classes. "
                f"Pass another `num_tasks`, or `classes_per_task={sizes}` to say that this is what you want."
            )
        order = range(len(present)) if seed is None else np.random.RandomState(seed).permutation(len(present))
        order = [present[position] for position in order]
        train_labels, eval_labels = label_array(train, "label"), label_array(evaluation, "label")
        tasks = []
        for number, end in enumerate(np.cumsum(sizes), start=1):
            indices = order[end - sizes[number - 1] : end]
            classes = tuple(names[index] for index in indices)
            tasks.append(
                Task(
                    name=f"task-{number:02d}",
                    classes=classes,
                    new_classes=classes,
                    train_dataset=train.select(np.flatnonzero(np.isin(train_labels, indices))),
                    eval_dataset=evaluation.select(np.flatnonzero(np.isin(eval_labels, indices))),
                )
            )
        super().__init__(
            tasks, {"kind": "class-incremental", "seed": _plain(seed), "dataset": hub_source(splits["train"])}
        )
        self.columns = columns


class DomainIncrementalStream(TaskStream):
    """A stream in which every task brings the same classes from another domain.

    Args:
        dataset (`Dataset` or `DatasetDict`): As for [`ClassIncrementalStream`], with a column that names the domain.
        by (`str`, defaults to `"domain"`): That column: `ClassLabel`, strings or integers.
        seed (`int`, *optional*): Seed of the order of the domains; `None` keeps the order of their names.
        image_column (`str`, *optional*): Found by its type if missing.
        label_column (`str`, *optional*): Found by its type and name if missing.
        eval_fraction (`float`, defaults to 0.2): Share to hold out if there is no evaluation split.

    Raises:
        ValueError: If columns or labels do not fit; the message says what was expected.
    """

    def __init__(
        self,
        dataset: Dataset | DatasetDict,
        *,
        by: str = "domain",
        seed: int | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        eval_fraction: float = 0.2,
    ):
        check_held_out(eval_fraction, seed)
        splits = as_splits(dataset)
        columns = find_columns(splits["train"], image_column, label_column)
        if by in columns.values():
            raise ValueError(f"`by` must name a column of domains, but {by!r} holds the images or labels.")
        columns["domain"] = find_column(splits["train"], "label", by)
        names = class_lists(list(splits.values()), columns)
        train, evaluation = train_and_eval(splits, columns, names, eval_fraction, seed or 0, where="the dataset")
        domains = names["domain"]
        present = np.unique(label_array(train, "domain"))
        order = present if seed is None else present[np.random.RandomState(seed).permutation(len(present))]
        train_domains, eval_domains = label_array(train, "domain"), label_array(evaluation, "domain")
        tasks, known = [], []
        for index in order:
            task_train = train.select(np.flatnonzero(train_domains == index)).select_columns(["image", "label"])
            task_eval = evaluation.select(np.flatnonzero(eval_domains == index)).select_columns(["image", "label"])
            classes = present_classes(task_train)
            new = [name for name in classes if name not in known]
            known += new
            check_trained(task_eval, known, where=f"the domain {domains[index]!r}, or of one before,")
            tasks.append(Task(domains[index], tuple(classes), tuple(new), task_train, task_eval))
        _warn_of_empty_classes(names["label"], known)
        protocol = {
            "kind": "domain-incremental",
            "by": by,
            "seed": _plain(seed),
            "dataset": hub_source(splits["train"]),
        }
        super().__init__(tasks, protocol)
        self.columns = columns


def _check_columns(dataset: Dataset, what: str) -> None:
    """Raise a `ValueError` unless a dataset is what a [`Task`] holds."""
    refuse_transform(dataset, what)
    for column, kind in (("image", Image), ("label", ClassLabel)):
        if not isinstance(dataset.features.get(column), kind):
            raise ValueError(
                f"Expected a column {column!r} of type {kind.__name__} in {what}, found {dict(dataset.features)}. "
                "Build the stream with `TaskStream.from_splits`, which finds and converts columns."
            )


def _warn_of_empty_classes(names: Sequence[str], trained: Sequence[str]) -> None:
    """Say which classes of a `ClassLabel` have no training image."""
    empty = [name for name in names if name not in set(trained)]
    if empty:
        logger.warning(
            f"{len(empty)} of {len(names)} classes have no training image and are left out: {shorten(empty)}. Give "
            "them images, or cast the labels to a `ClassLabel` without these names."
        )


def _plain(seed: int | None) -> int | None:
    return None if seed is None else int(seed)


def _digest(*datasets: Dataset) -> str:
    digest = hashlib.sha256()
    for dataset in datasets:
        digest.update(label_array(dataset, "label").astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def _task_sizes(num_classes: int, num_tasks: int | None, classes_per_task: Sequence[int] | None) -> list[int]:
    if (num_tasks is None) == (classes_per_task is None):
        raise ValueError("Give either `num_tasks` or `classes_per_task`, not both and not neither.")
    if classes_per_task is not None:
        sizes = list(classes_per_task) if isinstance(classes_per_task, Sequence | np.ndarray) else None
        if sizes is None or not all(map(is_whole, sizes)):
            raise ValueError(f"`classes_per_task` must be a list of whole numbers, got {classes_per_task!r}.")
        if not sizes or min(sizes) < 1 or sum(sizes) != num_classes:
            raise ValueError(
                f"`classes_per_task` must hold positive numbers that add up to the {num_classes} classes of the "
                f"dataset, got {sizes} (sum {sum(sizes)})."
            )
        return sizes
    if not is_whole(num_tasks) or not 1 <= num_tasks <= num_classes:
        raise ValueError(
            f"`num_tasks` must lie in 1..{num_classes}, the number of classes of the dataset, got {num_tasks!r}."
        )
    return [len(part) for part in np.array_split(np.arange(num_classes), num_tasks)]
