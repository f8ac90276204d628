"""Augmentation: random crops and flips of a batch, on its own device, and the random generators of a run."""

import math

import torch
from torch.nn import functional as F

CROP_SCALE = 0.6  # smallest share of the area in a random crop


def seeded_generator(*numbers: int) -> torch.Generator:
    """Return a CPU generator that follows from seed, task, step, ... alone: it is the same after a restart."""
    state = 0
    for number in numbers:
        state = (state * 1_000_003 + number + 1) % (2**63 - 1)
    return torch.Generator().manual_seed(state)


def augment(pixel_values: torch.Tensor, kind: str, generator: torch.Generator) -> torch.Tensor:
    """Crop at random, resize back to the same size and, for `"crop-flip"`, mirror half of the images.

    A crop keeps at least `CROP_SCALE` of the area; its sides keep 3:4 to 4:3.

    Args:
        pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): Normalised images.
        kind (`str`): `"none"`, `"crop"` or `"crop-flip"`.
        generator (`torch.Generator`): CPU generator.

    Returns:
        `torch.Tensor` of shape `(B, 3, H, W)`.
    """
    if kind == "none":
        return pixel_values
    size = len(pixel_values)
    area = CROP_SCALE + (1 - CROP_SCALE) * torch.rand(size, generator=generator)  # (B,)
    log_ratio = math.log(4 / 3) * (2 * torch.rand(size, generator=generator) - 1)  # (B,)
    sides = torch.stack([(area * log_ratio.exp()).sqrt(), (area / log_ratio.exp()).sqrt()], dim=1).clamp(
        max=1
    )  # (B, 2)
    centres = (1 - sides) * (2 * torch.rand(size, 2, generator=generator) - 1)  # (B, 2)
    if kind == "crop-flip":
        sides[:, 0] *= 1 - 2 * (torch.rand(size, generator=generator) < 0.5).float()
    affine = torch.cat([torch.diag_embed(sides), centres[:, :, None]], dim=2).to(pixel_values)  # (B, 2, 3)
    grid = F.affine_grid(affine, list(pixel_values.shape), align_corners=False)  # (B, H, W, 2)
    return F.grid_sample(pixel_values, grid, mode="bilinear", padding_mode="border", align_corners=False)
