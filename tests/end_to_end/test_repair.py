"""An image that cannot be read stops a run; once it is repaired or dropped, the run goes on from its last stage."""

import math
import shutil

import numpy as np
import pytest
from conftest import digits_of
from datasets import Dataset
from datasets import Image as ImageFeature
from runs import StopAt, StopError, assert_same_end

from hf_wakesleep import ClassIncrementalStream, History, WakeSleepForImageClassification

pytestmark = pytest.mark.slow

SETTINGS = {"num_train_epochs": 2, "save_steps": 2}


def stream_of(data):
    return ClassIncrementalStream(data, classes_per_task=[2, 1], seed=0)  # first "2" and "1", then "0"


@pytest.fixture
def data(tmp_path) -> Dataset:
    """Return 60 images of three classes as paths of PNG files."""
    (tmp_path / "images").mkdir()
    digits = digits_of([0, 1, 2], 20)
    digits = digits.select(np.random.default_rng(0).permutation(60))
    paths = [str(tmp_path / "images" / f"{number}.png") for number in range(60)]
    for path, image in zip(paths, digits["image"], strict=True):
        image.save(path)
    return Dataset.from_dict({"image": paths, "label": digits["label"]}, features=digits.features)


def path_of(data, task=1, split="train_dataset") -> str:
    """Return the path of the fourth image of a task."""
    images = getattr(stream_of(data)[task], split).cast_column("image", ImageFeature(decode=False))
    return images[3]["image"]["path"]


def damage(path):
    shutil.copy(path, f"{path}.whole")
    with open(path, "r+b") as file:
        file.truncate(60)


@pytest.fixture
def drop(data):
    """Return a function that returns the data without an image."""

    def select(path):
        paths = [cell["path"] for cell in data.cast_column("image", ImageFeature(decode=False))["image"]]
        return data.select([row for row, other in enumerate(paths) if other != path])

    return select


@pytest.mark.parametrize("strategy", ["no", "steps"])
@pytest.mark.parametrize("split", ["train_dataset", "eval_dataset"])
def test_after_the_image_is_dropped_the_run_ends_as_one_that_never_had_it(
    make_trainer, data, drop, tmp_path, strategy, split
):
    path = path_of(data, 1, split)
    damage(path)
    settings = SETTINGS | {"save_strategy": strategy}
    what = "training" if split == "train_dataset" else "evaluation"
    with pytest.raises(ValueError, match=rf"image 3 of the {what} images of task-02 cannot be read \('{path}': "):
        make_trainer(stream=stream_of(data), **settings).train()
    stage = tmp_path / "out" / "task-01"
    assert WakeSleepForImageClassification.from_pretrained(stage).config.classes == ["2", "1"]
    resumed, resume = make_trainer(stream=stream_of(drop(path)), **settings), True
    if (strategy, split) == ("steps", "eval_dataset"):  # evaluated after the last step, of which there is a checkpoint
        with pytest.raises(ValueError, match=f"tasks.1.*go on from the stage before: .*='{stage}'"):
            resumed.train(resume_from_checkpoint=True)
        resume = str(stage)
    resumed.train(resume_from_checkpoint=resume)
    never = make_trainer(output_dir="never", stream=stream_of(drop(path)), **settings)
    never.train()
    assert_same_end(never, resumed)
    assert (tmp_path / "out" / "task-02").is_dir()


def test_after_the_image_is_repaired_the_run_goes_on(make_trainer, data):
    path = path_of(data)
    damage(path)
    with pytest.raises(ValueError, match="cannot be read"):
        make_trainer(stream=stream_of(data), **SETTINGS).train()
    shutil.move(f"{path}.whole", path)
    resumed, never = (make_trainer(output_dir=name, stream=stream_of(data), **SETTINGS) for name in ("out", "never"))
    resumed.train(resume_from_checkpoint=True)
    never.train()
    assert_same_end(never, resumed)


@pytest.mark.parametrize("task", [0, 1])
def test_a_memory_written_from_other_images_is_not_used(make_trainer, data, drop, tmp_path, task):
    """A task is in memory, and has no checkpoint yet, when the run is stopped and one of its images is dropped."""
    settings = {"save_strategy": "steps", "save_steps": 100}
    stopped = make_trainer(stream=stream_of(data), **settings)
    stopped.add_callback(StopAt(stopped, task, step=0))
    with pytest.raises(StopError):
        stopped.train()
    assert (tmp_path / "out" / "checkpoints" / f"task-0{task + 1}" / "ingest").is_dir()
    dropped = stream_of(drop(path_of(data, task)))
    resumed, never = (make_trainer(output_dir=name, stream=dropped, **settings) for name in ("out", "never"))
    resumed.train(resume_from_checkpoint=True)
    never.train()
    assert_same_end(never, resumed)


def test_with_forward_transfer_the_image_is_found_before_anything_is_trained(make_trainer, data, tmp_path):
    damage(path_of(data))
    with pytest.raises(ValueError, match="of the training images of task-02 cannot be read"):
        make_trainer(stream=stream_of(data), measure="full").train()
    assert not (tmp_path / "out" / "task-01").exists()


def test_what_was_measured_of_a_task_that_has_changed_is_unknown(make_trainer, data, drop, tmp_path):
    path = path_of(data)
    make_trainer(stream=stream_of(data), measure="full").train()
    assert History.load(tmp_path / "out" / "task-01").untrained.keys() == {"task-02"}
    for kept, is_known in ((data, True), (drop(path), False)):
        shutil.rmtree(tmp_path / "out" / "task-02", ignore_errors=True)
        resumed = make_trainer(stream=stream_of(kept), measure="full")
        resumed.train(resume_from_checkpoint=True)
        assert math.isnan(resumed.history.records[1].untrained_accuracy) != is_known
