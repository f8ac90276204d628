"""Stopwatch: every second counts for the phase it fell into, in the calls before a stop too."""

import json
import time

from hf_wakesleep.stages.stopwatch import SECONDS_NAME, Stopwatch


def test_every_second_counts_for_the_phase_at_hand(tmp_path):
    start, stopwatch = time.perf_counter(), Stopwatch()
    time.sleep(0.02)
    stopwatch.enter("asleep")
    time.sleep(0.03)
    stopwatch.save(tmp_path)
    saved = json.loads((tmp_path / SECONDS_NAME).read_text())
    stopwatch.enter("awake")
    seconds = stopwatch.read()
    assert saved["awake"] >= 0.02
    assert seconds["asleep"] >= saved["asleep"] >= 0.03
    assert seconds["napping"] == 0
    assert sum(seconds.values()) <= time.perf_counter() - start


def test_it_goes_on_from_what_was_saved_where_something_was(tmp_path):
    stopwatch = Stopwatch()
    stopwatch.load(tmp_path)
    assert 0 <= stopwatch.read()["awake"] < 1000
    (tmp_path / SECONDS_NAME).write_text(json.dumps({"awake": 5_000.0, "napping": 7.0, "asleep": 0.0}))
    stopwatch.load(tmp_path)
    time.sleep(0.01)
    seconds = stopwatch.read()
    assert 5_000.01 <= seconds["awake"] < 6_000
    assert seconds["napping"] == 7
