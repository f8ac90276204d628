"""Written: what came of writing a task into memory, kept so that it need not be done again."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from ..memory.memory import SemiParametricMemory
from ..storage.atomic import remove_folder, whole_folder
from .stage import MEMORY_FOLDER, load_memory
from .stopwatch import Stopwatch

logger = logging.get_logger(__name__)

WRITTEN_FOLDER = "written"
LDA_NAME, LANDMARKS_NAME, SCORES_NAME = "lda.safetensors", "landmarks.safetensors", "scores.json"


@dataclass(frozen=True)
class Written:
    """What came of writing a task.

    Args:
        memory ([`SemiParametricMemory`], *optional*): The memory.
        statistics (`dict[str, torch.Tensor]`): State of LDA.
        landmarks (`torch.Tensor` of shape `(M, D)`, *optional*): Features of the landmarks when these were right.
        scores (`dict`): What was measured before and after it, JSON-able.
    """

    memory: SemiParametricMemory | None
    statistics: dict[str, torch.Tensor]
    landmarks: torch.Tensor | None
    scores: dict

    def save(self, folder: Path, stopwatch: Stopwatch) -> None:
        """Keep it, and how long it took, among the checkpoints of the task in a folder."""
        with whole_folder(folder / WRITTEN_FOLDER) as temporary:
            if self.memory is not None:
                self.memory.save(temporary / MEMORY_FOLDER)
            if self.landmarks is not None:
                save_file({"features": self.landmarks.contiguous()}, temporary / LANDMARKS_NAME)
            statistics = {name: value.contiguous() for name, value in self.statistics.items()}
            save_file(statistics, temporary / LDA_NAME)
            (temporary / SCORES_NAME).write_text(json.dumps(self.scores))
            stopwatch.save(temporary)

    @classmethod
    def load(cls, folder: Path, stopwatch: Stopwatch) -> "Written | None":
        """Return what `save` kept in a folder, and let the stopwatch go on from there; `None` if nothing is kept."""
        folder = folder / WRITTEN_FOLDER
        if not folder.is_dir():
            return None
        stopwatch.load(folder)
        has_landmarks = (folder / LANDMARKS_NAME).is_file()
        landmarks = load_file(folder / LANDMARKS_NAME)["features"] if has_landmarks else None
        scores = json.loads((folder / SCORES_NAME).read_text())
        return cls(load_memory(folder), load_file(folder / LDA_NAME), landmarks, scores)


def drop_written(folder: Path) -> None:
    """Remove what was kept of a task that has changed since, from among its checkpoints in a folder; say so."""
    if (folder / WRITTEN_FOLDER).is_dir():
        logger.warning(f"{folder / WRITTEN_FOLDER} is removed: the task has changed, and is written into memory anew.")
        remove_folder(folder / WRITTEN_FOLDER)
