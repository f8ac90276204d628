"""Balance over classes: random draws with the same probability for each, and a share of each that is held out."""

import numpy as np

from .budget import ranks_within

_GOLDEN_RATIO = (5**0.5 - 1) / 2


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


def measured_mask(labels: np.ndarray, tasks: np.ndarray, share: float) -> np.ndarray:
    """Return which memories a sleep is measured on: a share of every class, task by task; bool of shape (M,).

    Where a class has too few for the share, the remainder is carried over classes: with 5 memories and a share of 0.1
    every other class gives one. Multiples of the golden ratio say which, so that it stays the same for a class when
    others come or shrink. A class of several gives all but one at most. There is at least one, unless the share is 0.

    Args:
        labels (`numpy.ndarray` of shape `(M,)`): Labels of all memories.
        tasks (`numpy.ndarray` of shape `(M,)`): Their tasks, which take turns in memory.
        share (`float`): Share of a class, in [0, 1).
    """
    order = np.lexsort((tasks, labels))  # stable
    classes = labels[order]
    ranks, counts = ranks_within(classes), np.bincount(labels, minlength=1)[classes]
    phases = classes * _GOLDEN_RATIO % 1
    is_in = np.floor((ranks + 1) * share + phases) > np.floor(ranks * share + phases)
    num_in = np.bincount(classes, weights=is_in, minlength=1)[classes]
    is_in &= (ranks > 0) | (num_in < counts) | (counts == 1)
    if share and len(labels) and not is_in.any():
        is_in[np.lexsort((ranks, counts))[-1]] = True  # the least useful of the largest class
    mask = np.zeros(len(labels), dtype=bool)
    mask[order] = is_in
    return mask


def held_out_mask(labels: np.ndarray, tasks: np.ndarray, share: float) -> np.ndarray:
    """Return which memories are held out of replay, bool of shape (M,): those of `measured_mask`, but no only ones.

    A class with a single memory would else not be replayed at all.
    """
    return measured_mask(labels, tasks, share) & (np.bincount(labels, minlength=1)[labels] > 1)


def spread(positions: np.ndarray, most: int) -> np.ndarray:
    """Return at most so many of some positions, all the same distance apart."""
    if len(positions) <= most:
        return positions
    return positions[np.arange(most) * len(positions) // most]
