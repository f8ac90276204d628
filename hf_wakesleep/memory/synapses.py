"""Synapses: a mask of the entries of a network's parameters that are frozen for good, one bit per entry."""

import re
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch.nn import functional as F

SYNAPSES_NAME = "synapses.safetensors"


class Synapses:
    """Which entries of a network's parameters are frozen; a frozen entry is never released.

    Args:
        bits (`dict[str, torch.Tensor]`): By the name of a parameter one bit per entry, row by row, eight to a byte
            (`numpy.packbits`), uint8 of shape (ceil(N / 8),); the last byte is filled up with zeros.
    """

    def __init__(self, bits: dict[str, torch.Tensor]):
        self.bits = bits

    @classmethod
    def unfrozen(cls, entries: dict[str, int]) -> "Synapses":
        """Return a mask without frozen entries, for parameters with so many entries."""
        return cls({name: torch.zeros(-(-count // 8), dtype=torch.uint8) for name, count in entries.items()})

    @property
    def num_bytes(self) -> int:
        """Bytes of the file that `save` writes."""
        return len(save(self.bits))

    def checksum(self, total: int = 0) -> int:
        """Return a checksum of what is frozen."""
        for name, bits in sorted(self.bits.items()):
            total = zlib.crc32(bits.numpy(), zlib.crc32(name.encode(), total))
        return total

    def grow(self, entries: dict[str, int]) -> "Synapses":
        """Return the synapses of a network that has grown: the old entries of each parameter, then new, free ones."""
        return Synapses(
            {
                name: F.pad(self.bits[name], (0, -(-count // 8) - len(self.bits[name])))
                for name, count in entries.items()
            }
        )

    def freeze(self, masks: dict[str, torch.Tensor]) -> "Synapses":
        """Return synapses of which those in the masks, bool by the name of a parameter, are frozen as well."""
        packed = {name: np.packbits(mask.flatten().cpu().numpy()) for name, mask in masks.items()}
        return Synapses(self.bits | {name: self.bits[name] | torch.from_numpy(bits) for name, bits in packed.items()})

    def masks(self, model: torch.nn.Module) -> dict[str, torch.Tensor]:
        """Return whether each entry is frozen, by the name of a parameter; bool, with its shape and on its device."""
        masks = {}
        for name, parameter in model.named_parameters():
            bits = np.unpackbits(self.bits[name].numpy(), count=parameter.numel())  # (N,)
            masks[name] = torch.from_numpy(bits).bool().view(parameter.shape).to(parameter.device)
        return masks

    def frozen_shares(self, model: torch.nn.Module) -> tuple[float, dict[str, float]]:
        """Return the share of all entries that is frozen, and that of each part of the network."""
        frozen, total = {}, count_entries_by_part(model)
        for name in count_entries(model):
            part = network_part(name)
            frozen[part] = frozen.get(part, 0) + int(np.unpackbits(self.bits[name].numpy()).sum())
        return sum(frozen.values()) / sum(total.values()), {part: frozen[part] / total[part] for part in total}

    def check(self, model: torch.nn.Module) -> None:
        """Compare with the parameters of a model.

        Raises:
            ValueError: If these are not the synapses of such a model.
        """
        entries = count_entries(model)
        wrong = sorted(entries.keys() ^ self.bits.keys())
        wrong += [name for name in entries.keys() & self.bits.keys() if not _fits(self.bits[name], entries[name])]
        if wrong:
            raise ValueError(
                f"Expected masks of {len(entries)} parameters with one bit an entry, filled up with zeros, but those "
                f"of {sorted(wrong)[:5]} are missing, unknown or of another size. {SYNAPSES_NAME} is damaged or of "
                "another stage; copy or download the stage again."
            )

    def save(self, path: str | Path) -> None:
        """Write the bits to a safetensors file."""
        Path(path).write_bytes(save(self.bits))

    @classmethod
    def load(cls, path: str | Path) -> "Synapses":
        """Read what `save` wrote; whether it fits a model is for [`Synapses.check`] to say.

        Raises:
            ValueError: If the file holds something else.
            SafetensorError: If it holds no tensors at all.
        """
        bits = load_file(path)
        wrong = sorted(name for name, tensor in bits.items() if tensor.dtype != torch.uint8 or tensor.ndim != 1)
        if wrong:
            raise ValueError(f"bits as one row of uint8 expected in {SYNAPSES_NAME}, got others in {wrong[:5]}")
        return cls(bits)


class FrozenEntries:
    """The frozen entries of a model, which keep their values, bit for bit, whatever an optimizer does.

    Args:
        model (`torch.nn.Module`): The model, with the values to keep.
        synapses ([`Synapses`], *optional*): What is frozen; nothing if missing.
    """

    def __init__(self, model: torch.nn.Module, synapses: Synapses | None):
        masks = {} if synapses is None else synapses.masks(model)
        parameters = dict(model.named_parameters())
        self._frozen = {
            name: (parameters[name], mask, parameters[name].detach()[mask])
            for name, mask in masks.items()
            if mask.any()
        }

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Mask gradients before every step of an optimizer, and put the values back after it."""
        if self._frozen:
            optimizer.register_step_pre_hook(lambda *_: self.mask_gradients())
            optimizer.register_step_post_hook(lambda *_: self.restore())

    def mask_gradients(self) -> None:
        """Zero the gradient of frozen entries; called before clipping, so that they take no part in the norm."""
        for parameter, mask, _ in self._frozen.values():
            if parameter.grad is not None:
                parameter.grad.masked_fill_(mask, 0)

    @torch.no_grad()
    def restore(self, model: torch.nn.Module | None = None) -> None:
        """Put the values back.

        Args:
            model (`torch.nn.Module`, *optional*): Another model with parameters of the same names and shapes, such as
                one that factors were merged into; the same model if missing.
        """
        parameters = {} if model is None else dict(model.named_parameters())
        for name, (own, mask, values) in self._frozen.items():
            parameter = own if model is None else parameters[name]
            if model is None and not own.requires_grad:
                continue  # no optimizer changes it
            parameter.masked_scatter_(mask.to(parameter.device), values.to(parameter))


def count_entries(model: torch.nn.Module, num_new: int = 0) -> dict[str, int]:
    """Return the number of entries of each parameter, by its name.

    Args:
        model (`torch.nn.Module`): The model.
        num_new (`int`, defaults to 0): Classes that its classifier is to grow by.
    """
    entries = {name: parameter.numel() for name, parameter in model.named_parameters()}
    if num_new:
        for name, parameter in model.head.classifier.named_parameters(prefix="head.classifier"):
            if parameter.ndim:
                entries[name] += num_new * parameter.shape[1:].numel()
    return entries


def count_entries_by_part(model: torch.nn.Module) -> dict[str, int]:
    """Return the number of entries of each part of a network, by the name of the part."""
    total = {}
    for name, count in count_entries(model).items():
        total[network_part(name)] = total.get(network_part(name), 0) + count
    return total


def grow_synapses(synapses: Synapses | None, entries: dict[str, int], fraction: float) -> Synapses | None:
    """Return the mask for a network that has grown; a new mask, or `None`, if there was none.

    Args:
        synapses ([`Synapses`], *optional*): The mask before the network grew.
        entries (`dict[str, int]`): What `count_entries` returned.
        fraction (`float`): `freeze_fraction`; without one no new mask is made.
    """
    if synapses is not None:
        return synapses.grow(entries)
    return Synapses.unfrozen(entries) if fraction else None


def network_part(name: str) -> str:
    """Return the part of a network that a parameter belongs to: a block, another part of the backbone, or the head."""
    block = re.match(r"backbone\.(?:.*?\.\d+(?=\.)|[^.]*)", name)
    return block[0] if block else name.split(".", maxsplit=1)[0]


def _fits(bits: torch.Tensor, count: int) -> bool:
    """Whether bits are those of a parameter with so many entries."""
    return bits.shape == (-(-count // 8),) and not (count % 8 and int(bits[-1]) & 0xFF >> count % 8)
