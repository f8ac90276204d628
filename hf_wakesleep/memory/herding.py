"""Herding: images of a class ranked by how well the first of them stand for all (Rebuffi et al. 2017, algorithm 4)."""

import numpy as np


def herding_ranks(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the rank of every image within its class, 0 for the most useful; int64 of shape (N,).

    Features are scaled to length 1. The next image is always the one that brings the mean of those chosen nearest to
    the mean of the class; of equal ones it is the first.

    Args:
        features (`numpy.ndarray` of shape `(N, D)`): Features of all images.
        labels (`numpy.ndarray` of shape `(N,)`): Their classes.
    """
    features = np.asarray(features, dtype=np.float64)
    features = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    ranks = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        ranks[rows[_greedy_order(features[rows])]] = np.arange(len(rows))
    return ranks


def _greedy_order(x: np.ndarray) -> np.ndarray:
    """Return the order of choice among features (N, D), int64 of shape (N,).

    After k - 1 choices with the sum s, |mean - (s + x) / k| is smallest where 2 x (k mean - s) - x x is largest.
    """
    to_mean, squares = x @ x.mean(axis=0), (x * x).sum(axis=1)  # (N,), (N,)
    scores = np.zeros(len(x))  # x (k mean - s) of every image
    is_left = np.ones(len(x), dtype=bool)
    order = np.zeros(len(x), dtype=np.int64)
    for step in range(len(x)):
        scores += to_mean
        order[step] = np.argmax(np.where(is_left, 2 * scores - squares, -np.inf))
        is_left[order[step]] = False
        scores -= x @ x[order[step]]
    return order
