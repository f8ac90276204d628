"""ClassIncrementalStream and DomainIncrementalStream: one dataset, split into tasks by its classes or its domains."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Dataset, DatasetDict
from transformers.utils import logging

from .columns import find_column, hub_source, label_array
from .splits import (
    check_classes_trained,
    check_split_arguments,
    class_names_by_column,
    find_columns,
    find_splits,
    is_integer,
    present_classes,
    train_and_eval,
)
from .streams import Task, TaskStream, plain_seed, warn_of_empty_classes

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class _Source:
    """What both streams are made from.

    Args:
        train (`Dataset`): Training images.
        evaluation (`Dataset`): Evaluation images, with the same columns.
        columns (`dict[str, str]`): From the stream's names of columns to those of the dataset.
        hub (`dict[str, str]`, *optional*): Name and revision of the dataset on the Hub.
    """

    train: Dataset
    evaluation: Dataset
    columns: dict[str, str]
    hub: dict[str, str] | None

    @classmethod
    def open(
        cls,
        dataset: Dataset | DatasetDict,
        eval_fraction: float,
        seed: int | None,
        image_column: str | None,
        label_column: str | None,
        domain_column: str | None = None,
    ) -> "_Source":
        """Find splits and columns of a dataset, and hold evaluation images out if there are none."""
        check_split_arguments(eval_fraction, seed)
        splits = find_splits(dataset)
        columns = find_columns(splits["train"], image_column, label_column)
        if domain_column is not None:
            if domain_column in columns.values():
                raise ValueError(
                    f"`by` must name a column of domains, but {domain_column!r} holds the images or labels."
                )
            columns["domain"] = find_column(splits["train"], "label", domain_column)
        names = class_names_by_column(list(splits.values()), columns)
        train, evaluation = train_and_eval(splits, columns, names, eval_fraction, seed or 0, where="the dataset")
        return cls(train, evaluation, columns, hub_source(splits["train"]))


class ClassIncrementalStream(TaskStream):
    """A stream in which every task brings classes of its own.

    Args:
        dataset (`Dataset` or `DatasetDict`): With a training split (`"train"`) and an evaluation split (`"test"`,
            `"validation"`, ...). Without the latter a share of the training images is held out, stratified by class.
        num_tasks (`int`, *optional*): Number of tasks of equally many classes; the first tasks take the remainder.
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
        source = _Source.open(dataset, eval_fraction, seed, image_column, label_column)
        train, evaluation = source.train, source.evaluation
        names = train.features["label"].names
        present = [names.index(name) for name in present_classes(train)]
        sizes = _task_sizes(len(present), num_tasks, classes_per_task)
        warn_of_empty_classes(names, [names[index] for index in present])
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
        super().__init__(tasks, {"kind": "class-incremental", "seed": plain_seed(seed), "dataset": source.hub})
        self.columns = source.columns


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
        source = _Source.open(dataset, eval_fraction, seed, image_column, label_column, by)
        train, evaluation = source.train, source.evaluation
        domains = train.features["domain"].names
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
            check_classes_trained(task_eval, known, where=f"the domain {domains[index]!r}, or of one before,")
            tasks.append(Task(domains[index], tuple(classes), tuple(new), task_train, task_eval))
        warn_of_empty_classes(train.features["label"].names, known)
        protocol = {
            "kind": "domain-incremental",
            "by": by,
            "seed": plain_seed(seed),
            "dataset": source.hub,
        }
        super().__init__(tasks, protocol)
        self.columns = source.columns


def _task_sizes(num_classes: int, num_tasks: int | None, classes_per_task: Sequence[int] | None) -> list[int]:
    if (num_tasks is None) == (classes_per_task is None):
        raise ValueError("Give either `num_tasks` or `classes_per_task`, not both and not neither.")
    if classes_per_task is not None:
        sizes = list(classes_per_task) if isinstance(classes_per_task, Sequence | np.ndarray) else None
        if sizes is None or not all(map(is_integer, sizes)):
            raise ValueError(f"`classes_per_task` must be a list of integers, got {classes_per_task!r}.")
        if not sizes or min(sizes) < 1 or sum(sizes) != num_classes:
            raise ValueError(
                f"`classes_per_task` must hold positive numbers that add up to the {num_classes} classes of the "
                f"dataset, got {sizes} (sum {sum(sizes)})."
            )
        return sizes
    if not is_integer(num_tasks) or not 1 <= num_tasks <= num_classes:
        raise ValueError(
            f"`num_tasks` must lie in 1..{num_classes}, the number of classes of the dataset, got {num_tasks!r}."
        )
    return [len(part) for part in np.array_split(np.arange(num_classes), num_tasks)]
