"""Stage: the folder saved after a task, with model, processor, memory, history, card and plots."""

import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from transformers import AutoImageProcessor
from transformers.image_processing_utils import BaseImageProcessor

from ..data.images import make_image_processor
from ..memory.memory import SemiParametricMemory
from ..memory.synapses import count_entries_by_part
from ..model.digests_wakesleep import DIGESTS_NAME, check_digests, write_digests
from ..model.modeling_wakesleep import WakeSleepForImageClassification
from ..reporting.card import collect_facts, render_model_card
from ..reporting.history import HISTORY_NAME, History
from ..reporting.plots import HISTORY_PLOT_NAME, SYNAPSES_PLOT_NAME, save_history_plot, save_synapses_plot
from ..storage.atomic import atomic_folder, write_atomically

MEMORY_FOLDER, CARD_NAME = "memory", "README.md"
STAGE_FILES = (  # all files of a stage; no others are published
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "preprocessor_config.json",
    "*_wakesleep.py",
    CARD_NAME,
    DIGESTS_NAME,
    HISTORY_NAME,
    HISTORY_PLOT_NAME,
    SYNAPSES_PLOT_NAME,
    "memory/*",
)
UNREAD_FILES = (CARD_NAME, HISTORY_PLOT_NAME, SYNAPSES_PLOT_NAME)
_STAGE = re.compile(r"task-\d{2,}").fullmatch


@dataclass
class Stage:
    """The content of a stage.

    Args:
        model ([`WakeSleepForImageClassification`]): The model after the sleep.
        processor (`BaseImageProcessor`): Its image processor.
        history ([`History`]): Everything measured so far.
        memory ([`SemiParametricMemory`], *optional*): The memory, if the run keeps one.
        repo_id (`str`, *optional*): Repository that the stage will be published in, for the card.
    """

    model: WakeSleepForImageClassification
    processor: BaseImageProcessor
    history: History
    memory: SemiParametricMemory | None
    repo_id: str | None = None

    def save(self, folder: str | Path) -> None:
        """Write the stage to `folder`, which appears, or replaces an older one, only when it is complete."""
        with atomic_folder(Path(folder)) as temporary:
            self._write(temporary)

    def _write(self, temporary: Path) -> None:
        self.model.save_pretrained(temporary)
        self.processor.save_pretrained(temporary)
        self.history.save(temporary)
        save_history_plot(self.history, temporary)
        save_synapses_plot(self.history, temporary, count_entries_by_part(self.model))
        facts = collect_facts(self.model, self.history, self.memory, repo_id=self.repo_id)
        (temporary / CARD_NAME).write_text(render_model_card(facts), encoding="utf-8")
        if self.memory is not None:
            self.memory.save(temporary / MEMORY_FOLDER)
        write_digests(temporary)


def stage_name(number: int) -> str:
    """Return the folder name of the stage after task `number` (from 0): `task-01`, `task-02`, ..."""
    return f"task-{number + 1:02d}"


def stage_number(folder: Path) -> int:
    """Return the number of the task (from 0) in the name of a folder such as `task-01`."""
    return int(folder.name.removeprefix("task-")) - 1


def find_stages(output_dir: str | Path) -> list[Path]:
    """Return the stages in an output folder, in the order of their tasks; `task-01` need not be the first."""
    stages = [
        folder
        for folder in Path(output_dir).glob("task-*")
        if _STAGE(folder.name) and (folder / HISTORY_NAME).is_file()
    ]
    return sorted(stages, key=stage_number)


def copy_plots(stage: Path, folder: str | Path) -> None:
    """Copy the plots of a stage to a folder; do nothing if there are none."""
    for path in (stage / HISTORY_PLOT_NAME, stage / SYNAPSES_PLOT_NAME):
        if path.is_file():
            write_atomically(Path(folder) / path.name, path.read_bytes())


def load_memory(folder: str | Path) -> SemiParametricMemory | None:
    """Return the memory in the folder of a stage; `None` if there is none."""
    folder = Path(folder) / MEMORY_FOLDER
    return SemiParametricMemory.load(folder) if folder.is_dir() else None


def stage_folder(model: WakeSleepForImageClassification, token: str | bool | None = None) -> Path:
    """Return the folder of the stage that a model was loaded from; one on the Hub is downloaded.

    Args:
        model ([`WakeSleepForImageClassification`]): A model from `from_pretrained`.
        token (`str` or `bool`, *optional*): Token for the Hub, if not that of the logged-in user.
    """
    folder = Path(model.name_or_path)
    if folder.is_dir() or not model.name_or_path:
        return folder
    patterns = [pattern for pattern in STAGE_FILES if pattern not in UNREAD_FILES]
    return Path(snapshot_download(str(folder), revision=model.stage_revision, allow_patterns=patterns, token=token))


def load_processor(model: WakeSleepForImageClassification, token: str | bool | None = None) -> BaseImageProcessor:
    """Return the image processor of the stage that a model was loaded from; of a new model, one made for it.

    Args:
        model ([`WakeSleepForImageClassification`]): A model without classes, or one from `from_pretrained`.
        token (`str` or `bool`, *optional*): Token for the Hub, if not that of the logged-in user.
    """
    if model.config.classes and model.name_or_path:
        folder = stage_folder(model, token)
        if (folder / "preprocessor_config.json").is_file():
            return AutoImageProcessor.from_pretrained(folder)
    return make_image_processor(model.config)


def load_stage_state(
    folder: str | Path, model: WakeSleepForImageClassification
) -> tuple[History, SemiParametricMemory | None]:
    """Return history and memory of a stage, and check that they belong to its model.

    Args:
        folder (`str` or `Path`): The stage.
        model ([`WakeSleepForImageClassification`]): The model that was loaded from it.

    Raises:
        ValueError: If a file is damaged or belongs to another stage.
    """
    check_digests(folder)
    history, memory = History.load(folder), load_memory(folder)
    classes = {"config.json": model.config.classes, HISTORY_NAME: history.classes}
    if memory is not None:
        classes[MEMORY_FOLDER] = memory.classes
    if any(names != history.classes for names in classes.values()):
        counts = {name: len(names) for name, names in classes.items()}
        raise ValueError(
            f"Expected the same classes in the same order everywhere in {folder}, but they differ ({counts} classes). "
            "Its files are of different stages; copy or download it again."
        )
    if memory is not None:
        _check_fit(folder, model, history, memory)
    return history, memory


def _check_fit(
    folder: str | Path, model: WakeSleepForImageClassification, history: History, memory: SemiParametricMemory
) -> None:
    """Refuse a memory that does not fit the model or the history."""
    side = model.config.image_size
    facts = {
        "codec and budget": (history.protocol.get("memory") == memory.protocol, history.protocol.get("memory")),
        "tasks before": (int(memory.tasks.max(initial=-1)) < len(history), len(history)),
        "bytes of statistics": (
            memory.statistics_bytes == model.head.lda.num_bytes,
            model.head.lda.num_bytes,
        ),
        "pixels a side": (not len(memory) or memory.read([0])[0].shape[-2:] == (side, side), side),
    }
    for what, (holds, expected) in facts.items():
        if not holds:
            raise ValueError(
                f"Expected a memory of {what} {expected} in {folder}, got another. Its files are of different stages; "
                "copy or download it again."
            )
    if memory.synapses is not None:
        memory.synapses.check(model)
