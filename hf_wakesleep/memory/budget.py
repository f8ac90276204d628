"""Memory budget: how many bytes a memory takes, and which codes are kept when it is full."""

import re
from dataclasses import asdict, dataclass

import numpy as np

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class MemoryBytes:
    """Bytes of everything that was learned from the stream and is needed to continue.

    Args:
        codes (`int`): The codes themselves.
        index (`int`): Length, label and task of every code, class names, file headers.
        codec (`int`): Weights of a codec that was fitted to the stream.
        statistics (`int`): What the model keeps beside its weights, such as LDA's statistics.
        masks (`int`): Which weights are frozen.
    """

    codes: int
    index: int
    codec: int
    statistics: int
    masks: int

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return self.codes + self.index + self.codec + self.statistics + self.masks

    def to_dict(self) -> dict[str, int]:
        """Return all parts and their total."""
        return {**asdict(self), "total": self.total}


def parse_bytes(size: str | int | None) -> int | None:
    """Return a number of bytes from `"20MB"`, `"512KB"`, `"1GiB"` or a plain number; `None` stays `None`.

    Raises:
        ValueError: If `size` is none of these.
    """
    if size is None:
        return None
    match = re.fullmatch(r"\s*([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([KMG]?I?B?)\s*", str(size).upper())
    if match is None or match[2] not in _UNITS or 0 < float(match[1]) * _UNITS[match[2]] < 1:
        raise ValueError(f"Expected a size such as '20MB', '512KB' or 1000000 (bytes), got {size!r}.")
    return int(float(match[1]) * _UNITS[match[2]])


def rank_within_groups(groups: np.ndarray) -> np.ndarray:
    """Return how many elements of the same group stand before each; int64 of shape (M,).

    Args:
        groups (`numpy.ndarray` of shape `(M,)`): Numbers of groups, each in one run.
    """
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    return np.arange(len(groups)) - np.repeat(starts, np.diff(starts, append=len(groups)))


def fit_to_budget(labels: np.ndarray, sizes: np.ndarray, free_bytes: int, budget: int) -> np.ndarray:
    """Return a mask of the codes to keep, of at most `free_bytes` in all, bool of shape (M,).

    Every class keeps its first k codes, with the largest k that fits. First means in the order of the ranks that
    `memory.write` was given, where the tasks of a class take turns. The rest of the bytes goes to one more code of
    each class in turn, where it still fits. If not even the first code of every class fits, each keeps its smallest.

    Args:
        labels (`numpy.ndarray` of shape `(M,)`): Sorted labels; the codes of a class in the order of their ranks.
        sizes (`numpy.ndarray` of shape `(M,)`): Bytes of each code with its index.
        free_bytes (`int`): Bytes that are left for codes.
        budget (`int`): The budget of the memory, for the error.

    Raises:
        ValueError: If not even one code of every class fits.
    """
    starts = np.flatnonzero(np.diff(labels, prepend=-1))
    rank = rank_within_groups(labels)
    cumulative = np.cumsum(np.bincount(rank, weights=sizes)) if len(rank) else np.zeros(0)  # bytes of k + 1 per class
    per_class = int(np.searchsorted(cumulative, free_bytes, side="right"))
    smallest = np.lexsort((sizes, labels))[starts]  # (K,) the smallest code of each class
    minimum = int(sizes[smallest].sum())
    if free_bytes < minimum:
        raise ValueError(
            f"`memory_budget` must hold at least one code per class: {minimum:,} bytes of codes for {len(starts)} "
            f"classes and {budget - free_bytes:,} bytes for statistics, masks, codec and file headers, got {budget:,}."
            " Raise it to hold them, or pass a codec with smaller codes."
        )
    if per_class == 0:
        return np.isin(np.arange(len(labels)), smallest)
    keep = rank < per_class
    left = free_bytes - int(sizes[keep].sum())
    for position in np.flatnonzero(rank == per_class):
        if sizes[position] <= left:
            keep[position] = True
            left -= int(sizes[position])
    return keep
