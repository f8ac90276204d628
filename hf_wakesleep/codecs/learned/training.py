"""CodecTraining: fits the networks and tables of a learned codec to images."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F
from tqdm.auto import tqdm

from .context_model import MEAN_STEPS, NUM_SCALES, logistic_bits
from .entropy import NUM_LEVELS, NUM_OFFSETS, BinaryTables, Contexts
from .integer_conv import IntegerConv2d, straight_through
from .networks import COARSEST_STEP, FINEST_STEP, LearnedNetworks
from .transforms import LATENT_MAX, pad_to_blocks, step_size

CROP = 64  # pixels a side
# Squared error weighs 1 / (_DISTORTION step^2), the balance of video codecs (Sullivan and Wiegand 1998).
_DISTORTION = 0.134
_ROUNDED_FROM = 0.6  # share of the steps after which weights and activations are rounded


class CodecTraining:
    """Rate-distortion training: bits + squared error / (0.134 step^2), at random quantisation steps.

    Args:
        networks ([`LearnedNetworks`]): Trained in place.
        images (`Sequence[torch.Tensor]`): uint8 tensors of shape (3, H, W).
        steps (`int`): Optimizer steps in all.
        batch_size (`int`, defaults to 32): Crops in a batch.
        learning_rate (`float`, defaults to 1.5e-3): Peak learning rate of AdamW.
        step_indices (`tuple[int, int]`, *optional*): Range of quantisation steps, bounds included.
        fit_layers (`str`, *optional*): Which layers of a trained codec are fitted
            ([`LearnedNetworks.select_layers`]), on images at their own scale. By default all are trained, on crops at
            several scales, for a codec of images of all kinds.
        seed (`int`, defaults to 0): Seed of all randomness.
    """

    def __init__(
        self,
        networks: LearnedNetworks,
        images: Sequence[torch.Tensor],
        steps: int,
        *,
        batch_size: int = 32,
        learning_rate: float = 1.5e-3,
        step_indices: tuple[int, int] = (FINEST_STEP, COARSEST_STEP),
        fit_layers: str | None = None,
        seed: int = 0,
    ):
        self.networks, self.images, self.steps, self.batch_size = networks, images, steps, batch_size
        self.step_indices, self.is_general = step_indices, fit_layers is None
        self.step = 0
        self.generator = torch.Generator().manual_seed(seed)
        self.modules = networks.convolutions() if fit_layers is None else networks.select_layers(fit_layers)
        linear = [module for name, module in self.modules.items() if name.endswith(".linear")]
        others = [module for name, module in self.modules.items() if not name.endswith(".linear")]
        groups = [{"params": _parameters(others)}, {"params": _parameters(linear), "lr": learning_rate / 2}]
        self.optimizer = torch.optim.AdamW(groups, lr=learning_rate, weight_decay=0.0)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._warm_cosine)

    def _warm_cosine(self, step: int) -> float:
        return min(1.0, (step + 1) / 100) * (0.01 + 0.99 * (1 + math.cos(math.pi * step / self.steps)) / 2)

    def state_dict(self) -> dict:
        """Return everything that is needed to continue the training."""
        return {
            "networks": self.networks.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "generator": self.generator.get_state(),
            "step": self.step,
        }

    def load_state_dict(self, state: dict) -> None:
        """Take what `state_dict` returned."""
        for name in ("networks", "optimizer", "scheduler"):
            getattr(self, name).load_state_dict(state[name])
        self.generator.set_state(state["generator"])
        self.step = state["step"]

    def run(self, steps: int) -> tuple[float, float]:
        """Train for some steps; return the mean loss and bits per pixel."""
        self.networks.train().requires_grad_(False)
        for module in self.networks.convolutions().values():
            module.is_rounded = not self.is_general or self.step >= _ROUNDED_FROM * self.steps
        for module in self.modules.values():
            module.requires_grad_(True)
        totals = np.zeros(2)
        for _ in range(steps):
            totals += self._train_step()
        return tuple(totals / steps)

    def _train_step(self) -> tuple[float, float]:
        image, index = self._batch()
        rate, error = self._rate_and_error(image, index)
        step = step_size(index)
        pixels = image[0, 0].numel()
        loss = ((rate + error / (_DISTORTION * step**2)) / pixels * (step / 128) ** 0.8).mean()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.networks.parameters(), 5.0)
        self.optimizer.step()
        self.scheduler.step()
        self.step += 1
        return loss.item(), rate.mean().item() / pixels

    def _batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images (B, 3, H, W), around zero, and indices of quantisation steps (B,)."""
        image = random_crops(self.images, self.batch_size, self.generator, self.is_general)
        low, high = self.step_indices
        return image.float() - 128, torch.randint(low, high + 1, (len(image),), generator=self.generator).float()

    def _rate_and_error(self, image: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return bits and squared error of every image, each (B,).

        Bits are those of latents with uniform noise (Balle et al. 2017); the image is made from rounded latents. Error
        in the padding is not counted.
        """
        height, width = image.shape[2:]
        latents = self.networks.analysis(pad_to_blocks(image), index)  # (B, NUM_LATENTS, h, w)
        rounded = straight_through(latents, latents.round())
        noise = torch.rand(latents.shape, generator=self.generator) - 0.5
        bits = logistic_bits(latents + noise, *self.networks.context(rounded, index))
        error = (self.networks.synthesis(rounded, index)[:, :, :height, :width] - image) ** 2
        return bits.sum(dim=(1, 2, 3)), error.sum(dim=(1, 2, 3))

    @torch.no_grad()
    def fit_tables(self, batches: int, shows_progress: bool = True) -> None:
        """Set the tables to the frequencies of the binary decisions over some batches."""
        self.networks.unpack(self.networks.pack())
        self.networks.eval()
        counts = {
            "differs": np.zeros((2, NUM_SCALES, NUM_OFFSETS)),
            "agrees": np.zeros((2, NUM_SCALES, NUM_OFFSETS)),
            "exceeds": np.zeros((2, NUM_SCALES, NUM_LEVELS)),
        }
        for _ in tqdm(range(batches), desc="counting", disable=not shows_progress, leave=False):
            image, index = self._batch()
            latents = self.networks.analysis(pad_to_blocks(image), index).round().clamp(-LATENT_MAX, LATENT_MAX)
            means, scales = self.networks.context(latents, index)
            _count(counts, latents, means, scales)
        self.networks.tables = BinaryTables.from_counts({name: tuple(count) for name, count in counts.items()})


def _parameters(modules: Sequence[IntegerConv2d]) -> list[torch.nn.Parameter]:
    return [parameter for module in modules for parameter in module.parameters()]


def _count(counts: dict[str, np.ndarray], latents: torch.Tensor, means: torch.Tensor, scales: torch.Tensor) -> None:
    means = (means * MEAN_STEPS).round().numpy().astype(np.int64).ravel()
    scales = scales.round().numpy().astype(np.int64).clip(0, NUM_SCALES - 1).ravel()
    contexts = Contexts(means, scales, BinaryTables.from_logistic())
    differs, agrees, distance = contexts.decisions(latents.numpy().astype(np.int64).ravel())
    entry = (contexts.scales, contexts.offsets)
    for name, taken, true in (("differs", np.ones_like(differs), differs), ("agrees", differs, agrees & differs)):
        np.add.at(counts[name][0], entry, taken)
        np.add.at(counts[name][1], entry, true)
    active, level = differs, 1
    while active.any():
        where = (contexts.scales[active], np.full(active.sum(), min(level, NUM_LEVELS) - 1))
        np.add.at(counts["exceeds"][0], where, 1)
        np.add.at(counts["exceeds"][1], where, distance[active] > level)
        active, level = active & (distance > level), level + 1


def random_crops(
    images: Sequence[torch.Tensor], size: int, generator: torch.Generator, is_rescaled: bool
) -> torch.Tensor:
    """Return random square crops, some mirrored and some grey: uint8 of shape (B, 3, S, S).

    Args:
        images (`Sequence[torch.Tensor]`): uint8 tensors of shape (3, H, W).
        size (`int`): Number B of crops; four times as many where they are scaled down to half their side.
        generator (`torch.Generator`): Source of randomness.
        is_rescaled (`bool`): Whether to scale: 40 % of the batches up by a factor of 1 to 2, 25 % down by 2.
    """
    kind, factor = torch.rand(2, generator=generator).tolist() if is_rescaled else (1.0, 1.0)
    is_up, is_down = kind < 0.4, 0.4 <= kind < 0.65
    side = round(CROP / (1 + factor)) if is_up else CROP
    rows = torch.randint(len(images), (4 * size if is_down else size,), generator=generator).tolist()
    side = min(side, *(min(images[row].shape[1:]) for row in rows))
    crops = torch.stack([_crop(images[row], side, generator) for row in rows])
    if is_up or is_down:
        crops = F.interpolate(crops.float(), size=CROP // 2 if is_down else CROP, mode="bicubic", antialias=True)
        crops = crops.round().clamp(0, 255).to(torch.uint8)
    if torch.rand((), generator=generator) < 0.5:
        crops = crops.flip(3)
    if is_rescaled and torch.rand((), generator=generator) < 0.1:
        crops = crops.float().mean(dim=1, keepdim=True).round().to(torch.uint8).expand(-1, 3, -1, -1)
    return crops


def _crop(image: torch.Tensor, side: int, generator: torch.Generator) -> torch.Tensor:
    top, left = (int(torch.randint(length - side + 1, (), generator=generator)) for length in image.shape[1:])
    return image[:, top : top + side, left : left + side]
