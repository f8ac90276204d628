"""History: what was measured after every task, and the numbers that follow from it."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

from huggingface_hub import snapshot_download

from ..model.digests_wakesleep import DIGESTS_NAME, HISTORY_FILES, check_digests
from ..storage.atomic import read_json, write_atomically
from . import metrics
from .confusion import is_confusion

HISTORY_NAME = "history.json"
COUNTS = ("num_train_images", "num_eval_images", "num_codes", "wake_steps", "wake_images", "sleep_images")
MEMORY_PARTS = ("codes", "index", "codec", "statistics", "masks")


@dataclass
class TaskRecord:
    """What is known of one task once its stage stands.

    Args:
        name (`str`): Name of the task.
        classes (`list[str]`): Its classes.
        new_classes (`list[str]`): Those that it brought.
        num_train_images (`int`): Training images.
        num_eval_images (`int`): Evaluation images.
        accuracy (`list[float]`): Row of the accuracy matrix: accuracy on every task so far, NaN where unknown.
        lda_accuracy (`list[float]`): The same of LDA alone, once the task was in memory and before any training
            on it; empty if not measured.
        before_accuracy (`float`): a[i-1][i] of forward transfer, NaN if not measured.
        untrained_accuracy (`float`): b[i] of forward transfer, NaN if not measured.
        memory_bytes (`dict[str, int]`): Bytes of each of `MEMORY_PARTS`, and their `total`.
        num_codes (`int`): Codes in memory.
        lda_weight (`float`): Weight of LDA in predictions.
        wake_steps (`int`): Optimizer steps awake.
        wake_seconds (`float`): Seconds awake, those before a stop included.
        wake_images (`int`): Training images seen awake, repetitions included.
        sleep_seconds (`float`): Seconds asleep, in the same way.
        sleep_images (`int`): Memories seen asleep, repetitions included.
        sleep (`dict`): The report of the sleep; empty without one.
        fingerprint (`dict`): What identifies the task, see [`Task.fingerprint`].
        evaluated_images (`list[int]`): Number of images behind each entry of `accuracy`, 0 where unknown; empty if it
            is that of `num_eval_images` of each task.
        num_unevaluated (`int`): Classes so far of which no evaluation image was at hand; -1 if they are those of the
            tasks whose accuracy is unknown.
    """

    name: str
    classes: list[str]
    new_classes: list[str]
    num_train_images: int
    num_eval_images: int
    accuracy: list[float] = field(default_factory=list)
    lda_accuracy: list[float] = field(default_factory=list)
    before_accuracy: float = math.nan
    untrained_accuracy: float = math.nan
    memory_bytes: dict[str, int] = field(default_factory=dict)
    num_codes: int = 0
    lda_weight: float = 0.0
    wake_steps: int = 0
    wake_seconds: float = 0.0
    wake_images: int = 0
    sleep_seconds: float = 0.0
    sleep_images: int = 0
    sleep: dict = field(default_factory=dict)
    fingerprint: dict = field(default_factory=dict)
    evaluated_images: list[int] = field(default_factory=list)
    num_unevaluated: int = -1

    def scores(self) -> dict:
        """Return what was measured before any training on the task, as JSON-able values."""
        return _nan_to_none({"before": self.before_accuracy, "lda": self.lda_accuracy})

    def set_scores(self, scores: dict) -> None:
        """Take what `scores` returned."""
        self.before_accuracy, self.lda_accuracy = _none_to_nan([scores["before"], scores["lda"]])

    def check(self, position: int) -> None:
        """Refuse values that no run writes.

        Args:
            position (`int`): Which task it is, from 1.

        Raises:
            ValueError: If a value is of another type or out of its range.
        """
        counts = {name: getattr(self, name) for name in COUNTS} | dict(self.memory_bytes)
        checks = {
            "name": isinstance(self.name, str),
            "classes": _are_names(self.classes) and _are_names(self.new_classes),
            "new_classes": set(self.new_classes) <= set(self.classes),
            "accuracy": isinstance(self.accuracy, list)
            and len(self.accuracy) == position
            and all(map(_is_share, self.accuracy)),
            "lda_accuracy": isinstance(self.lda_accuracy, list)
            and len(self.lda_accuracy) in (0, position)
            and all(map(_is_share, self.lda_accuracy)),
            "evaluated_images": isinstance(self.evaluated_images, list)
            and len(self.evaluated_images) in (0, position)
            and all(map(_is_count, self.evaluated_images)),
            "num_unevaluated": type(self.num_unevaluated) is int and self.num_unevaluated >= -1,
            "before_accuracy": _is_share(self.before_accuracy),
            "untrained_accuracy": _is_share(self.untrained_accuracy),
            "lda_weight": _is_share(self.lda_weight),
            "memory_bytes": set(self.memory_bytes) == {*MEMORY_PARTS, "total"},
            **{name: _is_count(value) for name, value in counts.items()},
            **{name: _is_seconds(getattr(self, name)) for name in ("wake_seconds", "sleep_seconds")},
            "fingerprint": isinstance(self.fingerprint, dict),
            "sleep": isinstance(self.sleep, dict) and _are_shares(self.sleep.get("frozen", {})),
        }
        wrong = [name for name, holds in checks.items() if not holds]
        if wrong:
            raise ValueError(f"values that a run writes expected in task {position}, got others in {wrong}")


@dataclass
class History:
    """Records of all tasks so far, and how the run was made.

    Args:
        protocol (`dict`): Seed, stream, backbone, codec, ...: what must not change within a run. JSON-able.
        untrained (`dict[str, float]`): b[i] of forward transfer by the name of the stage, tasks to come included.
        records (`list[TaskRecord]`): One per finished task.
        settings (`dict`): Hyper-parameters that differ from the defaults, as of the last task.
        confusion (`list[list[int]]`): Answers to the evaluation images after the last task: rows of true class,
            answered class (as places in `classes`) and number of images where that is not 0; empty if unknown.
    """

    protocol: dict = field(default_factory=dict)
    untrained: dict[str, float] = field(default_factory=dict)
    records: list[TaskRecord] = field(default_factory=list)
    settings: dict = field(default_factory=dict)
    confusion: list[list[int]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.records)

    @property
    def accuracy_matrix(self) -> list[list[float]]:
        """Row t: accuracy on tasks 0..t after task t."""
        return [record.accuracy for record in self.records]

    @property
    def classes(self) -> list[str]:
        """All classes, in the order of learning."""
        return [name for record in self.records for name in record.new_classes]

    @property
    def num_steps(self) -> int:
        """Optimizer steps of all tasks, awake and asleep."""
        return sum(record.wake_steps + record.sleep.get("steps", 0) for record in self.records)

    def is_start_of(self, other: "History") -> bool:
        """Whether the other history holds all records of this one, in the same places."""
        return self.to_dict()["records"] == other.to_dict()["records"][: len(self)]

    def summary(self, num_tasks: int | None = None) -> dict[str, float]:
        """Return every metric after the first `num_tasks` tasks (all by default), by its name."""
        records = self.records[:num_tasks]
        planned = [record.num_eval_images for record in records]
        counts = [record.evaluated_images or planned[: len(record.accuracy)] for record in records]
        matrix = [record.accuracy for record in records]
        summary = metrics.summarize(
            matrix,
            counts[-1],
            [record.before_accuracy for record in records],
            [record.untrained_accuracy for record in records],
        )
        alike = [  # accuracies on other images than those of the last row tell nothing of what was forgotten
            [value if numbers[i] == counts[-1][i] else math.nan for i, value in enumerate(row)]
            for row, numbers in zip(matrix, counts, strict=True)
        ]
        return summary | {
            "forgetting": metrics.forgetting(alike),
            "backward_transfer": metrics.backward_transfer(alike),
        }

    def num_unknown_classes(self) -> int:
        """Return the number of classes whose accuracy after the last task is unknown."""
        last = self.records[-1]
        if last.num_unevaluated >= 0:
            return last.num_unevaluated
        pairs = zip(last.accuracy, self.records, strict=True)
        return sum(len(record.new_classes) for accuracy, record in pairs if math.isnan(accuracy))

    def to_dict(self) -> dict:
        """Return everything as JSON-able values: metrics after each task as lists, NaN as `None`."""
        summaries = [self.summary(count) for count in range(1, len(self) + 1)]
        names = [name for name in (summaries[0] if summaries else ()) if name != "known_tasks"]
        curves = {name: [summary[name] for summary in summaries] for name in names}
        per_task = {
            name: [getattr(record, name) for record in self.records]
            for name in ("memory_bytes", "num_codes", "wake_seconds", "sleep_seconds", "wake_images", "sleep_images")
        }
        content = {
            "protocol": self.protocol,
            "settings": self.settings,
            "seed": self.protocol.get("seed"),
            "classes": self.classes,
            "accuracy_matrix": self.accuracy_matrix,
            **curves,
            **per_task,
            "untrained": self.untrained,
            "confusion": self.confusion,
            "records": [asdict(record) for record in self.records],
        }
        return _nan_to_none(content)

    def save(self, folder: str | Path) -> None:
        """Write `history.json`, whole or not at all."""
        write_atomically(Path(folder) / HISTORY_NAME, (json.dumps(self.to_dict(), indent=1) + "\n").encode())

    @classmethod
    def from_pretrained(cls, name_or_path: str, **kwargs) -> "History":
        """Load the history of a stage from its folder or from the Hub; nothing else of the stage is downloaded.

        Args:
            name_or_path (`str`): Folder of a stage, or name of a repository.
            kwargs: Passed on to `huggingface_hub.snapshot_download` (`revision`, `token`, ...).

        Raises:
            ValueError: If there is no history.
        """
        folder = Path(name_or_path)
        if not folder.is_dir():
            folder = Path(snapshot_download(name_or_path, allow_patterns=[DIGESTS_NAME, HISTORY_NAME], **kwargs))
        return cls.load(folder)

    @classmethod
    def load(cls, folder: str | Path) -> "History":
        """Read what `save` wrote.

        Raises:
            ValueError: If the file is missing or not a history.
        """
        path = Path(folder) / HISTORY_NAME
        if not path.is_file():
            raise ValueError(f"Expected {path}, which does not exist. Is {folder} a stage or an output folder?")
        check_digests(folder, HISTORY_FILES)
        try:
            content = read_json(path)
            if not isinstance(content["records"], list):
                raise TypeError("a list expected as 'records'")
            if any("recall_accuracy" in record for record in content["records"]):
                raise ValueError("a history of hf_wakesleep 0.1, which can be read with that version only")
            records = [TaskRecord(**_none_to_nan(record)) for record in content["records"]]
            confusion = content.get("confusion", [])  # not in what earlier versions wrote
            untrained = _none_to_nan(content["untrained"])
            history = cls(content["protocol"], untrained, records, content["settings"], confusion)
            history._check()
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"Expected a history in {path}, which does not hold one ({error!r}).") from error
        return history

    def _check(self) -> None:
        """Refuse values that no run writes."""
        for name, value in (("protocol", self.protocol), ("settings", self.settings), ("untrained", self.untrained)):
            if not isinstance(value, dict):
                raise ValueError(f"an object expected as {name!r}, got {value!r}")
        if not all(map(_is_share, self.untrained.values())):
            raise ValueError("accuracies expected as 'untrained', got others")
        for position, record in enumerate(self.records, start=1):
            record.check(position)
        for what, names in (("task", [record.name for record in self.records]), ("class", self.classes)):
            if len(set(names)) < len(names):
                raise ValueError(f"every {what} once expected, but one comes twice")
        if not is_confusion(self.confusion, len(self.classes)):
            raise ValueError("rows of two classes and a number of images expected as 'confusion', got others")

    def table(self) -> str:
        """Return the accuracy matrix and all metrics as plain text."""
        names = [record.name for record in self.records]
        width = max([len(name) for name in names] + [7]) + 1
        unknown = "; – is unknown, for want of evaluation images, and left out of means"
        has_unknown = any(math.isnan(value) for record in self.records for value in record.accuracy)
        lines = [f"accuracy (%) on each task (column) after each task (row){unknown if has_unknown else ''}"]
        lines.append(
            " " * width + "".join(f"{name:>{width}}" for name in names) + f"{'mean':>{width}}{'pooled':>{width}}"
        )
        for count, record in enumerate(self.records, start=1):
            summary = self.summary(count)
            cells = "".join(f"{_percent(value):>{width}}" for value in record.accuracy)
            cells += " " * width * (len(names) - count)
            means = "".join(f"{_percent(summary[name]):>{width}}" for name in ("average_accuracy", "pooled_accuracy"))
            lines.append(f"{record.name:<{width}}" + cells + means)
        if any(record.lda_accuracy for record in self.records):
            lines += ["", "accuracy (%) of LDA alone, with each task in memory and before any training on it"]
            for record in self.records:
                lines.append(
                    f"{record.name:<{width}}" + "".join(f"{_percent(v):>{width}}" for v in record.lda_accuracy)
                )
        lines.append("")
        summary = self.summary()
        unknown_tasks, unknown_classes = len(self) - summary.pop("known_tasks", len(self)), self.num_unknown_classes()
        if unknown_tasks or unknown_classes:
            lines.append(
                f"Accuracy is unknown for {unknown_classes} of {len(self.classes)} classes and {unknown_tasks} of "
                f"{len(self)} tasks; these numbers are of the others:"
            )
        lines += [f"{name.replace('_', ' '):<30}{_number(value):>10}" for name, value in summary.items()]
        last = self.records[-1]
        lines += [f"{'memory ' + part + ' (bytes)':<30}{size:>10,}" for part, size in last.memory_bytes.items()]
        lines.append(f"{'codes in memory':<30}{last.num_codes:>10,}")
        for phase in ("wake", "sleep"):
            seconds = sum(getattr(record, f"{phase}_seconds") for record in self.records)
            images = sum(getattr(record, f"{phase}_images") for record in self.records)
            lines.append(f"{phase + ' seconds':<30}{seconds:>10.1f}   ({images:,} images)")
        return "\n".join(lines)


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f}"


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4f}"


def _nan_to_none(value):
    if isinstance(value, dict):
        return {key: _nan_to_none(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_nan_to_none(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _none_to_nan(value):
    if isinstance(value, dict):
        return {key: _none_to_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_none_to_nan(item) for item in value]
    return math.nan if value is None else value


def _is_share(value) -> bool:
    """Whether a value is a number in [0, 1], or NaN for one that is not known."""
    return isinstance(value, float | int) and not isinstance(value, bool) and (math.isnan(value) or 0 <= value <= 1)


def _are_shares(values) -> bool:
    return isinstance(values, dict) and all(map(_is_share, values.values()))


def _is_count(value) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_seconds(value) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool) and 0 <= value < math.inf


def _are_names(values) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)
