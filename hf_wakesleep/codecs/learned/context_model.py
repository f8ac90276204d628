"""ContextModel: predicts mean and scale of each latent from the latents that were coded before it.

Latents are coded in passes: group by group from coarse to fine (channel-conditional, Minnen and Singh 2020), and each
group in two or three phases over a checkerboard (He et al. 2021), so that a latent is predicted from its neighbours
and from the coarser latents at its position. All latents of a pass are independent given the passes before.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from .integer_conv import IntegerConv2d, rounded_relu
from .transforms import GROUP_SIZES, LATENT_MAX, step_plane

# The scale of the expected distribution is exp(LOG_SCALE_MIN + LOG_SCALE_STEP * step), with NUM_SCALES steps.
NUM_SCALES = 32
LOG_SCALE_MIN, LOG_SCALE_STEP = math.log(0.06), 0.2
MEAN_STEPS = 16  # means are multiples of 1 / MEAN_STEPS
_PHASES = (3, 3, 3, 3, 2, 2, 2)  # of each group
_WIDTH = 64


@dataclass(frozen=True)
class Pass:
    """Latents that are coded together: channels `start` to `stop` at the positions of one phase.

    Args:
        group (`int`): Number of the group.
        start (`int`): First channel.
        stop (`int`): One after the last channel.
        known (`torch.Tensor`): 1 where the group was coded before this pass, else 0; float of shape (h, w).
        positions (`torch.Tensor`): Positions of this pass in the flattened h * w, int64 of shape (P,).
    """

    group: int
    start: int
    stop: int
    known: torch.Tensor
    positions: torch.Tensor


@lru_cache(maxsize=64)
def coding_passes(height: int, width: int) -> tuple[Pass, ...]:
    """Return all passes over latents of `height` x `width` blocks, in the order of coding; none is empty."""
    row, column = torch.arange(height)[:, None] % 2, torch.arange(width)[None] % 2
    in_three = torch.where(row != column, 2, row)  # (h, w): even corners, odd corners, then all between
    stop, found = 0, []
    for group, (size, count) in enumerate(zip(GROUP_SIZES, _PHASES, strict=True)):
        start, stop = stop, stop + size
        phases = in_three if count == 3 else (in_three == 2).long()
        for phase in range(count):
            positions = (phases == phase).flatten().nonzero().flatten()
            if len(positions):
                found.append(Pass(group, start, stop, (phases < phase).float(), positions))
    return tuple(found)


class ContextModel(nn.Module):
    """One small network for each group, from the known latents around a position to mean and scale of the group."""

    def __init__(self):
        super().__init__()
        self.nets = nn.ModuleList()
        stop = 0
        for size in GROUP_SIZES:
            stop += size
            first = IntegerConv2d(stop + 2, _WIDTH, 3, input_max=LATENT_MAX / 4, input_steps=16)
            net = nn.ModuleList([first, IntegerConv2d(_WIDTH, _WIDTH), IntegerConv2d(_WIDTH, 2 * size)])
            with torch.no_grad():
                net[0].weight *= 0.5
                net[2].weight *= 0.1
                net[2].bias[size:] = 8.0
            self.nets.append(net)

    def predict_passes(
        self, latents: torch.Tensor, index: torch.Tensor
    ) -> Iterator[tuple[Pass, torch.Tensor, torch.Tensor]]:
        """Yield every pass with the means and scale steps that are predicted at its positions.

        Args:
            latents (`torch.Tensor` of shape `(B, NUM_LATENTS, h, w)`): Quantised. A pass reads only latents of earlier
                passes, so a decoder fills in the latents of each pass before it asks for the next.
            index (`torch.Tensor` of shape `(B,)`): Index of the quantisation step.

        Yields:
            `tuple`: The pass, and means and scales, both real-valued, of shape (B, group size, P).
        """
        for one in coding_passes(*latents.shape[2:]):
            first, middle, last = self.nets[one.group]
            if not one.known.any():  # first pass of its group: the part of the coarser groups is the same in all
                above = torch.cat([latents[:, : one.start] / 4, step_plane(index, latents)], dim=1)
                x = coarser = first.forward_channels(above, [*range(one.start), one.stop])  # (B, _WIDTH, h, w)
            else:
                known = one.known.to(latents).expand(len(latents), 1, -1, -1)
                own = torch.cat([latents[:, one.start : one.stop] / 4 * known, known], dim=1)
                x = coarser + first.forward_channels(own, [*range(one.start, one.stop), one.stop + 1], has_bias=False)
            x = x.permute(0, 2, 3, 1).flatten(1, 2).index_select(1, one.positions)  # (B, P, _WIDTH)
            x = middle(rounded_relu(x.transpose(1, 2)[..., None], middle.is_rounded))
            mean, scale = last(rounded_relu(x, last.is_rounded)).squeeze(3).chunk(2, dim=1)
            yield one, mean, scale

    def forward(self, latents: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return means and scales of all passes, each (B, NUM_LATENTS, h, w), given all latents."""
        means, scales = (latents.new_zeros(latents.shape).flatten(2) for _ in range(2))
        for one, mean, scale in self.predict_passes(latents, index):
            means[:, one.start : one.stop, one.positions] = mean
            scales[:, one.start : one.stop, one.positions] = scale
        return means.view_as(latents), scales.view_as(latents)


def logistic_bits(latents: torch.Tensor, means: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return how many bits real-valued latents take under logistic distributions of these means and scale steps.

    The probability of a latent is that of the unit interval around it; all arguments have the same shape.
    """
    width = torch.exp(LOG_SCALE_MIN + LOG_SCALE_STEP * scales.clamp(0, NUM_SCALES - 1))
    distance = (latents - means).abs()
    probability = torch.sigmoid((0.5 - distance) / width) - torch.sigmoid((-0.5 - distance) / width)
    return -torch.log2(probability.clamp(min=1e-9))
