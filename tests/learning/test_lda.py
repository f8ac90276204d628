"""LDA from memory: statistics, held-out memories, and the weight that they set."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import NAMES

from hf_wakesleep import RawCodec, SemiParametricMemory
from hf_wakesleep.data.images import ImageReader, make_image_processor
from hf_wakesleep.learning.drift import drift_features, memory_features
from hf_wakesleep.learning.lda import update_lda


def fill_lda(model, memory, reader, config):
    """Make the statistics those of all decoded memories."""
    lda = model.head.lda
    lda.reset()
    for _, features, labels in memory_features(model, memory, reader, config, np.arange(len(memory)), ""):
        lda.update(features, labels)


def kept(config):
    """Return the config of a sleep that leaves the statistics as they are."""
    return replace(config, lda_update="keep")


def test_the_weight_of_lda_follows_the_better_half(asleep, make_args):
    model, memory, reader = asleep
    torch.nn.init.zeros_(model.head.classifier.weight)  # a classifier that knows nothing
    fill_lda(model, memory, reader, make_args().sleep_config())
    update_lda(model, memory, reader, kept(make_args().sleep_config()))
    assert model.config.lda_weight > 0.5
    update_lda(model, memory, reader, kept(make_args(lda_weight=0.25).sleep_config()))
    assert model.config.lda_weight == 0.25


def test_one_memory_of_each_class_is_enough_to_set_the_weight(asleep, make_args):
    model, memory, reader = asleep
    few = SemiParametricMemory(RawCodec(), None, NAMES)
    images, _ = memory.read(np.arange(4))
    few.write(few.codec.encode(images), [0, 1, 2, 3], task=0)
    fill_lda(model, few, reader, make_args().sleep_config())
    assert update_lda(model, few, reader, kept(make_args().sleep_config())) == 1.0
    assert model.config.lda_weight > 0.5
    nothing_held_out = kept(make_args(held_out_share=0.0, lda_weight=0.25).sleep_config())
    assert math.isnan(update_lda(model, few, reader, nothing_held_out))
    assert model.config.lda_weight == 0.25


@pytest.mark.parametrize(("num_classes", "per_class"), [(400, 1), (1200, 1), (1200, 2), (2000, 5)])
def test_the_mix_is_set_and_the_covariance_is_carried_along_with_many_classes(
    make_model, make_args, num_classes, per_class
):
    """Images of a class are alike; a backbone twice as large moves all its features, and the covariance with them."""
    model = make_model()
    names = [f"class {number}" for number in range(num_classes)]
    model.grow(names, torch.Generator().manual_seed(0))
    memory = SemiParametricMemory(RawCodec(), None, names)
    labels = np.repeat(np.arange(num_classes), per_class)
    generator = torch.Generator().manual_seed(0)
    looks = torch.randint(0, 200, (num_classes, 3, 8, 8), generator=generator)
    images = looks[labels] + torch.randint(0, 55, (len(labels), 3, 8, 8), generator=generator)
    memory.write(memory.codec.encode(images.to(torch.uint8)), labels, task=0)
    reader = ImageReader(make_image_processor(model.config))
    args = make_args(per_device_eval_batch_size=512)
    every = list(memory_features(model, memory, reader, args.sleep_config(), np.arange(len(memory)), ""))
    for _, features, some in every:
        model.head.lda.update(features, some)
        model.head.lda.update(features + 0.1 * torch.randn(features.shape, generator=generator), some)
    before, covariance = drift_features(model, memory, reader, args.sleep_config()), model.head.lda.covariance()
    with torch.no_grad():
        model.backbone.layernorm.weight.mul_(2)
        model.backbone.layernorm.bias.mul_(2)
    accuracy = update_lda(model, memory, reader, args.sleep_config(), features_before=before)
    assert 0 <= accuracy <= 1
    assert model.config.lda_weight > 0.5
    assert accuracy > 0.5
    ratio = (model.head.lda.covariance().trace() / covariance.trace()).item()
    assert ratio == pytest.approx(4, rel=0.1)
