"""ContinualTrainer: a Trainer that learns a stream of tasks, with a sleep after each."""

import copy
import math
import time
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig
from transformers import set_seed
from transformers.trainer_utils import TrainOutput

from .augment import augment, seeded_generator
from .callbacks import GuardCallback, SleepCallback
from .checkpoint import (
    CHECKPOINTS_FOLDER,
    checkpoints_of,
    clean,
    drop_checkpoints,
    drop_later_checkpoints,
    find_resume_point,
    is_due,
    is_written,
    load_sleep,
    load_written,
    save_written,
)
from .classifier_trainer import ClassifierTrainer
from .codec import Codec
from .guard import StepGuard
from .history import HISTORY_NAME, History, TaskRecord
from .images import TaskImages
from .lora import WAKE, check_lora, default_lora_config, describe, inject, merge
from .memory import MemoryBytes
from .model_card import hyper_parameters
from .modeling_wakesleep import WakeSleepForImageClassification
from .plasticity import set_plasticity
from .plots import save_history_plot, save_synapses_plot
from .processes import check_equal, checksums
from .protocol import align_tasks, check_same_run, make_protocol
from .recall import update_recall
from .replay import Replay, snapshot
from .shards import check_whole, unwrap
from .signals import StopSignals
from .sleep import SleepReport, consolidate
from .stage import Stage, find_stages, initial_state, load_stage_state, stage_name
from .synapses import FrozenEntries, count_entries, make_room
from .tasks import Task, TaskStream
from .training_args import ContinualTrainingArguments
from .wake import WakePass, add_memories


class ContinualTrainer(ClassifierTrainer):
    """Learns a stream of tasks: wake, sleep, evaluate and save a stage, for every task.

    Args:
        model ([`WakeSleepForImageClassification`]): A new model, or one loaded from a stage, whose history and memory
            are then read from that stage.
        args ([`ContinualTrainingArguments`]): The arguments.
        stream ([`TaskStream`]): The tasks. After a stage either the whole stream, whose first tasks are then skipped,
            or the tasks to come.
        processing_class (`BaseImageProcessor`, *optional*): Image processor; made from the model's config if missing.
        codec ([`Codec`], *optional*): The codec of a new memory, such as a [`LearnedCodec`] fitted to images of the
            stream; made from `args` if missing. A model loaded from a stage brings its own.
        lora_config (`peft.LoraConfig`, *optional*): Factors that plasticity `"lora"` trains, instead of those of rank
            `lora_rank` in all linear layers of the backbone.
        kwargs: Passed on to `Trainer` (`callbacks`, `optimizer_cls_and_kwargs`, ...).

    Raises:
        ValueError: If model, stream and arguments do not fit each other; nothing has been written then.
    """

    def __init__(
        self,
        model: WakeSleepForImageClassification,
        args: ContinualTrainingArguments,
        stream: TaskStream,
        processing_class=None,
        codec: Codec | None = None,
        lora_config: LoraConfig | None = None,
        **kwargs,
    ):
        self.stream = stream
        self.history, self.memory = initial_state(model, args, codec)
        self.tasks = align_tasks(stream, self.history)
        self._signals = StopSignals()
        self._sleep_report: SleepReport | None = None
        self._teacher: WakeSleepForImageClassification | None = None
        self._sleep_state: dict | None = None
        self._micro_step = (0, 0)
        self._seconds_asleep = self._seconds_napping = 0.0
        self._is_inside_task = False
        self._frozen = FrozenEntries(model, None)
        super().__init__(model, args, processing_class, **kwargs)
        self.lora_config = default_lora_config(args.lora_rank) if lora_config is None else lora_config
        if "lora" in (args.wake_plasticity, args.sleep_plasticity):
            check_lora(model, self.lora_config, self.accelerator)
        elif lora_config is not None:
            raise ValueError(
                "`lora_config` is for `wake_plasticity` or `sleep_plasticity` 'lora', but neither is. Leave it out."
            )
        self.task_number = len(self.history)
        self.guard = StepGuard(args, self.accelerator, self._signals)
        self.add_callback(GuardCallback(self))
        self.add_callback(SleepCallback(self))
        self.eval_dataset = self._eval_images(len(self.history))

    # The stream

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs) -> TrainOutput:
        """Learn all tasks that are not learned yet.

        SIGTERM and SIGINT stop it after the step at hand, awake or asleep, with a checkpoint of that step; elsewhere
        they stop it when the pass at hand is over. A second signal acts at once.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): `True` goes on from the last stage and checkpoint in
                `output_dir`, or starts anew if there is none; a path goes on from that stage or checkpoint.
            kwargs: Passed on to `Trainer.train`.

        Returns:
            `TrainOutput`: Optimizer steps of all wakes of this call, the last training loss, and
            [`History.summary`] as metrics.

        Raises:
            ValueError: If `output_dir` holds another run, the run to go on from was another, or the memory budget is
                too small for the classes to come. Nothing has been trained or written then.
            OSError: If the disk is full or cannot be written to; stages and checkpoints before are intact.
            FloatingPointError: If a loss is not finite and `non_finite_loss` is `"stop"`.
            MemoryError: If the device has not enough memory to sleep.
            KeyboardInterrupt, SystemExit: After a signal; the exit status is that of the signal.
        """
        if self._is_inside_task:
            raise RuntimeError(
                f"This trainer was stopped inside task {self.task_number + 1}. Build a new model and trainer, and "
                "pass `resume_from_checkpoint=True` to go on."
            )
        with self._signals:
            checkpoint = self._open_run(resume_from_checkpoint)
            steps, loss = 0, math.nan
            for number in range(len(self.history), len(self.tasks)):
                self.guard.exit_if_asked()
                output = self._learn(number, checkpoint, **kwargs)
                checkpoint = None
                steps, loss = steps + output.global_step, output.training_loss
        if self._publisher is not None:
            self._publisher.finish(self.args.shows_progress)
        return TrainOutput(steps, loss, self.history.summary() if len(self.history) else {})

    def _open_run(self, resume: str | bool | None) -> str | None:
        """Check `output_dir`, load the state to go on from, and return the checkpoint inside the next task."""
        output_dir = Path(self.args.output_dir)
        protocol = make_protocol(self.model, self.args, self.stream, self.history, self.memory)
        if self.args.should_save:
            clean(output_dir)
        self.accelerator.wait_for_everyone()
        stages, checkpoint = find_stages(output_dir), None
        if resume:
            checkpoint = self._load_resume_point(resume, protocol)
        elif list((output_dir / CHECKPOINTS_FOLDER).glob("*/*")):
            raise ValueError(
                f"`output_dir` {output_dir} holds another run, stopped inside a task. Pass "
                "`resume_from_checkpoint=True` to go on with it, or choose an empty folder."
            )
        if stages and not History.load(stages[-1]).is_start_of(self.history):
            raise ValueError(
                f"`output_dir` {output_dir} holds another run ({len(stages)} stages). Pass "
                "`resume_from_checkpoint=True` to go on with it, or choose an empty folder."
            )
        if resume not in (None, False, True) and self.args.should_save:
            drop_later_checkpoints(checkpoints_of(output_dir, len(self.history)), checkpoint)
        if self.memory is not None and (self.args.freeze_fraction or self.memory.synapses is not None):
            check_whole(self.accelerator)
        self.history.protocol, self.history.settings = protocol, hyper_parameters(self.args)
        if "lora" in (self.args.wake_plasticity, self.args.sleep_plasticity):
            self.history.settings["lora_config"] = describe(self.lora_config)
        if self.memory is not None and self.memory.budget is not None:
            self._wake_pass().check_budget(self.tasks[len(self.history) :], self.memory)
        if self.args.forward_transfer and not len(self.history):
            self.history.untrained = self._probe_untrained(output_dir if resume else None)
        self._save_history()
        return None if checkpoint is None else str(checkpoint)

    def _load_resume_point(self, resume: str | bool, protocol: dict) -> Path | None:
        """Load the stage to go on from, if it is one of this run, and return the checkpoint after it."""
        stage, checkpoint = find_resume_point(self.args.output_dir, resume, len(self.history))
        check_equal(self.accelerator, {"the point to go on from": (stage, checkpoint)}, "before a run goes on")
        for folder in (stage, None if checkpoint is None else checkpoint.parents[2]):
            if folder is not None:
                check_same_run(folder, History.load(folder).protocol, protocol)
        if stage is not None:
            self._load_stage(stage)
        return checkpoint

    def _probe_untrained(self, output_dir: Path | None) -> dict[str, float]:
        """Return b[i] of forward transfer by stage; what an output folder of the same run holds is not done again."""
        if output_dir is not None and (output_dir / HISTORY_NAME).is_file():
            stored = History.load(output_dir)
            if stored.protocol == self.history.protocol and stored.untrained:
                return stored.untrained
        return {stage_name(number): self._probe(task) for number, task in enumerate(self.tasks) if number}

    def _load_stage(self, folder: Path) -> None:
        stored = type(self.model).from_pretrained(folder)
        self.model.grow([name for name in stored.config.classes if name not in self.model.config.label2id])
        self.model.load_state_dict(stored.state_dict())
        self.model.config.recall_weight = stored.config.recall_weight
        self.history, self.memory = load_stage_state(folder, stored)
        self.tasks = align_tasks(self.stream, self.history)

    def _probe(self, task: Task) -> float:
        """Return a score of forward transfer: how well recall, fitted to a task alone, tells its classes apart."""
        names = dict.fromkeys(task.train_dataset.features["label"].names + task.eval_dataset.features["label"].names)
        label2id = {name: index for index, name in enumerate(names)}
        return self._wake_pass().probe(*self._images_of(task, label2id), num_classes=len(names))

    @staticmethod
    def _images_of(task: Task, label2id: dict[str, int]) -> tuple[TaskImages, TaskImages]:
        return (
            TaskImages(task.train_dataset, label2id, f"the training images of {task.name}"),
            TaskImages(task.eval_dataset, label2id, f"the evaluation images of {task.name}"),
        )

    # One task

    def _learn(self, number: int, checkpoint: str | None, **kwargs) -> TrainOutput:
        task = self.tasks[number]
        self._begin(number)
        record = TaskRecord(
            name=task.name if task.name not in self._names else stage_name(number),
            fingerprint=task.fingerprint(),
            classes=list(task.classes),
            new_classes=[name for name in task.classes if name not in self.history.classes],
            num_train_images=len(task.train_dataset),
            num_eval_images=len(task.eval_dataset),
            untrained_accuracy=self.history.untrained.get(stage_name(number), math.nan),
        )
        start, self._seconds_asleep, self._seconds_napping = time.perf_counter(), 0.0, 0.0
        self._write(number, record)
        if self.args.head_init == "recall":
            self.model.head.start_from_recall(len(self.model.config.classes) - len(record.new_classes))
        self.guard.exit_if_asked()
        set_seed(self.args.seed + number)
        self._frozen = FrozenEntries(self.model, None if self.memory is None else self.memory.synapses)
        self._sleep_state = load_sleep(checkpoint)
        set_plasticity(self.model, self.args.wake_plasticity)
        if self.args.wake_plasticity == "lora" and self._sleep_state is None:  # else merged before the checkpoint
            inject(self.model, self.lora_config, self.accelerator, self.args.seed, number, WAKE)
        output = super().train(resume_from_checkpoint=checkpoint, **kwargs)
        self._unwrap()
        if self._sleep_report is None:
            self._settle_recall()
        report = self._sleep_report
        record.sleep = report.to_dict() if report else {}
        record.sleep_seconds = self._seconds_napping + (report.seconds if report else 0.0)
        record.sleep_images = self._num_replayed()
        seconds = time.perf_counter() - start
        record.wake_seconds = seconds - self._seconds_asleep - self._seconds_napping  # all of this call
        replayed = self.args.wake_replay and bool((self.memory.tasks != number).any())
        record.wake_images = round(self.state.epoch * len(task.train_dataset)) * (1 + replayed)
        self._finish(record)
        return output

    def _write(self, number: int, record: TaskRecord) -> None:
        """Write a task into memory and recall and measure before and after it, or load what came of it."""
        recall, folder = self.model.head.recall, self.checkpoints_folder
        if is_written(folder):
            self.memory, scores = load_written(folder, recall)
            record.set_scores(scores)
            return
        if self.args.forward_transfer and number > 0:
            record.before_accuracy = self._probe(self.tasks[number])
        self._wake_pass().write(self.train_dataset, self.memory, number)
        if self.args.evaluate_recall:
            weight, self.model.config.recall_weight = self.model.config.recall_weight, 1.0
            record.recall_accuracy = self._accuracies("recall")
            self.model.config.recall_weight = weight
        if self.args.save_strategy != "no" and self.args.should_save:
            save_written(folder, self.memory, recall, record.scores())
        self.accelerator.wait_for_everyone()

    def _accuracies(self, prefix: str) -> list[float]:
        """Evaluate on every task so far, NaN where its images are not at hand; log under the prefix."""
        metrics = self.evaluate(metric_key_prefix=prefix)
        return [
            math.nan if task is None else metrics[f"{prefix}_{stage_name(number)}_accuracy"]
            for number, task in enumerate(self.tasks[: self.task_number + 1])
        ]

    def _begin(self, number: int) -> None:
        """Give the Trainer a fresh start on the grown model and the images of a task."""
        self.optimizer = self.lr_scheduler = None
        self.accelerator.free_memory()
        self._unwrap()
        self.task_number, self._sleep_report, self._micro_step = number, None, (0, 0)
        self._sleep_state = None
        self._is_inside_task = True
        self._teacher = snapshot(self.model) if self._distils else None
        set_seed(self.args.seed + number)
        task = self.tasks[number]
        new = [name for name in task.classes if name not in self.model.config.label2id]
        self.model.grow(new, seeded_generator(self.args.seed, number))
        if self.memory is not None:
            self.memory.add_classes(new, self.model.head.recall.num_bytes)
            room = make_room(self.memory.synapses, count_entries(self.model), self.args.freeze_fraction)
            if room is not None:
                self.memory.set_synapses(room)
        self.train_dataset = self._images_of(task, self.model.config.label2id)[0]
        self.eval_dataset = self._eval_images(number + 1)

    def _unwrap(self) -> None:
        """Hold a whole, bare, plain model, as outside of the steps of wake and sleep."""
        self.model = unwrap(self.accelerator, self.model_wrapped)
        merge(self.model)
        self._frozen.restore(self.model)
        self.model_wrapped = self.callback_handler.model = self.model

    def _eval_images(self, num_tasks: int) -> dict[str, TaskImages]:
        """Return the evaluation images of the first tasks, by the names of their stages, where they are at hand."""
        return {
            stage_name(number): self._images_of(task, self.model.config.label2id)[1]
            for number, task in enumerate(self.tasks[:num_tasks])
            if task is not None
        }

    @property
    def task_name(self) -> str:
        """Name of the task at hand, as its stage is called."""
        return stage_name(self.task_number)

    @property
    def _names(self) -> list[str]:
        return [record.name for record in self.history.records]

    @property
    def _distils(self) -> bool:
        return self.args.distillation_weight > 0 and self.args.sleep_steps > 0 and len(self.model.config.classes) > 0

    def sleep(self) -> None:
        """Consolidate memory into the network, if there is a memory and `sleep_steps` says so."""
        start = time.perf_counter()
        self._unwrap()
        set_seed(self.args.seed + self.task_number)  # what is random asleep does not depend on how wake was resumed
        if self.memory is not None and self.args.sleep_steps:
            self._sleep_report = consolidate(
                self.model,
                self.memory,
                self.reader,
                self.args,
                teacher=self._teacher,
                place=(self.task_number,),
                accelerator=self.accelerator,
                guard=self.guard,
                lora_config=self.lora_config,
                state=self._sleep_state,
                on_step_end=self._end_sleep_step,
            )
            self.log({f"sleep_{name}": value for name, value in self._sleep_report.scalars().items()})
        self._seconds_asleep = time.perf_counter() - start

    def nap(self) -> None:
        """Take `nap_steps` steps of sleep inside wake, whose optimizer goes on as if nothing had happened."""
        start = time.perf_counter()
        sleeper = type(self.model)(copy.deepcopy(self.model.config)).to(self.accelerator.device)
        sleeper.load_state_dict(self.model.state_dict())
        args = copy.copy(self.args)
        args.sleep_steps = self.args.nap_steps
        report = consolidate(
            sleeper,
            self.memory,
            self.reader,
            args,
            teacher=self._teacher,
            place=(self.task_number, self.state.global_step),
            accelerator=self.accelerator,
            guard=self.guard,
            lora_config=self.lora_config,
        )
        self.model.load_state_dict(sleeper.state_dict())
        self._seconds_napping += time.perf_counter() - start
        self.log({"nap_loss": report.loss})

    def _num_replayed(self) -> int:
        """Return how many memories the naps and the sleep of the task at hand have replayed."""
        every = self.args.sleep_every_n_steps
        naps = (self.state.max_steps - 1) // every if every else 0
        asleep = self._sleep_report.images if self._sleep_report else 0
        return asleep + naps * self.args.nap_steps * self.args.sleep_batch_size

    def _end_sleep_step(self, replay: Replay) -> None:
        """Save a checkpoint when it is time, and stop with one if a signal has asked to."""
        args = self.args
        if self.guard.signal or is_due(args.save_strategy, args.save_steps, replay.step, args.sleep_steps):
            self.save_sleep_checkpoint(replay)
        self.guard.exit()

    def _settle_recall(self) -> None:
        """Settle how far recall can be trusted after a task without sleep."""
        if self.memory is not None and self.args.wake_plasticity != "head":
            update_recall(self.model, self.memory, self.reader, self.args, self.task_number)
        elif self.args.recall_weight is not None:
            self.model.config.recall_weight = self.args.recall_weight
        elif self.args.wake_plasticity != "head":
            self.model.config.recall_weight = 0.0  # statistics of features that are gone

    def _finish(self, record: TaskRecord) -> None:
        """Evaluate, add to the history, and save the stage."""
        if self.accelerator.num_processes > 1:
            check_equal(self.accelerator, checksums(self.model, self.memory), f"after {self.task_name}")
        record.accuracy = self._accuracies("eval")
        record.recall_weight = self.model.config.recall_weight
        if self.memory is None:
            statistics = self.model.head.recall.num_bytes
            record.memory_bytes = MemoryBytes(0, 0, 0, statistics, 0).to_dict()
        else:
            record.memory_bytes, record.num_codes = self.memory.num_bytes.to_dict(), len(self.memory)
        self.history.records.append(record)
        self.state.global_step = len(self.history)
        self.log({f"stream_{name}": value for name, value in self.history.summary().items()})
        if self.args.should_save:
            output_dir = Path(self.args.output_dir)
            repo_id = self.hub_model_id if "/" in (self.hub_model_id or "") else None
            stage = Stage(self.model, self.processing_class, self.history, self.memory, repo_id)
            stage.save(output_dir / self.task_name)
            self._save_history()
            if self._publisher is not None:
                self._publisher.publish()
            drop_checkpoints(output_dir, self.task_number)
        self.accelerator.wait_for_everyone()
        self._is_inside_task = False

    def _save_history(self) -> None:
        if self.args.should_save:
            Path(self.args.output_dir).mkdir(parents=True, exist_ok=True)
            self.history.save(self.args.output_dir)
            if len(self.history):
                save_history_plot(self.history, self.args.output_dir)
                save_synapses_plot(self.history, self.args.output_dir)

    # Hooks of Trainer

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """Let a new optimizer keep what is frozen as it is."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new:
            self._frozen.attach(optimizer)
        return optimizer

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        """Augment the batch, and add memories to it if `wake_replay` says so, before the usual step."""
        step, repetition = self._micro_step
        repetition = repetition + 1 if step == self.state.global_step else 0
        self._micro_step = (self.state.global_step, repetition)
        place = (self.args.seed, self.task_number, *self._micro_step, self.args.process_index)
        if self.args.wake_replay:
            inputs = add_memories(inputs, self.memory, self.reader, self.task_number, np.random.default_rng(place))
        pixel_values = augment(
            inputs["pixel_values"], self.args.augmentation, self.args.crop_scale, seeded_generator(*place)
        )
        loss = super().training_step(model, {**inputs, "pixel_values": pixel_values}, num_items_in_batch)
        self._frozen.mask_gradients()
        self.guard.watch(loss)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log with the number of the task, from 1: every task's steps start at 0."""
        super().log({**logs, "task": self.task_number + 1}, start_time)

    def _wake_pass(self) -> WakePass:
        return WakePass(self.model, self.reader, self.args, self.accelerator)
