"""ClassifierTrainer: a Trainer that knows the loss, images, optimizer and checkpoints of a wake-sleep classifier."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from datasets import Dataset
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import Trainer

from .checkpoint import LAST_WRITTEN, SLEEP_NAME, checkpoints_of, drop_old_checkpoints
from .files import check_writable, disk_advice, remove_folder, temporary_name
from .hub import Publisher
from .images import ImageReader, TaskImages, make_image_processor
from .lora import load_factors, read_factors, save_factors, without_factors
from .modeling_wakesleep import WakeSleepForImageClassification
from .plasticity import parameter_groups
from .replay import Replay
from .shards import check_sharding, load_whole
from .training_args import ContinualTrainingArguments

TRAINING_ARGS_NAME = "training_args.bin"


class ClassifierTrainer(Trainer):
    """What [`ContinualTrainer`] changes in `Trainer` whatever is learned; the stream is its own matter.

    Args:
        model ([`WakeSleepForImageClassification`]): The model.
        args ([`ContinualTrainingArguments`]): The arguments.
        processing_class (`BaseImageProcessor`, *optional*): Image processor; made from the model's config if missing.
        kwargs: Passed on to `Trainer`.

    Raises:
        ValueError: If the image processor does not fit the model, or `optimizers` are given.
    """

    def __init__(
        self,
        model: WakeSleepForImageClassification,
        args: ContinualTrainingArguments,
        processing_class=None,
        **kwargs,
    ):
        if kwargs.get("optimizers", (None, None)) != (None, None):
            raise ValueError(
                "`optimizers` cannot be passed: every task trains with an optimizer and a schedule of its own. Choose "
                "them with `optim` and `lr_scheduler_type`, or pass `optimizer_cls_and_kwargs`."
            )
        self.reader = ImageReader(processing_class or make_image_processor(model.config))
        size = self.reader.resize([Image.new("RGB", (3, 5))]).shape[-2:]
        if tuple(size) != (model.config.image_size,) * 2:
            raise ValueError(
                f"`processing_class` must give square images of {model.config.image_size} pixels, the `image_size` of "
                f"the model, got {size[0]} x {size[1]}. Change its `size` and `crop_size`."
            )
        self.task_number = 0
        self._publisher: Publisher | None = None
        self._is_saving = False
        if args.should_save:
            check_writable(args.output_dir)
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

        check_sharding(self.accelerator)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Return the cross-entropy of the classifier; what it is mixed with is not trained."""
        outputs = model(**inputs)
        smoothing = self.args.label_smoothing_factor if self.model.training else 0.0
        logits = outputs.classifier_logits.float()
        loss = F.cross_entropy(logits, inputs["labels"], label_smoothing=smoothing)
        return (loss, outputs) if return_outputs else loss

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        """Take the images of a task or of any labelled dataset, too."""
        return super().get_eval_dataloader(self._as_images(eval_dataset))

    def get_test_dataloader(self, test_dataset) -> DataLoader:
        """Take the images of a task or of any labelled dataset, too."""
        return super().get_test_dataloader(self._as_images(test_dataset))

    def _as_images(self, dataset):
        is_plain = isinstance(dataset, Dataset)
        return TaskImages(dataset, self.model.config.label2id, "the given images") if is_plain else dataset

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """Give the backbone a learning rate of its own if `backbone_learning_rate_ratio` says so."""
        ratio = self.args.backbone_learning_rate_ratio
        if self.optimizer is None and ratio != 1:
            build, kwargs = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(self.args, self.model)
            learning_rate = kwargs.get("lr", self.args.learning_rate)
            groups = parameter_groups(self.model, learning_rate, self.args.weight_decay, ratio)
            self.optimizer = build(groups, **kwargs)
        return super().create_optimizer(model)

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

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        with without_factors(self.model):
            super()._save(output_dir, state_dict)
        if self.args.should_save:  # a pickle, which can hold a token
            Path(output_dir or self.args.output_dir, TRAINING_ARGS_NAME).unlink(missing_ok=True)

    @property
    def checkpoints_folder(self) -> Path:
        """Where the checkpoints of the task at hand go."""
        return checkpoints_of(self.args.output_dir, self.task_number)

    def save_sleep_checkpoint(self, replay: Replay) -> None:
        """Save a checkpoint inside a sleep: what `Trainer` needs to see wake as done, and the state of the sleep."""
        with self._whole_checkpoint(self.state.global_step + replay.step) as folder:
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
        with self._whole_checkpoint(self.state.global_step) as folder:
            super()._save_checkpoint(model, trial)
            if self.args.should_save:
                save_factors(self.model, folder)

    @contextmanager
    def _whole_checkpoint(self, step: int) -> Iterator[Path]:
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
                    remove_folder(self.checkpoints_folder / name)
                    (temporary / name).replace(self.checkpoints_folder / name)
                    drop_old_checkpoints(self.checkpoints_folder, self.args.save_total_limit)
        finally:
            self._is_saving = False
            if self.args.should_save:
                shutil.rmtree(temporary, ignore_errors=True)

    def _run_epoch(self, *args, **kwargs) -> None:
        """Do nothing when a run goes on after its last step, which may lie inside an epoch."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        """Load weights as `from_pretrained` does: in files, transformers may keep other names than in the module."""
        if self.is_deepspeed_enabled:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        stored = WakeSleepForImageClassification.from_pretrained(resume_from_checkpoint)
        model = self.model if model is None else model
        with without_factors(model):
            load_whole(model, stored.state_dict())
        load_factors(model, read_factors(Path(resume_from_checkpoint)))


def _accuracy(prediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions == prediction.label_ids).mean())}
