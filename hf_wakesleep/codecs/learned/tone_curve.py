"""Tone: a table that moves decoded pixel values to what stood there in images of the same kind."""

from collections.abc import Sequence

import torch

VALUES = 256
_PRIOR = 8  # pixels that say a value means itself: values that were rarely decoded stay nearly as they are


def fit_tone(decoded: Sequence[torch.Tensor], images: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the mean original value of every decoded value, uint8 of shape (256,).

    The conditional mean has the smallest squared error of all tables. Line drawings and digits, whose pixels are black
    or white, gain most: what a coarse quantisation leaves grey becomes one or the other.

    Args:
        decoded (`Sequence[torch.Tensor]`): uint8 tensors of shape (3, H, W).
        images (`Sequence[torch.Tensor]`): What they were before coding, of the same shapes.
    """
    values = torch.arange(VALUES)
    counts, sums = torch.full((VALUES,), _PRIOR), _PRIOR * values
    for after, before in zip(decoded, images, strict=True):
        places = after.flatten().long()
        counts += places.bincount(minlength=VALUES)
        sums.index_add_(0, places, before.flatten().long())
    return ((2 * sums + counts) // (2 * counts)).to(torch.uint8)  # rounded
