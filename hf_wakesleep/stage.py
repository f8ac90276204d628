"""Stage: the folder that holds all there is to know after a task; written whole or not at all."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from transformers.image_processing_utils import BaseImageProcessor

from .history import HISTORY_NAME, History
from .memory import SemiParametricMemory
from .modeling_wakesleep import WakeSleepForImageClassification

MEMORY_FOLDER = "memory"
CHECKPOINTS_FOLDER = "checkpoints"
LAST_WRITTEN = "trainer_state.json"  # of a checkpoint; without it the checkpoint is half-written


@dataclass
class Stage:
    """What a stage holds.

    Args:
        model ([`WakeSleepForImageClassification`]): The model after the sleep.
        processor (`BaseImageProcessor`): Its image processor.
        history ([`History`]): Everything measured so far.
        memory ([`SemiParametricMemory`], *optional*): The memory, if the run keeps one.
    """

    model: WakeSleepForImageClassification
    processor: BaseImageProcessor
    history: History
    memory: SemiParametricMemory | None

    def save(self, folder: str | Path) -> None:
        """Write the stage to `folder`, which must not exist; it appears when everything is in it."""
        folder = Path(folder)
        temporary = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        self.model.save_pretrained(temporary)
        self.processor.save_pretrained(temporary)
        self.history.save(temporary)
        if self.memory is not None:
            self.memory.save(temporary / MEMORY_FOLDER)
        temporary.replace(folder)


def stage_name(number: int) -> str:
    """Return the folder of the stage after task `number` (from 0): `task-01`, `task-02`, ..."""
    return f"task-{number + 1:02d}"


def find_stages(output_dir: str | Path, most: int | None = None) -> list[Path]:
    """Return the stages in an output folder (the first `most` of them), in the order of their tasks."""
    output_dir = Path(output_dir)
    stages = []
    while (folder := output_dir / stage_name(len(stages))).joinpath(HISTORY_NAME).is_file():
        stages.append(folder)
    return stages[:most]


def find_resume_point(output_dir: str | Path, resume: str | Path | bool) -> tuple[Path | None, Path | None]:
    """Return the stage and, inside the task after it, the checkpoint to go on from; `None` where there is none.

    Args:
        output_dir (`str` or `Path`): Where the run writes.
        resume (`str`, `Path` or `bool`): `True` for the last stage and checkpoint in `output_dir`, or the path of one.

    Raises:
        ValueError: If the path is neither a stage nor a whole checkpoint.
    """
    if resume is True:
        stages = find_stages(output_dir)
        folders = Path(output_dir, CHECKPOINTS_FOLDER, stage_name(len(stages))).glob("checkpoint-*")
        whole = [folder for folder in folders if (folder / LAST_WRITTEN).is_file()]
        last = max(whole, key=lambda folder: int(folder.name.removeprefix("checkpoint-")), default=None)
        return (stages[-1] if stages else None), last
    folder = Path(resume)
    if (folder / HISTORY_NAME).is_file() and (folder / "config.json").is_file():
        return folder, None
    if (folder / LAST_WRITTEN).is_file():  # <output_dir>/checkpoints/task-03/checkpoint-500
        before = find_stages(folder.parents[2], int(folder.parent.name.removeprefix("task-")) - 1)
        return (before[-1] if before else None), folder
    raise ValueError(
        f"Expected `resume_from_checkpoint` to be True or the folder of a stage or checkpoint, but {folder} is "
        f"neither: it holds no {HISTORY_NAME} and no {LAST_WRITTEN}."
    )


def load_memory(folder: str | Path) -> SemiParametricMemory | None:
    """Return the memory of a stage; `None` if the run keeps none."""
    folder = Path(folder) / MEMORY_FOLDER
    return SemiParametricMemory.load(folder) if folder.is_dir() else None
