"""TaskRun: what belongs to one task while it is learned; it is thrown away when the stage of the task stands."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..data.augmentation import augment, seeded_generator
from ..data.streams import Task
from ..memory.synapses import FrozenEntries
from ..reporting.history import History
from ..reporting.task_record import TaskRecord
from ..stages.checkpoint import load_sleep, was_wake_stopped
from ..stages.stage import stage_name
from ..stages.stopwatch import Stopwatch
from .arguments import ContinualTrainingArguments
from .sleep import SleepReport
from .wake import WakeReplay


@dataclass
class TaskRun:
    """What belongs to one task while it is learned.

    Args:
        number (`int`): Number of the task, from 0.
        record ([`TaskRecord`]): What will be known of it.
        steps_before (`int`): Optimizer steps of all finished tasks, awake and asleep.
        frozen ([`FrozenEntries`]): Holds what is frozen while wake trains.
        stopwatch ([`Stopwatch`]): Counts its seconds.
        features_before (`torch.Tensor` of shape `(M, D)`, *optional*): Those of the landmarks when LDA's statistics
            were right.
        wake_replay ([`WakeReplay`], *optional*): Memories that join the batches of wake.
        sleep_state (`dict`, *optional*): State of the sleep that a run goes on with.
        is_wake_over (`bool`): Whether a run goes on after its wake.
        earlier_logs (`list[dict]`): What was logged before.
        report ([`SleepReport`], *optional*): What its sleep did; `None` without one.
        sleep_step (`int`): Steps of its sleep so far.
    """

    number: int
    record: TaskRecord
    steps_before: int
    frozen: FrozenEntries
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    features_before: torch.Tensor | None = None
    wake_replay: WakeReplay | None = None
    sleep_state: dict | None = None
    is_wake_over: bool = False
    earlier_logs: list[dict] = field(default_factory=list)
    report: SleepReport | None = None
    sleep_step: int = 0
    _last: tuple[int, int] = (-1, 0)  # step of wake, and repetition in it, of the last batch

    @classmethod
    def of(cls, number: int, task: Task, history: History, frozen: FrozenEntries) -> "TaskRun":
        """Return the run of a task that comes after those of a history."""
        names = [record.name for record in history.records]
        record = TaskRecord(
            name=task.name if task.name not in names else stage_name(number),
            fingerprint=task.fingerprint(),
            classes=list(task.classes),
            new_classes=[name for name in task.classes if name not in history.classes],
            num_train_images=len(task.train_dataset),
            num_eval_images=len(task.eval_dataset),
            untrained_accuracy=history.untrained.get(stage_name(number), math.nan),
        )
        return cls(number, record, history.num_steps, frozen)

    def go_on_from(self, checkpoint: str | Path | None, logs: list[dict]) -> None:
        """Take the state of a checkpoint inside the task; without one, `logs` are what was logged before."""
        self.sleep_state = load_sleep(checkpoint)
        self.is_wake_over = self.sleep_state is not None or was_wake_stopped(checkpoint)
        if checkpoint is None:
            self.earlier_logs = logs  # a checkpoint holds them
        else:
            self.stopwatch.load(checkpoint)

    def batch_of_wake(self, inputs: dict, step: int, args: ContinualTrainingArguments) -> dict:
        """Return a batch of wake as it is trained on: with memories, if wake replays them, and augmented.

        Args:
            inputs (`dict`): `pixel_values` (B, 3, H, W) and `labels` (B,) of new images.
            step (`int`): Optimizer steps of this wake so far.
            args ([`ContinualTrainingArguments`]): `augmentation`, `seed`, ...
        """
        repetition = self._last[1] + 1 if self._last[0] == step else 0
        self._last = (step, repetition)
        if self.wake_replay is not None:
            number = step * args.gradient_accumulation_steps + repetition
            batch = number * args.world_size + args.process_index
            inputs = self.wake_replay.join(inputs, batch * args.train_batch_size)
        generator = seeded_generator(args.seed, self.number, step, repetition, args.process_index)
        return {
            **inputs,
            "pixel_values": augment(inputs["pixel_values"], args.augmentation, args.crop_scale, generator),
        }

    def close(self, num_steps: int, epochs: float, num_naps: int, args: ContinualTrainingArguments) -> TaskRecord:
        """Return the record of the task, with what wake and sleep took.

        Args:
            num_steps (`int`): Optimizer steps of its wake.
            epochs (`float`): Epochs of its wake.
            num_naps (`int`): Naps in it.
            args ([`ContinualTrainingArguments`]): `nap_steps`, `sleep_batch_size`.
        """
        record, seconds = self.record, self.stopwatch.read()
        record.sleep = self.report.to_dict() if self.report else {}
        record.wake_steps, record.wake_seconds = num_steps, seconds["awake"]
        record.sleep_seconds = seconds["napping"] + (self.report.seconds if self.report else 0.0)
        asleep = self.report.images if self.report else 0
        record.sleep_images = asleep + num_naps * args.nap_steps * args.sleep_batch_size
        replays = self.wake_replay is not None and not self.wake_replay.is_empty
        record.wake_images = round(epochs * record.num_train_images) * (1 + replays)
        return record
