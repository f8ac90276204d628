"""ContinualTrainer: a Trainer that learns a stream of tasks, with a sleep after each."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from tqdm.auto import tqdm
from transformers.integrations import TensorBoardCallback
from transformers.trainer_utils import TrainOutput

from ..codecs.base import Codec
from ..codecs.learned.codec import LearnedCodec
from ..data.augmentation import seeded_generator
from ..data.streams import Task, TaskStream
from ..memory.memory import SemiParametricMemory
from ..memory.synapses import count_entries, grow_synapses
from ..model.modeling_wakesleep import WakeSleepForImageClassification
from ..reporting.history import HISTORY_NAME, History
from ..reporting.task_record import TaskRecord
from ..stages.checkpoint import checkpoints_of, clean, drop_checkpoints, drop_later_checkpoints, is_due
from ..stages.eval_sets import count_evaluated, eval_sets_of
from ..stages.protocol import align_tasks, make_protocol
from ..stages.stage import Stage, copy_plots, load_stage_state, stage_name
from .arguments import ContinualTrainingArguments
from .callbacks import SleepCallback, TaskCallback
from .classifier_trainer import ClassifierTrainer
from .distributed import check_equal, check_unsharded, checksums, share_buffers, unwrap
from .lora import check_lora, default_lora_config, merge
from .recipe import (
    Choice,
    also_chosen,
    choices_table,
    choose,
    facts_of,
    first_task,
    is_pretrained,
    sleep_steps,
    some_of,
    with_choices,
)
from .replay import Replay
from .resume import check_run, drop_stale, initial_state, refuse_other_run, resume_point
from .settings import run_settings
from .stopping import StepCheck, StopSignals
from .stream_images import StreamImages
from .task_run import RunContext, TaskRun
from .wake import WakePass


class ContinualTrainer(ClassifierTrainer):
    """Learns a stream of tasks: wake, sleep, evaluate and save a stage, for every task.

    Args:
        model ([`WakeSleepForImageClassification`]): A new model, or one loaded from a stage, whose history and memory
            are then read from that stage.
        args ([`ContinualTrainingArguments`]): The arguments.
        stream ([`TaskStream`]): The tasks. Where `model` comes from a stage, either the full stream, of which learned
            tasks are skipped, or only the tasks to come.
        processing_class (`BaseImageProcessor`, *optional*): Image processor; that of the stage that
            `model` comes from, or made from its config, if missing.
        codec ([`Codec`], *optional*): The codec of a new memory, which is not fitted then. If missing, the one that
            `args` name, fitted to images of the first task if it is a learned one. A model loaded from a stage brings
            its own.
        eval_dataset (`datasets.Dataset` or [`Task`], *optional*): Where `model` comes from a stage: labelled images of
            its classes, to evaluate learned tasks that are not in the stream.
        lora_config (`peft.LoraConfig`, *optional*): Factors that plasticity `"lora"` trains, instead of those of
            rank 8 in all linear layers of the backbone.
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
        eval_dataset: Dataset | Task | None = None,
        **kwargs,
    ):
        check_run(model, args, stream)
        self.stream = stream
        self.history, self.memory = initial_state(model, args, codec)
        self._fits_codec = codec is None and not len(self.history)
        known_images = {} if eval_dataset is None else eval_sets_of(eval_dataset, self.history)
        self.images = StreamImages(align_tasks(stream, self.history), known_images)
        self.run: TaskRun | None = None
        task = first_task(self.images.tasks, len(self.history))
        self.choices = {} if task is None else choose(args, facts_of(model, some_of(task)))
        args = with_choices(args, self.choices)
        super().__init__(model, args, processing_class=processing_class, **kwargs)
        self.lora_config = self._check_lora(lora_config)
        if args.dataloader_drop_last:
            self.images.check_batches(len(self.history), args.train_batch_size * args.world_size)
        self._signals = StopSignals()
        self.check = StepCheck(self.accelerator, args.non_finite_loss, self._signals)
        self.add_callback(TaskCallback(self.check, lambda: self.run))
        self.callback_handler.callbacks.insert(0, SleepCallback(self._sleep, self._nap))
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
                callback.logging_dir = str(Path(args.output_dir, "runs"))  # also for what is logged before training
        self.eval_dataset = self.images.eval_sets(len(self.history), model.config.label2id)

    def _check_lora(self, lora_config: LoraConfig | None) -> LoraConfig:
        """Return what plasticity `"lora"` trains, if the model can take it."""
        chosen = default_lora_config() if lora_config is None else lora_config
        if "lora" in self.args.plasticities:
            check_lora(self.model, chosen, self.accelerator)
        elif lora_config is not None:
            raise ValueError(
                "`lora_config` is for `wake_plasticity` or `sleep_plasticity` 'lora', but neither is. Leave it out."
            )
        return chosen

    @property
    def columns(self) -> Mapping[str, str]:
        """Columns of `image` and `label` of the stream."""
        return self.stream.columns

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs) -> TrainOutput:
        """Learn all tasks that are not learned yet.

        After a SIGTERM or SIGINT, training stops at the next point that it can resume from: in wake or sleep after the
        current step, with a checkpoint; while a task is written into memory, when that is done; after the last step of
        a task, when its stage is saved. A second signal ends the program at once.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): `True` resumes from the last stage and checkpoint in
                `output_dir`, or starts anew if there is none; a path resumes from that stage or checkpoint.
            kwargs: Passed on to `Trainer.train`.

        Returns:
            `TrainOutput`: Optimizer steps of all wakes of this call, the last training loss, and
            [`History.summary`] as metrics.

        Raises:
            ValueError: If `output_dir` holds another run or one that is still running, the stage or checkpoint to
                resume from is of another run, or the memory budget is too small for the classes to come. Nothing has
                been trained or written then.
            RuntimeError: If this trainer was stopped inside a task.
            OSError: If the disk is full or cannot be written to; earlier stages and checkpoints are intact.
            FloatingPointError: If a loss is not finite and `non_finite_loss` is `"stop"`.
            MemoryError: If the device has not enough memory to sleep.
            KeyboardInterrupt, SystemExit: After a signal; the exit status is that of the signal.
        """
        if self.run is not None:
            raise RuntimeError(
                f"This trainer was stopped inside task {self.task_number + 1}. Build a new model and trainer, and "
                "pass `resume_from_checkpoint=True` to go on."
            )
        with self._hold_folder():
            with self._signals:
                checkpoint = self._open_run(resume_from_checkpoint)
                steps, loss = 0, math.nan
                for number in range(len(self.history), len(self.images.tasks)):
                    self.check.exit_if_asked()
                    output = self._learn(number, checkpoint, **kwargs)
                    checkpoint = None
                    steps, loss = steps + output.global_step, output.training_loss
                self.check.exit_if_asked()
            if self._publisher is not None:
                self._publisher.finish(self.args.shows_progress)
        return TrainOutput(steps, loss, self.history.summary() if len(self.history) else {})

    def _open_run(self, resume: str | bool | None) -> str | None:
        """Check `output_dir`, load the stage to resume from, and return the checkpoint inside the next task."""
        args, output_dir = self.args, Path(self.args.output_dir)
        self._fit_codec()
        protocol = make_protocol(self.model, args.seed, self.stream, self.history, self.memory)
        if args.should_save:
            clean(output_dir)
        self.accelerator.wait_for_everyone()
        checkpoint = None
        if resume:
            stage, checkpoint = resume_point(
                output_dir, resume, self.history, protocol, self._settings, self.accelerator
            )
            if stage is not None:
                self._load_stage(stage)
        refuse_other_run(output_dir, self.history, bool(resume))
        if resume not in (None, False, True) and args.should_save:
            drop_later_checkpoints(checkpoints_of(output_dir, len(self.history)), checkpoint)
        drop_stale(output_dir, self.history, protocol, self._settings, args.should_save)
        self.accelerator.wait_for_everyone()
        if self.memory is not None and (args.freeze_fraction or self.memory.synapses is not None):
            check_unsharded(self.accelerator)
        self.history.protocol, self.history.settings = protocol, self._settings
        self.history.chosen = {name: choice.reason for name, choice in self.choices.items()}
        if args.shows_progress and self.choices:
            tqdm.write(choices_table({**self.choices, **self._also_chosen()}))
        if self.memory is not None and self.memory.budget is not None:
            self._wake_pass().check_budget(self.images.tasks[len(self.history) :], self.memory)
        if args.measure == "full" and not len(self.history):
            self.history.untrained = self._probe_untrained(output_dir if resume else None)
        self._save_history()
        return None if checkpoint is None else str(checkpoint)

    def _also_chosen(self) -> dict[str, Choice]:
        done = [record.num_train_images for record in self.history.records]
        num_new = len(self.images.tasks[len(done)].train_dataset)
        steps = sleep_steps(self.args, is_pretrained(self.model), num_new, done)
        return also_chosen(self.args, steps, None if done or self.memory is None else self.memory.codec)

    def _fit_codec(self) -> None:
        """Fit the learned codec of a new memory to images of the first task, once."""
        if self._fits_codec and self.memory is not None and isinstance(self.memory.codec, LearnedCodec):
            codec = self._wake_pass().fitted(self.memory, self.images.tasks)
            self.memory.become(SemiParametricMemory(codec, self.memory.budget))
        self._fits_codec = False

    @property
    def _settings(self) -> dict:
        return run_settings(self.args, self.lora_config, self.optimizer_cls_and_kwargs)

    def _probe_untrained(self, output_dir: Path | None) -> dict[str, float]:
        """Return b[i] of forward transfer by stage; read from the output folder if the same run has measured it."""
        if output_dir is not None and (output_dir / HISTORY_NAME).is_file():
            stored = History.load(output_dir)
            if stored.protocol == self.history.protocol and stored.untrained:
                return stored.untrained
        wake = self._wake_pass()
        return {
            stage_name(number): wake.probe(*self.images.probe_images(number))
            for number in range(1, len(self.images.tasks))
        }

    def _load_stage(self, folder: Path) -> None:
        stored = type(self.model).from_pretrained(folder)
        self.model.grow([name for name in stored.config.classes if name not in self.model.config.label2id])
        self.model.load_state_dict(stored.state_dict())
        self.model.config.lda_weight = stored.config.lda_weight
        self.history, memory = load_stage_state(folder, stored)
        if self.memory is not None:
            self.memory.become(memory)
        self.images.tasks = align_tasks(self.stream, self.history)
        self.eval_dataset = self.images.eval_sets(len(self.history), self.model.config.label2id)

    def _learn(self, number: int, checkpoint: str | None, **kwargs) -> TrainOutput:
        """Learn one task: write it into memory, train awake, sleep, evaluate and save its stage."""
        self._begin(number)
        self.run.write(self.model, self.images, self.checkpoints_folder)
        self.run.begin_wake(self.model, checkpoint, self.state.log_history)
        output = super().train(resume_from_checkpoint=checkpoint, **kwargs)
        self._unwrap()
        self.run.settle(self.model)
        self.run.close(self.model, self.state)
        self._finish(self.run.record)
        return output

    def _begin(self, number: int) -> None:
        """Give the Trainer a fresh start on the grown model and the images of a task, and make its run."""
        task, args = self.images.tasks[number], self.args
        self.optimizer = self.lr_scheduler = None
        self.accelerator.free_memory()
        self._unwrap()
        context = RunContext(
            args,
            self.memory,
            self.accelerator,
            self.check,
            self.lora_config,
            is_pretrained(self.model),
            self.choices,
            self.reader,
        )
        self.run = TaskRun(number, task, self.history, context, self.log)
        self.state.global_step = 0
        self.model.grow(
            [name for name in task.classes if name not in self.model.config.label2id],
            seeded_generator(args.seed, number),
        )
        if self.memory is not None:
            self.memory.set_classes(self.model.config.classes, self.model.head.lda.num_bytes)
            room = grow_synapses(self.memory.synapses, count_entries(self.model), args.freeze_fraction)
            if room is not None:
                self.memory.set_synapses(room)
        self.train_dataset = self.images.train_images(number, self.model.config.label2id)
        self.eval_dataset = self.images.eval_sets(number + 1, self.model.config.label2id)

    def _unwrap(self) -> None:
        """Unwrap the model between wake and sleep: unsharded, bare, LoRA merged, frozen weights at their values."""
        self.model = unwrap(self.accelerator, self.model_wrapped)
        merge(self.model)
        if self.run is not None and self.run.frozen is not None:
            self.run.frozen.restore(self.model)
        share_buffers(self.accelerator, self.model)
        self.model_wrapped = self.callback_handler.model = self.model

    def _sleep(self) -> None:
        self._unwrap()
        self.run.sleep(self.model, self._end_sleep_step)

    def _nap(self) -> None:
        self.run.nap(self.model, self.state.global_step)

    @contextmanager
    def complete_checkpoint(self, step: int) -> Iterator[Path]:
        """Add the seconds of the task so far to a checkpoint."""
        with super().complete_checkpoint(step) as folder:
            if self.args.should_save:
                self.run.save_seconds(folder)
            yield folder

    def _end_sleep_step(self, replay: Replay) -> None:
        """Log and save a checkpoint when they are due; after a signal, save one and stop."""
        args, self.run.sleep_step = self.args, replay.step
        is_first = args.logging_first_step and replay.step == 1
        if is_first or is_due(args.logging_strategy, args.logging_steps, replay.step, replay.config.steps):
            self.log(replay.take_logs())
        if self.check.signal or is_due(args.save_strategy, args.save_steps, replay.step, replay.config.steps):
            self.save_sleep_checkpoint(replay)
        self.check.exit()

    def _finish(self, record: TaskRecord) -> None:
        """Evaluate, add to the history, and save the stage."""
        if self.accelerator.num_processes > 1:
            check_equal(self.accelerator, checksums(self.model, self.memory), f"after {self.task_name}")
        self.confusion = []  # stays empty without evaluation images
        metrics = self.evaluate()
        record.accuracy = [
            metrics.get(f"eval_{stage_name(number)}_accuracy", math.nan) for number in range(self.task_number + 1)
        ]
        record.evaluated_images, record.num_unevaluated = count_evaluated(
            self.images.evaluated(self.task_number + 1), self.model.config.classes, self.task_number + 1
        )
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
        """Number of the current task, from 0; between tasks that of the next."""
        return len(self.history) if self.run is None else self.run.number

    @property
    def task_name(self) -> str:
        """Name of the current task, which is that of its stage."""
        return stage_name(self.task_number)

    def _wake_pass(self) -> WakePass:
        return WakePass(self.model, self.reader, self.args, self.accelerator)

    # Hooks of Trainer

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """Make a new optimizer keep frozen weights at their values."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new and self.run is not None:
            self.run.frozen.attach(optimizer)
        return optimizer

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        """Augment the batch, and add memories to it if wake replays them, before the usual step."""
        inputs = self.run.batch_of_wake(inputs, self.state.global_step)
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.run.frozen.mask_gradients()
        self.check.watch(loss)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log with the number of the task, from 1, at a step that is counted over all tasks, awake and asleep."""
        step, run = self.state.global_step, self.run
        is_between = run is None
        self.state.global_step = self.history.num_steps if is_between else run.steps_before + step + run.sleep_step
        try:
            super().log({**logs, "task": len(self.history) if is_between else run.number + 1}, start_time)
        finally:
            self.state.global_step = step

    def _run_epoch(self, *args, **kwargs) -> None:
        """Skip the epoch if wake has ended already, as in a checkpoint taken asleep or by early stopping."""
        if not self.run.is_wake_over and self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)
