"""Settings: the hyper-parameters of a run that differ from the defaults, as its history stores them."""

import re
from dataclasses import MISSING, fields
from enum import Enum
from pathlib import Path

from peft import LoraConfig

from .arguments import ContinualTrainingArguments
from .lora import describe

# Arguments that are no hyper-parameters, by pattern: output, logging, evaluation, machine and account.
LEFT_OUT = re.compile(
    r"auto_find_|average_tokens_|batch_eval_|dataloader_(?!drop_last)|ddp_|debug|deepspeed|disable_|do_|eval_|fsdp"
    r"|hub_|ignore_data_|include_|label_names|length_column_|local_rank|log_|logging_|output_dir|per_device_eval_"
    r"|prediction_loss_|project|push_|remove_unused_|report_|run_name|save_|skip_memory_|torch_|trackio_|use_"
    r"|\w*checkpoint|\w*_config$|\w*_full_eval"
)

# Hyper-parameters that may change when a run resumes inside a task: no state in a checkpoint depends on them.
CHANGEABLE = (
    "activation_checkpointing",
    "bf16",
    "fp16",
    "full_determinism",
    "gradient_checkpointing",
    "greater_is_better",
    "max_grad_norm",
    "measure",
    "metric_for_best_model",
    "non_finite_loss",
    "lda_weight",
    "tf32",
)


def hyper_parameters(args: ContinualTrainingArguments) -> dict:
    """Return the hyper-parameters that differ from the defaults, JSON-able; no paths, tokens or machine settings."""
    settings = {}
    for field in fields(ContinualTrainingArguments):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        value = getattr(args, field.name)
        value = value.value if isinstance(value, Enum) else value
        if value != default and _is_plain(value) and not LEFT_OUT.match(field.name):
            settings[field.name] = value
    return settings


def run_settings(
    args: ContinualTrainingArguments, lora_config: LoraConfig, optimizer: tuple[type, dict] | None = None
) -> dict:
    """Return the hyper-parameters that differ from the defaults, with those that are no arguments.

    Args:
        args ([`ContinualTrainingArguments`]): The arguments.
        lora_config (`peft.LoraConfig`): What plasticity `"lora"` trains.
        optimizer (`tuple`, *optional*): Class and keyword arguments of an optimizer of the caller.
    """
    settings = hyper_parameters(args)
    if "lora" in args.plasticities:
        settings["lora_config"] = describe(lora_config)
    if optimizer is not None:
        kind, kwargs = optimizer
        settings["optimizer"] = ", ".join([kind.__name__, *(f"{name}={kwargs[name]}" for name in sorted(kwargs))])
    return settings


def _is_plain(value) -> bool:
    """Whether a value is a JSON scalar, or a list or object of such, and holds no path."""
    if isinstance(value, dict):
        return all(isinstance(name, str) and _is_plain(item) for name, item in value.items())
    if isinstance(value, list):
        return all(_is_plain(item) for item in value)
    return isinstance(value, bool | int | float | None) or (isinstance(value, str) and not re.search(r"[/\\]", value))


def check_same_settings(checkpoint: Path, there: dict, here: dict) -> None:
    """Check that a run resumes inside a task with the hyper-parameters of the checkpoint.

    The optimizer and the schedule in the checkpoint hold the old ones: new ones would be ignored, or would not fit.

    Args:
        checkpoint (`Path`): The checkpoint.
        there (`dict`): Hyper-parameters of the checkpoint that differ from the defaults, as a history stores them.
        here (`dict`): The same of this run.

    Raises:
        ValueError: If they differ; the error names every difference.
    """
    differences = different_settings(there, here)
    if differences:
        raise ValueError(
            f"Expected the arguments that {checkpoint} was made with, which is inside a task. Differences: "
            f"{'; '.join(differences)}. Pass the same, or remove {checkpoint.parent} to start that task again."
        )


def different_settings(there: dict, here: dict) -> list[str]:
    """Return a line for every hyper-parameter that differs and may not change inside a task."""
    names = sorted({*there, *here} - set(CHANGEABLE))
    return [
        f"{name} is {there.get(name, 'the default')!r} there, {here.get(name, 'the default')!r} here"
        for name in names
        if there.get(name) != here.get(name)
    ]
