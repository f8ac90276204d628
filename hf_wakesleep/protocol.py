"""Protocol: what must not change within a run, and which tasks of a stream a history has behind it."""

from pathlib import Path

from .history import History
from .memory import SemiParametricMemory
from .modeling_wakesleep import WakeSleepForImageClassification
from .tasks import Task, TaskStream
from .training_args import ContinualTrainingArguments

# What may change inside a task: it is in no state that a checkpoint keeps.
CHANGEABLE = (
    "activation_checkpointing",
    "bf16",
    "evaluate_recall",
    "forward_transfer",
    "fp16",
    "full_determinism",
    "gradient_checkpointing",
    "greater_is_better",
    "max_grad_norm",
    "metric_for_best_model",
    "non_finite_loss",
    "recall_weight",
    "tf32",
)


def make_protocol(
    model: WakeSleepForImageClassification,
    args: ContinualTrainingArguments,
    stream: TaskStream,
    history: History,
    memory: SemiParametricMemory | None,
) -> dict:
    """Return what two runs must share so that one can go on from a stage of the other, JSON-able."""
    backbone = model.config.backbone_config
    tasks = align_tasks(stream, history)[len(history) :]
    return {
        "seed": args.seed,
        "stream": {
            **stream.protocol,
            "tasks": [record.fingerprint for record in history.records] + [task.fingerprint() for task in tasks],
        },
        "backbone": {
            "model_type": backbone.model_type,
            "name": backbone._name_or_path,
            "feature_dim": model.head.feature_dim,
            "image_size": model.config.image_size,
        },
        "memory": None if memory is None else memory.protocol,
    }


def check_same_run(folder: Path, there: dict, here: dict) -> None:
    """Compare the protocol of a stage with that of this run.

    Raises:
        ValueError: If they differ, with every difference by name.
    """
    differences = _differences("", there, here)
    if differences:
        raise ValueError(
            f"{folder} belongs to another run, so this one cannot go on from it. Differences: "
            f"{'; '.join(differences)}. Pass the same data, seed, backbone and memory, or an empty `output_dir`."
        )


def check_same_settings(checkpoint: Path, there: dict, here: dict) -> None:
    """Compare the hyper-parameters that a checkpoint inside a task was made with, and those to go on with.

    Its optimizer and schedule hold the old ones, so that new ones would be ignored or not fit.

    Args:
        checkpoint (`Path`): The checkpoint.
        there (`dict`): Hyper-parameters that differ from the defaults, as a history keeps them.
        here (`dict`): The same of this run.

    Raises:
        ValueError: If they differ, with every difference by name.
    """
    there, here = ({name: value for name, value in part.items() if name not in CHANGEABLE} for part in (there, here))
    differences = [
        f"{name} is {there.get(name, 'the default')!r} there, {here.get(name, 'the default')!r} here"
        for name in sorted({*there, *here})
        if there.get(name) != here.get(name)
    ]
    if differences:
        raise ValueError(
            f"Expected the arguments that {checkpoint} was made with, which is inside a task. Differences: "
            f"{'; '.join(differences)}. Pass the same, or remove {checkpoint.parent} to start that task again."
        )


def align_tasks(stream: TaskStream, history: History) -> list[Task | None]:
    """Return the tasks by their number; `None` for finished tasks whose images are not at hand.

    Args:
        stream ([`TaskStream`]): The whole stream, or the tasks from some finished one, or from the next one, on.
        history ([`History`]): What has been learned.

    Raises:
        ValueError: If the stream brings again what is known, in another order or with other images.
    """
    done = [record.fingerprint for record in history.records]
    prints = stream.fingerprints()
    overlap = next(
        size for size in range(min(len(done), len(prints)), -1, -1) if done[len(done) - size :] == prints[:size]
    )
    new = stream[overlap:]
    if stream.protocol.get("kind") == "domain-incremental":
        again = sorted({task.name for task in new} & {fingerprint["name"] for fingerprint in done})
    else:
        again = sorted(set(history.classes) & {name for task in new for name in task.classes})
    if again:
        raise ValueError(
            f"Expected a stream that starts with the {len(done)} finished tasks or brings only new ones, but "
            f"{len(again)} of its classes or domains are known already ({again[:5]}). Build the stream with the same "
            "data, order and seed, or drop them."
        )
    return [None] * (len(done) - overlap) + list(stream)


def _differences(where: str, there, here) -> list[str]:
    """Return one line per value that differs, at most one for each list."""
    if isinstance(there, dict) and isinstance(here, dict):
        keys = sorted(set(there) | set(here))
        return [line for key in keys for line in _differences(f"{where}.{key}", there.get(key), here.get(key))]
    if isinstance(there, list) and isinstance(here, list):
        if len(there) != len(here):
            return [f"{where.lstrip('.')} has {len(there)} entries there, {len(here)} here"]
        for index, pair in enumerate(zip(there, here, strict=True)):
            if lines := _differences(f"{where}[{index}]", *pair):
                return lines
        return []
    return [] if there == here else [f"{where.lstrip('.')} is {there!r} there, {here!r} here"]
