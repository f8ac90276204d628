"""consolidate: one sleep, in which memories of all classes are replayed into the network."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace

import torch
from accelerate import Accelerator
from accelerate.utils.memory import should_reduce_batch_size

from ..data.images import ImageReader, make_image_processor
from ..memory.memory import SemiParametricMemory
from ..model.configuration_wakesleep import WakeSleepConfig
from .distributed import share_buffers, share_synapses, share_tensor
from .drift import drift_features
from .freezing import freeze_synapses
from .lda import held_out_accuracy, update_lda
from .replay import Replay
from .sleep_config import SleepConfig
from .stopping import StepCheck


@dataclass(frozen=True)
class SleepReport:
    """What one sleep did.

    Args:
        steps (`int`): Optimizer steps.
        images (`int`): Memories replayed, repetitions included.
        seconds (`float`): Wall-clock time, LDA included.
        loss (`float`): Mean loss of the last `steps // 10` steps of NREM.
        rem_loss (`float`): The same of REM; NaN without REM.
        lda_weight (`float`): Weight of LDA in predictions from now on.
        held_out_accuracy_before (`float`): Accuracy, before the sleep, on the memories that it does not replay (their
            images were seen in the wake of their task); NaN if it replays all.
        held_out_accuracy (`float`): The same after the sleep.
        backbone_learning_rate_ratio (`float`): Learning rate of the backbone over that of the head.
        frozen_fraction (`float`): Share of all weights that is frozen from now on.
        frozen (`dict[str, float]`): The same by the parts of the network; empty if nothing is ever frozen.
    """

    steps: int
    images: int
    seconds: float
    loss: float
    rem_loss: float
    lda_weight: float
    held_out_accuracy_before: float
    held_out_accuracy: float
    backbone_learning_rate_ratio: float = math.nan
    frozen_fraction: float = 0.0
    frozen: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict:
        """Return all fields."""
        return asdict(self)

    def scalars(self) -> dict[str, float]:
        """Return all numbers by name; the shares in `frozen` are named `frozen/head` and so on."""
        scalars = self.to_dict()
        frozen = scalars.pop("frozen")
        return scalars | {f"frozen/{part}": share for part, share in frozen.items()}


def consolidate(  # noqa: PLR0913
    model: torch.nn.Module,
    memory: SemiParametricMemory,
    config: SleepConfig | None = None,
    *,
    reader: ImageReader | None = None,
    features_before: torch.Tensor | None = None,
    accelerator: Accelerator | None = None,
    check: StepCheck | None = None,
    state: dict | None = None,
    on_step_end: Callable[[Replay], object] | None = None,
) -> SleepReport:
    """Sleep: replay memories of all classes into the network, bring LDA up to date, and freeze what matters most.

    The last `rem_share` of the steps is REM, the rest is NREM. The loss is the cross-entropy over all classes, on
    memories in NREM and on recombined memories in REM. A sleep of as many steps costs the same after every task.

    Args:
        model (`torch.nn.Module`): A [`WakeSleepForImageClassification`], bare or prepared by `accelerator`.
        memory ([`SemiParametricMemory`]): Its codes are read only; its synapses (which weights are frozen) change
            if `freeze_fraction` is above 0.
        config ([`SleepConfig`], *optional*): How the sleep goes; the defaults if missing.
        reader ([`ImageReader`], *optional*): Turns decoded images into the model's input; made from the model's config
            if missing.
        features_before (`torch.Tensor` of shape `(M, D)`, *optional*): What [`drift_features`] gave when LDA's
            statistics were right, which are carried along from there; those of now if missing.
        accelerator (`Accelerator`, *optional*): Needed for several processes, and for mixed precision, in place of
            that of `config`. `model` is moved to its device.
        check ([`StepCheck`], *optional*): Judges the loss of every step, in place of `non_finite_loss`.
        state (`dict`, *optional*): What [`Replay.state_dict`] returned at some step; with the weights of that step in
            `model`, and with `features_before`, sleep goes on from there and ends as if it had never stopped.
        on_step_end (`Callable`, *optional*): Called with the [`Replay`] after every step.

    Returns:
        [`SleepReport`].

    Raises:
        TypeError: If `model` or `config` is of another kind.
        ValueError: If the memory is empty or of other classes, `features_before` are those of other memories, or the
            factors of `lora_config` cannot be merged or fit no layer.
        FloatingPointError: If a loss is not finite and `non_finite_loss` is `"stop"`.
        MemoryError: If the device has not enough memory.
    """
    start, accelerator = time.perf_counter(), accelerator or Accelerator()
    if not isinstance(config, SleepConfig | None):
        raise TypeError(
            f"Expected `config` to be a SleepConfig, got {type(config).__name__}. `args.sleep_config()` is."
        )
    config = replace(config or SleepConfig(), mixed_precision=accelerator.mixed_precision)
    bare = _bare(model, accelerator)
    _check(bare, memory, config, accelerator)
    reader = reader or ImageReader(make_image_processor(bare.config))
    if config.lda_update == "carry" and features_before is None:
        if state is not None:
            raise ValueError("Expected `features_before` with `state`: LDA is carried from before that sleep began.")
        if config.plasticity == "head" or not config.steps:
            config = replace(config, lda_update="keep")  # features will not move
    with _memory_advice("`per_device_eval_batch_size`", config.eval_batch_size):
        accuracy_before = held_out_accuracy(bare, memory, reader, config) if state is None else math.nan
        if config.lda_update == "carry" and features_before is None:
            features_before = share_tensor(accelerator, drift_features(bare, memory, reader, config))
    replay = _start(bare, memory, reader, config, accelerator, check, state)
    if state is None:
        replay.accuracy_before = accuracy_before
    _finish(replay, on_step_end)
    with _memory_advice("`per_device_eval_batch_size`", config.eval_batch_size):
        accuracy = update_lda(bare, memory, reader, config, features_before=features_before, accelerator=accelerator)
        if config.freeze_fraction:
            memory.set_synapses(share_synapses(accelerator, freeze_synapses(bare, memory, reader, config)))
    frozen_fraction, frozen = (0.0, {}) if memory.synapses is None else memory.synapses.frozen_shares(bare)
    return SleepReport(
        steps=replay.step,
        images=replay.step * config.batch_size,
        seconds=replay.seconds_before + time.perf_counter() - start,
        loss=replay.mean_loss(),
        rem_loss=replay.mean_loss("rem"),
        lda_weight=bare.config.lda_weight,
        held_out_accuracy_before=replay.accuracy_before,
        held_out_accuracy=accuracy,
        backbone_learning_rate_ratio=config.backbone_learning_rate_ratio,
        frozen_fraction=frozen_fraction,
        frozen=frozen,
    )


def is_worse(before: float, after: float, count: int) -> bool:
    """Whether an accuracy on so many images has fallen by more than twice the standard error of the difference."""
    if not count or math.isnan(before) or math.isnan(after):
        return False
    variance = (before * (1 - before) + after * (1 - after)) / count
    return before - after > 2 * math.sqrt(variance)


def nap(
    model: torch.nn.Module,
    memory: SemiParametricMemory,
    reader: ImageReader,
    config: SleepConfig,
    accelerator: Accelerator,
    check: StepCheck,
) -> float:
    """Replay memories as in a sleep, and nothing else: LDA is not updated, and no more weights are frozen.

    Arguments and errors are those of [`consolidate`].

    Returns:
        `float`: Mean loss of the last `steps // 10` steps of NREM.
    """
    bare = _bare(model, accelerator)
    _check(bare, memory, config, accelerator)
    replay = _start(bare, memory, reader, config, accelerator, check)
    _finish(replay)
    return replay.mean_loss()


def _check(
    model: torch.nn.Module, memory: SemiParametricMemory, config: SleepConfig, accelerator: Accelerator
) -> None:
    """Refuse a model and a memory that do not belong together, or what cannot be replayed or measured."""
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind != WakeSleepConfig.model_type:
        raise TypeError(f"Expected `model` to be a WakeSleepForImageClassification, got {type(model).__name__}.")
    if model.config.classes[: len(memory.classes)] != memory.classes:
        raise ValueError(
            f"Expected a model that knows the {len(memory.classes)} classes of the memory first, in their order, got "
            f"one that knows {len(model.config.classes)} classes. Pass the model and the memory of one stage."
        )
    if len(memory) == 0:
        raise ValueError("Sleep replays memories, but the memory is empty. Write a task first, or do not sleep.")
    if config.held_out_share == 0 and config.lda_weight is None:
        raise ValueError(
            "`lda_weight` is set on memories that sleep holds out, but `held_out_share` is 0. Pass a `lda_weight`, or "
            "a share such as 0.1."
        )
    if config.batch_size < accelerator.num_processes:
        raise ValueError(
            f"`batch_size` must be at least 1 for each of {accelerator.num_processes} processes, got "
            f"{config.batch_size}."
        )


def _bare(model: torch.nn.Module, accelerator: Accelerator) -> torch.nn.Module:
    """Return a model without the wrapper of any accelerator, on the device of this one."""
    bare = accelerator.unwrap_model(model, keep_fp32_wrapper=False).to(accelerator.device)
    bare.__dict__.pop("_is_accelerate_prepared", None)  # so that it is prepared anew, for what sleep trains
    return bare


def _start(bare, memory, reader, config, accelerator, check=None, state=None) -> Replay:
    """Return the replay of a sleep, ready for its first step, or for the next one after `state`."""
    check = check or StepCheck(accelerator, config.non_finite_loss)
    with _memory_advice("`sleep_batch_size`", config.batch_size):
        replay = Replay(bare, memory, reader, config, accelerator, check)
        if state is not None:
            replay.load_state_dict(state)
    return replay


def _finish(replay: Replay, on_step_end: Callable[[Replay], object] | None = None) -> None:
    """Take the remaining steps of a replay."""
    with _memory_advice("`sleep_batch_size`", replay.config.batch_size):
        replay.run(on_step_end)
        share_buffers(replay.accelerator, replay.bare)


@contextmanager
def _memory_advice(name: str, value: int) -> Iterator[None]:
    """If the device runs out of memory inside the block, raise an error that says what to lower."""
    try:
        yield
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        raise MemoryError(
            f"Sleep does not fit into the memory of the device with {name} {value}. Pass "
            "`activation_checkpointing=True` or `bf16=True`, and go on with `resume_from_checkpoint=True`; or lower "
            "it, or pass `sleep_plasticity='head'`, and go on from the last stage, which is intact. "
            f"({str(error).splitlines()[0]})"
        ) from error
