"""Sampling of memories: class-balanced replay, a stratified share to hold out, and herding to rank what is kept."""

import numpy as np

from .budget import rank_within_groups

_GOLDEN_RATIO = (5**0.5 - 1) / 2


class BalancedSampler:
    """Samples memories at random, as many of each class: each class once a round, each memory once before it repeats.

    Classes come in a new random order every round. A draw depends only on the key and its number, so a sequence can be
    continued anywhere. Orders are cached while they are in use, so a draw costs the same for any number of memories.

    Args:
        labels (`numpy.ndarray` of shape `(M,)`): Sorted labels of all memories.
        among (`numpy.ndarray`, *optional*): Sorted positions to draw from; all if missing.
    """

    def __init__(self, labels: np.ndarray, among: np.ndarray | None = None):
        self._among = np.arange(len(labels)) if among is None else among
        self._starts = np.flatnonzero(np.diff(labels[self._among], prepend=-1))  # (K,) first position of each class
        self._counts = np.diff(self._starts, append=len(self._among))  # (K,)
        self._orders: dict[int, tuple[tuple[int, ...], np.ndarray]] = {}  # by class, and that of classes at -1

    def draw(self, size: int, rng_key: tuple[int, ...], start: int = 0) -> np.ndarray:
        """Return positions of memories, int64 of shape (B,).

        Args:
            size (`int`): Number B of memories to draw.
            rng_key (`tuple[int, ...]`): Key of the sequence, the entropy of a `numpy.random.SeedSequence`.
            start (`int`, defaults to 0): Number of the first draw in it.
        """
        return np.array([self._position(number, rng_key) for number in range(start, start + size)], dtype=np.int64)

    def _position(self, number: int, rng_key: tuple[int, ...]) -> int:
        class_round, rank = divmod(number, len(self._starts))
        drawn = self._order(-1, len(self._starts), (*rng_key, class_round))[rank]
        memory_round, rank = divmod(class_round, int(self._counts[drawn]))
        return self._among[
            self._starts[drawn] + self._order(drawn, self._counts[drawn], (*rng_key, memory_round))[rank]
        ]

    def _order(self, of: int, count: int, key: tuple[int, ...]) -> np.ndarray:
        """Return a random order of the classes (`of` is -1) or of the memories of class `of`."""
        if of not in self._orders or self._orders[of][0] != key:
            self._orders[of] = key, np.random.default_rng((*key, of + 1)).permutation(count)
        return self._orders[of][1]


def stratified_mask(labels: np.ndarray, tasks: np.ndarray, share: float) -> np.ndarray:
    """Return a mask of a share of the memories of every class and task, bool of shape (M,); sleep is tested on them.

    A class with fewer memories than 1 / share gives one or none: with 5 memories and a share of 0.1 every other class
    gives one. Multiples of the golden ratio choose which, so the choice for a class does not change when others come
    or shrink. A class of several memories never gives all. At least one memory is chosen, unless the share is 0.

    Args:
        labels (`numpy.ndarray` of shape `(M,)`): Labels of all memories.
        tasks (`numpy.ndarray` of shape `(M,)`): Tasks of all memories.
        share (`float`): Share of a class, in [0, 1).
    """
    order = np.lexsort((tasks, labels))  # stable
    classes = labels[order]
    ranks, counts = rank_within_groups(classes), np.bincount(labels, minlength=1)[classes]
    phases = classes * _GOLDEN_RATIO % 1
    is_in = np.floor((ranks + 1) * share + phases) > np.floor(ranks * share + phases)
    num_in = np.bincount(classes, weights=is_in, minlength=1)[classes]
    is_in &= (ranks > 0) | (num_in < counts) | (counts == 1)
    if share and len(labels) and not is_in.any():
        is_in[np.lexsort((ranks, counts))[-1]] = True  # the last of the largest class
    mask = np.zeros(len(labels), dtype=bool)
    mask[order] = is_in
    return mask


def held_out_mask(labels: np.ndarray, tasks: np.ndarray, share: float) -> np.ndarray:
    """Return a mask of the memories that are held out of replay, bool of shape (M,): the stratified share.

    The only memory of a class is not held out, or its class would not be replayed at all.
    """
    return stratified_mask(labels, tasks, share) & (np.bincount(labels, minlength=1)[labels] > 1)


def subsample(positions: np.ndarray, max_count: int) -> np.ndarray:
    """Return at most `max_count` of some positions, at equal distances."""
    if len(positions) <= max_count:
        return positions
    return positions[np.arange(max_count) * len(positions) // max_count]


def herding_ranks(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the rank of every image within its class, 0 for the one to keep first; int64 of shape (N,).

    Herding (Rebuffi et al. 2017, iCaRL, algorithm 4): the next image is the one that brings the mean of the chosen
    features nearest to the mean of the class, the first of equal ones. Features are scaled to length 1.

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
