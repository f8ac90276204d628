"""Faults of the machine: a full disk, a folder that takes nothing, images that are gone, a worker that dies."""

import os
import shutil
import signal
import subprocess
from contextlib import contextmanager

import numpy as np
import pytest
from conftest import STOPPABLE
from datasets import load_dataset
from PIL import Image as Pillow
from runs import assert_same_end
from transformers import TrainerCallback

from hf_wakesleep import ClassIncrementalStream, WakeSleepForImageClassification
from hf_wakesleep.data.images import TaskImages
from hf_wakesleep.stages.stage import find_stages
from hf_wakesleep.storage.atomic import find_leftovers

pytestmark = pytest.mark.slow


@contextmanager
def small_disk(folder, options):
    """Mount a file system in memory on a folder; skip where that is not allowed."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"a file system cannot be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("size", [100, 270, 560, 850, 1000])  # kB: where the disk is full differs
def test_a_full_disk_stops_with_advice_and_the_run_goes_on_when_there_is_room(whole, make_trainer, tmp_path, size):
    out = tmp_path / "stopped"
    with small_disk(out, f"size={size}k"):
        with pytest.raises(OSError, match=r"(?s)Expected to write .*stopped.* Free some space") as caught:
            make_trainer(output_dir="stopped", **STOPPABLE).train()
        assert isinstance(caught.value.__cause__, Exception)
        assert find_leftovers(out) + list(out.glob("checkpoints/*/.*.tmp")) == []
        for stage in find_stages(out):
            WakeSleepForImageClassification.from_pretrained(stage)
        subprocess.run(["mount", "-o", "remount,size=50m", str(out)], check=True)
        resumed = make_trainer(output_dir="stopped", **STOPPABLE)
        resumed.train(resume_from_checkpoint=True)
        assert_same_end(whole, resumed)


def test_a_folder_that_takes_nothing_is_refused_at_once(make_trainer, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"Expected to write .*file.* choose another `output_dir`"):
        make_trainer(output_dir="file")
    with pytest.raises(OSError, match=r"Expected to write .*file/inside"):
        make_trainer(output_dir="file/inside")
    with (
        small_disk(tmp_path / "fixed", "ro"),
        pytest.raises(OSError, match=r"Expected to write .*fixed.*Read-only file system.* give the right to write"),
    ):
        make_trainer(output_dir="fixed")


class _Call(TrainerCallback):
    """Calls something after the sleep of the first task."""

    def __init__(self, call):
        self.call = call

    def on_train_end(self, args, state, control, **kwargs):
        if self.call is not None:
            self.call()
        self.call = None


def test_an_image_that_is_gone_between_tasks_is_named_and_the_run_goes_on_when_it_is_back(make_trainer, tmp_path):
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in "abcd":
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for index in range(12):
                pixels = generator.integers(0, 256, (8, 8), dtype=np.uint8)
                Pillow.fromarray(pixels).save(tmp_path / "images" / split / name / f"{index:02d}.png")
    settings = {"num_train_epochs": 1, "sleep_steps": 3, "save_strategy": "steps", "save_steps": 1}

    def build(folder):
        data = load_dataset("imagefolder", data_dir=str(tmp_path / "images"), cache_dir=str(tmp_path / "cache"))
        return make_trainer(output_dir=folder, stream=ClassIncrementalStream(data, num_tasks=2, seed=0), **settings)

    whole = build("whole")
    whole.train()
    stopped = build("stopped")
    gone = tmp_path / "images" / "train" / stopped.stream[1].classes[0] / "03.png"
    stopped.add_callback(_Call(lambda: shutil.move(gone, tmp_path / "kept.png")))
    with pytest.raises(ValueError, match=r"image \d+ of the training images of task-02 cannot be read .*03\.png"):
        stopped.train()
    assert [stage.name for stage in find_stages(tmp_path / "stopped")] == ["task-01"]
    shutil.move(tmp_path / "kept.png", gone)
    resumed = build("stopped")
    resumed.train(resume_from_checkpoint=True)
    assert_same_end(whole, resumed)


def test_a_worker_that_dies_stops_the_run_which_goes_on(make_trainer, tmp_path, monkeypatch):
    settings = {**STOPPABLE, "dataloader_num_workers": 2}
    whole = make_trainer(output_dir="whole", **settings)
    whole.train()
    parent, get = os.getpid(), TaskImages.__getitem__

    def dying(self, row):
        if os.getpid() != parent and self.name == "the training images of task-02" and row == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return get(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(TaskImages, "__getitem__", dying)
        stopped = make_trainer(output_dir="stopped", **settings)
        with pytest.raises(RuntimeError, match="DataLoader worker"):
            stopped.train()
    assert [stage.name for stage in find_stages(tmp_path / "stopped")] == ["task-01"]
    resumed = make_trainer(output_dir="stopped", **settings)
    resumed.train(resume_from_checkpoint=True)
    assert_same_end(whole, resumed)


def test_a_clock_that_jumps_changes_nothing_but_seconds(whole, make_trainer, monkeypatch):
    ticks = iter(range(10**9, 0, -3600))
    monkeypatch.setattr("time.time", lambda: float(next(ticks)))
    jumping = make_trainer(output_dir="jumping", **STOPPABLE)
    jumping.train()
    assert_same_end(whole, jumping)
    assert all(record.wake_seconds > 0 and record.sleep_seconds > 0 for record in jumping.history.records)
