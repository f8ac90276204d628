"""Protocol: what must not change within a run, and which tasks of a stream a history has behind it."""

from pathlib import Path

from .history import History
from .modeling_wakesleep import WakeSleepForImageClassification
from .tasks import Task, TaskStream
from .training_args import ContinualTrainingArguments


def make_protocol(
    model: WakeSleepForImageClassification, args: ContinualTrainingArguments, stream: TaskStream
) -> dict:
    """Return what two runs must share so that one can go on from a stage of the other, JSON-able."""
    backbone = model.config.backbone_config
    return {
        "seed": args.seed,
        "stream": {**stream.protocol, "tasks": stream.fingerprints()},
        "backbone": {
            "model_type": backbone.model_type,
            "name": backbone._name_or_path,
            "feature_dim": model.head.feature_dim,
            "image_size": model.config.image_size,
        },
        "memory_budget": args.memory_bytes,
        "codec": args.codec,
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


def align_tasks(stream: TaskStream, history: History) -> list[Task | None]:
    """Return the tasks by their number; `None` for finished tasks whose images are not at hand.

    Args:
        stream ([`TaskStream`]): The whole stream, or only the tasks to come.
        history ([`History`]): What has been learned.

    Raises:
        ValueError: If the stream neither starts with the finished tasks nor is new.
    """
    done = [tuple(record.classes) for record in history.records]
    if [task.classes for task in stream][: len(done)] == done:
        return list(stream)
    again = sorted(set(history.classes) & set(stream.classes))
    if again and stream.protocol["kind"] != "domain-incremental":
        raise ValueError(
            f"Expected a stream that starts with the {len(done)} finished tasks or brings only new classes, but "
            f"{len(again)} of its classes are known already ({again[:5]}). Build the stream with the same data, order "
            "and seed, or drop those classes."
        )
    return [None] * len(done) + list(stream)


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
