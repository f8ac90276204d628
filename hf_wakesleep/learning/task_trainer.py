"""TaskTrainer: one task from wake to stage."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerState, set_seed
from transformers.integrations import TensorBoardCallback
from transformers.trainer_utils import TrainOutput

from ..data.augmentation import seeded_generator
from ..data.evaluation import EvalSets
from ..data.images import TaskImages
from ..data.splits import shorten
from ..data.streams import Task
from ..memory.memory import MemoryBytes, SemiParametricMemory
from ..memory.synapses import FrozenEntries, count_entries, make_room
from ..model.modeling_wakesleep import WakeSleepForImageClassification
from ..reporting.history import History, TaskRecord
from ..stages.checkpoint import drop_checkpoints, is_due
from ..stages.eval_sets import count_evaluated
from ..stages.ingest import IngestResult
from ..stages.stage import Stage, copy_plots, stage_name
from .arguments import ContinualTrainingArguments
from .callbacks import GuardCallback, SleepCallback
from .classifier_trainer import ClassifierTrainer
from .drift import landmark_features
from .guard import StepGuard
from .lda import update_lda
from .lora import WAKE, check_lora, default_lora_config, inject, merge
from .plasticity import set_plasticity
from .processes import check_equal, checksums, share_buffers, share_tensor
from .replay import Replay
from .shards import unwrap
from .signals import StopSignals
from .sleep import consolidate
from .task_run import TaskRun
from .wake import WakePass, WakeReplay


class TaskTrainer(ClassifierTrainer):
    """Learns one task after another: wake, sleep, evaluation and stage; which task comes next is not its matter.

    Args:
        model ([`WakeSleepForImageClassification`]): The model.
        args ([`ContinualTrainingArguments`]): The arguments.
        tasks (`list[Task | None]`): All tasks by their number; `None` for finished ones whose images are not at hand.
        history ([`History`]): What has been learned.
        memory ([`SemiParametricMemory`], *optional*): What is remembered.
        known_images (`dict[int, Dataset]`): Evaluation images of tasks that are `None`, by their number.
        lora_config (`peft.LoraConfig`, *optional*): What plasticity `"lora"` trains.
        kwargs: Passed on to `ClassifierTrainer`.
    """

    def __init__(
        self,
        model: WakeSleepForImageClassification,
        args: ContinualTrainingArguments,
        *,
        tasks: list[Task | None],
        history: History,
        memory: SemiParametricMemory | None,
        known_images: dict[int, Dataset],
        lora_config: LoraConfig | None = None,
        **kwargs,
    ):
        self.tasks, self.history, self.memory, self._known_images = tasks, history, memory, known_images
        twice = [stage_name(number) for number in known_images if tasks[number] is not None]
        if twice:
            raise ValueError(
                f"`eval_dataset` holds images of {shorten(twice)}, but the stream brings evaluation images of them. "
                "Leave out one or the other."
            )
        self._signals = StopSignals()
        self.run: TaskRun | None = None
        super().__init__(model, args, **kwargs)
        self.lora_config = default_lora_config(args.lora_rank) if lora_config is None else lora_config
        if "lora" in args.plasticities:
            check_lora(model, self.lora_config, self.accelerator)
        elif lora_config is not None:
            raise ValueError(
                "`lora_config` is for `wake_plasticity` or `sleep_plasticity` 'lora', but neither is. Leave it out."
            )
        if args.dataloader_drop_last:
            self._check_batches()
        self.guard = StepGuard(args, self.accelerator, self._signals)
        self.add_callback(GuardCallback(self))
        self.callback_handler.callbacks.insert(0, SleepCallback(self))
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
                callback.logging_dir = str(Path(args.output_dir, "runs"))  # also of what is logged before training
        self.eval_dataset = self._eval_images(len(self.history))

    def _check_batches(self) -> None:
        """Check that tasks to come have an image to learn from when the last ones of a task are dropped."""
        size = self.args.train_batch_size * self.args.world_size
        for task in self.tasks[len(self.history) :]:
            if len(task.train_dataset) < size:
                raise ValueError(
                    f"`dataloader_drop_last` leaves no batch of {size} images of {task.name}, which has "
                    f"{len(task.train_dataset)}. Leave it out, or pass a smaller `per_device_train_batch_size`."
                )

    def _learn(self, number: int, checkpoint: str | None, **kwargs) -> TrainOutput:
        run = self._begin(number)
        self._write(run)
        if self.args.replays_awake(number):
            run.wake_replay = WakeReplay(self.memory, self.reader, number, self.args.seed)
        if self.args.head_init == "lda":
            first = len(self.model.config.classes) - len(run.record.new_classes)
            self.model.head.start_from_lda(first, self.args.label_smoothing_factor)
        self.guard.exit_if_asked()
        set_seed(self.args.seed + number)
        run.frozen = FrozenEntries(self.model, None if self.memory is None else self.memory.synapses)
        run.go_on_from(checkpoint, self.state.log_history)
        plasticity = self.args.wake_plasticity_of(number)
        set_plasticity(self.model, plasticity)
        if plasticity == "lora" and run.sleep_state is None:  # else merged before the checkpoint
            inject(self.model, self.lora_config, self.accelerator, self.args.seed, number, WAKE)
        output = super().train(resume_from_checkpoint=checkpoint, **kwargs)
        self._unwrap(run.frozen)
        if run.report is None:
            self._settle_lda(run)
        every = self.args.sleep_every_n_steps
        naps = min(self.state.global_step, self.state.max_steps - 1) // every if every else 0
        self._finish(run.close(self.state.global_step, self.state.epoch, naps, self.args))
        return output

    def _write(self, run: TaskRun) -> None:
        """Write a task into memory and LDA and measure before and after it, or load what came of it."""
        lda, folder = self.model.head.lda, self.checkpoints_folder
        written = IngestResult.load(folder, run.stopwatch)
        if written is not None:
            self.memory, run.features_before = written.memory, written.features
            lda.load_state_dict(written.statistics)
            run.record.set_scores(written.scores)
            return
        if self.args.forward_transfer and run.number > 0:
            run.record.before_accuracy = self._probe(self.tasks[run.number])
        self._wake_pass().write(self.train_dataset, self.memory, run.number)
        if self.args.evaluate_lda:
            run.record.lda_accuracy = self._evaluate_lda()
        run.features_before = self._take_landmarks()
        if self.args.save_strategy != "no" and self.args.should_save:
            scores = run.record.scores()
            IngestResult(self.memory, lda.state_dict(), run.features_before, scores).save(folder, run.stopwatch)
        self.accelerator.wait_for_everyone()

    def _take_landmarks(self) -> torch.Tensor | None:
        """Return where the landmarks are while LDA's statistics are right, if these are to be carried along."""
        is_carried = self.args.lda_update == "carry" and self.args.trains_backbone(self.task_number)
        if self.memory is None or not is_carried:
            return None
        return share_tensor(self.accelerator, landmark_features(self.model, self.memory, self.reader, self.args))

    def _evaluate_lda(self) -> list[float]:
        """Return and log the accuracy of LDA alone on every task so far; NaN where its images are not at hand."""
        scores = {name: self._wake_pass().score(images) for name, images in self._eval_sets.items()}
        self.log({f"lda_{name}_accuracy": score for name, score in scores.items()})
        return [scores.get(stage_name(number), math.nan) for number in range(self.task_number + 1)]

    def _begin(self, number: int) -> TaskRun:
        """Give the Trainer a fresh start on the grown model and the images of a task, and return its run."""
        task = self.tasks[number]
        self.optimizer = self.lr_scheduler = None
        self.accelerator.free_memory()
        self._unwrap()
        self.run = TaskRun.of(number, task, self.history, FrozenEntries(self.model, None))
        self.state.global_step = 0
        set_seed(self.args.seed + number)
        new = [name for name in task.classes if name not in self.model.config.label2id]
        self.model.grow(new, seeded_generator(self.args.seed, number))
        if self.memory is not None:
            self.memory.add_classes(new, self.model.head.lda.num_bytes)
            room = make_room(self.memory.synapses, count_entries(self.model), self.args.freeze_fraction)
            if room is not None:
                self.memory.set_synapses(room)
        self.train_dataset = self._images_of(task, self.model.config.label2id)[0]
        self.eval_dataset = self._eval_images(number + 1)
        return self.run

    def _unwrap(self, frozen: FrozenEntries | None = None) -> None:
        """Hold a whole, bare, plain model, as outside of the steps of wake and sleep; what is frozen is as it was."""
        self.model = unwrap(self.accelerator, self.model_wrapped)
        merge(self.model)
        if frozen is not None:
            frozen.restore(self.model)
        share_buffers(self.accelerator, self.model)
        self.model_wrapped = self.callback_handler.model = self.model

    def sleep(self) -> None:
        """Consolidate memory into the network, if there is a memory and `sleep_steps` says so."""
        run = self.run
        run.stopwatch.enter("asleep")
        self._unwrap(run.frozen)
        set_seed(self.args.seed + self.task_number)  # what is random asleep does not depend on how wake was resumed
        if self.memory is not None and self.args.sleep_steps:
            run.report = consolidate(
                self.model,
                self.memory,
                self.reader,
                self.args,
                before=run.features_before,
                place=(run.number,),
                accelerator=self.accelerator,
                guard=self.guard,
                lora_config=self.lora_config,
                state=run.sleep_state,
                on_step_end=self._end_sleep_step,
            )
            self.log({f"sleep_{name}": value for name, value in run.report.scalars().items()})
        self.run.stopwatch.enter("awake")

    def nap(self) -> None:
        """Take `nap_steps` steps of sleep inside wake, whose optimizer goes on as if nothing had happened."""
        self.run.stopwatch.enter("napping")
        sleeper = type(self.model)(copy.deepcopy(self.model.config)).to(self.accelerator.device)
        sleeper.load_state_dict(self.model.state_dict())
        args = copy.copy(self.args)
        args.sleep_steps = self.args.nap_steps
        report = consolidate(
            sleeper,
            self.memory,
            self.reader,
            args,
            place=(self.task_number, self.state.global_step),
            accelerator=self.accelerator,
            guard=self.guard,
            lora_config=self.lora_config,
        )
        self.model.load_state_dict(sleeper.state_dict())
        self.run.stopwatch.enter("awake")
        self.log({"nap_loss": report.loss})

    @contextmanager
    def _whole_checkpoint(self, step: int) -> Iterator[Path]:
        with super()._whole_checkpoint(step) as folder:
            if self.args.should_save:
                self.run.stopwatch.save(folder)
            yield folder

    def _end_sleep_step(self, replay: Replay) -> None:
        """Log and save a checkpoint when it is time, and stop with one if a signal has asked to."""
        args, self.run.sleep_step = self.args, replay.step
        is_first = args.logging_first_step and replay.step == 1
        if is_first or is_due(args.logging_strategy, args.logging_steps, replay.step, args.sleep_steps):
            self.log(replay.take_logs())
        if self.guard.signal or is_due(args.save_strategy, args.save_steps, replay.step, args.sleep_steps):
            self.save_sleep_checkpoint(replay)
        self.guard.exit()

    def _settle_lda(self, run: TaskRun) -> None:
        """Settle how far LDA can be trusted after a task without sleep."""
        is_moved = self.args.trains_backbone(run.number)
        if self.memory is not None and is_moved:
            update_lda(self.model, self.memory, self.reader, self.args, run.number, run.features_before)
            share_buffers(self.accelerator, self.model)
        elif self.args.lda_weight is not None:
            self.model.config.lda_weight = self.args.lda_weight
        elif is_moved:
            self.model.config.lda_weight = 0.0  # statistics of features that are gone

    def _finish(self, record: TaskRecord) -> None:
        """Evaluate, add to the history, and save the stage."""
        if self.accelerator.num_processes > 1:
            check_equal(self.accelerator, checksums(self.model, self.memory), f"after {self.task_name}")
        self.confusion = []  # stays so without evaluation images
        metrics = self.evaluate()
        record.accuracy = [
            metrics.get(f"eval_{stage_name(number)}_accuracy", math.nan) for number in range(self.task_number + 1)
        ]
        record.evaluated_images, record.num_unevaluated = count_evaluated(
            self._evaluated(self.task_number + 1), self.model.config.classes, self.task_number + 1
        )
        record.lda_weight = self.model.config.lda_weight
        if self.memory is None:
            statistics = self.model.head.lda.num_bytes
            record.memory_bytes = MemoryBytes(0, 0, 0, statistics, 0).to_dict()
        else:
            record.memory_bytes, record.num_codes = self.memory.num_bytes.to_dict(), len(self.memory)
        self.history.records.append(record)
        self.history.confusion = self.confusion
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
        self.run = None

    def _save_history(self) -> None:
        if self.args.should_save:
            Path(self.args.output_dir).mkdir(parents=True, exist_ok=True)
            self.history.save(self.args.output_dir)
            copy_plots(Path(self.args.output_dir) / stage_name(len(self.history) - 1), self.args.output_dir)

    @property
    def task_number(self) -> int:
        """Number of the task at hand, from 0; between tasks that of the next."""
        return len(self.history) if self.run is None else self.run.number

    @property
    def task_name(self) -> str:
        """Name of the task at hand, as its stage is called."""
        return stage_name(self.task_number)

    def _wake_pass(self) -> WakePass:
        return WakePass(self.model, self.reader, self.args, self.accelerator)

    def _probe(self, task: Task) -> float:
        """Return a score of forward transfer: how well LDA, fitted to a task alone, tells its classes apart."""
        names = dict.fromkeys(task.train_dataset.features["label"].names + task.eval_dataset.features["label"].names)
        label2id = {name: index for index, name in enumerate(names)}
        return self._wake_pass().probe(*self._images_of(task, label2id), num_classes=len(names))

    def _eval_images(self, num_tasks: int) -> EvalSets | dict:
        """Return the evaluation images of the first tasks that are at hand; an empty `dict` if none are."""
        label2id = self.model.config.label2id
        sets = {
            stage_name(number): TaskImages(images, label2id, f"the evaluation images of {stage_name(number)}")
            for number, images in self._evaluated(num_tasks).items()
        }
        return EvalSets(sets) if sets else {}

    def _evaluated(self, num_tasks: int) -> dict[int, Dataset]:
        """Return the evaluation images of the first tasks that are at hand, by their number."""
        own = {number: task.eval_dataset for number, task in enumerate(self.tasks[:num_tasks]) if task is not None}
        return dict(sorted({**self._known_images, **own}.items()))

    @staticmethod
    def _images_of(task: Task, label2id: dict[str, int]) -> tuple[TaskImages, TaskImages]:
        return (
            TaskImages(task.train_dataset, label2id, f"the training images of {task.name}"),
            TaskImages(task.eval_dataset, label2id, f"the evaluation images of {task.name}"),
        )

    # Hooks of Trainer

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """Let a new optimizer keep what is frozen as it is."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new and self.run is not None:
            self.run.frozen.attach(optimizer)
        return optimizer

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        """Augment the batch, and add memories to it if wake replays them, before the usual step."""
        inputs = self.run.batch_of_wake(inputs, self.state.global_step, self.args)
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.run.frozen.mask_gradients()
        self.guard.watch(loss)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log with the number of the task, from 1, at a step that counts those of all tasks, awake and asleep."""
        step, run = self.state.global_step, self.run
        is_between = run is None
        self.state.global_step = self.history.num_steps if is_between else run.steps_before + step + run.sleep_step
        try:
            super().log({**logs, "task": len(self.history) if is_between else run.number + 1}, start_time)
        finally:
            self.state.global_step = step

    def prepend_logs(self, state: TrainerState) -> None:
        """Put what was logged before the task at hand in front of what its own state, which is new, will hold."""
        state.log_history[:0] = self.run.earlier_logs

    def _run_epoch(self, *args, **kwargs) -> None:
        """Do nothing when a run goes on after its wake, wherever that has ended."""
        if not self.run.is_wake_over:
            super()._run_epoch(*args, **kwargs)
