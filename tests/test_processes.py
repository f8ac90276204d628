"""Several processes: both hold the same weights and memory, and no image is written twice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import hashlib, json, os, sys
sys.path[:0] = [{root!r}, {tests!r}]
import conftest
from transformers import ViTConfig, set_seed
from hf_wakesleep import (ClassIncrementalStream, ContinualTrainer, ContinualTrainingArguments, WakeSleepConfig,
                          WakeSleepForImageClassification)
from conftest import FAST, digits_of
from datasets import DatasetDict

data = digits_of(range(4), 47).train_test_split(test_size=0.25, seed=0)
args = ContinualTrainingArguments(sys.argv[1], **{{**FAST, "use_cpu": True, "codec": "raw", "memory_budget": "30KB",
                                  "per_device_eval_batch_size": 7, **json.loads(sys.argv[2])}})
set_seed(0)
vit = ViTConfig(image_size=8, patch_size=2, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                num_attention_heads=2)
model = WakeSleepForImageClassification(WakeSleepConfig(backbone_config=vit, pooling="mean", image_size=8))
trainer = ContinualTrainer(model=model, args=args, stream=ClassIncrementalStream(data, num_tasks=2, seed=1))
trainer.train()
digest = hashlib.sha256()
for name, value in sorted(trainer.model.state_dict().items()):
    digest.update(name.encode() + value.numpy().tobytes())
images, labels = trainer.memory.read(range(len(trainer.memory)))
memory = hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()
report = {{"world": args.world_size, "weights": digest.hexdigest(), "memory": memory, "codes": len(trainer.memory),
           "counts": trainer.model.head.recall.counts.tolist(), "matrix": trainer.history.accuracy_matrix}}
with open(os.path.join(sys.argv[1], f"rank-{{args.process_index}}.json"), "w") as file:
    json.dump(report, file)
"""


def run(folder: Path, processes: int, **args) -> list[dict]:
    """Run two tasks of digits in so many processes and return what each of them saw."""
    folder.mkdir()
    script = folder / "script.py"
    script.write_text(SCRIPT.format(root=str(Path(__file__).parents[1]), tests=str(Path(__file__).parent)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(script), str(folder), json.dumps(args)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(processes)]


@pytest.mark.parametrize("wake_plasticity", ["full", "head"])
def test_two_processes_hold_the_same_and_write_what_one_writes(tmp_path, wake_plasticity):
    settings = {"wake_plasticity": wake_plasticity, "per_device_train_batch_size": 16}
    both = run(tmp_path / "two", 2, **settings)
    assert both[0]["world"] == 2
    assert both[0] == both[1]
    (one,) = run(tmp_path / "one", 1, **{**settings, "per_device_train_batch_size": 32})
    assert both[0]["memory"] == one["memory"]
    assert both[0]["codes"] == one["codes"] == 141
    assert both[0]["counts"] == one["counts"]
    stages = sorted(path.name for path in (tmp_path / "two").glob("task-*"))
    assert stages == ["task-01", "task-02"]
