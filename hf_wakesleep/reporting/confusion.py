"""Confusion: a sparse confusion matrix, as rows of true class, answered class and number of images."""

import numpy as np


def count_answers(labels: np.ndarray, answers: np.ndarray) -> list[list[int]]:
    """Return how often images of one class were taken for another, or rightly for their own.

    Args:
        labels (`numpy.ndarray`): True classes as integers, of shape (N,).
        answers (`numpy.ndarray`): Answered classes, of shape (N,).

    Returns:
        `list[list[int]]`: Rows of true class, answered class and number of images, sorted; no row where it is 0.
    """
    pairs, counts = np.unique(np.stack([labels, answers], axis=1), axis=0, return_counts=True)  # (P, 2), (P,)
    return np.column_stack([pairs, counts]).tolist()


def is_confusion(rows, num_classes: int) -> bool:
    """Whether a value is what `count_answers` returns of some classes."""
    if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == 3 for row in rows):
        return False
    if not all(type(number) is int and 0 <= number < 2**63 for row in rows for number in row):
        return False
    is_inside = all(true < num_classes and answer < num_classes and count for true, answer, count in rows)
    pairs = [row[:2] for row in rows]
    return is_inside and all(pair < following for pair, following in zip(pairs, pairs[1:], strict=False))
