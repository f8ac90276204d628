"""ClassifierTrainer: a Trainer with the loss, images, optimizer and checkpoints of a wake-sleep classifier."""

import copy
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset
from transformers import EarlyStoppingCallback, Trainer, get_scheduler
from transformers.trainer_utils import IntervalStrategy
from transformers.utils import logging

from ..data.evaluation import EvalSets, as_image_dataset
from ..data.images import ImageReader, TaskImages
from ..model.modeling_wakesleep import WakeSleepForImageClassification
from ..reporting.metrics import confusion_counts
from ..stages.checkpoint import LAST_WRITTEN, SLEEP_NAME, checkpoints_of, drop_old_checkpoints
from ..stages.outbox import Publisher
from ..stages.stage import load_processor
from ..storage.atomic import check_writable, disk_advice, replace_folder, temporary_name
from ..storage.lock import folder_lock
from .arguments import ContinualTrainingArguments
from .distributed import check_sharding, load_full_state
from .lora import load_factors, read_factors, save_factors, without_factors
from .plasticity import parameter_groups
from .replay import Replay

logger = logging.get_logger(__name__)

TRAINING_ARGS_NAME = "training_args.bin"


# Arguments of `Trainer` that cannot be passed, each with what to do instead.
REFUSED = {
    "compute_loss_func": "The loss is the cross-entropy of the classifier, awake and asleep",
    "data_collator": "The trainer reads images itself; pass a `processing_class` to resize them otherwise",
    "model_init": "Tasks build on each other; build a new model and trainer for every trial",
    "optimizers": "Every task trains with an optimizer and a schedule of its own; choose them with `optim` and "
    "`lr_scheduler_type`, or pass `optimizer_cls_and_kwargs`",
    "preprocess_logits_for_metrics": "Accuracy is computed from the scores; reduce them in `compute_metrics`",
    "train_dataset": "Training images come from the tasks of `stream`",
}


class ClassifierTrainer(Trainer):
    """The part of [`ContinualTrainer`] that needs no stream: loss, evaluation, optimizer, checkpoints, the Hub.

    Args:
        model ([`WakeSleepForImageClassification`]): The model.
        args ([`ContinualTrainingArguments`]): The arguments.
        processing_class (`BaseImageProcessor`, *optional*): Image processor; that of the stage that the
            model was loaded from, or made from its config, if missing.
        kwargs: Passed on to `Trainer`.

    Raises:
        ValueError: If the image processor does not fit the model, or an argument cannot be used.
    """

    def __init__(
        self,
        model: WakeSleepForImageClassification,
        args: ContinualTrainingArguments,
        processing_class=None,
        **kwargs,
    ):
        _check_trainer_arguments(kwargs, args)
        self.reader = ImageReader(processing_class or load_processor(model))
        size = self.reader.resize([Image.new("RGB", (3, 5))]).shape[-2:]
        if tuple(size) != (model.config.image_size,) * 2:
            raise ValueError(
                f"`processing_class` must give square images of {model.config.image_size} pixels, the `image_size` of "
                f"the model, got {size[0]} x {size[1]}. Change its `size` and `crop_size`."
            )
        self.confusion: list[list[int]] = []  # of the last evaluation over the tasks, see `confusion_counts`
        self._publisher: Publisher | None = None
        self._is_saving = self._is_folder_held = False
        if args.should_save:
            check_writable(args.output_dir)
        super().__init__(
            model=model,
            args=args,
            data_collator=self.reader,
            eval_dataset={},
            processing_class=self.reader.processor,
            **kwargs,
        )
        unsharded_only = {name: getattr(args, name) for name in ("sleep_average", "sleep_every_n_steps")}
        check_sharding(self.accelerator, unsharded_only)
        self._check_optimizer()

    def _check_optimizer(self) -> None:
        """Build the optimizer and schedule of wake once, so that wrong arguments fail before anything is written."""
        args = self.args
        weight = torch.nn.Parameter(torch.zeros(1, device=args.device))
        try:
            build, kwargs = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(args, self.model)
            optimizer = build([weight], **kwargs)
        except (ImportError, KeyError, RuntimeError, TypeError, ValueError) as error:
            given = f"`optim` {args.optim.value!r} with `optim_args` {args.optim_args!r}"
            given = given if self.optimizer_cls_and_kwargs is None else "`optimizer_cls_and_kwargs`"
            raise ValueError(f"{given} builds no optimizer ({error}). Change it.") from error
        without = copy.copy(args)
        without.optim_args = None
        if args.optim_args and kwargs == self.get_optimizer_cls_and_kwargs(without, self.model)[1]:
            raise ValueError(
                f"`optim_args` {args.optim_args!r} changes nothing of {args.optim.value!r}. Leave it out."
            )
        try:
            kind, kwargs = args.lr_scheduler_type, args.lr_scheduler_kwargs
            get_scheduler(kind, optimizer, args.get_warmup_steps(100), 100, scheduler_specific_kwargs=kwargs)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"`lr_scheduler_type` {kind.value!r} with `lr_scheduler_kwargs` {kwargs!r} builds no schedule "
                f"({error}). Change them."
            ) from error

    def hyperparameter_search(self, *args, **kwargs):
        """Refuse: a search builds its own models, which [`ContinualTrainer`] cannot share between trials.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "`hyperparameter_search` cannot be used: it needs `model_init`, and tasks build on each other. Build a "
            "new model and trainer, with an `output_dir` of its own, for every trial."
        )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Return the cross-entropy of the classifier alone, since LDA, the other half of the head, has no gradient."""
        outputs = model(**inputs)
        smoothing = self.args.label_smoothing_factor if self.model.training else 0.0
        logits = outputs.classifier_logits.float()
        loss = F.cross_entropy(logits, inputs["labels"], label_smoothing=smoothing)
        return (loss, outputs) if return_outputs else loss

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        """Return a loader of all images of a dataset, in their order.

        Args:
            eval_dataset (*optional*): Anything that [`as_image_dataset`] takes, or the name of a stage; the evaluation
                images of all tasks so far if missing.
        """
        if isinstance(eval_dataset, str):
            if eval_dataset not in self._eval_sets:
                raise ValueError(
                    f"Expected `eval_dataset` to be a dataset or one of {list(self._eval_sets)}, got {eval_dataset!r}."
                )
            eval_dataset = self._eval_sets[eval_dataset]
        given = self.eval_dataset if eval_dataset is None else eval_dataset
        images = as_image_dataset(given, self.model.config.label2id, self.columns)
        # The loader of `Trainer` could drop the last images, or use workers that still hold another dataset.
        loader = DataLoader(
            images,
            batch_size=self.args.eval_batch_size,
            collate_fn=self.data_collator,
            num_workers=0 if isinstance(images, IterableDataset) else self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            generator=torch.Generator(),  # else every evaluation would change the random numbers of dropout
        )
        return self.accelerator.prepare_data_loader(loader)

    def get_test_dataloader(self, test_dataset) -> DataLoader:
        """Return a loader of all images of a dataset, in their order; see `get_eval_dataloader`."""
        return self.get_eval_dataloader(test_dataset)

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        """Add the accuracy over all images, and by task, to the metrics of `Trainer`, if the images have labels."""
        if ignore_keys and "logits" in ignore_keys:
            raise ValueError(
                "`ignore_keys` must not hold 'logits', from which accuracy is computed, got "
                f"{list(ignore_keys)}. Leave it out."
            )
        # Scores of many images and classes take much memory, so they are kept only if something uses them.
        needs_scores = self.compute_metrics is not None or description != "Evaluation"
        self.preprocess_logits_for_metrics = None if needs_scores else _best_class
        output = super().evaluation_loop(dataloader, description, False, ignore_keys, metric_key_prefix)
        if output.label_ids is None:
            if description == "Evaluation":
                logger.warning(
                    "The given images have no labels, so there is no accuracy. `predict` returns their scores."
                )
            return output
        answers = output.predictions[0] if isinstance(output.predictions, tuple) else output.predictions
        answers = answers.argmax(axis=-1) if needs_scores else answers  # (N,)
        if len(answers) != len(output.label_ids):
            raise ValueError(_partly_labelled(len(answers) - len(output.label_ids), len(answers)))
        is_correct = answers == output.label_ids  # (N,)
        shares = {"accuracy": is_correct.mean()}
        if isinstance(dataloader.dataset, EvalSets):
            self.confusion = confusion_counts(output.label_ids, answers)
            slices = dataloader.dataset.slices()
            shares |= {f"{name}_accuracy": is_correct[rows].mean() for name, rows in slices.items()}
        output.metrics.update({f"{metric_key_prefix}_{name}": float(share) for name, share in shares.items()})
        return output

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Check that all processes have labels, or none, before they are gathered."""
        loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if self.accelerator.num_processes > 1:
            has_labels = self.accelerator.gather(torch.tensor([labels is not None], device=self.args.device))
            if has_labels.any() and not has_labels.all():
                raise ValueError(_partly_labelled(int((~has_labels).sum()), len(has_labels), "batches"))
        return loss, logits, labels

    @property
    def _eval_sets(self) -> dict[str, TaskImages]:
        """The evaluation images of each task so far, by the name of its stage; without tasks that have none."""
        return self.eval_dataset.sets if isinstance(self.eval_dataset, EvalSets) else {}

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """Give the backbone a learning rate of its own if `backbone_learning_rate_ratio` is not 1."""
        ratio = self.args.backbone_learning_rate_ratio
        if self.optimizer is None and ratio != 1:
            build, kwargs = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(self.args, self.model)
            learning_rate = kwargs.get("lr", self.args.learning_rate)
            groups = parameter_groups(self.model, learning_rate, self.args.weight_decay, ratio)
            self.optimizer = build(groups, **kwargs)
        return super().create_optimizer(model)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Prepare to publish. The repository is created with the first stage, so an offline Hub stops no training."""
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
        """Send the stages that have not been sent; every stage is one commit with a message of its own.

        Called outside of `train`, it waits until all have arrived, also with `blocking=False`.
        """
        if self._publisher is None:
            self.init_hf_repo(kwargs.get("token"))
        if self._publisher is not None:
            is_training = self._is_folder_held
            with self._hold_folder():
                self._publisher.publish()
                if blocking or not is_training:
                    self._publisher.finish(self.args.shows_progress)

    @contextmanager
    def _hold_folder(self) -> Iterator[None]:
        """Lock the output folder, so that no other run writes to it, unless this trainer has locked it already."""
        if self._is_folder_held or not self.args.should_save:
            yield
            return
        with folder_lock(self.args.output_dir):
            self._is_folder_held = True
            try:
                yield
            finally:
                self._is_folder_held = False

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Do nothing: stages are published, checkpoints are not."""

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        with without_factors(self.model):
            super()._save(output_dir, state_dict)
        if self.args.should_save:  # a pickle, which can hold a token
            Path(output_dir or self.args.output_dir, TRAINING_ARGS_NAME).unlink(missing_ok=True)

    @property
    def columns(self) -> Mapping[str, str]:
        """Names of the columns of `image` and `label`, used for datasets that have them; found by type if empty."""
        return {}

    @property
    def task_number(self) -> int:
        """Number of the current task, from 0."""
        return 0

    @property
    def checkpoints_folder(self) -> Path:
        """Folder of the checkpoints of the current task."""
        return checkpoints_of(self.args.output_dir, self.task_number)

    def save_sleep_checkpoint(self, replay: Replay) -> None:
        """Save a checkpoint inside a sleep: the state of the sleep, and what makes `Trainer` see wake as done."""
        with self.complete_checkpoint(self.state.global_step + replay.step) as folder:
            state = replay.state_dict()
            if self.args.should_save:
                self._save(str(folder))
                torch.save(state, folder / SLEEP_NAME)
                self._save_scaler(str(folder))
                self.state.save_to_json(str(folder / LAST_WRITTEN))

    def _get_output_dir(self, trial) -> str:
        folder = self.checkpoints_folder
        return str(temporary_name(folder / "saving") if self._is_saving else folder)

    def _save_checkpoint(self, model, trial) -> None:
        with self.complete_checkpoint(self.state.global_step) as folder:
            super()._save_checkpoint(model, trial)
            if self.args.should_save:
                save_factors(self.model, folder)

    @contextmanager
    def complete_checkpoint(self, step: int) -> Iterator[Path]:
        """Yield a temporary folder, which becomes a checkpoint when all processes have written to it."""
        self._is_saving = True
        temporary, name = Path(self._get_output_dir(None)), f"checkpoint-{step}"
        try:
            with disk_advice(self.checkpoints_folder / name):
                if self.args.should_save:
                    shutil.rmtree(temporary, ignore_errors=True)
                    (temporary / name).mkdir(parents=True)
                self.accelerator.wait_for_everyone()
                yield temporary / name
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    replace_folder(temporary / name, self.checkpoints_folder / name)
                    drop_old_checkpoints(self.checkpoints_folder, self.args.save_total_limit)
        finally:
            self._is_saving = False
            if self.args.should_save:
                shutil.rmtree(temporary, ignore_errors=True)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        """Load weights by `from_pretrained`, since transformers may save them under other names than in the module."""
        if self.is_deepspeed_enabled:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        stored = WakeSleepForImageClassification.from_pretrained(resume_from_checkpoint)
        model = self.model if model is None else model
        with without_factors(model):
            load_full_state(model, stored.state_dict())
        load_factors(model, read_factors(Path(resume_from_checkpoint)))


def _best_class(logits: torch.Tensor | tuple, labels: torch.Tensor | None) -> torch.Tensor:
    """Return the class of the largest score of every image, (B,)."""
    return (logits[0] if isinstance(logits, tuple) else logits).argmax(dim=-1)


def _partly_labelled(missing: int, total: int, what: str = "images") -> str:
    return (
        f"Every image needs a label, or none, but {missing} of {total} {what} have none. Drop those images, or all "
        "labels."
    )


def _check_trainer_arguments(kwargs: dict, args: ContinualTrainingArguments) -> None:
    """Refuse arguments of `Trainer` that would be ignored, or that fail after the first task."""
    for name, advice in REFUSED.items():
        if kwargs.get(name) not in (None, (None, None)):
            raise ValueError(f"`{name}` cannot be passed. {advice}.")
    for callback in kwargs.get("callbacks") or ():
        kind = callback if isinstance(callback, type) else type(callback)
        if issubclass(kind, EarlyStoppingCallback) and (
            args.metric_for_best_model is None or args.eval_strategy == IntervalStrategy.NO
        ):
            raise ValueError(
                "EarlyStoppingCallback needs `metric_for_best_model`, such as 'accuracy', and an `eval_strategy`, got "
                f"{args.metric_for_best_model!r} and {args.eval_strategy.value!r}. Pass both."
            )
    metric = args.metric_for_best_model
    is_known = metric is None or metric.removeprefix("eval_") in ("accuracy", "loss")
    if not is_known and kwargs.get("compute_metrics") is None:
        raise ValueError(
            "`metric_for_best_model` must be 'accuracy' or 'loss', over all tasks so far, or a metric of your "
            f"`compute_metrics`, got {metric!r}."
        )
