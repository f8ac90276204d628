"""Metrics against matrices worked out by hand, and as a module of `evaluate`."""

import math
from pathlib import Path

import evaluate
import pytest

import hf_wakesleep
from hf_wakesleep import History
from hf_wakesleep.reporting import metrics
from hf_wakesleep.reporting.task_record import TaskRecord

# Three tasks. After the last one: 0.5, 0.6, 0.9.
MATRIX = [
    [0.9],
    [0.7, 0.8],
    [0.5, 0.6, 0.9],
]
NAN = math.nan
MODULE = Path(hf_wakesleep.__file__).parent / "reporting" / "evaluate_modules" / "continual_learning"


def test_average_accuracy():
    assert metrics.average_accuracy(MATRIX) == pytest.approx((0.5 + 0.6 + 0.9) / 3)


def test_pooled_accuracy_weighs_tasks_by_their_images():
    assert metrics.pooled_accuracy(MATRIX, [10, 10, 80]) == pytest.approx(0.05 + 0.06 + 0.72)
    assert metrics.pooled_accuracy(MATRIX, [5, 5, 5]) == pytest.approx(metrics.average_accuracy(MATRIX))


def test_average_incremental_accuracy():
    assert metrics.average_incremental_accuracy(MATRIX) == pytest.approx((0.9 + 0.75 + 2 / 3) / 3)


def test_forgetting_is_the_best_before_the_last_task_minus_the_last():
    assert metrics.forgetting(MATRIX) == pytest.approx(((0.9 - 0.5) + (0.8 - 0.6)) / 2)


def test_forgetting_takes_the_best_not_the_first_and_may_be_negative():
    assert metrics.forgetting([[0.2], [0.6, 0.5], [0.4, 0.9, 0.1]]) == pytest.approx(((0.6 - 0.4) + (0.5 - 0.9)) / 2)
    assert metrics.forgetting([[0.2], [0.6, 0.5]]) == pytest.approx(-0.4)


def test_backward_transfer():
    assert metrics.backward_transfer(MATRIX) == pytest.approx(((0.5 - 0.9) + (0.6 - 0.8)) / 2)


def test_forward_transfer_leaves_out_the_first_task():
    assert metrics.forward_transfer([NAN, 0.6, 0.7], [NAN, 0.5, 0.9]) == pytest.approx((0.1 - 0.2) / 2)


def test_learning_accuracy():
    assert metrics.learning_accuracy(MATRIX) == pytest.approx((0.9 + 0.8 + 0.9) / 3)


def test_gap_to_joint():
    assert metrics.gap_to_joint(0.88, joint_accuracy=0.9) == pytest.approx(0.02)


def test_one_task_forgets_and_transfers_nothing():
    assert metrics.forgetting([[0.5]]) == metrics.backward_transfer([[0.5]]) == 0
    assert metrics.forward_transfer([NAN], [NAN]) == 0


def test_what_was_not_measured_is_left_out_of_means():
    matrix = [[NAN], [NAN, 0.8], [NAN, 0.6, 0.9]]
    assert metrics.average_accuracy(matrix) == pytest.approx(0.75)
    assert metrics.forgetting(matrix) == pytest.approx(0.2)
    assert metrics.backward_transfer(matrix) == pytest.approx(-0.2)
    assert metrics.pooled_accuracy(matrix, [10, 10, 30]) == pytest.approx((6 + 27) / 40)
    assert math.isnan(metrics.average_accuracy([[NAN]]))
    assert metrics.known_tasks(matrix) == metrics.summarize(matrix)["known_tasks"] == 2
    assert "known_tasks" not in metrics.summarize(MATRIX)


def test_the_evaluate_module_loads_by_path_without_network_and_agrees():
    metric = evaluate.load(str(MODULE))
    results = metric.compute(
        accuracy_matrix=MATRIX, num_images=[10, 10, 80], before=[NAN, 0.6, 0.7], untrained=[NAN, 0.5, 0.9]
    )
    assert results.pop("pooled_accuracy") == pytest.approx(0.83)
    assert results.pop("forward_transfer") == pytest.approx(-0.05)
    assert results == {name: pytest.approx(getattr(metrics, name)(MATRIX)) for name in results}
    assert len(results) == 5


def test_the_evaluate_module_takes_rows_as_tasks_finish():
    metric = evaluate.load(str(MODULE))
    for row in MATRIX:
        metric.add(accuracy_matrix=row)
    assert metric.compute()["forgetting"] == pytest.approx(0.3)


def test_the_evaluate_module_and_the_history_of_a_run_say_the_same():
    scores = [(NAN, NAN), (0.6, 0.5), (0.7, 0.9)]
    records = [
        TaskRecord(f"task-{number}", [], [], 0, 10 * number, row, before_accuracy=before, untrained_accuracy=untrained)
        for number, (row, (before, untrained)) in enumerate(zip(MATRIX, scores, strict=True), start=1)
    ]
    before, untrained = map(list, zip(*scores, strict=True))
    results = evaluate.load(str(MODULE)).compute(
        accuracy_matrix=MATRIX, num_images=[10, 20, 30], before=before, untrained=untrained
    )
    assert list(results.items()) == list(History(records=records).summary().items())


def test_the_evaluate_module_refuses_a_square_matrix():
    with pytest.raises(ValueError, match="Row 0 of `accuracy_matrix` must hold 1 accuracies"):
        evaluate.load(str(MODULE)).compute(accuracy_matrix=[[0.9, 0.1], [0.7, 0.8]])
