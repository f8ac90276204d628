"""What two runs must share, and which tasks are behind a history."""

from pathlib import Path

import pytest
from conftest import make_images
from test_history import make_history

from hf_wakesleep import ClassIncrementalStream
from hf_wakesleep.protocol import align_tasks, check_same_run, make_protocol


@pytest.fixture
def stream():
    names = [f"class {number}" for number in range(1, 5)]
    return ClassIncrementalStream(make_images([0, 1, 2, 3] * 5, names), num_tasks=4)


def test_a_protocol_is_that_of_its_own_run(make_model, make_args, stream):
    protocol = make_protocol(make_model(), make_args(), stream)
    check_same_run(Path("out"), protocol, make_protocol(make_model(seed=1), make_args(sleep_steps=9), stream))


def test_every_difference_is_named(make_model, make_args, stream):
    there = make_protocol(make_model(), make_args(), stream)
    other = ClassIncrementalStream(make_images([0, 1, 2, 3] * 5, "abcd"), num_tasks=4, seed=1)
    here = make_protocol(make_model(image_size=16), make_args(seed=1, codec="raw", memory_budget="1MB"), other)
    with pytest.raises(ValueError, match="belongs to another run") as error:
        check_same_run(Path("out"), there, here)
    for part in (
        "seed is 42 there, 1 here",
        "codec is",
        "memory_budget is None there, 1000000",
        "image_size",
        "tasks[0]",
    ):
        assert part in str(error.value)


def test_finished_tasks_are_found_at_the_start_of_the_whole_stream(stream):
    assert align_tasks(stream, make_history()) == list(stream)


def test_new_tasks_come_after_the_finished_ones():
    new = ClassIncrementalStream(make_images([0, 1] * 5, ["x", "y"]), num_tasks=2)
    assert align_tasks(new, make_history()) == [None, None, None, *new]


def test_a_stream_in_another_order_is_refused():
    names = ["class 3", "class 2", "class 1", "class 4"]
    other = ClassIncrementalStream(make_images([0, 1, 2, 3] * 5, names), num_tasks=4)
    with pytest.raises(ValueError, match="3 of its classes are known already"):
        align_tasks(other, make_history())
