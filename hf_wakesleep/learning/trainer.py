"""ContinualTrainer: a Trainer that learns a stream of tasks, with a sleep after each."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers.trainer_utils import TrainOutput

from ..codecs.base import Codec
from ..codecs.learned.codec import LearnedCodec
from ..data.streams import Task, TaskStream
from ..memory.memory import SemiParametricMemory
from ..model.modeling_wakesleep import WakeSleepForImageClassification
from ..reporting.history import HISTORY_NAME, History
from ..stages.checkpoint import (
    CHECKPOINTS_FOLDER,
    checkpoints_of,
    clean,
    drop_later_checkpoints,
    find_resume_point,
)
from ..stages.eval_sets import eval_sets_of
from ..stages.ingest import drop_ingest
from ..stages.protocol import align_tasks, check_same_run, is_same_run, make_protocol, tasks_of
from ..stages.stage import find_stages, load_stage_state, stage_name, stage_number
from .arguments import ContinualTrainingArguments
from .initial_state import initial_state
from .lora import describe
from .processes import check_equal
from .settings import check_same_settings, different_settings, hyper_parameters
from .shards import check_whole
from .task_trainer import TaskTrainer


class ContinualTrainer(TaskTrainer):
    """Learns a stream of tasks: wake, sleep, evaluate and save a stage, for every task.

    Args:
        model ([`WakeSleepForImageClassification`]): A new model, or one loaded from a stage, whose history and memory
            are then read from that stage.
        args ([`ContinualTrainingArguments`]): The arguments.
        stream ([`TaskStream`]): The tasks. After a stage either the whole stream, whose first tasks are then skipped,
            or the tasks to come.
        processing_class (`BaseImageProcessor`, *optional*): Image processor; made from the model's config if missing.
        codec ([`Codec`], *optional*): The codec of a new memory, as it is. If missing, the one that `args` name,
            fitted to images of the first task where it can be. A model loaded from a stage brings its own.
        eval_dataset (`datasets.Dataset` or [`Task`], *optional*): After a stage, labelled images of classes that it
            knows, whose tasks the stream does not bring; they are evaluated as those tasks are.
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
        eval_dataset: Dataset | Task | None = None,
        **kwargs,
    ):
        _check_arguments(model, args, stream)
        self.stream = stream
        history, memory = initial_state(model, args, codec)
        self._fits_codec = codec is None and not len(history)
        super().__init__(
            model,
            args,
            tasks=align_tasks(stream, history),
            history=history,
            memory=memory,
            known_images={} if eval_dataset is None else eval_sets_of(eval_dataset, history),
            lora_config=lora_config,
            processing_class=processing_class,
            **kwargs,
        )

    @property
    def columns(self) -> Mapping[str, str]:
        """Columns of `image` and `label` of the stream."""
        return self.stream.columns

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs) -> TrainOutput:
        """Learn all tasks that are not learned yet.

        SIGTERM and SIGINT stop it after the step at hand, awake or asleep, with a checkpoint of that step; before the
        first step when memory is written; and after the last when the stage is saved. A second signal acts at once.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): `True` goes on from the last stage and checkpoint in
                `output_dir`, or starts anew if there is none; a path goes on from that stage or checkpoint.
            kwargs: Passed on to `Trainer.train`.

        Returns:
            `TrainOutput`: Optimizer steps of all wakes of this call, the last training loss, and
            [`History.summary`] as metrics.

        Raises:
            ValueError: If `output_dir` holds another run or one that still runs, the run to go on from was another, or
                the memory budget is too small for the classes to come. Nothing has been trained or written then.
            OSError: If the disk is full or cannot be written to; stages and checkpoints before are intact.
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
                for number in range(len(self.history), len(self.tasks)):
                    self.guard.exit_if_asked()
                    output = self._learn(number, checkpoint, **kwargs)
                    checkpoint = None
                    steps, loss = steps + output.global_step, output.training_loss
                self.guard.exit_if_asked()
            if self._publisher is not None:
                self._publisher.finish(self.args.shows_progress)
        return TrainOutput(steps, loss, self.history.summary() if len(self.history) else {})

    def _open_run(self, resume: str | bool | None) -> str | None:
        """Check `output_dir`, load the state to go on from, and return the checkpoint inside the next task."""
        output_dir = Path(self.args.output_dir)
        self._fit_codec()
        protocol = make_protocol(self.model, self.args.seed, self.stream, self.history, self.memory)
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
        self._drop_stale(protocol)
        if self.memory is not None and (self.args.freeze_fraction or self.memory.synapses is not None):
            check_whole(self.accelerator)
        self.history.protocol, self.history.settings = protocol, self._settings
        if self.memory is not None and self.memory.budget is not None:
            self._wake_pass().check_budget(self.tasks[len(self.history) :], self.memory)
        if self.args.forward_transfer and not len(self.history):
            self.history.untrained = self._probe_untrained(output_dir if resume else None)
        self._save_history()
        return None if checkpoint is None else str(checkpoint)

    def _fit_codec(self) -> None:
        """Fit the learned codec of a new memory to images of the first task, once."""
        if self._fits_codec and self.memory is not None and isinstance(self.memory.codec, LearnedCodec):
            codec = self._wake_pass().fitted(self.memory.codec, self.tasks[0])
            self.memory = SemiParametricMemory(codec, self.memory.budget)
        self._fits_codec = False

    def _load_resume_point(self, resume: str | bool, protocol: dict) -> Path | None:
        """Load the stage to go on from, if it is one of this run, and return the checkpoint after it."""
        stage, checkpoint = find_resume_point(self.args.output_dir, resume, len(self.history))
        check_equal(self.accelerator, {"the point to go on from": (stage, checkpoint)}, "before a run goes on")
        num_done = len(self.history) if stage is None else stage_number(stage) + 1
        if stage is not None:
            check_same_run(stage, History.load(stage).protocol, protocol, num_done)
        if checkpoint is not None:
            folder = checkpoint.parents[2]
            advice = (
                "" if stage is None else f", or go on from the stage before: `resume_from_checkpoint={str(stage)!r}`"
            )
            check_same_run(folder, History.load(folder).protocol, protocol, num_done + 1, advice)
            check_same_settings(checkpoint, History.load(folder).settings, self._settings)
        if stage is not None:
            self._load_stage(stage)
        return checkpoint

    @property
    def _settings(self) -> dict:
        """Hyper-parameters that differ from the defaults, as the history keeps them."""
        settings = hyper_parameters(self.args)
        if "lora" in self.args.plasticities:
            settings["lora_config"] = describe(self.lora_config)
        if self.optimizer_cls_and_kwargs is not None:
            kind, kwargs = self.optimizer_cls_and_kwargs
            settings["optimizer"] = ", ".join([kind.__name__, *(f"{name}={kwargs[name]}" for name in sorted(kwargs))])
        return settings

    def _drop_stale(self, protocol: dict) -> None:
        """Drop what was kept or measured of tasks to come that have changed since."""
        before, number = tasks_of(self.history.protocol), len(self.history)
        for later, now in enumerate(tasks_of(protocol)[number:], start=number):
            if before[later : later + 1] != [now]:
                self.history.untrained.pop(stage_name(later), None)
        output_dir = Path(self.args.output_dir)
        if self.args.should_save and (output_dir / HISTORY_NAME).is_file():
            there = History.load(output_dir)
            is_same = is_same_run(there.protocol, protocol, number + 1)
            if not is_same or different_settings(there.settings, self._settings):
                drop_ingest(checkpoints_of(output_dir, number))
        self.accelerator.wait_for_everyone()

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
        self.model.config.lda_weight = stored.config.lda_weight
        self.history, self.memory = load_stage_state(folder, stored)
        self.tasks = align_tasks(self.stream, self.history)
        self.eval_dataset = self._eval_images(len(self.history))


def _check_arguments(model, args, stream) -> None:
    """Refuse what is of another kind, or an output folder that is a stage, before anything is written."""
    if not isinstance(stream, TaskStream):
        raise TypeError(
            f"Expected `stream` to be a TaskStream, got {type(stream).__name__}. Build one, such as "
            "`ClassIncrementalStream(dataset, num_tasks=1)`."
        )
    if not isinstance(args, ContinualTrainingArguments):
        raise TypeError(f"Expected `args` to be ContinualTrainingArguments, got {type(args).__name__}.")
    if Path(args.output_dir, "config.json").is_file():
        raise ValueError(
            f"`output_dir` must be a folder of its own, but {args.output_dir} holds a stage or a model, which a run "
            "would write into. Choose another."
        )
    if isinstance(model, torch.nn.Module) and (found := {p.dtype for p in model.parameters()}) != {torch.float32}:
        raise ValueError(
            f"Expected a model in float32, whose weights can learn, got {sorted(map(str, found))}. Load it with "
            "`dtype=torch.float32`; `bf16=True` and `fp16=True` compute in low precision all the same."
        )
