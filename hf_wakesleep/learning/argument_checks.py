"""Checks of ContinualTrainingArguments: values that cannot work are refused with an error that names the argument."""

from enum import Enum

from torch import distributed

from ..memory.budget import parse_bytes
from .sleep_config import is_finite_number

MOST = 2**31 - 1
INTEGERS = {
    "codec_fit_steps": (0, MOST),
    "sleep_steps": (0, MOST),
    "sleep_batch_size": (1, MOST),
    "sleep_every_n_steps": (0, MOST),
    "nap_steps": (1, MOST),
    "per_device_train_batch_size": (1, MOST),
    "per_device_eval_batch_size": (1, MOST),
    "gradient_accumulation_steps": (1, MOST),
    "dataloader_num_workers": (0, MOST),
    "seed": (0, MOST),
}
CHOICES = (
    "augmentation",
    "codec",
    "measure",
    "non_finite_loss",
    "sleep_plasticity",
    "wake_plasticity",
)
NUMBERS = {
    "learning_rate": (lambda value: value > 0, "positive"),
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
    "backbone_learning_rate_ratio": (lambda value: value >= 0, "at least 0"),
    "held_out_share": (lambda value: 0 <= value < 1, "in [0, 1)"),
    "rem_share": (lambda value: 0 <= value <= 1, "in [0, 1]"),
    "sleep_average": (lambda value: 0 <= value < 1, "in [0, 1)"),
    "freeze_fraction": (lambda value: 0 <= value < 1, "in [0, 1)"),
}
# Fields of `TrainingArguments` that must keep these values, each with the reason or what to do instead.
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
    "parallelism_config": ((None,), "Models are trained in one piece, or in shards by `fsdp`"),
    "debug": (([], "", None), "Its hooks would stay on the model from task to task"),
}
CHOSEN_IF_NONE = (
    "augmentation",
    "backbone_learning_rate_ratio",
    "label_smoothing_factor",
    "learning_rate",
    "sleep_steps",
    "wake_plasticity",
)
REFUSED_OPTIMIZERS = ("adalomo", "apollo", "galore", "lomo", "q_apollo", "q_galore", "schedule_free")


def check_fixed(args) -> None:
    """Refuse options of `Trainer` that do not work with images, sleep, or more than one task."""
    for name, (values, reason) in FIXED.items():
        value = getattr(args, name)
        value = value.value if isinstance(value, Enum) else value
        if value not in values:
            raise ValueError(f"`{name}` must be {values[0]!r}, got {value!r}. {reason}.")
    optimizer = args.optim.value if isinstance(args.optim, Enum) else str(args.optim)
    if optimizer.startswith(REFUSED_OPTIMIZERS):
        raise ValueError(f"`optim` {optimizer!r} cannot be used. {_SLEEP_ADAMW}. Pass another, such as 'adamw_torch'.")
    if not args.dataloader_num_workers:
        for name in ("dataloader_persistent_workers", "dataloader_multiprocessing_context"):
            if getattr(args, name):
                raise ValueError(
                    f"`{name}` is for worker processes, but `dataloader_num_workers` is 0, got "
                    f"{getattr(args, name)!r}. Pass a number of workers, or leave it out."
                )


def check_numbers(args) -> None:
    """Refuse numbers out of their range."""
    for name, (low, high) in INTEGERS.items():
        value = getattr(args, name)
        if value is None and name in CHOSEN_IF_NONE:
            continue
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"`{name}` must be an integer in {low}..{high}, got {value!r}.")
    for name, (holds, expected) in NUMBERS.items():
        value = getattr(args, name)
        if value is None and name in CHOSEN_IF_NONE:
            continue
        if not (is_finite_number(value) and holds(value)):
            raise ValueError(f"`{name}` must be {expected}, got {value!r}.")
    for name, most in (("lda_weight", 1), ("codec_quality", 100)):
        value = getattr(args, name)
        kind = int if name == "codec_quality" else int | float
        if value is not None and (isinstance(value, bool) or not isinstance(value, kind) or not 0 <= value <= most):
            raise ValueError(f"`{name}` must be in [0, {most}], got {value!r}.")


def check_choices(args, fields: dict) -> None:
    """Refuse values that are neither one of the `choices` of a field nor its default.

    Args:
        args ([`ContinualTrainingArguments`]): The arguments.
        fields (`dict[str, dataclasses.Field]`): The fields by name; a subclass may have its own defaults.
    """
    for name in CHOICES:
        choices = fields[name].metadata["choices"]
        if getattr(args, name) not in [*choices, fields[name].default]:
            raise ValueError(f"`{name}` must be one of {choices}, got {getattr(args, name)!r}.")


def check_combinations(args) -> None:
    """Refuse values that contradict each other."""
    parse_bytes(args.memory_budget)
    if args.codec_quality is not None and args.codec == "raw":
        raise ValueError("`codec_quality` is for lossy codecs, but `codec` is 'raw'. Leave one of them out.")
    if args.codec != "learned" and args.codec_fit_steps:
        raise ValueError(
            f"`codec_fit_steps` is for `codec='learned'`, got {args.codec!r}. Pass that codec, or leave it out."
        )
    if args.sleep_every_n_steps and args.wake_plasticity == "lora":
        raise ValueError(
            "A nap changes the weights that the factors of `wake_plasticity='lora'` belong to. Pass "
            "`sleep_every_n_steps=0`, or another plasticity."
        )
    if args.memory_bytes == 0 and (args.sleep_steps or args.wake_replay or args.sleep_every_n_steps):
        raise ValueError(
            "Sleep and wake replay read from memory, but `memory_budget` is 0. Pass `sleep_steps=0`, "
            "`sleep_every_n_steps=0` and `wake_replay=False`, or a budget."
        )
    if args.held_out_share == 0 and args.lda_weight is None and args.sleeps:
        raise ValueError(
            "`lda_weight` is set on memories that sleep holds out, but `held_out_share` is 0. Pass a "
            "`lda_weight`, or a share such as 0.1."
        )
    if args.freeze_fraction and not args.sleeps:
        raise ValueError(
            f"A sleep freezes what is important, but there is none, got `freeze_fraction` "
            f"{args.freeze_fraction}. Pass `freeze_fraction=0`, or let it sleep."
        )


def check_device(args) -> None:
    """Refuse what the processes and devices of this launch cannot do."""
    started = distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
    if started > 1 and args.world_size == 1:
        raise ValueError(
            f"{started} processes were started, but this one sees no other, so all would write the same files. "
            "Pass `use_cpu=True` (`--use_cpu true`) to share work on a CPU, or start one process."
        )
    if args.n_gpu > 1:
        raise ValueError(
            f"One process was started for {args.n_gpu} GPUs. Start one for each with `accelerate launch`, or show "
            "it one GPU with `CUDA_VISIBLE_DEVICES=0`."
        )
    if args.mixed_precision == "fp16" and args.device.type == "cpu":
        raise ValueError("`fp16` needs a GPU, but the device is a CPU. Pass `bf16=True`, or leave it out.")
    config = args.accelerator_config
    if config.split_batches or config.dispatch_batches or not config.even_batches:
        raise ValueError(
            "`accelerator_config` must leave `split_batches`, `dispatch_batches` and `even_batches` as they are, "
            f"got {config.split_batches}, {config.dispatch_batches} and {config.even_batches}. Memory is written "
            "from batches that are spread evenly over processes."
        )
    if args.sleep_batch_size < args.world_size:
        raise ValueError(
            f"`sleep_batch_size` must be at least 1 for each of {args.world_size} processes, got "
            f"{args.sleep_batch_size}."
        )
