"""Transforms between an image and its latents, one vector per 8 x 8 block, and a lookup table for decoded pixels.

Analysis and Synthesis are a linear transform that starts as the discrete cosine transform of luma and two colour
differences, plus a small residual network over blocks, so that they need little training. An image is a float tensor
of shape (B, 3, H, W) of integers around zero (pixels - 128), with H and W multiples of 8; latents have the shape
(B, NUM_LATENTS, H / 8, W / 8).
"""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from .integer_conv import IntegerConv2d, rounded_relu

BLOCK_SIZE = 8  # pixels a side
GROUP_SIZES = (1, 2, 2, 3, 8, 11, 37)  # latents in the order of coding, from coarse to fine
NUM_LATENTS = sum(GROUP_SIZES)
LATENT_MAX = 255  # latents are clipped to -LATENT_MAX..LATENT_MAX
NUM_STEP_INDICES = 64  # quantisation steps that a code can name
NUM_PIXEL_VALUES = 256
_PIXEL_PRIOR = 8  # pseudo-counts of an unchanged value, so that rare values change little
_COEFFICIENT_MAX = 4096.0
_WIDTH = 96
_DEPTH = 3


def step_size(index: torch.Tensor) -> torch.Tensor:
    """Return the quantisation step 2^(3 + index / 8), a multiple of 1/4, of the shape of `index`."""
    return (torch.exp2(3 + index / 8) * 4).round() / 4


def step_plane(index: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return an input channel that tells a network the quantisation step: (B, 1, h, w), from (B,) and (B, C, h, w)."""
    return (index / 16 - 2)[:, None, None, None].expand(-1, 1, *like.shape[2:]).to(like.dtype)


class _Block(nn.Module):
    """Residual block: x + conv1(rounded_relu(conv3(rounded_relu(x))))."""

    def __init__(self, width: int):
        super().__init__()
        self.mix = IntegerConv2d(width, width, 3)
        self.project = IntegerConv2d(width, width, zero_init=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x_in = rounded_relu(x, self.mix.is_rounded)
        return x + self.project(rounded_relu(self.mix(x_in), self.project.is_rounded))


class Analysis(nn.Module):
    """From an image to real-valued latents, in units of the quantisation step."""

    def __init__(self):
        super().__init__()
        pixels = 3 * BLOCK_SIZE**2
        self.linear = IntegerConv2d(pixels, NUM_LATENTS, input_max=128, input_steps=1)
        self.expand = IntegerConv2d(pixels + 1, _WIDTH, input_max=2, input_steps=64)
        self.blocks = nn.Sequential(*(_Block(_WIDTH) for _ in range(_DEPTH)))
        self.residual = IntegerConv2d(_WIDTH, NUM_LATENTS, zero_init=True)
        _init_linear(self.linear, cosine_basis())

    def forward(self, image: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Return latents (B, NUM_LATENTS, H / 8, W / 8) of image (B, 3, H, W) at step index (B,)."""
        pixels = F.pixel_unshuffle(image, BLOCK_SIZE)  # (B, 192, h, w)
        x = self.blocks(self.expand(torch.cat([pixels / 64, step_plane(index, pixels)], dim=1)))
        residual = self.residual(rounded_relu(x, self.residual.is_rounded)) * 32
        return (self.linear(pixels) + residual) / step_size(index)[:, None, None, None]


class Synthesis(nn.Module):
    """From quantised latents to an image."""

    def __init__(self):
        super().__init__()
        pixels = 3 * BLOCK_SIZE**2
        self.linear = IntegerConv2d(NUM_LATENTS, pixels, input_max=_COEFFICIENT_MAX, input_steps=4)
        self.expand = IntegerConv2d(NUM_LATENTS + 1, _WIDTH, input_max=_COEFFICIENT_MAX / 64, input_steps=256)
        self.blocks = nn.Sequential(*(_Block(_WIDTH) for _ in range(_DEPTH)))
        self.residual = IntegerConv2d(_WIDTH, pixels, zero_init=True)
        _init_linear(self.linear, cosine_basis().T)

    def forward(self, latents: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Return the image (B, 3, H, W), not yet rounded, of latents (B, NUM_LATENTS, H / 8, W / 8)."""
        coefficients = latents * step_size(index)[:, None, None, None]
        coefficients = coefficients.clamp(-_COEFFICIENT_MAX, _COEFFICIENT_MAX)
        x = self.blocks(self.expand(torch.cat([coefficients / 64, step_plane(index, latents)], dim=1)))
        residual = self.residual(rounded_relu(x, self.residual.is_rounded)) * 16
        return F.pixel_shuffle((self.linear(coefficients) + residual).contiguous(), BLOCK_SIZE)


def pad_to_blocks(image: torch.Tensor) -> torch.Tensor:
    """Return an image (B, C, H, W), its last row and column repeated until both sides are multiples of 8."""
    height, width = image.shape[2:]
    return F.pad(image.float(), (0, -width % BLOCK_SIZE, 0, -height % BLOCK_SIZE), mode="replicate").to(image.dtype)


def cosine_basis() -> torch.Tensor:
    """Return orthonormal vectors over the pixels of a block, coarse to fine: float32 of shape (NUM_LATENTS, 192).

    Each is a two-dimensional discrete cosine (type II) of luma or of one of two colour differences.
    """
    position, frequency = torch.arange(BLOCK_SIZE) + 0.5, torch.arange(BLOCK_SIZE)[:, None]
    cosines = torch.cos(math.pi / BLOCK_SIZE * position * frequency) * math.sqrt(2 / BLOCK_SIZE)  # (8, 8)
    cosines[0] /= math.sqrt(2)
    pairs = [(i, j) for i in range(BLOCK_SIZE) for j in range(BLOCK_SIZE)]
    pairs.sort(key=lambda pair: (sum(pair), abs(pair[0] - pair[1]), pair[0]))
    planes = torch.stack([torch.outer(cosines[i], cosines[j]) for i, j in pairs])  # (64, 8, 8)
    colours = F.normalize(torch.tensor([[1.0, 1, 1], [1, 0, -1], [1, -2, 1]]), dim=1)  # (3, 3)
    order = [(0, 0), (1, 0), (2, 0), *((0, i) for i in range(1, 10)), (1, 1), (1, 2), (2, 1), (2, 2)]
    order += [*((0, i) for i in range(10, 44)), *((c, i) for c in (1, 2) for i in range(3, 10))]
    return torch.stack([torch.einsum("c,ij->cij", colours[c], planes[i]).flatten() for c, i in order])


def fit_pixel_table(decoded: Sequence[torch.Tensor], images: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return a lookup table from decoded to corrected pixel values, uint8 of shape (256,).

    An entry is the mean original value of the pixels that were decoded to that value, which gives the smallest squared
    error. Line drawings and digits gain most: pixels that coarse quantisation made grey become black or white again.

    Args:
        decoded (`Sequence[torch.Tensor]`): uint8 tensors of shape (3, H, W).
        images (`Sequence[torch.Tensor]`): The same images before coding.
    """
    identity = torch.arange(NUM_PIXEL_VALUES)
    counts, sums = torch.full((NUM_PIXEL_VALUES,), _PIXEL_PRIOR), _PIXEL_PRIOR * identity
    for after, before in zip(decoded, images, strict=True):
        decoded_values = after.flatten().long()
        counts += decoded_values.bincount(minlength=NUM_PIXEL_VALUES)
        sums.index_add_(0, decoded_values, before.flatten().long())
    return ((2 * sums + counts) // (2 * counts)).to(torch.uint8)  # rounded


def _init_linear(conv: IntegerConv2d, matrix: torch.Tensor) -> None:
    with torch.no_grad():
        conv.weight.copy_(matrix[:, :, None, None])
        conv.bias.zero_()
