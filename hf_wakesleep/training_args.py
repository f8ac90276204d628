"""ContinualTrainingArguments: TrainingArguments plus what wake, sleep and memory need."""

import math
from dataclasses import dataclass, field

from transformers import TrainingArguments

from .budget import parse_bytes
from .codecs import CODECS

MOST = 2**31 - 1
CHOICES = (
    "codec",
    "memory_selection",
    "wake_plasticity",
    "sleep_plasticity",
    "augmentation",
    "non_finite_loss",
)
WHOLE = {"sleep_steps": (0, MOST), "sleep_batch_size": (1, MOST), "per_device_train_batch_size": (1, MOST)}
NUMBERS = {
    "learning_rate": (lambda value: value >= 0, "at least 0"),
    "num_train_epochs": (lambda value: value >= 0, "at least 0"),
    "weight_decay": (lambda value: value >= 0, "at least 0"),
    "sleep_learning_rate": (lambda value: value > 0, "positive"),
    "distillation_weight": (lambda value: value >= 0, "at least 0"),
    "distillation_temperature": (lambda value: value > 0, "positive"),
    "backbone_learning_rate_ratio": (lambda value: value >= 0, "at least 0"),
    "crop_scale": (lambda value: 0 < value <= 1, "in (0, 1]"),
}


@dataclass
class ContinualTrainingArguments(TrainingArguments):
    """Arguments of [`ContinualTrainer`]; `num_train_epochs`, `learning_rate`, ... are those of one task's wake.

    Every field is described by its `help`, also on the command line of `examples/train_cil.py`.
    """

    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of the head in wake."})
    memory_budget: str | None = field(
        default=None,
        metadata={
            "help": "Bytes for everything learned from the stream that must be kept to go on, such as '20MB'. By "
            "default no limit, or that of the stage that the model was loaded from; '0' keeps no memory at all."
        },
    )
    codec: str | None = field(
        default=None,
        metadata={
            "help": "How memories are coded: 'webp', 'learned', or 'raw' for pixels. By default 'webp', or as the "
            "stage that the model was loaded from does.",
            "choices": sorted(CODECS),
        },
    )
    codec_quality: int | None = field(
        default=None, metadata={"help": "Quality of the codec, 0..100, if it has one. Its own by default."}
    )
    memory_selection: str = field(
        default="herding",
        metadata={
            "help": "Which images of a class are kept when the memory is full: 'reservoir' (a uniform sample) or "
            "'herding' (those whose features together are nearest to the mean of all).",
            "choices": ["herding", "reservoir"],
        },
    )
    wake_plasticity: str = field(
        default="full",
        metadata={
            "help": "What wake trains: 'full' (all weights) or 'head' (the classifier).",
            "choices": ["full", "head"],
        },
    )
    wake_replay: bool = field(
        default=False,
        metadata={"help": "Add as many memories as there are images to every batch of wake (experience replay)."},
    )
    sleep_steps: int = field(
        default=200,
        metadata={"help": "Optimizer steps of the sleep after each task, whatever their number. 0 for no sleep."},
    )
    sleep_batch_size: int = field(
        default=64, metadata={"help": "Memories in a batch of sleep, over all processes, balanced over classes."}
    )
    sleep_learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of AdamW in sleep."})
    sleep_plasticity: str = field(
        default="full",
        metadata={
            "help": "What sleep trains: 'full' (all weights) or 'head' (the classifier).",
            "choices": ["full", "head"],
        },
    )
    distillation_weight: float = field(
        default=0.3,
        metadata={"help": "Weight in sleep of distillation, on old classes, towards the network before the task."},
    )
    distillation_temperature: float = field(
        default=2.0, metadata={"help": "Temperature of both softmaxes in distillation."}
    )
    backbone_learning_rate_ratio: float = field(
        default=0.05,
        metadata={
            "help": "Learning rate of the backbone over that of the head, awake and asleep: small for a pretrained "
            "backbone, 1 for one from scratch."
        },
    )
    recall_weight: float | None = field(
        default=None,
        metadata={
            "help": "Weight of recall in predictions, 0 (classifier only) to 1 (recall only). By default sleep sets "
            "it on memories that it held out."
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
    augmentation: str = field(
        default="none",
        metadata={
            "help": "Augmentation awake and asleep: 'none', 'crop' (random resized crops) or 'crop-flip'.",
            "choices": ["none", "crop", "crop-flip"],
        },
    )
    crop_scale: float = field(default=0.6, metadata={"help": "Smallest share of the area in a random resized crop."})
    forward_transfer: bool = field(
        default=True,
        metadata={"help": "Measure forward transfer: two more forward passes over every task before it is trained."},
    )

    def __post_init__(self):
        self.remove_unused_columns = False
        self.ddp_broadcast_buffers = False
        super().__post_init__()
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False
        self._check_numbers()
        for name in (
            "codec",
            "memory_selection",
            "wake_plasticity",
            "sleep_plasticity",
            "augmentation",
            "non_finite_loss",
        ):
            choices = self.__dataclass_fields__[name].metadata["choices"]
            if getattr(self, name) not in [*choices, *([None] if name == "codec" else [])]:
                raise ValueError(f"`{name}` must be one of {choices}, got {getattr(self, name)!r}.")
        parse_bytes(self.memory_budget)
        if self.codec_quality is not None and self.codec == "raw":
            raise ValueError("`codec_quality` is for lossy codecs, but `codec` is 'raw'. Leave one of them out.")
        for name in ("load_best_model_at_end", "prediction_loss_only"):
            if getattr(self, name):
                raise ValueError(
                    f"`{name}` cannot be used: sleep follows the last step of wake, and every stage is evaluated. "
                    "Leave it out."
                )
        if self.memory_bytes == 0 and (self.sleep_steps or self.wake_replay):
            raise ValueError(
                "Sleep and wake replay read from memory, but `memory_budget` is 0. Pass `sleep_steps=0` and "
                "`wake_replay=False`, or a budget."
            )

    def _check_numbers(self) -> None:
        for name, (low, high) in WHOLE.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise ValueError(f"`{name}` must be a whole number of at least {low}, got {value!r}.")
        if self.sleep_batch_size < self.world_size:
            raise ValueError(
                f"`sleep_batch_size` must be at least 1 for each of {self.world_size} processes, got "
                f"{self.sleep_batch_size}."
            )
        for name, (holds, expected) in NUMBERS.items():
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not (is_number and holds(value)):
                raise ValueError(f"`{name}` must be {expected}, got {value!r}.")
        for name, most in (("recall_weight", 1), ("codec_quality", 100)):
            value = getattr(self, name)
            kind = int if name == "codec_quality" else int | float
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, kind) or not 0 <= value <= most
            ):
                raise ValueError(f"`{name}` must be in [0, {most}], got {value!r}.")

    @property
    def shows_progress(self) -> bool:
        """Whether this process shows progress bars."""
        return self.process_index == 0 and not self.disable_tqdm

    @property
    def memory_bytes(self) -> int | None:
        """`memory_budget` in bytes; `None` for no limit."""
        return parse_bytes(self.memory_budget)
