"""Evaluation sets: labelled images of known classes, by the task in which each class was learned."""

from collections.abc import Mapping, Sequence

import numpy as np
from datasets import Dataset

from ..data.columns import label_array, labelled_images
from ..data.splits import check_splits, class_names_by_column, find_columns, present_classes, shorten
from ..data.streams import Task
from ..reporting.history import History


def eval_sets_of(
    images: Dataset | Task,
    history: History,
    image_column: str | None = None,
    label_column: str | None = None,
) -> dict[int, Dataset]:
    """Sort evaluation images by the number of the task (from 0) in which their class was learned.

    Args:
        images (`datasets.Dataset` or [`Task`]): Labelled images, in columns as streams take them; or a task,
            whose evaluation images are taken.
        history ([`History`]): What has been learned.
        image_column (`str`, *optional*): Found by its type if missing.
        label_column (`str`, *optional*): Found by its type and name if missing.

    Returns:
        `dict[int, Dataset]`: Columns `image` and `label` as in a stream. Tasks without images are left out.

    Raises:
        TypeError: If `images` is neither a `Dataset` nor a `Task`.
        ValueError: If there are no images, columns or labels do not fit, or some classes have not been learned.
    """
    images = images.eval_dataset if isinstance(images, Task) else images
    check_splits({"eval_dataset": images})
    if not len(images):
        raise ValueError("Expected images of known classes as `eval_dataset`, but it is empty. Leave it out.")
    columns = find_columns(images, image_column, label_column)
    labelled = labelled_images(images, columns, class_names_by_column([images], columns))
    unknown = sorted(set(present_classes(labelled)) - set(history.classes))
    if unknown:
        raise ValueError(
            f"Expected images of known classes as `eval_dataset`, but {len(unknown)} of its classes are not known "
            f"({shorten(unknown)}). Drop them, or teach them with images of their own in the stream."
        )
    names, labels = labelled.features["label"].names, label_array(labelled, "label")
    sets = {}
    for number, record in enumerate(history.records):
        own = [index for index, name in enumerate(names) if name in set(record.new_classes)]
        rows = np.flatnonzero(np.isin(labels, own))
        if len(rows):
            sets[number] = labelled.select(rows)
    return sets


def count_evaluated(sets: Mapping[int, Dataset], classes: Sequence[str], num_tasks: int) -> tuple[list[int], int]:
    """Return `evaluated_images` and `num_unevaluated` of a [`TaskRecord`].

    Args:
        sets (`Mapping[int, Dataset]`): Evaluation images by the number of their task, from 0.
        classes (`Sequence[str]`): All classes so far.
        num_tasks (`int`): Number of tasks so far.

    Returns:
        `tuple[list[int], int]`: The number of images of each task, and the number of classes without images.
    """
    seen = {name for images in sets.values() for name in present_classes(images)}
    counts = [len(sets[number]) if number in sets else 0 for number in range(num_tasks)]
    return counts, len(set(classes) - seen)
