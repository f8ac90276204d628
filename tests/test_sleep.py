"""consolidate: its loss, what it trains and reports, and recall brought up to date."""

import copy
import math

import numpy as np
import pytest
import torch
from conftest import equal_states
from torch.nn import functional as F

from hf_wakesleep import ClassIncrementalStream, RawCodec, SemiParametricMemory, consolidate
from hf_wakesleep.head_wakesleep import Recall
from hf_wakesleep.images import ImageReader, TaskImages, make_image_processor
from hf_wakesleep.sleep import _distillation, held_out, parameter_groups, set_plasticity, snapshot, update_recall

NAMES = ["0", "1", "2", "3"]


@pytest.fixture
def asleep(make_model, digits):
    """Return a model of four classes, a memory of all training digits, and a reader."""
    model = make_model()
    model.grow(NAMES, torch.Generator().manual_seed(0))
    reader = ImageReader(make_image_processor(model.config))
    task = ClassIncrementalStream(digits, num_tasks=1)[0]
    images = TaskImages(task.train_dataset, model.config.label2id, "digits")
    pixels, labels = reader.read([images[row] for row in range(len(images))])
    memory = SemiParametricMemory(RawCodec(), None, NAMES)
    memory.write(memory.codec.encode(pixels), labels.numpy(), task=0)
    return model, memory, reader


def accuracy(model, memory, reader, part="logits") -> float:
    images, labels = memory.read(np.arange(len(memory)))
    with torch.no_grad():
        logits = getattr(model.eval()(reader.normalise(images)), part)
    return (logits.argmax(dim=-1) == labels).float().mean().item()


def test_a_network_learns_from_its_memories_alone(asleep, make_args):
    model, memory, reader = asleep
    report = consolidate(model, memory, reader, make_args(sleep_steps=150, sleep_batch_size=32))
    assert accuracy(model, memory, reader, "classifier_logits") > 0.85
    assert accuracy(model, memory, reader) > 0.85
    assert (report.steps, report.images) == (150, 150 * 32)
    assert report.loss == pytest.approx(report.cross_entropy)
    assert report.distillation == 0
    assert report.held_out_accuracy > 0.7
    assert report.recall_weight == model.config.recall_weight
    assert report.seconds > 0


def test_the_same_sleep_gives_the_same_weights(asleep, make_args):
    model, memory, reader = asleep
    twin = copy.deepcopy(model)
    for sleeper in (model, twin):
        torch.manual_seed(0)
        consolidate(sleeper, memory, reader, make_args(augmentation="crop-flip"), teacher=snapshot(sleeper), task=3)
    assert equal_states(model, twin)


def test_a_plastic_head_alone_leaves_the_backbone_as_it_was(asleep, make_args):
    model, memory, reader = asleep
    before = copy.deepcopy(model)
    consolidate(model, memory, reader, make_args(sleep_plasticity="head"))
    assert equal_states(model.backbone, before.backbone)
    assert not torch.equal(model.head.classifier.weight, before.head.classifier.weight)


def test_an_empty_memory_is_refused(asleep, make_args):
    model, _, reader = asleep
    with pytest.raises(ValueError, match="the memory is empty"):
        consolidate(model, SemiParametricMemory(RawCodec(), None, NAMES), reader, make_args())


def test_distillation_is_the_divergence_from_the_teacher_on_old_classes_of_old_images():
    generator = torch.Generator().manual_seed(0)
    student, taught = torch.randn(4, 5, generator=generator), torch.randn(4, 3, generator=generator)
    labels, temperature = torch.tensor([0, 2, 4, 3]), 2.0

    def teacher(pixel_values):
        return type("Output", (), {"classifier_logits": taught})

    expected = 0.0
    for row in (0, 1):  # the labels that the teacher knows
        p = (taught[row] / temperature).softmax(dim=0)
        q = (student[row, :3] / temperature).softmax(dim=0)
        expected += float((p * (p / q).log()).sum()) * temperature**2 / 2
    value = _distillation(student, None, labels, teacher, temperature)
    assert value.item() == pytest.approx(expected, rel=1e-5)
    assert _distillation(student, None, torch.tensor([3, 3, 4, 4]), teacher, temperature) == 0
    assert _distillation(student, None, labels, None, temperature) == 0


def test_a_heavy_distillation_keeps_the_old_answers(asleep, make_args):
    model, memory, reader = asleep
    images, _ = memory.read(np.arange(40))
    drift = []
    for weight in (0.0, 100.0):
        sleeper = copy.deepcopy(model)
        teacher = snapshot(model)
        args = make_args(distillation_weight=weight, sleep_steps=30, learning_rate=1e-3)
        consolidate(sleeper, memory, reader, args, teacher=teacher)
        with torch.no_grad():
            new, old = (m.eval()(reader.normalise(images)).classifier_logits for m in (sleeper, teacher))
        drift.append(F.kl_div(new.log_softmax(-1), old.log_softmax(-1), log_target=True, reduction="batchmean"))
    assert drift[1] < 0.2 * drift[0]


def test_statistics_are_those_of_all_decoded_memories(asleep, make_args):
    model, memory, reader = asleep
    update_recall(model, memory, reader, make_args(per_device_eval_batch_size=7))
    images, labels = memory.read(np.arange(len(memory)))
    with torch.no_grad():
        features = model.eval().extract_features(reader.normalise(images))
    expected = Recall(32, 4, model.config.recall_shrinkage)
    expected.update(features, labels)
    assert model.head.recall.counts.tolist() == [100] * 4
    torch.testing.assert_close(model.head.recall.means, expected.means, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.head.recall.scatter, expected.scatter, rtol=1e-3, atol=1e-2)


def test_the_weight_of_recall_follows_the_better_half(asleep, make_args):
    model, memory, reader = asleep
    torch.nn.init.zeros_(model.head.classifier.weight)  # a classifier that knows nothing
    update_recall(model, memory, reader, make_args())
    assert model.config.recall_weight > 0.5
    update_recall(model, memory, reader, make_args(recall_weight=0.25))
    assert model.config.recall_weight == 0.25


def test_too_few_memories_to_hold_some_out_leave_the_weight_as_it_was(asleep, make_args):
    model, memory, reader = asleep
    few = SemiParametricMemory(RawCodec(), None, NAMES)
    images, _ = memory.read(np.arange(4))
    few.write(few.codec.encode(images), [0, 1, 2, 3], task=0)
    assert math.isnan(update_recall(model, few, reader, make_args()))
    assert model.config.recall_weight == 0.5


def test_every_tenth_memory_of_a_class_is_held_out():
    labels = np.repeat([0, 1, 2], [25, 9, 10])
    positions = np.flatnonzero(held_out(labels))
    assert positions.tolist() == [9, 19, 43]


def test_held_out_memories_are_never_replayed(asleep, make_args, monkeypatch):
    model, memory, reader = asleep
    seen = set()
    monkeypatch.setattr(type(memory), "read", _spy(type(memory).read, seen))
    from hf_wakesleep import sleep

    monkeypatch.setattr(sleep, "update_recall", lambda *args: 0.5)
    consolidate(model, memory, reader, make_args(sleep_steps=40, sleep_batch_size=64))
    assert len(seen) > 300
    assert not seen & set(np.flatnonzero(held_out(memory.labels)).tolist())


def _spy(read, seen):
    def reading(self, indices):
        seen.update(np.asarray(indices).tolist())
        return read(self, indices)

    return reading


def test_optimizer_groups_hold_every_trainable_weight_once(make_model):
    model = make_model()
    model.grow(["a", "b"])
    set_plasticity(model, "full")
    groups = parameter_groups(model, 1.0, 0.1, 0.25)
    members = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(members) == sorted(id(parameter) for parameter in model.parameters())
    assert {group["lr"] for group in groups} == {1.0, 0.25}
    assert all(
        (group["weight_decay"] > 0) == (parameter.ndim > 1) for group in groups for parameter in group["params"]
    )
    set_plasticity(model, "head")
    groups = parameter_groups(model, 1.0, 0.1, 0.25)
    assert sum(len(group["params"]) for group in groups) == len(list(model.head.parameters()))
