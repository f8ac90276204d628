"""consolidate: one sleep, in which memories of all classes are replayed into the network."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import torch
from accelerate import Accelerator
from accelerate.utils.memory import should_reduce_batch_size

from ..data.images import ImageReader, make_image_processor
from ..memory.memory import SemiParametricMemory
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

    Steps are split into `cycles`; the last `rem_share` of each is REM, the rest is NREM. The loss is the cross-entropy
    over all classes, on memories in NREM and on recombined memories in REM. The number of steps is fixed, so a sleep
    costs the same after every task.

    Args:
        model (`torch.nn.Module`): A [`WakeSleepForImageClassification`], bare or prepared by `accelerator`.
        memory ([`SemiParametricMemory`]): Its codes are read only; its synapses (which weights are frozen) change
            if `freeze_fraction` is above 0.
        config ([`SleepConfig`], *optional*): How the sleep goes; the defaults if missing.
        reader ([`ImageReader`], *optional*): Turns decoded images into the model's input; made from the model's config
            if missing.
        features_before (`torch.Tensor` of shape `(M, D)`, *optional*): What [`drift_features`] returned when LDA's
            statistics last fitted the backbone, that is before the backbone was trained further. Drift is measured
            from there. If missing, from the start of this sleep.
        accelerator (`Accelerator`, *optional*): Needed for several processes and for mixed precision. `model` is moved
            to its device.
        check ([`StepCheck`], *optional*): Says whether a step is taken or left out, by its loss; made from `config` if
            missing.
        state (`dict`, *optional*): What [`Replay.state_dict`] returned after some step. Sleep resumes from that step
            and ends as if it had never stopped, if `model` has the weights of that step and `features_before` is the
            same.
        on_step_end (`Callable`, *optional*): Called with the [`Replay`] after every step.

    Returns:
        [`SleepReport`].

    Raises:
        ValueError: If the memory is empty, or the factors of `lora_config` cannot be merged or fit no layer.
        FloatingPointError: If a loss is not finite and `non_finite_loss` is `"stop"`.
        MemoryError: If the device has not enough memory.
    """
    start, config, accelerator = time.perf_counter(), config or SleepConfig(), accelerator or Accelerator()
    _check_memory(memory)
    if config.held_out_share == 0 and config.lda_weight is None:
        raise ValueError(
            "`lda_weight` is set on memories that sleep holds out, but `held_out_share` is 0. Pass a `lda_weight`, or "
            "a share such as 0.1."
        )
    if state is not None and config.lda_update == "carry" and features_before is None:
        raise ValueError("Expected `features_before` with `state`: LDA is carried along from before that sleep began.")
    bare = _bare(model, accelerator)
    reader = reader or ImageReader(make_image_processor(bare.config))
    replay = _start(bare, memory, reader, config, accelerator, check, state)
    with _memory_advice("`per_device_eval_batch_size`", config.eval_batch_size):
        if not replay.step:
            replay.accuracy_before = held_out_accuracy(bare, memory, reader, config)
        if config.lda_update == "carry" and features_before is None:
            features_before = share_tensor(accelerator, drift_features(bare, memory, reader, config))
    _finish(replay, on_step_end)
    with _memory_advice("`per_device_eval_batch_size`", config.eval_batch_size):
        accuracy = update_lda(bare, memory, reader, config, features_before=features_before, accelerator=accelerator)
        if config.freeze_fraction:
            memory.set_synapses(share_synapses(accelerator, freeze_synapses(bare, memory, reader, config)))
    frozen_fraction, frozen = (0.0, {}) if memory.synapses is None else memory.synapses.frozen_shares(bare)
    return SleepReport(
        steps=config.steps,
        images=config.steps * config.batch_size,
        seconds=replay.seconds_before + time.perf_counter() - start,
        loss=replay.mean_loss(),
        rem_loss=replay.mean_loss("rem"),
        lda_weight=bare.config.lda_weight,
        held_out_accuracy_before=replay.accuracy_before,
        held_out_accuracy=accuracy,
        frozen_fraction=frozen_fraction,
        frozen=frozen,
    )


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
    _check_memory(memory)
    replay = _start(_bare(model, accelerator), memory, reader, config, accelerator, check)
    _finish(replay)
    return replay.mean_loss()


def _check_memory(memory: SemiParametricMemory) -> None:
    if len(memory) == 0:
        raise ValueError(
            "Sleep replays memories, but the memory is empty. Write a task first, or pass `sleep_steps=0`."
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
