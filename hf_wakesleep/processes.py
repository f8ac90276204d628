"""Checksums: whether all processes hold the same weights and the same memory."""

import zlib

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from .memory import SemiParametricMemory


def checksums(model: torch.nn.Module, memory: SemiParametricMemory | None) -> dict[str, int]:
    """Return a checksum of every tensor of a model, by its name, and of a memory."""
    sums = {name: _crc(tensor) for name, tensor in model.state_dict().items()}
    if memory is not None:
        sums["memory"] = memory.checksum()
    return sums


def check_equal(accelerator: Accelerator, mine: dict, when: str) -> None:
    """Compare values of all processes, by name.

    Args:
        accelerator (`Accelerator`): Its processes call this together.
        mine (`dict`): Values of this process, which can be pickled.
        when (`str`): For the error, such as `"after task-02"`.

    Raises:
        RuntimeError: If they differ, with the names of what differs, on all processes.
    """
    if accelerator.num_processes == 1:
        return
    everyone = gather_object([mine])
    differing = sorted(
        {name for other in everyone for name in {*mine, *other} if other.get(name) != everyone[0].get(name)}
    )
    if differing:
        apart = [rank for rank, other in enumerate(everyone) if other != everyone[0]]
        listed = ", ".join(differing[:5]) + (f" and {len(differing) - 5} more" if len(differing) > 5 else "")
        raise RuntimeError(
            f"Expected all processes to hold the same {when}, but on {apart} not the same as on 0: {listed}. "
            "Callbacks and hooks must change weights and memory on all processes alike, and all hosts must see the "
            "same files. The last stage is intact."
        )


def _crc(tensor: torch.Tensor) -> int:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return zlib.crc32(flat.view(torch.uint8).numpy())
