"""Several processes: both hold the same weights and memory, and no image is written twice."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from paths import EXAMPLES
from process_group import STOPPED_AFTER, launch, run
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

EXAMPLE = EXAMPLES / "train_cil.py"
LAUNCH_FILES = EXAMPLES / "accelerate"


@pytest.mark.parametrize("plasticity", ["full", "head", "lora"])
def test_two_processes_hold_the_same_and_write_what_one_writes(tmp_path, plasticity):
    settings = {"wake_plasticity": plasticity, "sleep_plasticity": plasticity, "per_device_train_batch_size": 16}
    both = run(tmp_path / "two", 2, **settings)
    assert both[0]["world"] == 2
    assert both[0] == both[1]
    (one,) = run(tmp_path / "one", 1, **{**settings, "per_device_train_batch_size": 32})
    assert both[0]["memory"] == one["memory"]
    assert both[0]["codes"] == one["codes"] == 141
    assert both[0]["counts"] == one["counts"]
    stages = sorted(path.name for path in (tmp_path / "two").glob("task-*"))
    assert stages == ["task-01", "task-02"]


@pytest.mark.parametrize("accident", ["noise", "norms"])
def test_what_processes_compute_or_see_for_themselves_is_shared(tmp_path, accident):
    """Sums that a device makes in any order, and running statistics of the images that a process has seen."""
    both = run(tmp_path / "out", 2, accident)
    assert both[0] == both[1]
    assert both[0]["set"] == both[0]["stream"] > 0.5
    assert both[0]["hidden"] == [47, 4]
    assert "needs a label, or none, but 1 of 2 batches have none" in both[0]["partly"]


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """Return reports and folder of two processes that were never stopped."""
    folder = tmp_path_factory.mktemp("processes") / "whole"
    return run(folder, 2, **LEARNING), folder


LEARNING = {
    "num_train_epochs": 4,
    "per_device_train_batch_size": 8,
    "sleep_steps": 40,
    "save_strategy": "steps",
    "save_steps": 10,
    "augmentation": "crop",
}


def test_only_stages_and_history_are_left(learned):
    _, folder = learned
    names = {path.name for path in folder.iterdir() if not path.name.startswith("rank-")}
    assert names == {"history.json", "history.png", "task-01", "task-02"}


def pooled(report: dict) -> float:
    """Return the mean of the last row, whose two tasks have as many images."""
    return sum(report["matrix"][-1]) / 2


def assert_same_weights(stage: Path, other: Path, most: float = 1e-4) -> None:
    """Compare the networks of two stages; statistics of LDA have other scales, and follow from them."""
    weights, others = (load_file(folder / "model.safetensors") for folder in (stage, other))
    for name, value in weights.items():
        if "lda" not in name:
            torch.testing.assert_close(value, others[name], rtol=0, atol=most, msg=name)


def test_two_processes_learn_what_one_learns_with_the_same_total_batch(tmp_path):
    """Batches that divide the images evenly are the same images, so weights differ by rounding only.

    Output units start at random: solving for those of LDA magnifies the rounding of its statistics.
    """
    settings = {"num_train_epochs": 2, "sleep_steps": 20, "learning_rate": 1e-3}
    (one,) = run(tmp_path / "one", 1, "even", **settings, per_device_train_batch_size=16)
    two, _ = run(tmp_path / "two", 2, "even", **settings, per_device_train_batch_size=8)
    assert_same_weights(tmp_path / "one" / "task-01", tmp_path / "two" / "task-01")
    assert_same_weights(tmp_path / "one" / "task-02", tmp_path / "two" / "task-02", most=1e-3)  # rounding grows
    assert pooled(two) == pytest.approx(pooled(one), abs=1 / 64)  # one image, on a boundary within that rounding
    assert two["memory"] == one["memory"]


def test_shards_learn_what_whole_models_learn_and_can_be_stopped(tmp_path):
    """FSDP2, on two processes: accelerate shards on a CPU once it is told that it may."""
    settings = {"num_train_epochs": 2, "sleep_steps": 20, "learning_rate": 1e-3}
    settings |= {"save_strategy": "steps", "save_steps": 4, "per_device_train_batch_size": 8}
    whole, _ = run(tmp_path / "whole", 2, "even", **settings)
    shards = run(tmp_path / "shards", 2, "even", "shard", **settings)
    assert shards[0] == shards[1]
    assert_same_weights(tmp_path / "whole" / "task-01", tmp_path / "shards" / "task-01")
    assert pooled(shards[0]) == pytest.approx(pooled(whole), abs=1 / 64)  # one image, as above
    assert "Stopped by signal 15" in launch(tmp_path / "stopped", 2, "even", "shard", "stop", **settings).output
    assert run(tmp_path / "stopped", 2, "even", "shard", **settings) == shards


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_launch_file_of_fsdp_trains_on_two_gpus(tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(LAUNCH_FILES / "fsdp.yaml")]
    command += [str(EXAMPLE), "--output_dir", str(tmp_path / "out"), "--num_tasks", "2", "--sleep_steps", "50"]
    subprocess.run(command, check=True)
    assert sorted(path.name for path in (tmp_path / "out").glob("task-*")) == ["task-01", "task-02"]


def test_the_launch_file_of_two_cpu_processes_starts_two(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os; from accelerate import Accelerator\n"
        "os.write(1, f'processes {Accelerator(cpu=True).num_processes}\\n'.encode())  # in one piece"
    )
    config = str(LAUNCH_FILES / "two_cpu_processes.yaml")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config, "--main_process_port", "0"]
    done = subprocess.run([*command, str(script)], capture_output=True, text=True, check=True)
    assert done.stdout.count("processes 2") == 2


def test_a_signal_to_one_of_two_processes_stops_both_after_the_same_step(learned, tmp_path):
    ended = launch(tmp_path / "out", 2, "stop", **LEARNING)
    assert ended.exit_codes == [128 + signal.SIGTERM] * 2
    assert ended.output.count("Stopped by signal 15") >= 2
    checkpoints = (tmp_path / "out" / "checkpoints" / "task-01").glob("checkpoint-*")
    last = max(int(path.name.removeprefix("checkpoint-")) for path in checkpoints)
    assert last == 4 * 5 + STOPPED_AFTER + 1  # steps of wake and of sleep
    assert run(tmp_path / "out", 2, **LEARNING) == learned[0]


def test_a_loss_of_one_of_two_processes_that_is_not_finite_stops_both(learned, tmp_path):
    ended = launch(tmp_path / "out", 2, "break", **LEARNING)
    assert all(ended.exit_codes)
    assert ended.output.count("Expected a finite loss, but that of step 4 of the wake of task-01") >= 2
    assert run(tmp_path / "out", 2, **LEARNING) == learned[0]


def test_processes_that_hold_different_weights_are_found_out(tmp_path):
    ended = launch(tmp_path / "out", 2, "leave", **LEARNING)
    assert all(ended.exit_codes)
    assert "hold the same after task-01, but on [1] not the same as on 0: head.classifier.bias." in ended.output
    assert not (tmp_path / "out" / "task-01").exists()
