"""Stopwatch: every second counts for the phase it fell into, in the calls before a stop too."""

import json

import pytest

from hf_wakesleep.stages.stopwatch import SECONDS_NAME, Stopwatch


@pytest.fixture
def wait(monkeypatch):
    """Return a function that lets some seconds pass on the clock of stopwatches."""
    passed = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: sum(passed))
    return passed.append


def test_every_second_counts_for_the_phase_at_hand(tmp_path, wait):
    stopwatch = Stopwatch()
    wait(2)
    stopwatch.enter("asleep")
    wait(3)
    stopwatch.save(tmp_path)
    assert json.loads((tmp_path / SECONDS_NAME).read_text()) == {"awake": 2, "napping": 0, "asleep": 3}
    wait(4)
    stopwatch.enter("awake")
    wait(5)
    assert stopwatch.read() == {"awake": 7, "napping": 0, "asleep": 7}


def test_it_goes_on_from_what_was_saved_where_something_was(tmp_path, wait):
    stopwatch = Stopwatch()
    wait(1)
    stopwatch.load(tmp_path)
    assert stopwatch.read()["awake"] == 1
    (tmp_path / SECONDS_NAME).write_text(json.dumps({"awake": 5_000.0, "napping": 7.0, "asleep": 0.0}))
    stopwatch.load(tmp_path)
    wait(2)
    assert stopwatch.read() == {"awake": 5_002, "napping": 7, "asleep": 0}
