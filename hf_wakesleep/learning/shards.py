"""Shards: models that FSDP spreads over processes while they are trained, and that are whole in between.

Wake and sleep train shards; writing memory, LDA, evaluation and saving see a whole model on every process.
"""

import copy

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule

from .arguments import ContinualTrainingArguments

_WHOLE = StateDictOptions(full_state_dict=True)


def check_sharding(accelerator: Accelerator, args: ContinualTrainingArguments) -> None:
    """Check that sharded models can be made whole, and that nothing needs a whole one in between.

    Raises:
        ValueError: If not.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise ValueError(
            "Expected a launch without DeepSpeed, whose shards cannot be put together between wake and sleep. Use "
            "FSDP, as in examples/accelerate/fsdp.yaml, or train without shards."
        )
    if not shards(accelerator):
        return
    for name in ("sleep_average", "sleep_every_n_steps"):
        if getattr(args, name):
            raise ValueError(
                f"`{name}` needs a model that is whole on every process, but FSDP shards it, got "
                f"{getattr(args, name)}. Pass 0, or train without shards."
            )
    kind = str(accelerator.state.fsdp_plugin.state_dict_type)
    if not accelerator.is_fsdp2 or "FULL_STATE_DICT" not in kind:
        version = 2 if accelerator.is_fsdp2 else 1
        raise ValueError(
            f"Expected `fsdp_version: 2` and `fsdp_state_dict_type: FULL_STATE_DICT`, got {version} and {kind}. "
            "Change them in the configuration of accelerate, as in examples/accelerate/fsdp.yaml."
        )


def check_whole(accelerator: Accelerator) -> None:
    """Check that models stay whole while they are trained, so that single weights can be held frozen.

    Raises:
        ValueError: If not.
    """
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise ValueError(
            "Expected a model that is whole on every process, since some of its weights are frozen, but it is trained "
            f"with {accelerator.distributed_type.value}. Pass `freeze_fraction=0` and a stage without frozen weights, "
            "or train without shards."
        )


def shards(accelerator: Accelerator) -> bool:
    """Whether `accelerator.prepare` spreads a model over processes."""
    return accelerator.distributed_type == DistributedType.FSDP


def unwrap(accelerator: Accelerator, model: torch.nn.Module) -> torch.nn.Module:
    """Return a whole, bare model, which can be prepared anew: another one if `model` is sharded.

    Args:
        accelerator (`Accelerator`): Prepared the model, if anything did; its processes call this together.
        model (`torch.nn.Module`): A [`WakeSleepForImageClassification`], bare or prepared.
    """
    bare = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    if isinstance(bare, FSDPModule):
        kind = next(base for base in type(bare).__mro__ if not issubclass(base, FSDPModule))
        whole = kind(copy.deepcopy(bare.config)).to(accelerator.device)
        whole.load_state_dict(get_model_state_dict(bare, options=_WHOLE))
        bare = whole
    bare.__dict__.pop("_is_accelerate_prepared", None)
    return bare


def load_whole(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Load the weights of a whole model, which every process has, into one that may be sharded."""
    if isinstance(model, FSDPModule):
        set_model_state_dict(model, state, options=_WHOLE)
    else:
        model.load_state_dict(state)


def whole_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights of a sharded model; all processes call this together."""
    return get_model_state_dict(model, options=_WHOLE)


def optimizer_state(model: torch.nn.Module, optimizer) -> dict:
    """Return the state of a prepared optimizer; that of a sharded model made whole, by all processes together."""
    if isinstance(model, FSDPModule):
        return get_optimizer_state_dict(model, optimizer.optimizer, options=_WHOLE)
    return optimizer.state_dict()


def load_optimizer_state(model: torch.nn.Module, optimizer, state: dict) -> None:
    """Load what `optimizer_state` returned."""
    if isinstance(model, FSDPModule):
        set_optimizer_state_dict(model, optimizer.optimizer, state, options=_WHOLE)
    else:
        optimizer.load_state_dict(state)
