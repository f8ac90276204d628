"""What two runs must share, and which tasks are behind a history."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import make_images
from histories import make_history

from hf_wakesleep import (
    ClassIncrementalStream,
    DomainIncrementalStream,
    History,
    RawCodec,
    SemiParametricMemory,
    TaskStream,
)
from hf_wakesleep.stages.protocol import align_tasks, check_same_run, is_same_run, make_protocol


@pytest.fixture
def stream():
    names = [f"class {number}" for number in range(1, 5)]
    return ClassIncrementalStream(make_images([0, 1, 2, 3] * 5, names), num_tasks=4)


def history_of(stream, count) -> History:
    """Return the history of a run that has learned the first tasks of a stream."""
    history = make_history(rows=[[0.5] * (number + 1) for number in range(count)])
    for record, task in zip(history.records, stream, strict=False):
        record.classes, record.new_classes = list(task.classes), list(task.new_classes)
        record.fingerprint = task.fingerprint()
    return history


SEED = 42


def memory_of(budget=None):
    return SemiParametricMemory(RawCodec(), budget)


def test_a_protocol_is_that_of_its_own_run_at_every_task(make_model, stream):
    protocol = make_protocol(make_model(), SEED, stream, History(), memory_of())
    assert json.loads(json.dumps(protocol)) == protocol
    for count in (0, 2, 4):
        later = make_protocol(make_model(seed=1), SEED, stream, history_of(stream, count), memory_of())
        check_same_run(Path("out"), protocol, later)


def test_every_difference_is_named(make_model, stream):
    there = make_protocol(make_model(), SEED, stream, History(), memory_of())
    other = ClassIncrementalStream(make_images([0, 1, 2, 3] * 5, "abcd"), num_tasks=4, seed=np.int64(1))
    here = make_protocol(make_model(image_size=16), 1, other, History(), memory_of(1_000_000))
    with pytest.raises(ValueError, match="belongs to another run") as error:
        check_same_run(Path("out"), there, here)
    for part in ("seed is 42 there, 1 here", "memory.budget is None there, 1000000", "image_size", "tasks[0]"):
        assert part in str(error.value)


def test_finished_tasks_are_found_at_the_start_of_the_whole_stream(stream):
    assert align_tasks(stream, history_of(stream, 3)) == list(stream)


def test_new_tasks_come_after_the_finished_ones(stream):
    new = ClassIncrementalStream(make_images([0, 1] * 5, ["x", "y"]), num_tasks=2)
    assert align_tasks(new, history_of(stream, 3)) == [None, None, None, *new]
    later = TaskStream(stream[1:], stream.protocol)
    for count in (1, 2, 3, 4):
        assert align_tasks(later, history_of(stream, count)) == [None, *later]


def test_a_stream_in_another_order_is_refused(stream):
    names = ["class 3", "class 2", "class 1", "class 4"]
    other = ClassIncrementalStream(make_images([0, 1, 2, 3] * 5, names), num_tasks=4)
    with pytest.raises(ValueError, match="3 of its classes or domains are known already"):
        align_tasks(other, history_of(stream, 3))


def test_a_new_domain_of_known_classes_is_new_and_a_known_one_is_refused():
    def domain(name):
        images = make_images([0, 1] * 5, ["x", "y"])
        return DomainIncrementalStream(images.add_column("domain", [name] * 10))

    history = history_of(domain("a"), 1)
    assert [task and task.name for task in align_tasks(domain("b"), history)] == [None, "b"]
    changed = DomainIncrementalStream(make_images([0, 1] * 6, ["x", "y"]).add_column("domain", ["a"] * 12))
    with pytest.raises(ValueError, match=r"known already \(\['a'\]\)"):
        align_tasks(changed, history)


def test_only_tasks_that_are_learned_must_be_the_same(make_model, stream):
    there = make_protocol(make_model(), SEED, stream, history_of(stream, 2), memory_of())
    task = stream[2]
    changed = replace(task, train_dataset=task.train_dataset.select(range(1, len(task.train_dataset))))
    other = TaskStream([*stream[:2], changed, stream[3]], stream.protocol)
    here = make_protocol(make_model(), SEED, other, history_of(stream, 2), memory_of())
    for count, is_same in ((0, True), (2, True), (3, False), (4, False)):
        assert is_same_run(there, here, count) == is_same
    check_same_run(Path("out"), there, here, 2)
    with pytest.raises(ValueError, match=r"num_train is 4 there, 3 here.*, or so\.$"):
        check_same_run(Path("out"), there, here, 3, ", or so")
    assert not is_same_run(there, {**here, "seed": 5}, 0)
    assert is_same_run({"stream": None}, {"stream": None}, 2)


def test_the_dataset_is_named_only_where_all_tasks_came_from_it(make_model, stream):
    def dataset_of(history, **protocol):
        new = TaskStream(stream[2:], {**stream.protocol, **protocol})
        return make_protocol(make_model(), SEED, new, history, memory_of())["stream"]["dataset"]

    things, others = ({"name": name, "revision": "1"} for name in ("me/things", "me/others"))
    history = history_of(stream, 2)
    history.protocol = {"stream": {"dataset": things}}
    assert dataset_of(history, dataset=things) == things
    assert dataset_of(history, dataset=others) is None
    assert dataset_of(History(), dataset=others) == others


def test_known_classes_come_again_in_a_stream_with_repeats_but_no_known_task(stream):
    again = {"more": make_images([0, 1] * 5, ["class 1", "class 9"], seed=5)}
    history = history_of(stream, 3)
    with pytest.raises(ValueError, match=r"known already \(\['class 1'\]\).*repeats=True"):
        align_tasks(TaskStream.from_splits(again), history)
    new = TaskStream.from_splits(again, repeats=True)
    assert align_tasks(new, history) == [None, None, None, *new]
    known = TaskStream.from_splits({"task-02": again["more"]}, repeats=True)
    with pytest.raises(ValueError, match=r"known already \(\['task-02'\]\)"):
        align_tasks(known, history)
