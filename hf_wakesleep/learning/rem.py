"""REM: which steps of a sleep are REM, and how these recombine memories."""

import torch
from torchvision.transforms import v2

MIXUP_ALPHA = 0.4  # of the Beta distribution of the mixing weight


def is_rem(step: int, num_steps: int, share: float) -> bool:
    """Whether a step of a sleep is REM: the last `share` of the steps is.

    Args:
        step (`int`): Number of the step, from 0.
        num_steps (`int`): All steps of the sleep.
        share (`float`): Share of the steps that is REM, in [0, 1].
    """
    return step / num_steps >= 1 - share


def recombine(pixel_values: torch.Tensor, labels: torch.Tensor, num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix every image of a batch with its neighbour, mostly of another class, and their labels in the same way.

    Mixup (Zhang et al. 2018, arXiv 1710.09412), with torch's global random number generator.

    Args:
        pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): Images.
        labels (`torch.Tensor` of shape `(B,)`): Class indices, int64.
        num_classes (`int`): Number of classes C.

    Returns:
        `tuple`: Images (B, 3, H, W) and soft targets (B, C).
    """
    return v2.MixUp(alpha=MIXUP_ALPHA, num_classes=num_classes)(pixel_values, labels)
