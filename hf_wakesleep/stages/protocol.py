"""Protocol: what must be the same for a run to resume from a stage: tasks, seed, backbone and memory."""

from pathlib import Path

from ..data.streams import Task, TaskStream
from ..memory.memory import SemiParametricMemory
from ..model.modeling_wakesleep import WakeSleepForImageClassification
from ..reporting.history import History


def make_protocol(
    model: WakeSleepForImageClassification,
    seed: int,
    stream: TaskStream,
    history: History,
    memory: SemiParametricMemory | None,
) -> dict:
    """Return the protocol of a run, JSON-able; a run resumes only from stages of the same protocol."""
    tasks = align_tasks(stream, history)[len(history) :]
    dataset, before = stream.protocol.get("dataset"), _stream_of(history.protocol).get("dataset")
    described = {
        **stream.protocol,
        "dataset": None if len(history) and before != dataset else dataset,  # None if tasks are of several
        "tasks": [record.fingerprint for record in history.records] + [task.fingerprint() for task in tasks],
    }
    return describe_run(model, seed, described, memory)


def describe_run(
    model: WakeSleepForImageClassification, seed: int, stream: dict, memory: SemiParametricMemory | None
) -> dict:
    """Return a protocol, JSON-able.

    Args:
        model ([`WakeSleepForImageClassification`]): Its backbone is described.
        seed (`int`): Seed of the run.
        stream (`dict`): How the tasks were made, with the fingerprints of all as `tasks`.
        memory ([`SemiParametricMemory`], *optional*): Its codec and budget are described.
    """
    backbone = model.config.backbone_config
    return {
        "seed": seed,
        "stream": stream,
        "backbone": {
            "model_type": backbone.model_type,
            "name": backbone._name_or_path,
            "feature_dim": model.head.feature_dim,
            "image_size": model.config.image_size,
        },
        "memory": None if memory is None else memory.protocol,
    }


def check_same_run(folder: Path, there: dict, here: dict, num_tasks: int | None = None, advice: str = "") -> None:
    """Refuse a stage or checkpoint whose protocol differs from that of this run.

    Args:
        folder (`Path`): The stage or checkpoint.
        there (`dict`): The protocol in it.
        here (`dict`): The protocol of this run.
        num_tasks (`int`, *optional*): How many tasks are compared, from the first one on; all if missing. Tasks that
            are not learned yet may change, as when an image that cannot be read is dropped.
        advice (`str`, *optional*): More advice for the error, put before its last period.

    Raises:
        ValueError: If they differ; the error names every difference.
    """
    if _differences("", _of_tasks(there, num_tasks), _of_tasks(here, num_tasks)):
        differences = _differences("", there, here)
        raise ValueError(
            f"{folder} belongs to another run, so this one cannot go on from it. Differences: "
            f"{'; '.join(differences)}. Pass the same data, seed, backbone and memory, or an empty `output_dir`"
            f"{advice}."
        )


def is_same_run(there: dict, here: dict, num_tasks: int) -> bool:
    """Whether two protocols agree; of their tasks only the first `num_tasks` are compared."""
    return not _differences("", _of_tasks(there, num_tasks), _of_tasks(here, num_tasks))


def tasks_of(protocol: dict) -> list:
    """Return the fingerprints of all tasks in a protocol, learned or not; an empty list if it has none."""
    tasks = _stream_of(protocol).get("tasks")
    return tasks if isinstance(tasks, list) else []


def _stream_of(protocol: dict) -> dict:
    stream = protocol.get("stream")
    return stream if isinstance(stream, dict) else {}


def align_tasks(stream: TaskStream, history: History) -> list[Task | None]:
    """Return the tasks of a run by their number; `None` for learned tasks that are not in the stream.

    Args:
        stream ([`TaskStream`]): The complete stream, or only its tasks from a learned one or from the next one on.
        history ([`History`]): What has been learned.

    Raises:
        ValueError: If the stream has known classes or domains in another order or with other images.
    """
    done = [record.fingerprint for record in history.records]
    prints = stream.fingerprints()
    overlap = next(
        size for size in range(min(len(done), len(prints)), -1, -1) if done[len(done) - size :] == prints[:size]
    )
    new = stream[overlap:]
    if stream.protocol.get("kind") in ("domain-incremental", "splits with repeats"):
        again = sorted({task.name for task in new} & {fingerprint["name"] for fingerprint in done})
    else:
        again = sorted(set(history.classes) & {name for task in new for name in task.classes})
    if again:
        raise ValueError(
            f"Expected a stream that starts with the {len(done)} finished tasks or brings only new ones, but "
            f"{len(again)} of its classes or domains are known already ({again[:5]}). Build the stream with the same "
            "data, order and seed, or drop them. To teach more images of known classes, build it with "
            "`TaskStream.from_splits(..., repeats=True)`, in which every split has a name of its own."
        )
    return [None] * (len(done) - overlap) + list(stream)


def _of_tasks(protocol: dict, num_tasks: int | None) -> dict:
    """Return a protocol with its first `num_tasks` tasks only; all if it is `None`."""
    if num_tasks is None or not tasks_of(protocol):
        return protocol
    return {**protocol, "stream": {**protocol["stream"], "tasks": protocol["stream"]["tasks"][:num_tasks]}}


def _differences(where: str, there, here) -> list[str]:
    """Return one line per value that differs; of a list, only the first that differs."""
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
