"""Small real data, small models and fast settings that all tests share. No network, and no GPU unless asked for."""

import gc
import os
import tempfile

from paths import ROOT, TESTS

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="hf_wakesleep_tests_")
os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("TEST_CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # three workers share two cores: some tests wait
os.environ["PYTHONPATH"] = os.pathsep.join(  # of programs that tests start
    [str(TESTS / "children"), str(ROOT)]
)

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from hypothesis import settings
from sklearn.datasets import load_digits
from transformers import ViTConfig, set_seed

from hf_wakesleep import (
    ClassIncrementalStream,
    ContinualTrainer,
    ContinualTrainingArguments,
    RawCodec,
    SemiParametricMemory,
    WakeSleepConfig,
    WakeSleepForImageClassification,
)
from hf_wakesleep.data.images import ImageReader, TaskImages, make_image_processor

settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("fixed")
gc.freeze()  # every task ends with a collection, which else goes through all that was imported: half a second

NAMES = ["0", "1", "2", "3"]  # of the classes of `digits`
PARTS = 4  # that long tests are cut into, for workers to share


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="Run all of the mutations, not a sample.")


FAST = {
    "num_train_epochs": 1,
    "learning_rate": 3e-3,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 128,
    "wake_plasticity": "full",
    "sleep_steps": 5,
    "sleep_batch_size": 16,
    "backbone_learning_rate_ratio": 1.0,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


def make_images(labels, names, *, side=8, seed=0) -> Dataset:
    """Return a dataset of random grey images with the given labels, one image a row."""
    pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), side, side), dtype=np.uint8)
    features = Features({"image": Image(), "label": ClassLabel(names=list(names))})
    return Dataset.from_dict({"image": list(pixels), "label": list(labels)}, features=features)


def images_of(count, seed=0, side=8) -> torch.Tensor:
    """Return random images in colour, uint8 of shape (count, 3, side, side)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


def digits_of(classes, per_class) -> Dataset:
    """Return the first images of some classes of scikit-learn's digits."""
    source = load_digits()
    rows = np.concatenate([np.flatnonzero(source.target == digit)[:per_class] for digit in classes])
    features = Features({"image": Image(), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
    pixels = np.round(source.images[rows] * (255 / 16)).astype(np.uint8)
    return Dataset.from_dict({"image": list(pixels), "label": source.target[rows]}, features=features)


@pytest.fixture(scope="session")
def digits() -> DatasetDict:
    """Four classes of digits: 100 training and 40 evaluation images each."""
    data = digits_of(range(4), 140)
    rows = np.arange(len(data)) % 140
    return DatasetDict(train=data.select(np.flatnonzero(rows < 100)), test=data.select(np.flatnonzero(rows >= 100)))


@pytest.fixture
def make_model():
    """Return a function that builds a model without classes around a small ViT from scratch, always the same one."""

    def build(seed: int = 0, **config) -> WakeSleepForImageClassification:
        set_seed(seed)
        vit = ViTConfig(
            image_size=8,
            patch_size=2,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            hidden_dropout_prob=0.1,
            initializer_range=0.05,
        )
        return WakeSleepForImageClassification(
            WakeSleepConfig(**{"backbone_config": vit, "pooling": "mean", "image_size": 8, **config})
        )

    return build


@pytest.fixture
def make_args(tmp_path):
    """Return a function that builds arguments of a run of seconds; `output_dir` is relative to `tmp_path`."""

    def build(output_dir: str = "out", **changes) -> ContinualTrainingArguments:
        return ContinualTrainingArguments(str(tmp_path / output_dir), **{**FAST, **changes})

    return build


@pytest.fixture
def make_stream(digits):
    """Return a function that builds a stream of two tasks of digits."""
    return lambda **changes: ClassIncrementalStream(digits, **{"num_tasks": 2, "seed": 3, **changes})


@pytest.fixture
def make_trainer(make_model, make_args, make_stream):
    """Return a function that builds a trainer of the model, arguments and stream of the fixtures."""

    def build(
        model=None,
        stream=None,
        callbacks=(),
        given_codec=None,
        lora_config=None,
        compute_metrics=None,
        eval_dataset=None,
        **args,
    ):
        return ContinualTrainer(
            model=model or make_model(),
            args=make_args(**args),
            stream=stream or make_stream(),
            codec=given_codec,
            lora_config=lora_config,
            callbacks=list(callbacks),
            compute_metrics=compute_metrics,
            eval_dataset=eval_dataset,
        )

    return build


STOPPABLE = {  # 14 steps awake, 10 asleep, per task
    "num_train_epochs": 2,
    "sleep_steps": 10,
    "save_strategy": "steps",
    "save_steps": 4,
    "augmentation": "crop",
}
_FINISHED = {}  # by settings


@pytest.fixture
def run_once(make_trainer):
    """Return a function that returns a finished run with some settings, which was never stopped; it runs once."""

    def run(settings) -> ContinualTrainer:
        if repr(settings) not in _FINISHED:
            trainer = make_trainer(output_dir="whole", **settings)
            trainer.train()
            _FINISHED[repr(settings)] = trainer
        return _FINISHED[repr(settings)]

    return run


@pytest.fixture
def whole(run_once):
    """Return a finished run of `STOPPABLE`, which was never stopped."""
    return run_once(STOPPABLE)


@pytest.fixture
def asleep(make_model, make_args, digits):
    """Return a model of four classes where it is trained, a memory of all training digits, and a reader."""
    model = make_model()
    model.grow(NAMES, torch.Generator().manual_seed(0))
    model.to(make_args().device)
    reader = ImageReader(make_image_processor(model.config))
    task = ClassIncrementalStream(digits, num_tasks=1)[0]
    images = TaskImages(task.train_dataset, model.config.label2id, "digits")
    pixels, labels = reader.read([images[row] for row in range(len(images))])
    memory = SemiParametricMemory(RawCodec(), None, NAMES)
    memory.write(memory.codec.encode(pixels), labels.numpy(), task=0)
    return model, memory, reader


def equal_states(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    """Whether two modules hold the same tensors under the same names, bit for bit, wherever they are."""
    one, two = first.state_dict(), second.state_dict()
    return one.keys() == two.keys() and all(
        one[name].dtype == two[name].dtype and torch.equal(one[name].cpu(), two[name].cpu()) for name in one
    )
