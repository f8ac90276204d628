"""A class that comes again, in a later task or after a stage: more images of it, in the memory of both tasks."""

import math

import numpy as np
import pytest
from conftest import digits_of
from runs import StopAt, StopError, assert_same_end

from hf_wakesleep import TaskStream, WakeSleepForImageClassification

SLOW = {"save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 8}
SPLITS = {"first": ([0, 1], 0), "second": ([1, 2], 20)}


def splits_of(*names):
    """Return 20 images of each of the classes of some tasks; no image comes twice."""
    parts = {}
    for name in names:
        classes, start = SPLITS[name]
        images = digits_of(classes, start + 20)
        labels = np.asarray(images["label"])
        rows = np.concatenate([np.flatnonzero(labels == label)[start:] for label in classes])
        parts[name] = images.select(rows)
    return parts


def check(trainer):
    first, second = trainer.history.records
    assert (first.new_classes, second.classes, second.new_classes) == (["0", "1"], ["1", "2"], ["2"])
    memory = trainer.memory
    assert trainer.model.config.classes == memory.classes == ["0", "1", "2"]
    counts = {
        (label, task): int(((memory.labels == label) & (memory.tasks == task)).sum())
        for label in range(3)
        for task in range(2)
    }
    assert counts == {(0, 0): 16, (1, 0): 16, (2, 0): 0, (0, 1): 0, (1, 1): 16, (2, 1): 16}
    assert trainer.model.head.lda.counts.tolist() == [16, 32, 16]
    assert (len(first.accuracy), len(second.accuracy), second.num_eval_images) == (1, 2, 8)


def test_a_class_comes_again_in_a_later_task(make_trainer):
    stream = TaskStream.from_splits(splits_of("first", "second"), repeats=True)
    trainer = make_trainer(stream=stream, codec="raw")
    trainer.train()
    check(trainer)
    assert not any(map(math.isnan, trainer.history.records[1].accuracy))


def test_a_class_comes_again_after_a_stage(make_trainer, tmp_path):
    make_trainer(stream=TaskStream.from_splits(splits_of("first")), codec="raw").train()
    model = WakeSleepForImageClassification.from_pretrained(tmp_path / "out" / "task-01")
    again = TaskStream.from_splits(splits_of("second"), repeats=True)
    trainer = make_trainer(output_dir="next", model=model, stream=again)
    trainer.train()
    check(trainer)
    assert list(map(math.isnan, trainer.history.records[1].accuracy)) == [True, False]
    assert trainer.history.records[1].name == "second"


def test_a_stopped_run_in_which_a_class_comes_again_goes_on(make_trainer):
    def build(name):
        stream = TaskStream.from_splits(splits_of("first", "second"), repeats=True)
        return make_trainer(output_dir=name, stream=stream, codec="raw", **SLOW)

    whole, stopped, resumed = build("whole"), build("stopped"), build("stopped")
    whole.train()
    stopped.add_callback(StopAt(stopped, task=1, step=2))
    with pytest.raises(StopError):
        stopped.train()
    resumed.train(resume_from_checkpoint=True)
    assert_same_end(whole, resumed)
    check(resumed)


def test_images_of_known_classes_are_evaluated_as_those_of_their_old_tasks(make_trainer, tmp_path):
    known = digits_of([0, 1], 60)
    make_trainer(stream=TaskStream.from_splits({"first": digits_of([0, 1], 40)})).train()
    model = WakeSleepForImageClassification.from_pretrained(tmp_path / "out" / "task-01")
    new = TaskStream.from_splits({"second": digits_of([2, 3], 40)})
    renamed = known.rename_columns({"image": "img", "label": "fine_label"})
    trainer = make_trainer(output_dir="next", model=model, stream=new, eval_dataset=renamed)
    trainer.train()
    record = trainer.history.records[1]
    assert record.accuracy[0] == trainer.evaluate(known)["eval_accuracy"]
    assert (record.evaluated_images, record.num_unevaluated) == ([120, 16], 0)
    pooled = (120 * record.accuracy[0] + 16 * record.accuracy[1]) / 136
    assert trainer.history.summary()["pooled_accuracy"] == pytest.approx(pooled)
    assert trainer.evaluate()["eval_accuracy"] == pytest.approx(pooled)


def test_images_of_unknown_classes_or_of_tasks_at_hand_are_refused(make_trainer, tmp_path):
    with pytest.raises(ValueError, match="`eval_dataset`, but 2 of its classes are not known"):
        make_trainer(eval_dataset=digits_of([0, 1], 9))
    stream = TaskStream.from_splits(splits_of("first", "second"), repeats=True)
    make_trainer(stream=TaskStream(stream[:1], stream.protocol)).train()
    model = WakeSleepForImageClassification.from_pretrained(tmp_path / "out" / "task-01")
    with pytest.raises(ValueError, match=r"`eval_dataset` holds images of \['task-01'\], but the stream brings"):
        make_trainer(output_dir="next", model=model, stream=stream, eval_dataset=digits_of([0, 1], 9))
