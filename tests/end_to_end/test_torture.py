"""A short form of examples/benchmarks/torture.py: kills while something is written and at any moment; bad inputs."""

import os
import signal
import time

import pytest
import torture
from torture_kills import Kill, Run, kill_runs, set_costs

pytestmark = pytest.mark.slow


def test_a_run_that_is_killed_again_and_again_ends_the_same(tmp_path, capsys):
    args = ["--num_tasks", "2", "--sleep_steps", "40", "--save_strategy", "steps", "--save_steps", "7"]
    args += ["--disable_tqdm", "true"]
    kills, interval = kill_runs(tmp_path, 1, kills=2, per_run=2, seed=0, train_args=args)
    assert [kill.differing for kill in kills] == [[], []]
    assert all(kill.at > 0 and kill.restart > 0 and kill.cost != 0 for kill in kills)
    assert interval > 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| killed-")]
    assert [row.split("|")[-2].strip() for row in rows] == ["yes"] * 2


def test_a_run_that_ends_otherwise_is_told_apart(tmp_path):
    run = Run(tmp_path, 1, [])
    (tmp_path / "task-01" / "memory").mkdir(parents=True)
    weights = tmp_path / "task-01" / "model.safetensors"
    history = tmp_path / "history.json"
    weights.write_bytes(b"1")
    history.write_text('{"accuracy": 1, "records": [{"wake_seconds": 3, "sleep": {"seconds": 1, "loss": 2}}]}')
    first = run.outcome()
    history.write_text('{"accuracy": 1, "records": [{"wake_seconds": 4, "sleep": {"seconds": 9, "loss": 2}}]}')
    assert run.outcome() == first
    history.write_text('{"accuracy": 1, "records": [{"wake_seconds": 4, "sleep": {"seconds": 9, "loss": 3}}]}')
    assert run.outcome() != first
    weights.write_bytes(b"2")
    (tmp_path / ".task-02.tmp").mkdir()
    changed = run.outcome()
    assert changed["task-01/model.safetensors"] != first["task-01/model.safetensors"]
    assert changed[".task-02.tmp"] == "left behind"


def test_a_kill_costs_what_its_stretch_of_work_took_longer():
    kills = [Kill("run", "any moment", "awake", lost=0, at=at) for at in (3, 25, 30)]
    usual = {"checkpoint-7": 5.0, "task-01": 9.0, "end": 12.0}
    saves = {"checkpoint-7": 14.0, "only here": 20.0, "task-01": 44.0, "end": 47.0}
    set_costs(kills, saves, usual)
    assert [kill.cost for kill in kills] == [9, 13, 13]


def test_what_goes_wrong_in_a_trial_is_named():
    def fail():
        raise KeyError

    assert torture.isolated(lambda: None) is None
    assert torture.isolated(lambda: "3: wrong") == "3: wrong"
    assert torture.isolated(lambda: os.kill(os.getpid(), signal.SIGKILL)) == "crash: the process ended with -9"
    assert torture.isolated(fail) == "crash: the process ended with 1"
    assert torture.isolated(lambda: time.sleep(60), seconds=0.2) == "hang: 0.2 seconds and no end"
    assert torture.report([lambda: None, fail, lambda: None]) == 1


def test_malformed_inputs_are_tried_and_counted():
    args = torture.read_arguments(["inputs", "--every", "60"], [])
    row = args.function(args)
    assert row.times >= 10
    assert row.failures == 0
    assert str(row) == f"| malformed inputs | {row.times} | 0 |  |  |"
