"""Several processes: both hold the same weights and memory, and no image is written twice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

EXAMPLE = Path(__file__).parents[1] / "examples" / "train_cil.py"
LAUNCH_FILES = EXAMPLE.parent / "accelerate"

SCRIPT = """
import hashlib, json, os, sys
sys.path[:0] = [{root!r}, {tests!r}]
import conftest
from transformers import ViTConfig, set_seed
from hf_wakesleep import (ClassIncrementalStream, ContinualTrainer, ContinualTrainingArguments, WakeSleepConfig,
                          WakeSleepForImageClassification, sleep)
from conftest import FAST, digits_of
from datasets import DatasetDict

size = 64 if "even" in sys.argv[3:] else 47
data = digits_of(range(4), size).train_test_split(
    test_size=0.25, seed=0, stratify_by_column="label" if size == 64 else None)
args = ContinualTrainingArguments(sys.argv[1], **{{**FAST, "use_cpu": True, "codec": "raw", "memory_budget": "30KB",
                                  "per_device_eval_batch_size": 7, **json.loads(sys.argv[2])}})
if "shard" in sys.argv[3:]:  # accelerate shards on accelerators only: let it take the CPU for one
    from accelerate import PartialState
    from accelerate.utils import DistributedType
    os.environ.update(ACCELERATE_USE_CPU="true", ACCELERATE_USE_FSDP="true", FSDP_VERSION="2",
                      FSDP_AUTO_WRAP_POLICY="TRANSFORMER_BASED_WRAP", FSDP_TRANSFORMER_CLS_TO_WRAP="ViTLayer",
                      FSDP_STATE_DICT_TYPE="FULL_STATE_DICT", FSDP_RESHARD_AFTER_FORWARD="true")
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
set_seed(0)
vit = ViTConfig(image_size=8, patch_size=2, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                num_attention_heads=2)
model = WakeSleepForImageClassification(WakeSleepConfig(backbone_config=vit, pooling="mean", image_size=8))
trainer = ContinualTrainer(model=model, args=args, stream=ClassIncrementalStream(data, num_tasks=2, seed=1))
if "leave" in sys.argv[3:]:  # one process changes a weight for itself
    trainer.sleep = lambda: trainer.model.head.classifier.bias.data.add_(args.process_index)
if "break" in sys.argv[3:]:
    watch = trainer.guard.watch
    trainer.guard.watch = lambda loss: watch(loss / (args.process_index or trainer.state.global_step != 3))
if "stop" in sys.argv[3:] and args.process_index == 1:  # a signal reaches one process only
    take_step = sleep.Replay._take_step
    def stopping(replay):
        if replay.step == 3:
            os.kill(os.getpid(), 15)
        take_step(replay)
    sleep.Replay._take_step = stopping
trainer.train(resume_from_checkpoint=True)
if "shard" in sys.argv[3:]:
    assert trainer.accelerator.is_fsdp2
digest = hashlib.sha256()
for name, value in sorted(trainer.model.state_dict().items()):
    digest.update(name.encode() + value.numpy().tobytes())
images, labels = trainer.memory.read(range(len(trainer.memory)))
pairs = sorted((label.item(), image.numpy().tobytes()) for image, label in zip(images, labels))
memory = hashlib.sha256(repr(pairs).encode()).hexdigest()  # in any order: herding follows the features to the last bit
report = {{"world": args.world_size, "weights": digest.hexdigest(), "memory": memory, "codes": len(trainer.memory),
           "counts": trainer.model.head.recall.counts.tolist(), "matrix": trainer.history.accuracy_matrix}}
with open(os.path.join(sys.argv[1], f"rank-{{args.process_index}}.json"), "w") as file:
    json.dump(report, file)
trainer.accelerator.end_training()
"""


def launch(folder: Path, processes: int, *accidents: str, **args) -> subprocess.CompletedProcess:
    """Run two tasks of digits in so many processes, or go on with them."""
    folder.mkdir(exist_ok=True)
    script = folder / "script.py"
    script.write_text(SCRIPT.format(root=str(Path(__file__).parents[1]), tests=str(Path(__file__).parent)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, str(script), str(folder), json.dumps(args), *accidents],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def run(folder: Path, processes: int, *accidents: str, **args) -> list[dict]:
    """Return what each of so many processes saw of two tasks of digits."""
    done = launch(folder, processes, *accidents, **args)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(processes)]


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
    names = {path.name for path in folder.iterdir()} - {"rank-0.json", "rank-1.json", "script.py"}
    assert names == {"history.json", "history.png", "task-01", "task-02"}


def pooled(report: dict) -> float:
    """Return the mean of the last row, whose two tasks have as many images."""
    return sum(report["matrix"][-1]) / 2


def assert_same_weights(stage: Path, other: Path, most: float = 1e-4) -> None:
    """Compare the networks of two stages; statistics of recall have other scales, and follow from them."""
    weights, others = (load_file(folder / "model.safetensors") for folder in (stage, other))
    for name, value in weights.items():
        if "recall" not in name:
            torch.testing.assert_close(value, others[name], rtol=0, atol=most, msg=name)


def test_two_processes_learn_what_one_learns_with_the_same_total_batch(tmp_path):
    """Batches that divide the images evenly are the same images, so weights differ by rounding only.

    Output units start at random: solving for those of recall magnifies the rounding of its statistics.
    """
    settings = {"num_train_epochs": 2, "sleep_steps": 20, "learning_rate": 1e-3, "sleep_learning_rate": 1e-3}
    settings["head_init"] = "random"
    (one,) = run(tmp_path / "one", 1, "even", **settings, per_device_train_batch_size=16)
    two, _ = run(tmp_path / "two", 2, "even", **settings, per_device_train_batch_size=8)
    assert_same_weights(tmp_path / "one" / "task-01", tmp_path / "two" / "task-01")
    assert_same_weights(tmp_path / "one" / "task-02", tmp_path / "two" / "task-02", most=1e-3)  # rounding grows
    assert pooled(two) == pytest.approx(pooled(one), abs=1 / 64)  # one image, on a boundary within that rounding
    assert two["memory"] == one["memory"]


def test_shards_learn_what_whole_models_learn_and_can_be_stopped(tmp_path):
    """FSDP2, on two processes: accelerate shards on a CPU once it is told that it may."""
    settings = {"num_train_epochs": 2, "sleep_steps": 20, "learning_rate": 1e-3, "sleep_learning_rate": 1e-3}
    settings |= {"save_strategy": "steps", "save_steps": 4, "per_device_train_batch_size": 8}
    whole, _ = run(tmp_path / "whole", 2, "even", **settings)
    shards = run(tmp_path / "shards", 2, "even", "shard", **settings)
    assert shards[0] == shards[1]
    assert_same_weights(tmp_path / "whole" / "task-01", tmp_path / "shards" / "task-01")
    assert pooled(shards[0]) == pytest.approx(pooled(whole), abs=1 / 64)  # one image, as above
    done = launch(tmp_path / "stopped", 2, "even", "shard", "stop", **settings)
    assert "Stopped by signal 15" in done.stderr
    assert run(tmp_path / "stopped", 2, "even", "shard", **settings) == shards


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_launch_file_of_fsdp_trains_on_two_gpus(tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(LAUNCH_FILES / "fsdp.yaml")]
    command += [str(EXAMPLE), "--output_dir", str(tmp_path / "out"), "--num_tasks", "2", "--sleep_steps", "50"]
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLE.parents[1])}
    subprocess.run(command, env=environment, check=True)
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
    done = launch(tmp_path / "out", 2, "stop", **LEARNING)
    assert done.returncode != 0
    assert "Stopped by signal 15" in done.stderr
    checkpoints = (tmp_path / "out" / "checkpoints" / "task-01").glob("checkpoint-*")
    last = max(int(path.name.removeprefix("checkpoint-")) for path in checkpoints)
    assert last == 4 * 5 + 4  # steps of wake and of sleep
    assert run(tmp_path / "out", 2, **LEARNING) == learned[0]


def test_a_loss_of_one_of_two_processes_that_is_not_finite_stops_both(learned, tmp_path):
    done = launch(tmp_path / "out", 2, "break", **LEARNING)
    assert done.returncode != 0
    assert done.stderr.count("Expected a finite loss, but that of step 4 of the wake of task-01") >= 2
    assert run(tmp_path / "out", 2, **LEARNING) == learned[0]


def test_processes_that_hold_different_weights_are_found_out(tmp_path):
    done = launch(tmp_path / "out", 2, "leave", **LEARNING)
    assert done.returncode != 0
    assert "hold the same after task-01, but on [1] not the same as on 0: head.classifier.bias." in done.stderr
    assert not (tmp_path / "out" / "task-01").exists()
