"""IngestResult: memory and statistics after a task was ingested, kept so that a resumed run need not do it again."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from ..memory.memory import SemiParametricMemory
from ..storage.atomic import atomic_folder, remove_folder
from .stage import MEMORY_FOLDER, load_memory
from .stopwatch import Stopwatch

logger = logging.get_logger(__name__)

INGEST_FOLDER = "ingest"
LDA_NAME, FEATURES_NAME, SCORES_NAME = "lda.safetensors", "features.safetensors", "scores.json"


@dataclass(frozen=True)
class IngestResult:
    """Memory and statistics after the images of a task were written into them.

    Args:
        memory ([`SemiParametricMemory`], *optional*): The memory.
        statistics (`dict[str, torch.Tensor]`): State of LDA's statistics.
        features (`torch.Tensor` of shape `(M, D)`, *optional*): Features of the remembered images on which drift is
            measured, computed with the same weights as `statistics`.
        scores (`dict`): Accuracies measured before and after the images were written, JSON-able.
    """

    memory: SemiParametricMemory | None
    statistics: dict[str, torch.Tensor]
    features: torch.Tensor | None
    scores: dict

    def save(self, folder: Path, stopwatch: Stopwatch) -> None:
        """Write the result and the seconds so far to `ingest` in `folder`, which holds the checkpoints of the task."""
        with atomic_folder(folder / INGEST_FOLDER) as temporary:
            if self.memory is not None:
                self.memory.save(temporary / MEMORY_FOLDER)
            if self.features is not None:
                save_file({"features": self.features.contiguous()}, temporary / FEATURES_NAME)
            statistics = {name: value.contiguous() for name, value in self.statistics.items()}
            save_file(statistics, temporary / LDA_NAME)
            (temporary / SCORES_NAME).write_text(json.dumps(self.scores))
            stopwatch.save(temporary)

    @classmethod
    def load(cls, folder: Path, stopwatch: Stopwatch) -> "IngestResult | None":
        """Read what `save` wrote, and set the stopwatch to the seconds in it; `None` if nothing was written."""
        folder = folder / INGEST_FOLDER
        if not folder.is_dir():
            return None
        stopwatch.load(folder)
        has_features = (folder / FEATURES_NAME).is_file()
        features = load_file(folder / FEATURES_NAME)["features"] if has_features else None
        scores = json.loads((folder / SCORES_NAME).read_text())
        return cls(load_memory(folder), load_file(folder / LDA_NAME), features, scores)


def drop_ingest(folder: Path) -> None:
    """Remove `ingest` from the checkpoints of a task that has changed since it was written, and log it."""
    if (folder / INGEST_FOLDER).is_dir():
        logger.warning(f"{folder / INGEST_FOLDER} is removed: the task has changed, and is written into memory anew.")
        remove_folder(folder / INGEST_FOLDER)
