"""IntegerConv2d: a convolution in integer arithmetic, with the same bits on any machine and for any batch size.

Networks of a codec must decode on one machine what they encoded on another (integer networks, Balle et al. 2019).
Weights are integers of 8 bits times a power of two, and activations integers times 1/16. A sum of their products is
then an integer number of units. Below 2^24 units float32 holds every partial sum exactly, so the order in which a
library or a device adds them does not matter. Where a sum may exceed that, float64 is used, with 2^53.
"""

import torch
from torch import nn
from torch.nn import functional as F

ACTIVATION_STEPS = 16  # activations are multiples of 1 / ACTIVATION_STEPS
ACTIVATION_MAX = 255 / ACTIVATION_STEPS
_WEIGHT_MAX = 127
_BIAS_STEPS = 256
_EXPONENT_MAX = 47


def rounded_relu(x: torch.Tensor, is_rounded: bool = True) -> torch.Tensor:
    """Return a rectified, clipped input, rounded to multiples of 1/16 with a straight-through gradient.

    Args:
        x (`torch.Tensor`): Any shape.
        is_rounded (`bool`, defaults to `True`): `False` leaves the rounding out, for the first part of a training.
    """
    x = x.clamp(0, ACTIVATION_MAX)
    if not is_rounded:
        return x
    if x.requires_grad:
        return straight_through(x, (x * ACTIVATION_STEPS).round() / ACTIVATION_STEPS)
    return x.mul_(ACTIVATION_STEPS).round_().mul_(1 / ACTIVATION_STEPS)


def straight_through(x: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return `value` with the gradient of `x` (Bengio et al. 2013)."""
    return x + (value - x).detach() if x.requires_grad else value


class IntegerConv2d(nn.Conv2d):
    """A convolution with weights of 8 bits and one power of two for each output channel.

    Args:
        in_channels (`int`): Channels of the input.
        out_channels (`int`): Channels of the output.
        kernel_size (`int`, defaults to 1): Odd side of the kernel; the input is padded with zeros to keep its size.
        input_max (`float`, defaults to 255 / 16): Largest absolute input.
        input_steps (`int`, defaults to 16): Inputs are multiples of 1 / `input_steps`.
        zero_init (`bool`, defaults to `False`): Whether weights start at zero, as at the end of a residual branch.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        *,
        input_max: float = ACTIVATION_MAX,
        input_steps: int = ACTIVATION_STEPS,
        zero_init: bool = False,
    ):
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.input_max, self.input_steps = input_max, input_steps
        self.is_rounded = True
        self.float32_max = 0.0  # largest absolute input whose sums float32 holds
        if zero_init:
            nn.init.zeros_(self.weight)
            nn.init.zeros_(self.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the convolution of x (B, in_channels, H, W): (B, out_channels, H, W).

        In evaluation mode, with the weights of `unpack`, it is exact; in training mode it is an ordinary convolution,
        with rounded weights if `is_rounded` says so.
        """
        return self.forward_channels(x, slice(None))

    def forward_channels(self, x: torch.Tensor, channels: slice | list[int], has_bias: bool = True) -> torch.Tensor:
        """Return what some channels of the input add to the convolution.

        Args:
            x (`torch.Tensor` of shape `(B, C, H, W)`): These channels.
            channels (`slice` or `list[int]`): Which of `in_channels` they are.
            has_bias (`bool`, defaults to `True`): Whether to add the bias.

        Returns:
            `torch.Tensor`: Of shape (B, out_channels, H, W).
        """
        if self.training:
            weight, bias = self.rounded() if self.is_rounded else (self.weight, self.bias)
            return F.conv2d(x, weight[:, channels], bias if has_bias else None, padding=self.padding)
        is_small = self.input_max <= self.float32_max or x.abs().max() <= self.float32_max
        dtype = torch.float32 if is_small else torch.float64
        bias = self.bias.to(dtype) if has_bias else None
        x_exact = x.to(dtype, memory_format=torch.channels_last)  # faster on a CPU
        return F.conv2d(x_exact, self.weight[:, channels].to(dtype), bias, padding=self.padding).to(x.dtype)

    def rounded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weight and bias as `pack` stores them, with straight-through gradients."""
        unit = torch.exp2(self._exponents().to(self.weight.dtype))[:, None, None, None]
        weight = straight_through(self.weight, (self.weight / unit).round() * unit)
        return weight, straight_through(self.bias, (self.bias * _BIAS_STEPS).round() / _BIAS_STEPS)

    def pack(self) -> dict[str, torch.Tensor]:
        """Return the weights as they are stored: int8 `weight`, int8 `exponent` and int32 `bias`."""
        exponent = self._exponents()
        weight = self.weight.detach() / torch.exp2(exponent.float())[:, None, None, None]
        return {
            "weight": weight.round().to(torch.int8),
            "exponent": exponent.to(torch.int8),
            "bias": (self.bias.detach() * _BIAS_STEPS).round().to(torch.int32),
        }

    def unpack(self, packed: dict[str, torch.Tensor]) -> None:
        """Take weights that `pack` returned.

        Raises:
            ValueError: If a tensor is missing or has another dtype or shape.
        """
        for name, own in self.pack().items():
            got = packed.get(name)
            if got is None or got.dtype != own.dtype or got.shape != own.shape:
                raise ValueError(
                    f"Expected `{name}` of {own.dtype} and shape {tuple(own.shape)}, got {_describe(got)}."
                )
        exponent = packed["exponent"].float()
        if not ((exponent >= -_EXPONENT_MAX) & (exponent <= _EXPONENT_MAX)).all():
            raise ValueError(f"Expected exponents in -{_EXPONENT_MAX}..{_EXPONENT_MAX}, got {exponent.tolist()[:9]}.")
        unit = torch.exp2(exponent)[:, None, None, None]
        with torch.no_grad():
            self.weight.copy_(packed["weight"] * unit)
            self.bias.copy_(packed["bias"] / _BIAS_STEPS)
        self.float32_max = self._find_float32_max()

    def _find_float32_max(self) -> float:
        unit = (torch.exp2(self._exponents()) / self.input_steps).clamp(max=1 / _BIAS_STEPS)  # (out_channels,)
        weight, bias = self.weight.detach().double(), self.bias.detach().double()
        left = unit * (2**24 - 1) - bias.abs()
        return (left / weight.abs().sum(dim=(1, 2, 3)).clamp(min=2.0**-40)).min().item()

    def _exponents(self) -> torch.Tensor:
        largest = self.weight.detach().abs().amax(dim=(1, 2, 3)).double().clamp(min=2.0**-40)
        return torch.ceil(torch.log2(largest / _WEIGHT_MAX))


def _describe(tensor: torch.Tensor | None) -> str:
    return "none" if tensor is None else f"{tensor.dtype} and shape {tuple(tensor.shape)}"
