"""SleepConfig: how one sleep goes."""

import math
from dataclasses import dataclass

import torch
from peft import LoraConfig

_COUNTS = {"steps": 0, "batch_size": 1, "importance_images": 1, "eval_batch_size": 1}  # and the least
_CHOICES = {
    "augmentation": ("none", "crop", "crop-flip"),
    "lda_update": ("carry", "keep"),
    "mixed_precision": ("no", "bf16", "fp16"),
    "non_finite_loss": ("stop", "skip"),
    "plasticity": ("full", "head", "lora"),
}
_RANGES = {
    "learning_rate": (lambda value: value > 0, "positive"),
    "adam_epsilon": (lambda value: value > 0, "positive"),
    "backbone_learning_rate_ratio": (lambda value: value >= 0, "at least 0"),
    "weight_decay": (lambda value: value >= 0, "at least 0"),
    "max_grad_norm": (lambda value: value >= 0, "at least 0"),
    "label_smoothing": (lambda value: 0 <= value < 1, "in [0, 1)"),
    "average": (lambda value: 0 <= value < 1, "in [0, 1)"),
    "held_out_share": (lambda value: 0 <= value < 1, "in [0, 1)"),
    "freeze_fraction": (lambda value: 0 <= value < 1, "in [0, 1)"),
    "rem_share": (lambda value: 0 <= value <= 1, "in [0, 1]"),
    "lda_weight": (lambda value: 0 <= value <= 1, "in [0, 1]"),
    "enough_loss": (lambda value: value >= 0, "at least 0"),
}
_OPTIONAL = ("lda_weight", "enough_loss")


@dataclass(frozen=True)
class SleepConfig:
    """How one sleep goes; see [`consolidate`].

    Args:
        steps (`int`): Optimizer steps, whatever the number of tasks; with 0 only the weight of LDA is set.
        batch_size (`int`): Memories in a batch, over all processes, balanced over classes.
        learning_rate (`float`): Peak learning rate of the head, after warm-up in the first tenth of the steps. Then it
            falls to 0 along a cosine, or stays if there is an average.
        backbone_learning_rate_ratio (`float`): Learning rate of the backbone divided by that of the head.
        weight_decay (`float`): Of AdamW, for all parameters with two dimensions or more.
        adam_betas (`tuple[float, float]`): Of AdamW.
        adam_epsilon (`float`): Of AdamW.
        max_grad_norm (`float`): Gradients are clipped to this norm; 0 for no limit.
        label_smoothing (`float`): Label smoothing, in [0, 1).
        enough_loss (`float`, *optional*): End early when the mean loss of NREM over the last tenth of all steps is no
            more than this above the least that label smoothing allows.
        average (`float`): Decay of the moving average of the weights over the steps; 0 for the last weights.
        plasticity (`str`): What learns: `"full"`, `"head"`, or `"lora"`.
        lora_config (`peft.LoraConfig`, *optional*): Factors that `"lora"` trains; of rank 8 in all linear layers of
            the backbone if missing.
        rem_share (`float`): Share of the steps, the last ones, that is REM, in [0, 1].
        augmentation (`str`): `"none"`, `"crop"` or `"crop-flip"`.
        held_out_share (`float`): Share of the memories of each class that is not replayed, but measured on.
        lda_weight (`float`, *optional*): Weight of LDA in predictions; set on held-out memories if missing.
        lda_update (`str`): How LDA's statistics follow the backbone: `"carry"` them along, by a map fitted to how the
            features of memories moved, or `"keep"` them if it is not trained.
        freeze_fraction (`float`): Share of the entries of each weight tensor that is frozen after the sleep.
        importance_images (`int`): Number of memories on which importance is measured, if weights are frozen.
        rng_key (`tuple[int, ...]`): Integers that seed all randomness, such as the seed and the number of the task.
        eval_batch_size (`int`): Memories in a batch without gradients.
        mixed_precision (`str`): In which features are computed without gradients: `"no"`, `"bf16"` or `"fp16"`.
        non_finite_loss (`str`): What to do about a loss that is infinite or not a number: `"stop"` or `"skip"`.
        shows_progress (`bool`): Whether to show progress bars.

    Raises:
        ValueError: If a value is out of its range.
    """

    steps: int = 200
    batch_size: int = 64
    learning_rate: float = 1e-3
    backbone_learning_rate_ratio: float = 0.05
    weight_decay: float = 0.0
    adam_betas: tuple[float, float] = (0.9, 0.999)
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    label_smoothing: float = 0.0
    enough_loss: float | None = None
    average: float = 0.0
    plasticity: str = "full"
    lora_config: LoraConfig | None = None
    rem_share: float = 0.0
    augmentation: str = "none"
    held_out_share: float = 0.1
    lda_weight: float | None = None
    lda_update: str = "carry"
    freeze_fraction: float = 0.0
    importance_images: int = 256
    rng_key: tuple[int, ...] = (42, 0)
    eval_batch_size: int = 64
    mixed_precision: str = "no"
    non_finite_loss: str = "stop"
    shows_progress: bool = True

    def __post_init__(self):
        for name, least in _COUNTS.items():
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f"`{name}` must be an integer of at least {least}, got {value!r}.")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {list(choices)}, got {getattr(self, name)!r}.")
        for name, (holds, expected) in _RANGES.items():
            value = getattr(self, name)
            if not (value is None and name in _OPTIONAL) and not (is_finite_number(value) and holds(value)):
                raise ValueError(f"`{name}` must be {expected}, got {value!r}.")
        betas = self.adam_betas
        if len(betas) != 2 or not all(is_finite_number(beta) and 0 <= beta < 1 for beta in betas):
            raise ValueError(f"`adam_betas` must be two numbers in [0, 1), got {betas!r}.")
        if not (isinstance(self.rng_key, tuple) and self.rng_key and all(type(part) is int for part in self.rng_key)):
            raise ValueError(f"`rng_key` must be a tuple of integers, such as (42, 0), got {self.rng_key!r}.")

    def autocast(self, device: torch.device) -> torch.autocast:
        """Return the context in which features are computed without gradients."""
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.mixed_precision)
        return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def is_finite_number(value) -> bool:
    """Return whether a value is a finite number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
