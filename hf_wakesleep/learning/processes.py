"""Agreement of processes: all get what the first one computes, and checksums tell whether they hold the same."""

import zlib

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list, gather_object

from ..memory.memory import SemiParametricMemory
from ..memory.synapses import Synapses
from ..model.modeling_wakesleep import WakeSleepForImageClassification


@torch.no_grad()
def share_buffers(accelerator: Accelerator, model: WakeSleepForImageClassification) -> None:
    """Give all processes what the first one holds beside the weights of a whole model, and its `lda_weight`.

    Each process sums features itself, which not every device does to the same bits, and modules with running
    statistics have seen other images on each.

    Args:
        accelerator (`Accelerator`): Its processes call this together.
        model ([`WakeSleepForImageClassification`]): A whole, bare model.
    """
    if accelerator.num_processes == 1:
        return
    for buffer in model.buffers():
        here = buffer.to(accelerator.device)
        buffer.copy_(broadcast(here))
    (model.config.lda_weight,) = broadcast_object_list([model.config.lda_weight])
    model.head.lda.refresh()


def share_tensor(accelerator: Accelerator, tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of the first process on all of them, which call this together with tensors of one shape."""
    return broadcast(tensor.to(accelerator.device)).to(tensor.device)


def share_synapses(accelerator: Accelerator, synapses: Synapses) -> Synapses:
    """Return the synapses of the first process on all of them, which call this together."""
    (bits,) = broadcast_object_list([synapses.bits])
    return Synapses(bits)


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
