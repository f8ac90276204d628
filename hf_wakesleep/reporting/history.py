"""History: everything measured after every task, saved as `history.json`, with its metrics and a text table."""

import itertools
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

from huggingface_hub import snapshot_download

from ..model.digests_wakesleep import DIGESTS_NAME, HISTORY_FILES, check_digests
from ..storage.atomic import read_json, write_atomically
from . import metrics
from .metrics import is_confusion_counts
from .task_record import TaskRecord, is_share, nan_to_none, none_to_nan

HISTORY_NAME = "history.json"


@dataclass
class History:
    """Records of all tasks so far, and the protocol and settings of the run.

    Args:
        protocol (`dict`): Seed, stream, backbone, codec, ...: what must not change within a run. JSON-able.
        untrained (`dict[str, float]`): b[i] of forward transfer by the name of the stage, tasks to come included.
        records (`list[TaskRecord]`): One per finished task.
        settings (`dict`): Hyper-parameters that differ from the defaults, as of the last task.
        chosen (`dict[str, str]`): Which of the settings the recipe has chosen, with the reason.
        confusion (`list[list[int]]`): Answers to the evaluation images after the last task: rows of true class,
            answered class (as positions in `classes`) and number of images where that is not 0; empty if unknown.
    """

    protocol: dict = field(default_factory=dict)
    untrained: dict[str, float] = field(default_factory=dict)
    records: list[TaskRecord] = field(default_factory=list)
    settings: dict = field(default_factory=dict)
    confusion: list[list[int]] = field(default_factory=list)
    chosen: dict[str, str] = field(default_factory=dict)

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

    def free_name(self, name: str) -> str:
        """Return a name for a task to come: `name`, or that of its stage, or that with a number, whichever is free."""
        taken, stage = {record.name for record in self.records}, f"task-{len(self) + 1:02d}"
        names = itertools.chain([name, stage], (f"{stage}-{number}" for number in itertools.count(2)))
        return next(each for each in names if each not in taken)

    def rename_class(self, old: str, new: str | None) -> None:
        """Give a class another name everywhere, or, if that is `None`, take its name out.

        A task that bears the name of a class taken out gets that of its stage.

        Args:
            old (`str`): Its name.
            new (`str`, *optional*): Its new name.
        """
        for number, record in enumerate(self.records, start=1):
            for names in (record.classes, record.new_classes, record.fingerprint.get("classes", [])):
                names[:] = [new if name == old else name for name in names if name != old or new is not None]
            if new is None and record.name == old:
                record.name = self.free_name(f"task-{number:02d}")
            if new is None and record.fingerprint.get("name") == old:
                record.fingerprint["name"] = record.name
        if "tasks" in self.protocol.get("stream", {}):
            learned = [record.fingerprint for record in self.records]
            self.protocol["stream"]["tasks"][: len(learned)] = learned

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
        comparable = [  # forgetting compares accuracies on the same images only
            [value if numbers[i] == counts[-1][i] else math.nan for i, value in enumerate(row)]
            for row, numbers in zip(matrix, counts, strict=True)
        ]
        return summary | {
            "forgetting": metrics.forgetting(comparable),
            "backward_transfer": metrics.backward_transfer(comparable),
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
            "chosen": self.chosen,
            "seed": self.protocol.get("seed"),
            "classes": self.classes,
            "accuracy_matrix": self.accuracy_matrix,
            **curves,
            **per_task,
            "untrained": self.untrained,
            "confusion": self.confusion,
            "records": [asdict(record) for record in self.records],
        }
        return nan_to_none(content)

    def save(self, folder: str | Path) -> None:
        """Write `history.json`, complete or not at all."""
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
            records = [TaskRecord(**none_to_nan(record)) for record in content["records"]]
            confusion = content.get("confusion", [])  # not in what earlier versions wrote
            untrained = none_to_nan(content["untrained"])
            history = cls(
                content["protocol"], untrained, records, content["settings"], confusion, content.get("chosen", {})
            )
            history._check()
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"Expected a history in {path}, which does not hold one ({error!r}).") from error
        return history

    def _check(self) -> None:
        """Refuse values that no run writes."""
        for name, value in (
            ("protocol", self.protocol),
            ("settings", self.settings),
            ("chosen", self.chosen),
            ("untrained", self.untrained),
        ):
            if not isinstance(value, dict):
                raise ValueError(f"an object expected as {name!r}, got {value!r}")
        if not all(map(is_share, self.untrained.values())):
            raise ValueError("accuracies expected as 'untrained', got others")
        for position, record in enumerate(self.records, start=1):
            record.check(position)
        for what, names in (("task", [record.name for record in self.records]), ("class", self.classes)):
            if len(set(names)) < len(names):
                raise ValueError(f"every {what} once expected, but one comes twice")
        if not is_confusion_counts(self.confusion, len(self.classes)):
            raise ValueError("rows of two classes and a number of images expected as 'confusion', got others")

    def table(self) -> str:
        """Return the accuracy matrix and all metrics as plain text."""
        lines = self._accuracy_lines()
        if any(record.lda_accuracy for record in self.records):
            lines += self._lda_lines()
        return "\n".join([*lines, "", *self._metric_lines(), *self._cost_lines()])

    @property
    def _column_width(self) -> int:
        return max([len(record.name) for record in self.records] + [7]) + 1

    def _accuracy_lines(self) -> list[str]:
        width = self._column_width
        unknown = "; – is unknown, for want of evaluation images, and left out of means"
        has_unknown = any(math.isnan(value) for record in self.records for value in record.accuracy)
        columns = "".join(f"{name:>{width}}" for name in [*(record.name for record in self.records), "mean", "pooled"])
        lines = [f"accuracy (%) on each task (column) after each task (row){unknown if has_unknown else ''}"]
        lines.append(" " * width + columns)
        for count, record in enumerate(self.records, start=1):
            summary = self.summary(count)
            cells = "".join(f"{_percent(value):>{width}}" for value in record.accuracy)
            cells += " " * width * (len(self) - count)
            means = "".join(f"{_percent(summary[name]):>{width}}" for name in ("average_accuracy", "pooled_accuracy"))
            lines.append(f"{record.name:<{width}}" + cells + means)
        return lines

    def _lda_lines(self) -> list[str]:
        width = self._column_width
        lines = ["", "accuracy (%) of LDA alone, with each task in memory and before any training on it"]
        for record in self.records:
            cells = "".join(f"{_percent(value):>{width}}" for value in record.lda_accuracy)
            lines.append(f"{record.name:<{width}}" + cells)
        return lines

    def _metric_lines(self) -> list[str]:
        lines, summary = [], self.summary()
        unknown_tasks, unknown_classes = len(self) - summary.pop("known_tasks", len(self)), self.num_unknown_classes()
        if unknown_tasks or unknown_classes:
            lines.append(
                f"Accuracy is unknown for {unknown_classes} of {len(self.classes)} classes and {unknown_tasks} of "
                f"{len(self)} tasks; these numbers are of the others:"
            )
        if len(self) == 1:  # nothing to forget, and nothing that could have helped
            summary |= dict.fromkeys(("forgetting", "backward_transfer", "forward_transfer"), math.nan)
        lines += [f"{name.replace('_', ' '):<30}{_number(value):>10}" for name, value in summary.items()]
        last = self.records[-1]
        counts = last.evaluated_images or [record.num_eval_images for record in self.records]
        return [*lines, f"{'evaluation images':<30}{sum(counts):>10,}"]

    def _cost_lines(self) -> list[str]:
        last = self.records[-1]
        lines = [f"{'memory ' + part + ' (bytes)':<30}{size:>10,}" for part, size in last.memory_bytes.items()]
        lines.append(f"{'codes in memory':<30}{last.num_codes:>10,}")
        for phase in ("wake", "sleep"):
            seconds = sum(getattr(record, f"{phase}_seconds") for record in self.records)
            images = sum(getattr(record, f"{phase}_images") for record in self.records)
            lines.append(f"{phase + ' seconds, all tasks':<30}{seconds:>10.1f}   ({images:,} images)")
        return lines


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f}"


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4f}"
