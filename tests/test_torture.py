"""A short form of examples/benchmarks/torture.py: kills that strike while something is written, and at any moment."""

import importlib.util
from pathlib import Path

TORTURE = Path(__file__).parents[1] / "examples" / "benchmarks" / "torture.py"


def load_torture():
    spec = importlib.util.spec_from_file_location("torture", TORTURE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_run_that_is_killed_again_and_again_ends_the_same(tmp_path):
    torture = load_torture()
    args = ["--num_tasks", "2", "--sleep_steps", "40", "--save_strategy", "steps", "--save_steps", "7"]
    args += ["--disable_tqdm", "true"]
    *lines, failed = torture.kill_runs(tmp_path, 1, kills=3, per_run=3, seed=0, train_args=args)
    rows = [line for line in lines if line.startswith("| killed-")]
    assert len(rows) == 3
    assert [row.split("|")[-2].strip() for row in rows] == ["yes"] * 3
    assert failed == "0"
    assert "3 of 3 kills ended identical" in lines


def test_a_run_that_ends_otherwise_is_told_apart(tmp_path):
    torture = load_torture()
    run = torture.Run(tmp_path, 1, [])
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
