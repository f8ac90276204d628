"""WakePass: one look at every image, into memory and LDA."""

import copy

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import equal_states

from hf_wakesleep import ClassIncrementalStream, RawCodec, SemiParametricMemory
from hf_wakesleep.data.images import ImageReader, TaskImages, make_image_processor
from hf_wakesleep.learning.wake import WakePass
from hf_wakesleep.memory.sampling import herding_ranks
from hf_wakesleep.model.head_wakesleep import LinearDiscriminant


@pytest.fixture
def awake(make_model, make_args, digits):
    """Return a pass with a model of four classes, the one task of the digits, and its images."""
    model = make_model()
    task = ClassIncrementalStream(digits, num_tasks=1)[0]
    model.grow(list(task.classes))
    reader = ImageReader(make_image_processor(model.config))
    args = make_args(per_device_eval_batch_size=30)
    wake = WakePass(model.to(args.device), reader, args, Accelerator())
    images = [TaskImages(part, model.config.label2id, "digits") for part in (task.train_dataset, task.eval_dataset)]
    return wake, task, images


def test_every_image_is_written_once_and_counted_once(awake):
    wake, task, (images, _) = awake
    memory = SemiParametricMemory(RawCodec(), None, task.classes)
    weights = copy.deepcopy(wake.model)
    wake.write(images, memory, task=2)
    pixels, labels = wake.reader.read([images[row] for row in range(len(images))])
    assert sorted(memory.codec.encode(pixels)) == sorted(memory.codec.encode(memory.read(np.arange(len(memory)))[0]))
    assert memory.tasks.tolist() == [2] * 400
    with torch.no_grad():
        features = wake.model.eval().extract_features(wake.reader.normalise(pixels).to(wake.model.device)).cpu()
    expected, lda = LinearDiscriminant(32, 4, 0.3), wake.model.head.lda.cpu()
    expected.update(features, labels)
    assert torch.equal(lda.counts, expected.counts)
    torch.testing.assert_close(lda.means, expected.means, rtol=1e-4, atol=1e-5)
    assert equal_states(wake.model.backbone, weights.backbone)
    assert equal_states(wake.model.head.classifier, weights.head.classifier)


def test_a_full_memory_keeps_what_herding_ranks_first_and_repeats(awake):
    wake, task, (images, _) = awake
    pixels, labels = wake.reader.read([images[row] for row in range(len(images))])
    with torch.no_grad():
        features = wake.model.eval().extract_features(wake.reader.normalise(pixels).to(wake.model.device))
    kept = []
    for _ in range(2):
        memory = SemiParametricMemory(RawCodec(), 5_000, task.classes)
        wake.write(images, memory, task=0)
        kept.append(memory.codes(np.arange(len(memory))))
    assert kept[0] == kept[1]
    assert 4 < len(kept[0]) < 100
    ranks = herding_ranks(features.cpu().numpy(), labels.numpy())
    per_class = min(np.bincount(memory.labels))
    chosen = np.concatenate([np.flatnonzero((labels.numpy() == c) & (ranks < per_class)) for c in range(4)])
    assert set(memory.codec.encode(pixels[chosen])) <= set(kept[0])


def test_without_a_memory_lda_still_learns(awake):
    wake, _, (images, _) = awake
    wake.write(images, None, task=0)
    assert wake.model.head.lda.counts.tolist() == [100] * 4


def test_a_probe_fits_lda_to_one_task_and_changes_nothing(awake):
    wake, _, (train, evaluation) = awake
    before = copy.deepcopy(wake.model)
    wake.model.train()
    assert wake.probe(train, evaluation, num_classes=4) > 0.7
    assert equal_states(wake.model, before)
    assert wake.model.training


def test_the_budget_is_tried_with_one_code_of_every_class_and_changes_nothing(awake):
    wake, task, _ = awake
    enough = wake.model.head.lda.num_bytes + wake.model.head.lda.bytes_per_class * 4 + 4 * (69 + 8) + 2_500
    memory = SemiParametricMemory(RawCodec(), enough)
    wake.check_budget([task], memory)
    assert len(memory) == 0
    assert memory.classes == []
    with pytest.raises(ValueError, match="at least one code per class"):
        wake.check_budget([task], SemiParametricMemory(RawCodec(), 3_000))
