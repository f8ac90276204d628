"""TaskRun: the state and the steps of learning one task: write it into memory, train awake, sleep."""

import copy
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from peft import LoraConfig
from transformers import TrainerState, set_seed
from transformers.utils import logging

from ..data.augmentation import augment, seeded_generator
from ..data.images import ImageReader
from ..data.streams import Task
from ..memory.memory import MemoryBytes, SemiParametricMemory
from ..memory.synapses import FrozenEntries
from ..model.modeling_wakesleep import WakeSleepForImageClassification
from ..reporting.history import History
from ..reporting.task_record import TaskRecord
from ..stages.checkpoint import load_sleep, was_wake_stopped
from ..stages.ingest import IngestResult
from ..stages.stage import stage_name
from ..stages.stopwatch import Stopwatch
from .arguments import ContinualTrainingArguments
from .distributed import share_tensor
from .drift import drift_features, drift_positions, measured_positions
from .lda import rank_error, set_lda_weight, update_lda
from .lora import WAKE, inject
from .plasticity import set_plasticity
from .recipe import ENOUGH_LOSS, sleep_ratio, sleep_steps
from .replay import Replay
from .sleep import SleepReport, consolidate, is_worse, nap
from .sleep_config import SleepConfig
from .stopping import StepCheck
from .stream_images import StreamImages
from .wake import WakePass, WakeReplay

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class RunContext:
    """What all tasks of a run share.

    Args:
        args ([`ContinualTrainingArguments`]): The arguments.
        memory ([`SemiParametricMemory`], *optional*): What is remembered.
        accelerator (`Accelerator`): Spreads work over processes.
        check ([`StepCheck`]): Says which steps are left out, and when to stop.
        lora_config (`peft.LoraConfig`): What plasticity `"lora"` trains.
        is_pretrained (`bool`): Whether the backbone is pretrained.
        chosen (`Collection[str]`): Names of the arguments that the recipe has chosen.
        reader ([`ImageReader`]): Resizes and normalises images.
    """

    args: ContinualTrainingArguments
    memory: SemiParametricMemory | None
    accelerator: Accelerator
    check: StepCheck
    lora_config: LoraConfig
    is_pretrained: bool
    chosen: Collection[str]
    reader: ImageReader


class TaskRun:
    """The state of one task while it is learned; made when the task begins, and dropped once its stage is saved.

    Args:
        number (`int`): Number of the task, from 0.
        task ([`Task`]): The task.
        history ([`History`]): What was learned before.
        context ([`RunContext`]): What all tasks share.
        log (`Callable[[dict], None]`): Called with measured values by name.

    Attributes:
        record ([`TaskRecord`]): Collects what is measured of the task, for the history.
        steps_before (`int`): Optimizer steps of all tasks before, awake and asleep.
        earlier_logs (`list[dict]`): Logs of earlier tasks; empty if the task resumes from a checkpoint, which holds
            them.
        is_wake_over (`bool`): Whether the task resumes from a checkpoint at or after the end of its wake, which is
            skipped then.
        sleep_step (`int`): Number of steps of its sleep so far.
        frozen ([`FrozenEntries`], *optional*): Keeps frozen weights at their values while wake trains.
        report ([`SleepReport`], *optional*): What its sleep did; `None` without one.
    """

    def __init__(self, number: int, task: Task, history: History, context: RunContext, log: Callable[[dict], None]):
        self.number, self.context, self._log = number, context, log
        self.record = TaskRecord(
            name=history.free_name(task.name),
            fingerprint=task.fingerprint(),
            classes=list(task.classes),
            new_classes=[name for name in task.classes if name not in history.classes],
            num_train_images=len(task.train_dataset),
            num_eval_images=len(task.eval_dataset),
            untrained_accuracy=history.untrained.get(stage_name(number), math.nan),
        )
        self.steps_before = history.num_steps
        before = [record.num_train_images for record in history.records]
        self._sleep_steps = sleep_steps(context.args, context.is_pretrained, len(task.train_dataset), before)
        self.earlier_logs: list[dict] = []
        self.is_wake_over, self.sleep_step = False, 0
        self.frozen: FrozenEntries | None = None
        self.report: SleepReport | None = None
        self._stopwatch = Stopwatch()
        self._features_before: torch.Tensor | None = None  # (M, D), before training, when LDA fitted the backbone
        self._rank_error: float | None = None  # where it chooses how fast the backbone learns asleep
        self._wake_replay: WakeReplay | None = None
        self._sleep_state: dict | None = None
        self._last = (-1, 0)  # step of wake, and repetition in it, of the last batch

    @property
    def stage(self) -> str:
        """Name of the stage that is saved at the end of the task."""
        return stage_name(self.number)

    @property
    def sleep_config(self) -> SleepConfig:
        """How its sleep goes."""
        config = self.context.args.sleep_config(self.number, self.context.lora_config)
        if self.context.args.sleep_steps is None:
            config = replace(config, steps=self._sleep_steps, enough_loss=ENOUGH_LOSS)
        if self._rank_error is not None:
            config = replace(config, backbone_learning_rate_ratio=sleep_ratio(self._rank_error))
        return config

    def write(self, model: WakeSleepForImageClassification, images: StreamImages, folder: Path) -> None:
        """Write the task into memory and LDA, and measure before and after; load the result if that was done before.

        Args:
            model ([`WakeSleepForImageClassification`]): Has output units for all classes of the task.
            images ([`StreamImages`]): Images of all tasks.
            folder (`Path`): Where the checkpoints of the task go.
        """
        context, args, lda = self.context, self.context.args, model.head.lda
        self._seed()
        stored = IngestResult.load(folder, self._stopwatch)
        if stored is not None:
            if context.memory is not None:
                context.memory.become(stored.memory)
            self._features_before = stored.features
            lda.load_state_dict(stored.statistics)
            self.record.set_scores(stored.scores)
            return
        wake = WakePass(model, context.reader, args, context.accelerator)
        if args.measure == "full" and self.number > 0:
            self.record.before_accuracy = wake.probe(*images.probe_images(self.number))
        label2id = model.config.label2id
        wake.write(images.train_images(self.number, label2id), context.memory, self.number)
        if args.measure == "full":
            self.record.lda_accuracy = self._evaluate_lda(wake, images.eval_sets(self.number + 1, label2id))
        if context.memory is not None and self.sleep_config.lda_update == "carry":
            features = drift_features(model, context.memory, context.reader, self.sleep_config)
            self._features_before = share_tensor(context.accelerator, features)
        if args.save_strategy != "no" and args.should_save:
            result = IngestResult(context.memory, lda.state_dict(), self._features_before, self.record.scores())
            result.save(folder, self._stopwatch)
        context.accelerator.wait_for_everyone()

    def _evaluate_lda(self, wake: WakePass, sets) -> list[float]:
        """Return and log the accuracy of LDA alone on every task so far; NaN without its images."""
        scores = {name: wake.score(images) for name, images in (sets.sets if sets else {}).items()}
        self._log({f"lda_{name}_accuracy": score for name, score in scores.items()})
        return [scores.get(stage_name(number), math.nan) for number in range(self.number + 1)]

    def begin_wake(
        self, model: WakeSleepForImageClassification, checkpoint: str | Path | None, logs: list[dict]
    ) -> None:
        """Prepare a model for wake: new output units, frozen weights, which weights learn.

        Args:
            model ([`WakeSleepForImageClassification`]): The bare model; the task has been written.
            checkpoint (`str` or `Path`, *optional*): Checkpoint inside the task to resume from.
            logs (`list[dict]`): Logs of earlier tasks.
        """
        context, args = self.context, self.context.args
        if args.replays_awake(self.number):
            self._wake_replay = WakeReplay(context.memory, context.reader, self.number, args.seed)
        first_new = len(model.config.classes) - len(self.record.new_classes)
        model.head.start_from_lda(first_new, args.label_smoothing_factor)
        context.check.exit_if_asked()
        self._seed()
        self.frozen = FrozenEntries(model, None if context.memory is None else context.memory.synapses)
        self._sleep_state = load_sleep(checkpoint)
        self.is_wake_over = self._sleep_state is not None or was_wake_stopped(checkpoint)
        if checkpoint is None:
            self.earlier_logs = logs  # a checkpoint holds them
        else:
            self._stopwatch.load(checkpoint)
        plasticity = args.wake_plasticity_of(self.number)
        set_plasticity(model, plasticity)
        if plasticity == "lora" and self._sleep_state is None:  # asleep they are merged already
            inject(model, context.lora_config, context.accelerator, args.seed, self.number, WAKE)

    def batch_of_wake(self, inputs: dict, step: int) -> dict:
        """Add memories of earlier tasks to a batch of wake, if wake replays them, and augment all.

        Args:
            inputs (`dict`): `pixel_values` (B, 3, H, W) and `labels` (B,) of new images.
            step (`int`): Number of optimizer steps of this wake so far.
        """
        args = self.context.args
        repetition = self._last[1] + 1 if self._last[0] == step else 0
        self._last = (step, repetition)
        if self._wake_replay is not None:
            number = step * args.gradient_accumulation_steps + repetition
            batch = number * args.world_size + args.process_index
            inputs = self._wake_replay.join(inputs, batch * args.train_batch_size)
        generator = seeded_generator(args.seed, self.number, step, repetition, args.process_index)
        return {
            **inputs,
            "pixel_values": augment(inputs["pixel_values"], args.augmentation, generator),
        }

    def nap(self, model: WakeSleepForImageClassification, step: int) -> None:
        """Take `nap_steps` steps of sleep inside wake, whose optimizer state is not touched."""
        context, args = self.context, self.context.args
        self._stopwatch.enter("napping")
        sleeper = type(model)(copy.deepcopy(model.config)).to(context.accelerator.device)
        sleeper.load_state_dict(model.state_dict())
        config = replace(self.sleep_config, steps=args.nap_steps, rng_key=(args.seed, self.number, step))
        loss = nap(sleeper, context.memory, context.reader, config, context.accelerator, context.check)
        model.load_state_dict(sleeper.state_dict())
        self._stopwatch.enter("awake")
        self._log({"nap_loss": loss})

    def sleep(self, model: WakeSleepForImageClassification, on_step_end: Callable[[Replay], object]) -> None:
        """Consolidate memory into the network, if the arguments say so.

        Args:
            model ([`WakeSleepForImageClassification`]): The bare model after wake.
            on_step_end (`Callable`): Called with the [`Replay`] after every step.
        """
        context = self.context
        if (
            self._features_before is not None
            and context.is_pretrained
            and "backbone_learning_rate_ratio" in context.chosen
        ):
            positions = drift_positions(context.memory, context.args.held_out_share)
            labels = torch.from_numpy(context.memory.labels[positions])
            self._rank_error = rank_error(self._features_before, labels)
        self._seed()  # what is random asleep does not depend on how wake was resumed
        if context.args.sleeps:
            self._stopwatch.enter("asleep")
            self.report = consolidate(
                model,
                context.memory,
                self.sleep_config,
                reader=context.reader,
                features_before=self._features_before,
                accelerator=context.accelerator,
                check=context.check,
                state=self._sleep_state,
                on_step_end=on_step_end,
            )
            self._log(
                {f"sleep_{name}": value for name, value in self.report.scalars().items() if not math.isnan(value)}
            )
            self._warn_of_harm(self.report)
            self._stopwatch.enter("awake")

    def _warn_of_harm(self, report: SleepReport) -> None:
        count = len(measured_positions(self.context.memory, self.context.args.held_out_share))
        before, after = report.held_out_accuracy_before, report.held_out_accuracy
        if is_worse(before, after, count):
            logger.warning(
                f"The sleep after {self.stage} did harm: of {count} held-out memories {after:.1%} are right after it, "
                f"{before:.1%} before. Pass a lower `learning_rate` or fewer `sleep_steps`, and go on from the "
                "stage before."
            )

    def settle(self, model: WakeSleepForImageClassification) -> None:
        """After a task without a sleep, update LDA's statistics and its weight in predictions, as a sleep would do."""
        context, args, config = self.context, self.context.args, self.sleep_config
        if self.report is not None:
            return
        is_moved = config.lda_update != "keep"
        if context.memory is not None and is_moved:
            update_lda(
                model,
                context.memory,
                context.reader,
                config,
                features_before=self._features_before,
                accelerator=context.accelerator,
            )
        elif args.lda_weight is None and is_moved:
            set_lda_weight(model, 0.0)  # the backbone has changed, and nothing is left to update LDA with
        else:
            set_lda_weight(model, args.lda_weight)

    def close(self, model: WakeSleepForImageClassification, state: TrainerState) -> None:
        """Put into the record the steps, images and seconds of wake and sleep, and the bytes that are kept.

        Args:
            model ([`WakeSleepForImageClassification`]): The model after wake and sleep.
            state (`TrainerState`): State of the wake when it ended.
        """
        args, memory, record = self.context.args, self.context.memory, self.record
        num_steps, seconds, every = state.global_step, self._stopwatch.read(), args.sleep_every_n_steps
        num_naps = min(num_steps, state.max_steps - 1) // every if every else 0
        record.sleep = self.report.to_dict() if self.report else {}
        record.wake_steps, record.wake_seconds = num_steps, seconds["awake"]
        record.sleep_seconds = seconds["napping"] + (self.report.seconds if self.report else 0.0)
        asleep = self.report.images if self.report else 0
        record.sleep_images = asleep + num_naps * args.nap_steps * args.sleep_batch_size
        replays = self._wake_replay is not None and not self._wake_replay.is_empty
        record.wake_images = round(state.epoch * record.num_train_images) * (1 + replays)
        record.lda_weight = model.config.lda_weight
        if memory is None:
            record.memory_bytes = MemoryBytes(0, 0, 0, model.head.lda.num_bytes, 0).to_dict()
        else:
            record.memory_bytes, record.num_codes = memory.num_bytes.to_dict(), len(memory)

    def save_seconds(self, folder: Path) -> None:
        """Write the seconds so far to a checkpoint."""
        self._stopwatch.save(folder)

    def _seed(self) -> None:
        set_seed(self.context.args.seed + self.number)
