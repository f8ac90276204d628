"""ContinualTrainingArguments: TrainingArguments plus those of wake, sleep and memory."""

from dataclasses import dataclass, field
from pathlib import Path

from peft import LoraConfig
from transformers import TrainingArguments

from ..codecs.registry import CODECS
from ..memory.budget import parse_bytes
from .argument_checks import check_choices, check_combinations, check_device, check_fixed, check_numbers
from .sleep_config import SleepConfig

CHOSEN = "Chosen from backbone and stream by default."


@dataclass
class ContinualTrainingArguments(TrainingArguments):
    """Arguments of [`ContinualTrainer`]; `num_train_epochs`, `learning_rate`, ... are those of the wake of each task.

    Every field is described by its `help`, also on the command line of `examples/train_cil.py`.
    """

    learning_rate: float | None = field(
        default=None, metadata={"help": f"Peak learning rate of the head, awake and asleep. {CHOSEN}"}
    )
    num_train_epochs: float = field(default=1, metadata={"help": "Epochs of the wake of each task."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Images in a batch of wake."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Images in a batch without gradients."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule of the learning rate in wake."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Warm-up of wake: steps, or a share of them below 1."})
    weight_decay: float = field(default=0.05, metadata={"help": "Weight decay of AdamW, awake and asleep."})
    label_smoothing_factor: float | None = field(
        default=None, metadata={"help": f"Label smoothing, awake and asleep. {CHOSEN}"}
    )
    memory_budget: str | None = field(
        default=None,
        metadata={
            "help": "Bytes for everything that is learned from the stream and needed to learn further tasks, such as "
            "'20MB'. By default no limit, or that of the stage that the model was loaded from; '0' keeps no memory at "
            "all."
        },
    )
    codec: str | None = field(
        default=None,
        metadata={
            "help": "How memories are coded: 'webp', 'learned', or 'raw' for pixels. By default 'learned' if there "
            "is a budget, else 'webp', or as the stage that the model was loaded from does.",
            "choices": sorted(CODECS),
        },
    )
    codec_quality: int | None = field(
        default=None, metadata={"help": "Quality of the codec, 0..100, if it has one. Its own by default."}
    )
    codec_fit_steps: int = field(
        default=0,
        metadata={
            "help": "With the codec 'learned': optimizer steps that fit the codec of a new memory to images of the "
            "first task. Useful for images that are unlike photographs. 0 fits only its lookup table of pixel values."
        },
    )
    wake_plasticity: str | None = field(
        default=None,
        metadata={
            "help": "What wake trains: 'full' (all weights), 'head' (the classifier), 'full-first' (all weights in "
            "the first task, then the classifier), or 'lora' (the classifier, and low-rank factors of the backbone's "
            f"weights, into which they are merged). {CHOSEN}",
            "choices": ["full", "full-first", "head", "lora"],
        },
    )
    wake_replay: bool | None = field(
        default=None,
        metadata={
            "help": "Add as many memories of earlier tasks to every batch of wake as it has images (experience "
            "replay). By default done if wake trains the backbone and there is a memory."
        },
    )
    sleep_steps: int | None = field(
        default=None,
        metadata={
            "help": "Optimizer steps of the sleep after each task, whatever their number. 0 for no sleep. By default "
            "they follow the images of the task, and a sleep that has nothing left to learn ends early."
        },
    )
    sleep_batch_size: int = field(
        default=32, metadata={"help": "Memories in a batch of sleep, over all processes, balanced over classes."}
    )
    rem_share: float = field(
        default=0.0,
        metadata={"help": "Share of a sleep, its end, that is REM, in which memories are recombined; 0 for none."},
    )
    sleep_every_n_steps: int = field(
        default=0, metadata={"help": "Take a nap of `nap_steps` steps every so many steps of wake. 0 for no naps."}
    )
    nap_steps: int = field(default=20, metadata={"help": "Optimizer steps of a nap."})
    sleep_average: float = field(
        default=0.0,
        metadata={
            "help": "Decay of a moving average of the weights over the steps of a sleep; the sleep ends with the "
            "average. 0 for no average."
        },
    )
    sleep_plasticity: str = field(
        default="full",
        metadata={
            "help": "What sleep trains: 'full', 'head' or 'lora', as `wake_plasticity`.",
            "choices": ["full", "head", "lora"],
        },
    )
    freeze_fraction: float = field(
        default=0.0,
        metadata={
            "help": "Share of the entries of every weight tensor that each sleep freezes for good, the most important "
            "for all classes so far, in addition to those frozen before; 0 freezes no more. Costs one bit of the "
            "memory budget per weight."
        },
    )
    backbone_learning_rate_ratio: float | None = field(
        default=None,
        metadata={
            "help": "Learning rate of the backbone over that of the head, awake and asleep. The factors of 'lora' "
            f"take it too, and often want ten times as much as all weights do. {CHOSEN}"
        },
    )
    lda_weight: float | None = field(
        default=None,
        metadata={
            "help": "Weight of LDA in predictions, 0 (classifier only) to 1 (LDA only). By default sleep chooses it "
            "on memories that it does not replay."
        },
    )
    restore_callback_states_from_checkpoint: bool = field(
        default=True,
        metadata={
            "help": "Whether callbacks that have a state, such as early stopping, get it back when a run resumes."
        },
    )
    held_out_share: float = field(
        default=0.1,
        metadata={
            "help": "Share of the memories of each class that sleep does not replay: on them it measures its accuracy "
            "and chooses `lda_weight`. 0 to replay all, which needs a `lda_weight`."
        },
    )
    non_finite_loss: str = field(
        default="stop",
        metadata={
            "help": "What to do when the loss of a step is infinite or not a number, awake or asleep: 'stop' with an "
            "error, or 'skip' the step.",
            "choices": ["stop", "skip"],
        },
    )
    augmentation: str | None = field(
        default=None,
        metadata={
            "help": f"Augmentation awake and asleep: 'none', 'crop' (random resized crops) or 'crop-flip'. {CHOSEN}",
            "choices": ["none", "crop", "crop-flip"],
        },
    )
    measure: str = field(
        default="basic",
        metadata={
            "help": "What is measured of every task: 'basic', or 'full': also the accuracy of LDA alone before any "
            "training on the task, and forward transfer, for up to three more passes over its images.",
            "choices": ["basic", "full"],
        },
    )

    def __post_init__(self):
        check_fixed(self)
        check_numbers(self)
        self.remove_unused_columns = False
        self.ddp_broadcast_buffers = False
        if self.run_name is None and self.output_dir is not None:
            self.run_name = Path(self.output_dir).name  # so that loggers show all tasks as one run
        super().__post_init__()
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False
        check_device(self)
        check_choices(self, ContinualTrainingArguments.__dataclass_fields__)
        check_combinations(self)

    def wake_plasticity_of(self, task: int) -> str:
        """Return what wake trains in task number `task`, from 0."""
        if self.wake_plasticity == "full-first":
            return "full" if task == 0 else "head"
        return self.wake_plasticity

    def replays_awake(self, task: int) -> bool:
        """Return whether the wake of task number `task`, from 0, adds memories of earlier tasks to its batches."""
        if self.wake_replay is None:
            return self.memory_bytes != 0 and self.wake_plasticity_of(task) != "head"
        return self.wake_replay

    @property
    def sleeps(self) -> bool:
        """Whether there is a sleep after each task."""
        return self.sleep_steps != 0 and self.memory_bytes != 0

    def trains_backbone(self, task: int) -> bool:
        """Return whether a task, from 0, trains more than the head, awake, in naps or asleep."""
        sleeps = self.sleeps or self.sleep_every_n_steps
        return {self.wake_plasticity_of(task), self.sleep_plasticity if sleeps else "head"} != {"head"}

    @property
    def plasticities(self) -> set[str]:
        """All kinds of plasticity of a run."""
        return {self.wake_plasticity_of(0), self.wake_plasticity_of(1), self.sleep_plasticity}

    def sleep_config(self, task: int = 0, lora_config: LoraConfig | None = None) -> SleepConfig:
        """Return how the sleep after a task goes; what is `None` here has the default of [`SleepConfig`].

        Args:
            task (`int`, defaults to 0): Number of the task, from 0.
            lora_config (`peft.LoraConfig`, *optional*): Factors that plasticity `"lora"` trains; of rank 8 in all
                linear layers of the backbone if missing.
        """
        open_values = {
            "steps": self.sleep_steps,
            "learning_rate": self.learning_rate,
            "backbone_learning_rate_ratio": self.backbone_learning_rate_ratio,
            "label_smoothing": self.label_smoothing_factor,
            "augmentation": self.augmentation,
        }
        return SleepConfig(
            **{name: value for name, value in open_values.items() if value is not None},
            batch_size=self.sleep_batch_size,
            weight_decay=self.weight_decay,
            adam_betas=(self.adam_beta1, self.adam_beta2),
            adam_epsilon=self.adam_epsilon,
            max_grad_norm=self.max_grad_norm,
            plasticity=self.sleep_plasticity,
            lora_config=lora_config,
            average=self.sleep_average,
            rem_share=self.rem_share,
            held_out_share=self.held_out_share,
            lda_weight=self.lda_weight,
            lda_update="carry" if self.trains_backbone(task) else "keep",
            freeze_fraction=self.freeze_fraction,
            rng_key=(self.seed, task),
            eval_batch_size=self.per_device_eval_batch_size,
            mixed_precision=self.mixed_precision,
            non_finite_loss=self.non_finite_loss,
            shows_progress=self.shows_progress,
        )

    @property
    def shows_progress(self) -> bool:
        """Whether this process shows progress bars."""
        return self.process_index == 0 and not self.disable_tqdm

    @property
    def memory_bytes(self) -> int | None:
        """`memory_budget` in bytes; `None` for no limit."""
        return parse_bytes(self.memory_budget)
