"""Distributed training: the same model and memory on all processes, also where FSDP shards the model in training.

Only the steps of wake and sleep use shards. Memory, LDA, evaluation and saving use a full model on every process.
"""

import copy
import zlib

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast, broadcast_object_list, gather_object
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule

from ..memory.memory import SemiParametricMemory
from ..memory.synapses import Synapses
from ..model.modeling_wakesleep import WakeSleepForImageClassification

_FULL = StateDictOptions(full_state_dict=True)


def check_sharding(accelerator: Accelerator, unsharded_only: dict[str, float]) -> None:
    """Check that a model that this launch shards can be put together, and that no argument rules out shards.

    Args:
        accelerator (`Accelerator`): Will train the model.
        unsharded_only (`dict[str, float]`): By name, arguments that must be 0 where a model is sharded.

    Raises:
        ValueError: If a launch or an argument does not fit.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise ValueError(
            "Expected a launch without DeepSpeed, whose shards cannot be put together between wake and sleep. Use "
            "FSDP, as in examples/accelerate/fsdp.yaml, or train without shards."
        )
    if not shards(accelerator):
        return
    for name, value in unsharded_only.items():
        if value:
            raise ValueError(
                f"`{name}` needs a full model on every process, but FSDP shards it, got {value}. Pass 0, or train "
                "without shards."
            )
    kind = str(accelerator.state.fsdp_plugin.state_dict_type)
    if not accelerator.is_fsdp2 or "FULL_STATE_DICT" not in kind:
        version = 2 if accelerator.is_fsdp2 else 1
        raise ValueError(
            f"Expected `fsdp_version: 2` and `fsdp_state_dict_type: FULL_STATE_DICT`, got {version} and {kind}. "
            "Change them in the configuration of accelerate, as in examples/accelerate/fsdp.yaml."
        )


def check_unsharded(accelerator: Accelerator) -> None:
    """Check that models are not sharded while they are trained, as frozen weights require.

    Raises:
        ValueError: If they are.
    """
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise ValueError(
            "Expected a full model on every process, since some of its weights are frozen, but it is trained "
            f"with {accelerator.distributed_type.value}. Pass `freeze_fraction=0` and a stage without frozen weights, "
            "or train without shards."
        )


def shards(accelerator: Accelerator) -> bool:
    """Whether `accelerator.prepare` spreads a model over processes."""
    return accelerator.distributed_type == DistributedType.FSDP


def unwrap(accelerator: Accelerator, model: torch.nn.Module) -> torch.nn.Module:
    """Return a full, bare model, which can be prepared again: a new one if `model` is sharded, else the one inside it.

    Args:
        accelerator (`Accelerator`): Has prepared the model, if it is prepared; its processes call this together.
        model (`torch.nn.Module`): A [`WakeSleepForImageClassification`], bare or prepared.
    """
    bare = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    if isinstance(bare, FSDPModule):
        kind = next(base for base in type(bare).__mro__ if not issubclass(base, FSDPModule))
        full = kind(copy.deepcopy(bare.config)).to(accelerator.device)
        full.load_state_dict(get_model_state_dict(bare, options=_FULL))
        bare = full
    bare.__dict__.pop("_is_accelerate_prepared", None)
    return bare


def load_full_state(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Load full weights, which every process has, into a model that may be sharded."""
    if isinstance(model, FSDPModule):
        set_model_state_dict(model, state, options=_FULL)
    else:
        model.load_state_dict(state)


def full_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the full weights of a sharded model; all processes call this together."""
    return get_model_state_dict(model, options=_FULL)


def optimizer_state(model: torch.nn.Module, optimizer) -> dict:
    """Return the full state of a prepared optimizer, also of a sharded model; all processes call this together."""
    if isinstance(model, FSDPModule):
        return get_optimizer_state_dict(model, optimizer.optimizer, options=_FULL)
    return optimizer.state_dict()


def load_optimizer_state(model: torch.nn.Module, optimizer, state: dict) -> None:
    """Load what `optimizer_state` returned."""
    if isinstance(model, FSDPModule):
        set_optimizer_state_dict(model, optimizer.optimizer, state, options=_FULL)
    else:
        optimizer.load_state_dict(state)


@torch.no_grad()
def share_buffers(accelerator: Accelerator, model: WakeSleepForImageClassification) -> None:
    """Copy the buffers of a full model, such as LDA's statistics, from the first process to all others.

    They can differ: each process sums features itself, which devices may round differently, and modules with running
    statistics see other images on each process.

    Args:
        accelerator (`Accelerator`): Its processes call this together.
        model ([`WakeSleepForImageClassification`]): A full, bare model.
    """
    if accelerator.num_processes == 1:
        return
    for buffer in model.buffers():
        here = buffer.to(accelerator.device)
        buffer.copy_(broadcast(here))
    model.head.lda.refresh()


def share_value(accelerator: Accelerator, value):
    """Return a value of the first process on all of them, which call this together."""
    return value if accelerator.num_processes == 1 else broadcast_object_list([value])[0]


def share_tensor(accelerator: Accelerator, tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of the first process on all of them, which call this together with tensors of one shape."""
    return broadcast(tensor.to(accelerator.device)).to(tensor.device)


def share_synapses(accelerator: Accelerator, synapses: Synapses) -> Synapses:
    """Return the synapses of the first process on all of them, which call this together."""
    return Synapses(share_value(accelerator, synapses.bits))


def checksums(model: torch.nn.Module, memory: SemiParametricMemory | None) -> dict[str, int]:
    """Return a checksum of every tensor of a model, by its name, of a memory, and the weight of LDA."""
    sums = {name: _crc(tensor) for name, tensor in model.state_dict().items()}
    sums["lda_weight"] = model.config.lda_weight
    if memory is not None:
        sums["memory"] = memory.checksum()
    return sums


def check_equal(accelerator: Accelerator, mine: dict, when: str) -> None:
    """Compare values of all processes, by name.

    Args:
        accelerator (`Accelerator`): Its processes call this together.
        mine (`dict`): Values of this process, which can be pickled.
        when (`str`): When they are compared, for the error, such as `"after task-02"`.

    Raises:
        RuntimeError: If they differ; raised on all processes, with the names of the values that differ.
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
