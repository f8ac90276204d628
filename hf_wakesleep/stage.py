"""Stage: the folder that holds all there is to know after a task; written whole or not at all."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from transformers.image_processing_utils import BaseImageProcessor

from .history import HISTORY_NAME, History
from .memory import SemiParametricMemory
from .modeling_wakesleep import WakeSleepForImageClassification

MEMORY_FOLDER = "memory"


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


def find_stages(output_dir: str | Path) -> list[Path]:
    """Return the stages in an output folder, in the order of their tasks."""
    output_dir = Path(output_dir)
    stages = []
    while (folder := output_dir / stage_name(len(stages))).joinpath(HISTORY_NAME).is_file():
        stages.append(folder)
    return stages


def load_memory(folder: str | Path) -> SemiParametricMemory | None:
    """Return the memory of a stage; `None` if the run keeps none."""
    folder = Path(folder) / MEMORY_FOLDER
    return SemiParametricMemory.load(folder) if folder.is_dir() else None
