"""Balance over classes: random draws with the same probability for each, and shares taken evenly of each."""

import numpy as np

from .budget import ranks_within


class BalancedDraw:
    """Draws among memories; what it needs of their labels is computed once, so a draw costs the same for any number.

    Args:
        labels (`numpy.ndarray` of shape `(M,)`): Sorted labels of all memories.
        among (`numpy.ndarray`, *optional*): Sorted positions to draw from; all if missing.
    """

    def __init__(self, labels: np.ndarray, among: np.ndarray | None = None):
        self._among = np.arange(len(labels)) if among is None else among
        self._starts = np.flatnonzero(np.diff(labels[self._among], prepend=-1))  # (K,) first position of each class
        self._counts = np.diff(self._starts, append=len(self._among))  # (K,)

    def positions(self, size: int, generator: np.random.Generator) -> np.ndarray:
        """Return positions, int64 of shape (B,).

        Args:
            size (`int`): Number B of memories to draw, with replacement.
            generator (`numpy.random.Generator`): Source of randomness.
        """
        drawn = generator.integers(len(self._starts), size=size)  # (B,)
        offsets = (generator.random(size) * self._counts[drawn]).astype(np.int64)
        return self._among[self._starts[drawn] + offsets]


def evenly(labels: np.ndarray, tasks: np.ndarray, share: float) -> np.ndarray:
    """Return a share of the memories of each class, task by task; bool of shape (M,).

    Args:
        labels (`numpy.ndarray` of shape `(M,)`): Labels of all memories.
        tasks (`numpy.ndarray` of shape `(M,)`): Their tasks, which take turns in memory.
        share (`float`): Share of a class, in [0, 1]; with 0.1 every tenth memory.
    """
    order = np.lexsort((tasks, labels))  # stable
    is_taken = np.zeros(len(labels), dtype=bool)
    ranks = ranks_within(labels[order])
    is_taken[order] = np.floor((ranks + 1) * share) > np.floor(ranks * share)
    return is_taken
