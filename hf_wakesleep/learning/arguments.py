"""ContinualTrainingArguments: TrainingArguments plus what wake, sleep and memory need."""

import math
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import torch
from torch import distributed
from transformers import TrainingArguments

from ..codecs.learned.networks import FIT_LAYERS
from ..codecs.registry import CODECS
from ..memory.budget import parse_bytes

MOST = 2**31 - 1
WHOLE = {
    "codec_fit_steps": (0, MOST),
    "sleep_steps": (0, MOST),
    "sleep_batch_size": (1, MOST),
    "sleep_cycles": (1, MOST),
    "sleep_every_n_steps": (0, MOST),
    "nap_steps": (1, MOST),
    "importance_images": (1, MOST),
    "lora_rank": (1, MOST),
    "per_device_train_batch_size": (1, MOST),
    "per_device_eval_batch_size": (1, MOST),
    "gradient_accumulation_steps": (1, MOST),
    "dataloader_num_workers": (0, MOST),
    "seed": (0, MOST),
}
CHOICES = (
    "augmentation",
    "codec",
    "codec_fit_layers",
    "first_wake_plasticity",
    "head_init",
    "memory_selection",
    "non_finite_loss",
    "lda_update",
    "sleep_lr_scheduler_type",
    "sleep_plasticity",
    "wake_plasticity",
)
NUMBERS = {
    "learning_rate": (lambda value: value >= 0, "at least 0"),
    "num_train_epochs": (lambda value: value >= 0, "at least 0"),
    "weight_decay": (lambda value: value >= 0, "at least 0"),
    "max_grad_norm": (lambda value: value >= 0, "at least 0"),
    "warmup_steps": (lambda value: value >= 0, "at least 0"),
    "adam_beta1": (lambda value: 0 <= value < 1, "in [0, 1)"),
    "adam_beta2": (lambda value: 0 <= value < 1, "in [0, 1)"),
    "adam_epsilon": (lambda value: value > 0, "positive"),
    "label_smoothing_factor": (lambda value: 0 <= value < 1, "in [0, 1)"),
    "logging_steps": (lambda value: value >= 0, "at least 0"),
    "save_steps": (lambda value: value >= 0, "at least 0"),
    "eval_delay": (lambda value: value >= 0, "at least 0"),
    "sleep_learning_rate": (lambda value: value > 0, "positive"),
    "backbone_learning_rate_ratio": (lambda value: value >= 0, "at least 0"),
    "held_out_share": (lambda value: 0 <= value < 1, "in [0, 1)"),
    "rem_share": (lambda value: 0 <= value <= 1, "in [0, 1]"),
    "sleep_average": (lambda value: 0 <= value < 1, "in [0, 1)"),
    "crop_scale": (lambda value: 0 < value <= 1, "in (0, 1]"),
    "freeze_fraction": (lambda value: 0 <= value < 1, "in [0, 1)"),
}
# Fields of `TrainingArguments` that must keep these values, and why or what to do instead.
_ALWAYS_EVALUATED = "Every stage is evaluated after its sleep"
_SLEEP_ADAMW = "It changes weights in its own way, which sleep and frozen weights do not follow"
FIXED = {
    "load_best_model_at_end": ((False,), "Sleep follows the last step of wake"),
    "prediction_loss_only": ((False,), _ALWAYS_EVALUATED),
    "eval_do_concat_batches": ((True,), "Accuracy is computed from all scores together"),
    "batch_eval_metrics": ((False,), "Accuracy is computed from all scores together"),
    "bf16_full_eval": (
        (False,),
        "It would leave the model in low precision; pass `bf16=True`, which evaluates so, too",
    ),
    "fp16_full_eval": (
        (False,),
        "It would leave the model in low precision; pass `fp16=True`, which evaluates so, too",
    ),
    "auto_find_batch_size": ((False,), "A task would start again with other batches; pass a batch size that fits"),
    "optim_target_modules": ((None,), _SLEEP_ADAMW),
    "use_liger_kernel": ((False,), "It is for language models"),
    "liger_kernel_config": ((None,), "It is for language models"),
    "neftune_noise_alpha": ((None,), "It is for embeddings of text; pass an `augmentation`"),
    "include_num_input_tokens_seen": (("no", False), "Images have no tokens to count"),
    "train_sampling_strategy": (("random", "sequential"), "Images have no length"),
    "label_names": ((None, ["labels"]), "The model takes `labels`"),
    "save_only_model": ((False,), "A run could not go on from a checkpoint without its optimizer"),
    "save_on_each_node": ((False,), "Stages and checkpoints are written once"),
    "enable_jit_checkpoint": ((False,), "SIGTERM ends a run with a checkpoint already"),
    "hub_strategy": (("every_save",), "Every stage is sent, checkpoints are not"),
    "ddp_broadcast_buffers": ((None, False), "Statistics of the head are equal on all processes already"),
    "deepspeed": ((None,), "Its shards cannot be put together between wake and sleep; pass `fsdp`, or train without"),
    "parallelism_config": ((None,), "Models are trained whole, or in shards by `fsdp`"),
    "debug": (([], "", None), "Its hooks would stay on the model from task to task"),
}
REFUSED_OPTIMIZERS = ("adalomo", "apollo", "galore", "lomo", "q_apollo", "q_galore", "schedule_free")


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
    codec_target_bytes: float | None = field(
        default=None,
        metadata={
            "help": "With the codec 'learned': mean size of a code, measured on the first task, instead of a quality."
        },
    )
    codec_fit_steps: int = field(
        default=0,
        metadata={
            "help": "With the codec 'learned': optimizer steps in which a new memory's codec is fitted to images of "
            "the first task, for images that look like no photograph; with 0 only its lookup table of pixel values "
            "is."
        },
    )
    codec_fit_layers: str = field(
        default="outer",
        metadata={
            "help": "What these steps fit: 'outer' layers (38 kB of the budget), all of the 'context' model, too (151 "
            "kB), or 'all' layers (761 kB). The more, the smaller the codes.",
            "choices": list(FIT_LAYERS),
        },
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
            "help": "What wake trains: 'full' (all weights), 'head' (the classifier), or 'lora' (the classifier, and "
            "low-rank factors of the backbone's weights, into which they are merged).",
            "choices": ["full", "head", "lora"],
        },
    )
    first_wake_plasticity: str | None = field(
        default=None,
        metadata={
            "help": "The same for the first task alone, such as 'full' for a backbone from scratch. By default as for "
            "the others.",
            "choices": ["full", "head", "lora"],
        },
    )
    head_init: str = field(
        default="lda",
        metadata={
            "help": "What the output units of new classes start from: 'lda', which answers for them before any "
            "training, or 'random' weights.",
            "choices": ["random", "lda"],
        },
    )
    wake_replay: bool | None = field(
        default=None,
        metadata={
            "help": "Add as many memories of earlier tasks as there are images to every batch of wake (experience "
            "replay). By default where wake trains the backbone, if there is a memory."
        },
    )
    sleep_steps: int = field(
        default=200,
        metadata={"help": "Optimizer steps of the sleep after each task, whatever their number. 0 for no sleep."},
    )
    sleep_batch_size: int = field(
        default=64, metadata={"help": "Memories in a batch of sleep, over all processes, balanced over classes."}
    )
    sleep_cycles: int = field(default=1, metadata={"help": "NREM-REM cycles that the steps of a sleep are cut into."})
    rem_share: float = field(
        default=0.0,
        metadata={"help": "Share of every cycle that is REM, in which memories are recombined; 0 for NREM alone."},
    )
    sleep_every_n_steps: int = field(
        default=0, metadata={"help": "Take a nap of `nap_steps` after so many steps of wake. 0 for no naps."}
    )
    nap_steps: int = field(default=20, metadata={"help": "Optimizer steps of a nap."})
    sleep_learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of AdamW in sleep."})
    sleep_lr_scheduler_type: str = field(
        default="cosine",
        metadata={
            "help": "Schedule of the learning rate in sleep, after a tenth of warm-up: 'cosine', or "
            "'constant_with_warmup', which goes with `sleep_average`.",
            "choices": ["cosine", "constant_with_warmup"],
        },
    )
    sleep_average: float = field(
        default=0.0,
        metadata={
            "help": "Decay of the moving average of the weights over the steps of a sleep, which they end it with. 0 "
            "for the weights of the last step."
        },
    )
    sleep_plasticity: str = field(
        default="full",
        metadata={
            "help": "What sleep trains: 'full' (all weights), 'head' (the classifier), or 'lora', as in wake.",
            "choices": ["full", "head", "lora"],
        },
    )
    lora_rank: int = field(
        default=8,
        metadata={
            "help": "Rank of the factors that 'lora' puts into all linear layers of the backbone, unless the trainer "
            "is given a `lora_config`."
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
    importance_images: int = field(
        default=256, metadata={"help": "Memories on which a sleep measures what is important, if it freezes."}
    )
    backbone_learning_rate_ratio: float = field(
        default=0.05,
        metadata={
            "help": "Learning rate of the backbone over that of the head, awake and asleep: small for a pretrained "
            "backbone, 1 for one from scratch. The factors of 'lora' take it too, and often want ten times as much as "
            "all weights do."
        },
    )
    lda_weight: float | None = field(
        default=None,
        metadata={
            "help": "Weight of LDA in predictions, 0 (classifier only) to 1 (LDA only). By default sleep sets "
            "it on memories that it held out."
        },
    )
    restore_callback_states_from_checkpoint: bool = field(
        default=True,
        metadata={
            "help": "Whether callbacks that have a state, such as that of early stopping, go on with it after a stop."
        },
    )
    lda_update: str = field(
        default="carry",
        metadata={
            "help": "How LDA follows a backbone that was trained: 'carry' its statistics along, by a map fitted to "
            "how the features of memories moved, or 'recompute' them from memories alone.",
            "choices": ["carry", "recompute"],
        },
    )
    held_out_share: float = field(
        default=0.1,
        metadata={
            "help": "Share of the memories of each class that sleep does not replay, but measures itself and sets "
            "`lda_weight` on. 0 to replay all, with a `lda_weight` of your own."
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
    evaluate_lda: bool = field(
        default=True,
        metadata={
            "help": "Evaluate LDA alone once a task is in memory, before any training on it: one more pass over "
            "the evaluation images."
        },
    )
    forward_transfer: bool = field(
        default=True,
        metadata={"help": "Measure forward transfer: two more forward passes over every task before it is trained."},
    )

    def __post_init__(self):
        self._check_fixed()
        self._check_numbers()
        self.remove_unused_columns = False
        self.ddp_broadcast_buffers = False
        if self.run_name is None and self.output_dir is not None:
            self.run_name = Path(self.output_dir).name  # so that all tasks are one run where they are logged
        super().__post_init__()
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False
        self._check_device()
        for name in CHOICES:
            own_field = ContinualTrainingArguments.__dataclass_fields__[name]  # a subclass may have its own default
            choices = own_field.metadata["choices"]
            if getattr(self, name) not in [*choices, own_field.default]:
                raise ValueError(f"`{name}` must be one of {choices}, got {getattr(self, name)!r}.")
        parse_bytes(self.memory_budget)
        if self.codec_quality is not None and self.codec == "raw":
            raise ValueError("`codec_quality` is for lossy codecs, but `codec` is 'raw'. Leave one of them out.")
        self._check_combinations()

    def _check_fixed(self) -> None:
        """Refuse what `Trainer` knows, but cannot be followed from task to task."""
        for name, (values, reason) in FIXED.items():
            value = getattr(self, name)
            value = value.value if isinstance(value, Enum) else value
            if value not in values:
                raise ValueError(f"`{name}` must be {values[0]!r}, got {value!r}. {reason}.")
        optimizer = self.optim.value if isinstance(self.optim, Enum) else str(self.optim)
        if optimizer.startswith(REFUSED_OPTIMIZERS):
            raise ValueError(
                f"`optim` {optimizer!r} cannot be used. {_SLEEP_ADAMW}. Pass another, such as 'adamw_torch'."
            )
        if not self.dataloader_num_workers:
            for name in ("dataloader_persistent_workers", "dataloader_multiprocessing_context"):
                if getattr(self, name):
                    raise ValueError(
                        f"`{name}` is for worker processes, but `dataloader_num_workers` is 0, got "
                        f"{getattr(self, name)!r}. Pass a number of workers, or leave it out."
                    )

    def _check_combinations(self) -> None:
        if self.codec != "learned" and (self.codec_target_bytes is not None or self.codec_fit_steps):
            raise ValueError(
                f"`codec_target_bytes` and `codec_fit_steps` are for `codec='learned'`, got {self.codec!r}. Pass that "
                "codec, or leave them out."
            )
        if self.codec_fit_layers != "outer" and not self.codec_fit_steps:
            raise ValueError(
                f"`codec_fit_layers` is {self.codec_fit_layers!r}, but `codec_fit_steps` is 0, which fits none. Pass "
                "`codec_fit_steps=300`, or leave it out."
            )
        if self.codec_target_bytes is not None and self.codec_quality is not None:
            raise ValueError("`codec_target_bytes` chooses the quality, but `codec_quality` is given. Leave one out.")
        if self.sleep_every_n_steps and "lora" in (self.wake_plasticity, self.first_wake_plasticity):
            raise ValueError(
                "A nap changes the weights that the factors of `wake_plasticity='lora'` belong to. Pass "
                "`sleep_every_n_steps=0`, or another plasticity."
            )
        if self.memory_bytes == 0 and (self.sleep_steps or self.wake_replay or self.sleep_every_n_steps):
            raise ValueError(
                "Sleep and wake replay read from memory, but `memory_budget` is 0. Pass `sleep_steps=0`, "
                "`sleep_every_n_steps=0` and `wake_replay=False`, or a budget."
            )
        if self.held_out_share == 0 and self.lda_weight is None and self.sleep_steps:
            raise ValueError(
                "`lda_weight` is set on memories that sleep holds out, but `held_out_share` is 0. Pass a "
                "`lda_weight`, or a share such as 0.1."
            )
        if self.freeze_fraction and not self.sleep_steps:
            raise ValueError(
                f"A sleep freezes what is important, but `sleep_steps` is 0, got `freeze_fraction` "
                f"{self.freeze_fraction}. Pass `freeze_fraction=0`, or let it sleep."
            )

    def _check_device(self) -> None:
        started = distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
        if started > 1 and self.world_size == 1:
            raise ValueError(
                f"{started} processes were started, but this one sees no other, so all would write the same files. "
                "Pass `use_cpu=True` (`--use_cpu true`) to share work on a CPU, or start one process."
            )
        if self.n_gpu > 1:
            raise ValueError(
                f"One process was started for {self.n_gpu} GPUs. Start one for each with `accelerate launch`, or show "
                "it one GPU with `CUDA_VISIBLE_DEVICES=0`."
            )
        if self.mixed_precision == "fp16" and self.device.type == "cpu":
            raise ValueError("`fp16` needs a GPU, but the device is a CPU. Pass `bf16=True`, or leave it out.")
        config = self.accelerator_config
        if config.split_batches or config.dispatch_batches or not config.even_batches:
            raise ValueError(
                "`accelerator_config` must leave `split_batches`, `dispatch_batches` and `even_batches` as they are, "
                f"got {config.split_batches}, {config.dispatch_batches} and {config.even_batches}. Memory is written "
                "from batches that are spread evenly over processes."
            )
        if self.sleep_batch_size < self.world_size:
            raise ValueError(
                f"`sleep_batch_size` must be at least 1 for each of {self.world_size} processes, got "
                f"{self.sleep_batch_size}."
            )

    def _check_numbers(self) -> None:
        for name, (low, high) in WHOLE.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise ValueError(f"`{name}` must be a whole number in {low}..{high}, got {value!r}.")
        for name, (holds, expected) in NUMBERS.items():
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not (is_number and holds(value)):
                raise ValueError(f"`{name}` must be {expected}, got {value!r}.")
        for name, most in (("lda_weight", 1), ("codec_quality", 100), ("codec_target_bytes", MOST)):
            value = getattr(self, name)
            kind = int if name == "codec_quality" else int | float
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, kind) or not 0 <= value <= most
            ):
                raise ValueError(f"`{name}` must be in [0, {most}], got {value!r}.")

    def wake_plasticity_of(self, task: int) -> str:
        """Return what wake trains in a task, from 0."""
        return self.first_wake_plasticity or self.wake_plasticity if task == 0 else self.wake_plasticity

    def replays_awake(self, task: int) -> bool:
        """Return whether wake of a task, from 0, adds memories of earlier tasks to its batches."""
        if self.wake_replay is None:
            return self.memory_bytes != 0 and self.wake_plasticity_of(task) != "head"
        return self.wake_replay

    def trains_backbone(self, task: int) -> bool:
        """Return whether a task, from 0, trains more than the head, awake, in naps or asleep."""
        sleeps = self.sleep_steps or self.sleep_every_n_steps
        return {self.wake_plasticity_of(task), self.sleep_plasticity if sleeps else "head"} != {"head"}

    @property
    def plasticities(self) -> set[str]:
        """All kinds of plasticity of a run."""
        return {self.wake_plasticity_of(0), self.wake_plasticity, self.sleep_plasticity}

    def autocast(self, device: torch.device) -> torch.autocast:
        """Return the context in which features are computed, awake and asleep: that of training."""
        types = {"bf16": torch.bfloat16, "fp16": torch.float16}
        dtype = types.get(self.mixed_precision)
        return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)

    @property
    def shows_progress(self) -> bool:
        """Whether this process shows progress bars."""
        return self.process_index == 0 and not self.disable_tqdm

    @property
    def memory_bytes(self) -> int | None:
        """`memory_budget` in bytes; `None` for no limit."""
        return parse_bytes(self.memory_budget)
