"""TaskRecord: what was measured of one task, as `history.json` holds it, with the checks of its values."""

import math
from dataclasses import dataclass, field

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
        return nan_to_none({"before": self.before_accuracy, "lda": self.lda_accuracy})

    def set_scores(self, scores: dict) -> None:
        """Take what `scores` returned."""
        self.before_accuracy, self.lda_accuracy = none_to_nan([scores["before"], scores["lda"]])

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
            and all(map(is_share, self.accuracy)),
            "lda_accuracy": isinstance(self.lda_accuracy, list)
            and len(self.lda_accuracy) in (0, position)
            and all(map(is_share, self.lda_accuracy)),
            "evaluated_images": isinstance(self.evaluated_images, list)
            and len(self.evaluated_images) in (0, position)
            and all(map(_is_count, self.evaluated_images)),
            "num_unevaluated": type(self.num_unevaluated) is int and self.num_unevaluated >= -1,
            "before_accuracy": is_share(self.before_accuracy),
            "untrained_accuracy": is_share(self.untrained_accuracy),
            "lda_weight": is_share(self.lda_weight),
            "memory_bytes": set(self.memory_bytes) == {*MEMORY_PARTS, "total"},
            **{name: _is_count(value) for name, value in counts.items()},
            **{name: _is_seconds(getattr(self, name)) for name in ("wake_seconds", "sleep_seconds")},
            "fingerprint": isinstance(self.fingerprint, dict),
            "sleep": isinstance(self.sleep, dict) and _are_shares(self.sleep.get("frozen", {})),
        }
        wrong = [name for name, holds in checks.items() if not holds]
        if wrong:
            raise ValueError(f"values that a run writes expected in task {position}, got others in {wrong}")


def nan_to_none(value):
    """Return a JSON-able value with `None` for every NaN in it, at any depth."""
    if isinstance(value, dict):
        return {key: nan_to_none(item) for key, item in value.items()}
    if isinstance(value, list):
        return [nan_to_none(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def none_to_nan(value):
    """Return a value with NaN for every `None` in it, at any depth."""
    if isinstance(value, dict):
        return {key: none_to_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [none_to_nan(item) for item in value]
    return math.nan if value is None else value


def is_share(value) -> bool:
    """Whether a value is a number in [0, 1], or NaN for one that is not known."""
    return isinstance(value, float | int) and not isinstance(value, bool) and (math.isnan(value) or 0 <= value <= 1)


def _are_shares(values) -> bool:
    return isinstance(values, dict) and all(map(is_share, values.values()))


def _is_count(value) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_seconds(value) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool) and 0 <= value < math.inf


def _are_names(values) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)
