"""Continual-learning metrics as pure functions of an accuracy matrix.

`matrix[t][i]` is the accuracy, 0 to 1, on task i after training on task t, both 0-based; row t has t + 1 entries.
An entry is NaN where the evaluation images of an old task were not at hand. A mean leaves NaN out; a mean of nothing
is NaN, and where the last row has one, `known_tasks` says how many tasks are left.
"""

import math
from collections.abc import Sequence

Matrix = Sequence[Sequence[float]]


def mean(values: Sequence[float]) -> float:
    """Return the mean of what is not NaN; NaN if nothing is left."""
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan


def summarize(
    matrix: Matrix,
    num_images: Sequence[int] | None = None,
    before: Sequence[float] | None = None,
    untrained: Sequence[float] | None = None,
) -> dict[str, float]:
    """Return every metric by its name.

    Args:
        matrix (`Sequence[Sequence[float]]`): Accuracy matrix.
        num_images (`Sequence[int]`, *optional*): Number of evaluation images of each task; adds `pooled_accuracy`.
        before (`Sequence[float]`, *optional*): Score on each task just before it was trained, see `forward_transfer`.
        untrained (`Sequence[float]`, *optional*): Score of the untrained model; with `before` it adds
            `forward_transfer`.
    """
    pooled = {} if num_images is None else {"pooled_accuracy": pooled_accuracy(matrix, num_images)}
    has_forward = before is not None and untrained is not None
    forward = {"forward_transfer": forward_transfer(before, untrained)} if has_forward else {}
    return {
        "average_accuracy": average_accuracy(matrix),
        **pooled,
        "average_incremental_accuracy": average_incremental_accuracy(matrix),
        "forgetting": forgetting(matrix),
        "backward_transfer": backward_transfer(matrix),
        **forward,
        "learning_accuracy": learning_accuracy(matrix),
        **({} if known_tasks(matrix) == len(matrix) else {"known_tasks": known_tasks(matrix)}),
    }


def average_accuracy(matrix: Matrix) -> float:
    """Mean over tasks of the accuracy after the last task: mean_i a[T-1][i]."""
    return mean(matrix[-1])


def pooled_accuracy(matrix: Matrix, num_images: Sequence[int]) -> float:
    """Accuracy after the last task over all images: sum_i n_i a[T-1][i] / sum_i n_i.

    Args:
        matrix (`Sequence[Sequence[float]]`): Accuracy matrix.
        num_images (`Sequence[int]`): Number n_i of evaluation images of each task.
    """
    known = [(value, size) for value, size in zip(matrix[-1], num_images, strict=True) if not math.isnan(value)]
    total = sum(size for _, size in known)
    return math.fsum(value * size for value, size in known) / total if total else math.nan


def average_incremental_accuracy(matrix: Matrix) -> float:
    """Mean over t of the average accuracy after task t (Rebuffi et al. 2017, iCaRL)."""
    return mean([mean(row) for row in matrix])


def forgetting(matrix: Matrix) -> float:
    """Mean over i < T-1 of max_{i<=t<T-1} a[t][i] - a[T-1][i] (Chaudhry et al. 2018); may be negative, 0 if T = 1."""
    last = len(matrix) - 1
    if last == 0:
        return 0.0
    return mean([_best([matrix[t][i] for t in range(i, last)]) - matrix[last][i] for i in range(last)])


def backward_transfer(matrix: Matrix) -> float:
    """Mean over i < T-1 of a[T-1][i] - a[i][i] (Lopez-Paz & Ranzato 2017); 0 if T = 1."""
    last = len(matrix) - 1
    return mean([matrix[last][i] - matrix[i][i] for i in range(last)]) if last else 0.0


def forward_transfer(before: Sequence[float], untrained: Sequence[float]) -> float:
    """Mean over i > 0 of a[i-1][i] - b[i] (Lopez-Paz & Ranzato 2017); 0 if T = 1.

    A growing head has no output for a class before it was taught, so both scores are those of LDA, fitted to the
    training images of task i alone and restricted to its classes.

    Args:
        before (`Sequence[float]`): a[i-1][i], with the features of the model just before it was trained on task i.
        untrained (`Sequence[float]`): b[i], with the features of the model before it was trained on anything.
    """
    pairs = list(zip(before, untrained, strict=True))[1:]
    return mean([score - baseline for score, baseline in pairs]) if pairs else 0.0


def learning_accuracy(matrix: Matrix) -> float:
    """Mean over tasks of the accuracy on each just after it was trained: mean_i a[i][i]."""
    return mean([row[i] for i, row in enumerate(matrix)])


def known_tasks(matrix: Matrix) -> int:
    """Return the number of tasks whose accuracy after the last task is known: what means of that row are over."""
    return sum(not math.isnan(value) for value in matrix[-1])


def gap_to_joint(accuracy: float, joint_accuracy: float) -> float:
    """Accuracy of joint training on all tasks at once minus that of the stream, of the same kind."""
    return joint_accuracy - accuracy


def _best(values: Sequence[float]) -> float:
    return max((value for value in values if not math.isnan(value)), default=math.nan)
