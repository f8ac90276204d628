"""Metrics: accuracy, forgetting and transfer from an accuracy matrix, and a sparse confusion matrix.

Only the confusion matrix is computed here. The code of accuracy, forgetting and transfer is in
`evaluate_modules/continual_learning`, a module for `evaluate` that ships with the package.
"""

import numpy as np

from .evaluate_modules.continual_learning.accuracy_matrix import (
    average_accuracy,
    average_incremental_accuracy,
    backward_transfer,
    forgetting,
    forward_transfer,
    gap_to_joint,
    known_tasks,
    learning_accuracy,
    pooled_accuracy,
    summarize,
)

__all__ = [
    "average_accuracy",
    "average_incremental_accuracy",
    "backward_transfer",
    "confusion_counts",
    "forgetting",
    "forward_transfer",
    "gap_to_joint",
    "is_confusion_counts",
    "known_tasks",
    "learning_accuracy",
    "pooled_accuracy",
    "summarize",
]


def confusion_counts(labels: np.ndarray, answers: np.ndarray) -> list[list[int]]:
    """Return a sparse confusion matrix: how often images of each class were answered as each class.

    Args:
        labels (`numpy.ndarray`): True classes as integers, of shape (N,).
        answers (`numpy.ndarray`): Answered classes, of shape (N,).

    Returns:
        `list[list[int]]`: Rows of true class, answered class and number of images, sorted; no row where it is 0.
    """
    pairs, counts = np.unique(np.stack([labels, answers], axis=1), axis=0, return_counts=True)  # (P, 2), (P,)
    return np.column_stack([pairs, counts]).tolist()


def is_confusion_counts(rows, num_classes: int) -> bool:
    """Whether a value has the form of what `confusion_counts` returns for so many classes."""
    if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == 3 for row in rows):
        return False
    if not all(type(number) is int and 0 <= number < 2**63 for row in rows for number in row):
        return False
    is_inside = all(true < num_classes and answer < num_classes and count for true, answer, count in rows)
    pairs = [row[:2] for row in rows]
    return is_inside and all(pair < following for pair, following in zip(pairs, pairs[1:], strict=False))
