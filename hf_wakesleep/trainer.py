"""ContinualTrainer: a Trainer that learns a stream of tasks, with a sleep after each."""

import math
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from transformers import Trainer, set_seed
from transformers.trainer_utils import TrainOutput

from .augment import augment, seeded_generator
from .callbacks import SleepCallback
from .history import History, TaskRecord
from .hub import Publisher
from .images import ImageReader, TaskImages, make_image_processor
from .modeling_wakesleep import WakeSleepForImageClassification
from .plots import save_history_plot
from .protocol import align_tasks, check_same_run, make_protocol
from .sleep import SleepReport, consolidate, parameter_groups, set_plasticity, snapshot, update_recall
from .stage import CHECKPOINTS_FOLDER, Stage, find_resume_point, find_stages, initial_state, load_memory, stage_name
from .tasks import Task, TaskStream
from .training_args import ContinualTrainingArguments
from .wake import WakePass, add_memories

TRAINING_ARGS_NAME = "training_args.bin"


class ContinualTrainer(Trainer):
    """Learns a stream of tasks: wake, sleep, evaluate and save a stage, for every task.

    Args:
        model ([`WakeSleepForImageClassification`]): A new model, or one loaded from a stage, whose history and memory
            are then read from that stage.
        args ([`ContinualTrainingArguments`]): The arguments.
        stream ([`TaskStream`]): The tasks. After a stage either the whole stream, whose first tasks are then skipped,
            or the tasks to come.
        processing_class (`BaseImageProcessor`, *optional*): Image processor; made from the model's config if missing.
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
        **kwargs,
    ):
        if kwargs.get("optimizers", (None, None)) != (None, None):
            raise ValueError(
                "`optimizers` cannot be passed: every task trains with an optimizer and a schedule of its own. Choose "
                "them with `optim` and `lr_scheduler_type`, or pass `optimizer_cls_and_kwargs`."
            )
        self.stream = stream
        self.reader = ImageReader(processing_class or make_image_processor(model.config))
        self.history, self.memory = initial_state(model, args)
        self.tasks = align_tasks(stream, self.history)
        self.task_number = len(self.history)
        self._sleep_report: SleepReport | None = None
        self._teacher: WakeSleepForImageClassification | None = None
        self._micro_step = (0, 0)
        self._is_inside_task = False
        self._publisher: Publisher | None = None
        super().__init__(
            model=model,
            args=args,
            data_collator=self.reader,
            eval_dataset={},
            processing_class=self.reader.processor,
            compute_metrics=_accuracy,
            preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(dim=-1),
            **kwargs,
        )
        self.add_callback(SleepCallback(self))

    # The stream

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs) -> TrainOutput:
        """Learn all tasks that are not learned yet.

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
        """
        if self._is_inside_task:
            raise RuntimeError(
                f"This trainer was stopped inside task {self.task_number + 1}. Build a new model and trainer, and "
                "pass `resume_from_checkpoint=True` to go on."
            )
        checkpoint = self._open_run(resume_from_checkpoint)
        steps, loss = 0, math.nan
        for number in range(len(self.history), len(self.tasks)):
            output = self._learn(number, checkpoint, **kwargs)
            checkpoint = None
            steps, loss = steps + output.global_step, output.training_loss
        if self._publisher is not None:
            self._publisher.finish(self.args.shows_progress)
        return TrainOutput(steps, loss, self.history.summary() if len(self.history) else {})

    def _open_run(self, resume: str | bool | None) -> str | None:
        """Check `output_dir`, load the state to go on from, and return the checkpoint inside the next task."""
        output_dir = Path(self.args.output_dir)
        protocol = make_protocol(self.model, self.args, self.stream)
        stages, checkpoint = find_stages(output_dir), None
        if resume:
            stage, checkpoint = find_resume_point(output_dir, resume, len(self.history))
            if stage is not None:
                check_same_run(stage, History.load(stage).protocol, protocol)
                self._load_stage(stage)
        if stages and not History.load(stages[-1]).is_start_of(self.history):
            raise ValueError(
                f"`output_dir` {output_dir} holds another run ({len(stages)} stages). Pass "
                "`resume_from_checkpoint=True` to go on with it, or choose an empty folder."
            )
        if not self.history.protocol:
            self.history.protocol = protocol
        if self.memory is not None and self.memory.budget is not None:
            self._wake_pass().check_budget(self.tasks[len(self.history) :], self.memory)
        if self.args.forward_transfer and not len(self.history):
            self.history.untrained = {task.name: self._probe(task) for task in self.tasks[1:]}
        return None if checkpoint is None else str(checkpoint)

    def _load_stage(self, folder: Path) -> None:
        stored = type(self.model).from_pretrained(folder)
        self.model.grow([name for name in stored.config.classes if name not in self.model.config.label2id])
        self.model.load_state_dict(stored.state_dict())
        self.model.config.recall_weight = stored.config.recall_weight
        self.history, self.memory = History.load(folder), load_memory(folder)
        self._save_history()  # a kill can have come between the stage and the files beside it
        self.tasks = align_tasks(self.stream, self.history)

    def _probe(self, task: Task) -> float:
        """Return a score of forward transfer: how well recall, fitted to a task alone, tells its classes apart."""
        label2id = {name: index for index, name in enumerate(task.classes)}
        return self._wake_pass().probe(*self._images_of(task, label2id))

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
            name=task.name,
            classes=list(task.classes),
            new_classes=[name for name in task.classes if name not in self.history.classes],
            num_train_images=len(task.train_dataset),
            num_eval_images=len(task.eval_dataset),
            untrained_accuracy=self.history.untrained.get(task.name, math.nan),
        )
        if self.args.forward_transfer and number > 0:
            record.before_accuracy = self._probe(task)
        start = time.perf_counter()
        self._wake_pass().write(self.train_dataset, self.memory, number)
        set_seed(self.args.seed + number)
        set_plasticity(self.model, self.args.wake_plasticity)
        output = super().train(resume_from_checkpoint=checkpoint, **kwargs)
        report = self._sleep_report
        record.sleep = report.to_dict() if report else {}
        record.sleep_seconds, record.sleep_images = (report.seconds, report.images) if report else (0.0, 0)
        record.wake_seconds = time.perf_counter() - start - record.sleep_seconds
        record.wake_images = round(self.state.epoch * len(task.train_dataset))
        self._finish(record)
        return output

    def _begin(self, number: int) -> None:
        """Give the Trainer a fresh start on the grown model and the images of a task."""
        self.optimizer = self.lr_scheduler = None
        self.accelerator.free_memory()
        self.model = self.accelerator.unwrap_model(self.model_wrapped, keep_fp32_wrapper=False)
        self.model.__dict__.pop("_is_accelerate_prepared", None)
        self.model_wrapped = self.callback_handler.model = self.model
        self.task_number, self._sleep_report, self._micro_step = number, None, (0, 0)
        self._is_inside_task = True
        self._teacher = snapshot(self.model) if self._distils else None
        set_seed(self.args.seed + number)
        task = self.tasks[number]
        new = [name for name in task.classes if name not in self.model.config.label2id]
        self.model.grow(new, seeded_generator(self.args.seed, number))
        if self.memory is not None:
            self.memory.add_classes(new, self.model.head.recall.num_bytes)
        images = {
            seen.name: self._images_of(seen, self.model.config.label2id)
            for seen in self.tasks[: number + 1]
            if seen is not None
        }
        self.train_dataset = images[task.name][0]
        self.eval_dataset = {name: evaluation for name, (_, evaluation) in images.items()}

    @property
    def _distils(self) -> bool:
        return self.args.distillation_weight > 0 and self.args.sleep_steps > 0 and len(self.model.config.classes) > 0

    def sleep(self) -> None:
        """Consolidate memory into the network; without memory, settle how far recall can be trusted."""
        set_seed(self.args.seed + self.task_number)  # what is random asleep does not depend on how wake was resumed
        if self.memory is not None and self.args.sleep_steps:
            self._sleep_report = consolidate(
                self.model_wrapped,
                self.memory,
                self.reader,
                self.args,
                teacher=self._teacher,
                task=self.task_number,
                accelerator=self.accelerator,
            )
            self.log({f"sleep_{name}": value for name, value in self._sleep_report.to_dict().items()})
        elif self.memory is not None and self.args.wake_plasticity == "full":
            update_recall(self.model, self.memory, self.reader, self.args)
        elif self.args.recall_weight is not None:
            self.model.config.recall_weight = self.args.recall_weight
        elif self.args.wake_plasticity == "full":
            self.model.config.recall_weight = 0.0  # statistics of features that are gone

    def _finish(self, record: TaskRecord) -> None:
        """Evaluate, add to the history, and save the stage."""
        metrics = self.evaluate()
        names = [*(earlier.name for earlier in self.history.records), record.name]
        record.accuracy = [metrics.get(f"eval_{name}_accuracy", math.nan) for name in names]
        record.recall_weight = self.model.config.recall_weight
        statistics = self.model.head.recall.num_bytes
        if self.memory is None:
            record.memory_bytes = {"codes": 0, "index": 0, "codec": 0, "statistics": statistics, "total": statistics}
        else:
            record.memory_bytes, record.num_codes = self.memory.num_bytes.to_dict(), len(self.memory)
        self.history.records.append(record)
        self.state.global_step = len(self.history)
        self.log({f"stream_{name}": value for name, value in self.history.summary().items()})
        if self.args.should_save:
            output_dir = Path(self.args.output_dir)
            stage = Stage(self.model, self.processing_class, self.history, self.memory)
            stage.save(output_dir / stage_name(self.task_number))
            self._save_history()
            if self._publisher is not None:
                self._publisher.publish()
            shutil.rmtree(self._checkpoint_folder(self.task_number), ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._is_inside_task = False

    def _save_history(self) -> None:
        if self.args.should_save:
            self.history.save(self.args.output_dir)
            save_history_plot(self.history, self.args.output_dir)

    # Hooks of Trainer

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
        return super().training_step(model, {**inputs, "pixel_values": pixel_values}, num_items_in_batch)

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """Give the backbone a learning rate of its own if `backbone_learning_rate_ratio` says so."""
        ratio = self.args.backbone_learning_rate_ratio
        if self.optimizer is None and ratio != 1:
            build, kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            groups = parameter_groups(self.model, self.args.learning_rate, self.args.weight_decay, ratio)
            self.optimizer = build(groups, **kwargs)
        return super().create_optimizer(model)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log with the number of the task, from 1: every task's steps start at 0."""
        super().log({**logs, "task": self.task_number + 1}, start_time)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Prepare to publish; the repository is created with the first stage, so a Hub that is down stops nothing."""
        self.hub_model_id = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
        if self.args.should_save:
            self._publisher = Publisher(
                self.args.output_dir,
                self.hub_model_id,
                revision=self.args.hub_revision,
                private=self.args.hub_private_repo if private is None else private,
                token=token or self.args.hub_token,
            )

    def push_to_hub(self, commit_message: str | None = None, blocking: bool = True, **kwargs) -> None:
        """Send the stages that have not been sent; every stage is one commit with a message of its own."""
        if self._publisher is None:
            self.init_hf_repo(kwargs.get("token"))
        if self._publisher is not None:
            self._publisher.publish()
            if blocking:
                self._publisher.finish(self.args.shows_progress)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Do nothing: stages are published, checkpoints are not."""

    def _get_output_dir(self, trial) -> str:
        return str(self._checkpoint_folder(self.task_number))

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:  # a pickle, which can hold a token
            Path(output_dir or self.args.output_dir, TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        """Load weights as `from_pretrained` does: in files, transformers may keep other names than in the module."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        stored = type(self.model).from_pretrained(resume_from_checkpoint)
        self.model.load_state_dict(stored.state_dict())

    def _checkpoint_folder(self, number: int) -> Path:
        return Path(self.args.output_dir) / CHECKPOINTS_FOLDER / stage_name(number)

    def _wake_pass(self) -> WakePass:
        return WakePass(self.model, self.reader, self.args, self.accelerator)


def _accuracy(prediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions == prediction.label_ids).mean())}
