"""Balance over classes: random draws with the same probability for each, and shares taken evenly of each."""

import numpy as np

from .budget import ranks_within


class BalancedDraw:
    """Draws among memories: classes take turns, and a class gives each of its memories once before any comes again.

    In every round each class comes once, in random order. All follows from a seed and the number of the draw, so a
    sequence can be gone on with anywhere. Orders are kept while they last, so a draw costs the same for any number of
    memories.

    Args:
        labels (`numpy.ndarray` of shape `(M,)`): Sorted labels of all memories.
        among (`numpy.ndarray`, *optional*): Sorted positions to draw from; all if missing.
    """

    def __init__(self, labels: np.ndarray, among: np.ndarray | None = None):
        self._among = np.arange(len(labels)) if among is None else among
        self._starts = np.flatnonzero(np.diff(labels[self._among], prepend=-1))  # (K,) first position of each class
        self._counts = np.diff(self._starts, append=len(self._among))  # (K,)
        self._orders: dict[int, tuple[tuple[int, ...], np.ndarray]] = {}  # by class, and that of classes at -1

    def positions(self, size: int, seed: tuple[int, ...], start: int = 0) -> np.ndarray:
        """Return positions, int64 of shape (B,).

        Args:
            size (`int`): Number B of memories to draw.
            seed (`tuple[int, ...]`): Names the sequence.
            start (`int`, defaults to 0): Number of the first draw in it.
        """
        return np.array([self._position(number, seed) for number in range(start, start + size)], dtype=np.int64)

    def _position(self, number: int, seed: tuple[int, ...]) -> int:
        turn, place = divmod(number, len(self._starts))
        drawn = self._order(-1, len(self._starts), (*seed, turn))[place]
        repetition, rank = divmod(turn, int(self._counts[drawn]))
        return self._among[self._starts[drawn] + self._order(drawn, self._counts[drawn], (*seed, repetition))[rank]]

    def _order(self, of: int, count: int, key: tuple[int, ...]) -> np.ndarray:
        """Return a random order of the classes, or of the memories of one."""
        if of not in self._orders or self._orders[of][0] != key:
            self._orders[of] = key, np.random.default_rng((*key, of + 1)).permutation(count)
        return self._orders[of][1]


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
