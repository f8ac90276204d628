"""History: exact save and load, the keys of `history.json`, the table, the answers."""

import json
import math

import numpy as np
import pytest
from histories import make_history

from hf_wakesleep import History
from hf_wakesleep.reporting.metrics import confusion_counts

KEYS = {
    "accuracy_matrix",
    "average_accuracy",
    "pooled_accuracy",
    "average_incremental_accuracy",
    "forgetting",
    "backward_transfer",
    "forward_transfer",
    "learning_accuracy",
    "memory_bytes",
    "num_codes",
    "wake_seconds",
    "sleep_seconds",
    "classes",
    "seed",
}


def test_save_and_load_gives_back_everything(tmp_path):
    history = make_history(rows=((0.9,), (math.nan, 0.8)))
    history.save(tmp_path)
    loaded = History.load(tmp_path)
    assert loaded.to_dict() == history.to_dict()
    assert math.isnan(loaded.records[1].accuracy[0])
    assert [path.name for path in tmp_path.iterdir()] == ["history.json"]


def test_the_file_is_strict_json_with_a_value_of_every_metric_after_every_task(tmp_path):
    make_history().save(tmp_path)
    content = json.loads((tmp_path / "history.json").read_text(), parse_constant=pytest.fail)
    assert content.keys() >= KEYS
    assert content["accuracy_matrix"] == [[0.9], [0.7, 0.8], [0.5, 0.6, 0.9]]
    assert content["classes"] == ["class 1", "class 2", "class 3"]
    assert content["seed"] == 7
    assert content["forgetting"] == pytest.approx([0, 0.2, 0.3])
    assert content["pooled_accuracy"] == pytest.approx([0.9, 23 / 30, 44 / 60])
    assert all(len(content[key]) == 3 for key in KEYS - {"classes", "seed"})
    assert {"codes", "codec", "statistics", "total"} <= content["memory_bytes"][0].keys()


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"records": [{"x": 1}], "protocol": {}, "untrained": {}}'])
def test_a_file_that_holds_no_history_is_one_clear_error(tmp_path, content):
    (tmp_path / "history.json").write_text(content)
    with pytest.raises(ValueError, match="Expected a history in"):
        History.load(tmp_path)


def test_a_missing_file_is_one_clear_error(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        History.load(tmp_path)


def test_one_history_is_the_start_of_another():
    long, short = make_history(), make_history(rows=((0.9,), (0.7, 0.8)))
    assert short.is_start_of(long)
    assert long.is_start_of(make_history())
    assert not long.is_start_of(short)
    assert not make_history(rows=((0.8,),)).is_start_of(long)


def test_the_table_shows_the_matrix_and_every_metric():
    table = make_history().table()
    assert "50.0    60.0    90.0" in table
    assert "unknown" not in table
    for name in ("pooled accuracy", "forgetting", "memory total (bytes)", "wake seconds, all tasks"):
        assert name in table


def test_the_table_says_what_is_unknown():
    history = make_history(rows=((0.9,), (math.nan, 1.0)))
    lines = history.table().splitlines()
    assert lines[0].endswith("– is unknown, for want of evaluation images, and left out of means")
    assert lines[3].split() == ["task-02", "–", "100.0", "100.0", "100.0"]
    assert "Accuracy is unknown for 1 of 2 classes and 1 of 2 tasks; these numbers are of the others:" in lines
    assert history.summary()["known_tasks"] == 1
    assert not [line for line in lines if "nan" in line or "known tasks" in line]
    assert "known_tasks" not in history.to_dict()


def test_accuracy_is_pooled_over_the_images_that_were_evaluated(tmp_path):
    history = make_history(rows=((0.9,), (0.5, 1.0)))
    history.records[1].evaluated_images, history.records[1].num_unevaluated = [30, 10], 1
    assert history.summary()["pooled_accuracy"] == pytest.approx(25 / 40)
    assert history.summary(1)["pooled_accuracy"] == pytest.approx(0.9)
    history.save(tmp_path)
    assert History.from_pretrained(str(tmp_path)).to_dict() == history.to_dict()
    assert "unknown for 1 of 2 classes and 0 of 2 tasks" in history.table()


@pytest.mark.parametrize(
    "changes", [{"evaluated_images": [1]}, {"evaluated_images": [-1, 2]}, {"num_unevaluated": 0.5}]
)
def test_numbers_of_images_that_no_run_writes_are_refused(changes):
    record = make_history(rows=((0.9,), (0.5, 1.0))).records[1]
    record.check(2)
    vars(record).update(changes)
    with pytest.raises(ValueError, match=f"got others in .*{next(iter(changes))}"):
        record.check(2)


def test_answers_are_counted_by_true_class_and_answer():
    assert confusion_counts(np.array([2, 0, 0, 2, 2]), np.array([1, 0, 1, 1, 2])) == [
        [0, 0, 1],
        [0, 1, 1],
        [2, 1, 2],
        [2, 2, 1],
    ]
    assert confusion_counts(np.array([], dtype=int), np.array([], dtype=int)) == []


def test_answers_survive_save_and_load_and_may_be_missing(tmp_path):
    history = make_history()
    history.confusion = [[0, 0, 3], [0, 2, 2**40], [2, 1, 1]]
    history.save(tmp_path)
    assert History.load(tmp_path).confusion == history.confusion
    content = json.loads((tmp_path / "history.json").read_text())
    assert content.pop("confusion") == history.confusion
    (tmp_path / "history.json").write_text(json.dumps(content))  # as earlier versions wrote it
    assert History.load(tmp_path).confusion == []


def test_a_history_is_the_start_of_another_whatever_was_answered():
    long, short = make_history(), make_history(rows=((0.9,), (0.7, 0.8)))
    long.confusion, short.confusion = [[0, 1, 2]], [[0, 0, 2]]
    assert short.is_start_of(long)


@pytest.mark.parametrize(
    "confusion",
    [
        None,
        {},
        [[0, 0]],
        [[0, 0, 0]],
        [[0, 3, 1]],
        [[3, 0, 1]],
        [[-1, 0, 1]],
        [[0, 0, 1.0]],
        [[0, 0, True]],
        [[0, 0, None]],
        [[0, 0, 2**63]],
        [[0, 0, 1], [0, 0, 1]],
        [[1, 0, 1], [0, 0, 1]],
        [0, 0, 1],
    ],
    ids=str,
)
def test_answers_that_no_run_writes_are_refused(tmp_path, confusion):
    history = make_history()
    history.confusion = confusion
    (tmp_path / "history.json").write_text(json.dumps(history.to_dict()))
    with pytest.raises(ValueError, match="Expected a history in .*confusion"):
        History.load(tmp_path)


def test_a_run_keeps_the_answers_to_all_evaluation_images_after_its_last_task(make_trainer, tmp_path):
    trainer = make_trainer(memory_budget="0", sleep_steps=0, max_steps=2)
    trainer.train()
    history, stream = trainer.history, trainer.stream
    matrix = np.zeros((len(history.classes), len(history.classes)), dtype=int)
    for true, answer, count in history.confusion:
        matrix[true, answer] = count
    names = [task.eval_dataset.features["label"].int2str(task.eval_dataset["label"][:]) for task in stream]
    assert matrix.sum(axis=1).tolist() == [sum(names, []).count(name) for name in history.classes]
    for task, accuracy in zip(stream, history.accuracy_matrix[-1], strict=True):
        rows = [history.classes.index(name) for name in task.classes]
        assert matrix[rows, rows].sum() / matrix[rows].sum() == pytest.approx(accuracy)
    trainer.evaluate("task-01")
    trainer.evaluate()
    first, last = (History.load(tmp_path / "out" / stage) for stage in ("task-01", "task-02"))
    assert last.confusion == History.load(tmp_path / "out").confusion == history.confusion
    assert {row[0] for row in first.confusion} == set(range(len(first.classes)))
    assert first.is_start_of(last)
