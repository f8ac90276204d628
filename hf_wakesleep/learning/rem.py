"""Recombination: which steps of a sleep are REM, and what these make of memories."""

import torch
from torchvision.transforms import v2

MIXUP_ALPHA = 0.4  # of the Beta distribution of the mixing weight


def is_rem(step: int, num_steps: int, num_cycles: int, share: float) -> bool:
    """Whether a step of sleep is REM: the last `share` of each of the cycles that the steps are cut into.

    Args:
        step (`int`): Number of the step, from 0.
        num_steps (`int`): All steps of the sleep.
        num_cycles (`int`): NREM-REM cycles in it.
        share (`float`): Share of REM, in [0, 1].
    """
    within_cycle = step * num_cycles % num_steps / num_steps  # in [0, 1)
    return within_cycle >= 1 - share


def recombine(pixel_values: torch.Tensor, labels: torch.Tensor, num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix every image of a batch with its neighbour, which is of another class as a rule, and their labels alike.

    Mixup (Zhang et al. 2018, arXiv 1710.09412), from torch's own random numbers.

    Args:
        pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): Images.
        labels (`torch.Tensor` of shape `(B,)`): Class indices, int64.
        num_classes (`int`): Number of classes C.

    Returns:
        `tuple`: Images (B, 3, H, W) and soft targets (B, C).
    """
    return v2.MixUp(alpha=MIXUP_ALPHA, num_classes=num_classes)(pixel_values, labels)
