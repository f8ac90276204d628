"""consolidate: one sleep, in which memories of all classes are replayed into the network."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import torch
from accelerate import Accelerator
from accelerate.utils.memory import should_reduce_batch_size
from peft import LoraConfig

from ..data.images import ImageReader
from ..memory.memory import SemiParametricMemory
from .arguments import ContinualTrainingArguments
from .freezing import freeze_synapses
from .guard import StepGuard
from .lda import held_out_accuracy, update_lda
from .lora import default_lora_config
from .processes import share_buffers, share_synapses
from .replay import Replay


@dataclass(frozen=True)
class SleepReport:
    """What one sleep did.

    Args:
        steps (`int`): Optimizer steps.
        images (`int`): Memories replayed, repetitions included.
        seconds (`float`): Wall-clock time, LDA included.
        loss (`float`): Mean loss of NREM over its last steps, a tenth as many as the sleep has.
        rem_loss (`float`): Mean loss of REM over its last steps; NaN without REM.
        lda_weight (`float`): Weight of LDA in predictions from now on.
        held_out_accuracy_before (`float`): Accuracy, before it, on the memories that are held out of this sleep (the
            wake of their task has seen their images); NaN without such.
        held_out_accuracy (`float`): The same after it.
        frozen_fraction (`float`): Share of all weights that is frozen from now on.
        frozen (`dict[str, float]`): That share by the parts of the network; empty if nothing is ever frozen.
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
        """Return all numbers, those of the parts by names such as `frozen/head`."""
        scalars = self.to_dict()
        frozen = scalars.pop("frozen")
        return scalars | {f"frozen/{part}": share for part, share in frozen.items()}


def consolidate(  # noqa: PLR0913
    model: torch.nn.Module,
    memory: SemiParametricMemory,
    reader: ImageReader,
    args: ContinualTrainingArguments,
    *,
    before: torch.Tensor | None = None,
    place: tuple[int, ...] = (0,),
    accelerator: Accelerator | None = None,
    guard: StepGuard | None = None,
    lora_config: LoraConfig | None = None,
    state: dict | None = None,
    on_step_end: Callable[[Replay], object] | None = None,
) -> SleepReport:
    """Sleep: replay memories of all classes into the network, bring LDA up to date, and freeze what matters most.

    A step is NREM or REM, in `sleep_cycles` cycles of which the last `rem_share` is REM. The loss is the
    cross-entropy over all classes, in REM that of recombined memories. The number of steps is fixed, so a sleep costs
    the same after every task. A nap is the steps alone; LDA stays as it is.

    Args:
        model (`torch.nn.Module`): A [`WakeSleepForImageClassification`], bare or prepared by `accelerator`.
        memory ([`SemiParametricMemory`]): Read; of its state only the synapses change, if `freeze_fraction` says so.
        reader ([`ImageReader`]): Turns decoded images into the model's input.
        args ([`ContinualTrainingArguments`]): `sleep_*`, `augmentation`, `freeze_fraction`, ...
        before (`torch.Tensor` of shape `(M, D)`, *optional*): What [`landmark_features`] gave when LDA's statistics
            were right: they are carried along from there, instead of computed anew from memory.
        place (`tuple[int, ...]`, defaults to `(0,)`): Number of the task, from 0, and for a nap the step of wake that
            it falls on; part of the seed.
        accelerator (`Accelerator`, *optional*): Needed for several processes and for mixed precision. `model` and
            `teacher` are moved to its device; to that of `args` if it is missing.
        guard ([`StepGuard`], *optional*): Judges the loss of every step; made from `args` if missing.
        lora_config (`peft.LoraConfig`, *optional*): Factors that `sleep_plasticity="lora"` trains and merges; of rank
            `lora_rank` in all linear layers if missing.
        state (`dict`, *optional*): What [`Replay.state_dict`] returned at some step; with the weights of that step in
            `model`, sleep goes on from there and ends as if it had never stopped.
        on_step_end (`Callable`, *optional*): Called with the [`Replay`] after every step.

    Returns:
        [`SleepReport`].

    Raises:
        ValueError: If the memory is empty, or the factors of `lora_config` cannot be merged or fit no layer.
        FloatingPointError: If a loss is not finite and `non_finite_loss` is `"stop"`.
        MemoryError: If the device has not enough memory.
    """
    if len(memory) == 0:
        raise ValueError(
            "Sleep replays memories, but the memory is empty. Write a task first, or pass `sleep_steps=0`."
        )
    start, is_nap = time.perf_counter(), len(place) > 1
    accelerator = accelerator or Accelerator()
    bare = accelerator.unwrap_model(model, keep_fp32_wrapper=False).to(accelerator.device)
    bare.__dict__.pop("_is_accelerate_prepared", None)  # a wrapper of wake knows only what wake trained
    guard = guard or StepGuard(args, accelerator)
    with _memory_advice("`sleep_batch_size`", args.sleep_batch_size):
        replay = Replay(
            bare,
            memory,
            reader,
            args,
            place=place,
            accelerator=accelerator,
            guard=guard,
            lora_config=lora_config or default_lora_config(args.lora_rank),
        )
        if state is not None:
            replay.load_state_dict(state)
    with _memory_advice("`per_device_eval_batch_size`", args.per_device_eval_batch_size):
        if not (is_nap or replay.step):
            replay.accuracy_before = held_out_accuracy(bare, memory, reader, args)
    with _memory_advice("`sleep_batch_size`", args.sleep_batch_size):
        replay.run(on_step_end)
        share_buffers(accelerator, bare)
    with _memory_advice("`per_device_eval_batch_size`", args.per_device_eval_batch_size):
        accuracy = math.nan if is_nap else update_lda(bare, memory, reader, args, place[0], before)
        share_buffers(accelerator, bare)
        if args.freeze_fraction and not is_nap:
            memory.set_synapses(share_synapses(accelerator, freeze_synapses(bare, memory, reader, args, place[0])))
    frozen_fraction, frozen = (0.0, {}) if memory.synapses is None else memory.synapses.frozen_shares(bare)
    return SleepReport(
        steps=args.sleep_steps,
        images=args.sleep_steps * args.sleep_batch_size,
        seconds=replay.seconds_before + time.perf_counter() - start,
        loss=replay.mean_loss(),
        rem_loss=replay.mean_loss("rem"),
        lda_weight=bare.config.lda_weight,
        held_out_accuracy_before=replay.accuracy_before,
        held_out_accuracy=accuracy,
        frozen_fraction=frozen_fraction,
        frozen=frozen,
    )


@contextmanager
def _memory_advice(name: str, value: int) -> Iterator[None]:
    """Say what to lower when a device has not enough memory for what the block does."""
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
