"""Checkpoints: finds, loads and removes the folders from which a run resumes inside a task.

    <output_dir>/checkpoints/task-03/ingest           the result of ingesting the task: memory, LDA, features, scores
                                     checkpoint-10    awake, after step 10: what `Trainer` saves, and LoRA factors
                                     checkpoint-64    asleep, after step 50 of the sleep that followed 14 steps awake

The folders are written elsewhere: `ingest` by `IngestResult` (ingest.py), checkpoints awake and asleep by
`ClassifierTrainer` (learning/classifier_trainer.py). The state of a sleep, in `sleep.pt`, is what `Replay.state_dict`
returns. Each folder also holds the seconds that the task took so far (stopwatch.py).

The number of a checkpoint asleep counts the steps awake, too. Every folder appears complete or not at all. All of them
are removed when the stage of the task is saved.
"""

from pathlib import Path

import torch
from transformers import TrainerState
from transformers.utils import logging

from ..reporting.history import HISTORY_NAME
from ..storage.atomic import find_leftovers, remove_folder, restore_folders
from .stage import find_stages, stage_name, stage_number

logger = logging.get_logger(__name__)

CHECKPOINTS_FOLDER, SLEEP_NAME = "checkpoints", "sleep.pt"
LAST_WRITTEN = "trainer_state.json"  # written last; a checkpoint without it is half-written


def checkpoints_of(output_dir: str | Path, task: int) -> Path:
    """Return the folder of the checkpoints of task number `task`, from 0."""
    return Path(output_dir) / CHECKPOINTS_FOLDER / stage_name(task)


def find_checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints in a folder in the order of their steps."""
    complete = [path for path in folder.glob("checkpoint-*") if (path / LAST_WRITTEN).is_file()]
    return sorted(complete, key=_step)


def find_resume_point(
    output_dir: str | Path, resume: str | Path | bool, num_done: int
) -> tuple[Path | None, Path | None]:
    """Return the stage to resume from and the checkpoint inside the task after it; `None` where there is none.

    Args:
        output_dir (`str` or `Path`): Where the run writes.
        resume (`str`, `Path` or `bool`): `True` for the last stage and checkpoint in `output_dir`, or the path of one.
        num_done (`int`): Number of tasks that the model has learned.

    Raises:
        ValueError: If the path is neither a stage nor a complete checkpoint.
    """
    if resume is True:
        stage = next((stage for stage in reversed(find_stages(output_dir)) if stage_number(stage) >= num_done), None)
        task = num_done if stage is None else stage_number(stage) + 1
        return stage, next(reversed(find_checkpoints(checkpoints_of(output_dir, task))), None)
    folder = Path(resume)
    if (folder / HISTORY_NAME).is_file() and (folder / "config.json").is_file():
        return folder, None
    if (folder / LAST_WRITTEN).is_file():  # <output_dir>/checkpoints/task-03/checkpoint-500
        task = stage_number(folder.parent)
        before = next((stage for stage in find_stages(folder.parents[2]) if stage_number(stage) == task - 1), None)
        if before is None and num_done != task:
            raise ValueError(
                f"Expected the stage {stage_name(task - 1)} in {folder.parents[2]}, since {folder} goes on from it, "
                "but it is not there. Pass the output folder of one complete run."
            )
        return (before if num_done < task else None), folder
    raise ValueError(
        f"Expected `resume_from_checkpoint` to be True or the folder of a stage or checkpoint, but {folder} is "
        f"neither: it holds no {HISTORY_NAME} and no {LAST_WRITTEN}."
    )


def drop_old_checkpoints(folder: Path, limit: int | None) -> None:
    """Remove the oldest checkpoints of a task until `limit` are left; `None` or 0 means no limit."""
    if limit:
        for checkpoint in find_checkpoints(folder)[:-limit]:
            remove_folder(checkpoint)


def drop_later_checkpoints(folder: Path, last: Path | None) -> None:
    """Remove the checkpoints of a task that are later than `last`, from which a run resumes; all if it is `None`."""
    for checkpoint in find_checkpoints(folder):
        if last is None or _step(checkpoint) > _step(last):
            logger.warning(f"{checkpoint} is removed, since the run goes on from before it.")
            remove_folder(checkpoint)


def drop_checkpoints(output_dir: str | Path, task: int) -> None:
    """Remove all checkpoints of a task."""
    folder = checkpoints_of(output_dir, task)
    remove_folder(folder)
    if folder.parent.is_dir() and not any(folder.parent.iterdir()):
        folder.parent.rmdir()


def clean(output_dir: str | Path) -> list[Path]:
    """Remove half-written files and folders of a killed run, and the checkpoints of tasks that have a stage; log it.

    Returns:
        `list[Path]`: The half-written files and folders.
    """
    output_dir = Path(output_dir)
    tasks = [path for path in output_dir.glob(f"{CHECKPOINTS_FOLDER}/task-*") if path.is_dir()]
    broken = [path for task in tasks for path in task.glob("checkpoint-*") if not (path / LAST_WRITTEN).is_file()]
    folders = [output_dir, output_dir / CHECKPOINTS_FOLDER, *tasks]
    restored = [path for folder in folders for path in restore_folders(folder)]
    if restored:
        names = ", ".join(str(path.relative_to(output_dir)) for path in restored)
        logger.warning(f"To be replaced when a run was stopped, and put back now in {output_dir}: {names}.")
    broken += [path for folder in folders for path in find_leftovers(folder)]
    if broken:
        names = ", ".join(str(path.relative_to(output_dir)) for path in broken)
        logger.warning(f"Half-written when a run was stopped, and removed now from {output_dir}: {names}.")
    for path in broken:
        _remove(path)
    for stage in find_stages(output_dir):
        drop_checkpoints(output_dir, stage_number(stage))
    return broken


def load_sleep(checkpoint: str | Path | None) -> dict | None:
    """Return the state of the sleep in which a checkpoint was taken; `None` if it was taken awake."""
    path = None if checkpoint is None else Path(checkpoint) / SLEEP_NAME
    return torch.load(path, map_location="cpu", weights_only=True) if path is not None and path.is_file() else None


def was_wake_stopped(checkpoint: str | Path | None) -> bool:
    """Whether a callback had ended wake before its last step when a checkpoint was taken."""
    if checkpoint is None:
        return False
    control = TrainerState.load_from_json(str(Path(checkpoint, LAST_WRITTEN))).stateful_callbacks["TrainerControl"]
    return control["args"]["should_training_stop"]


def is_due(strategy: str, every: float, step: int, num_steps: int) -> bool:
    """Whether a checkpoint is due after a step of sleep: every `save_steps` steps, and after the last.

    Args:
        strategy (`str`): `save_strategy`; only `"steps"` takes checkpoints inside a sleep.
        every (`float`): `save_steps`: a number of steps or, below 1, a share of `num_steps`.
        step (`int`): Number of the step, from 1.
        num_steps (`int`): Number of steps of the sleep.
    """
    if strategy != "steps":
        return False
    interval = max(1, int(every if every >= 1 else every * num_steps))
    return step % interval == 0 or step == num_steps


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _remove(path: Path) -> None:
    if path.is_dir():
        remove_folder(path)
    else:
        path.unlink()
