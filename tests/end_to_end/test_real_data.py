"""A pretrained ViT on photographs, where such files stand beside the project; skipped elsewhere."""

import numpy as np
import pytest
import torch
from datasets import load_dataset
from paths import ROOT

from hf_wakesleep import (
    ClassIncrementalStream,
    ContinualTrainer,
    LearnedCodec,
    SemiParametricMemory,
    WakeSleepForImageClassification,
    WebPCodec,
)
from hf_wakesleep.data.images import ImageReader, TaskImages, make_image_processor
from hf_wakesleep.learning.sleep import consolidate

SHARED = ROOT.parent / "shared"
PHOTOS = SHARED / "data" / "caltech101"
BACKBONE = SHARED / "weights" / "vit_tiny_patch16_224"

pytestmark = pytest.mark.skipif(not (PHOTOS.is_dir() and BACKBONE.is_dir()), reason="needs ../shared")


@pytest.fixture
def photos(tmp_path):
    """Ten classes of caltech101."""
    files = {split: str(PHOTOS / f"{split}.parquet") for split in ("train", "test")}
    data = load_dataset("parquet", data_files=files, cache_dir=str(tmp_path))
    return {
        split: part.select(np.flatnonzero(np.asarray(part.with_format("numpy")["label"][:]) < 10))
        for split, part in data.items()
    }


def test_lda_on_a_frozen_pretrained_backbone_does_not_depend_on_the_order(photos, make_args):
    scores = []
    for seed in (1993, 1994):
        model = WakeSleepForImageClassification.from_backbone(str(BACKBONE), image_size=64)
        weights = model.backbone.timm_model.blocks[0].attn.qkv.weight.detach().clone()
        args = make_args(str(seed), memory_budget="0", sleep_steps=0, num_train_epochs=0, lda_weight=1.0)
        stream = ClassIncrementalStream(photos, num_tasks=5, seed=seed)
        trainer = ContinualTrainer(model=model, args=args, stream=stream)
        trainer.train()
        assert torch.equal(model.backbone.timm_model.blocks[0].attn.qkv.weight, weights)
        scores.append(trainer.history.summary()["pooled_accuracy"])
    assert scores[0] == pytest.approx(scores[1], abs=0.006)
    assert scores[0] > 0.7


@pytest.fixture
def seen(photos):
    """Return a frozen pretrained model of ten classes, a reader, training images with labels, and test features."""
    model = WakeSleepForImageClassification.from_backbone(str(BACKBONE), image_size=128).eval()
    names = photos["train"].features["label"].names[:10]
    model.grow(names)
    reader = ImageReader(make_image_processor(model.config))
    parts = []
    for split in ("train", "test"):
        images = TaskImages(photos[split], model.config.label2id, split)
        parts.append(reader.read([images[row] for row in range(len(images))]))
    return model, reader, parts[0], (features_of(model, reader, parts[1][0]), parts[1][1])


def fill_lda(model, memory, reader):
    """Make the statistics those of all decoded memories."""
    images, labels = memory.read(np.arange(len(memory)))
    model.eval().head.lda.reset()
    model.head.lda.update(features_of(model, reader, images), labels)


@torch.no_grad()
def features_of(model, reader, images):
    return torch.cat([model.extract_features(reader.normalise(part)) for part in images.split(64)])


def test_lda_from_decoded_memories_loses_a_few_points_to_that_from_the_originals(seen, record_property):
    """Distances of class means are relative to their spread, the mean distance of a class from the mean of all."""
    model, reader, (images, labels), (test_features, test_labels) = seen
    lda = model.head.lda
    lda.update(features_of(model, reader, images), labels)
    means = lda.means.clone()
    spread = (means - means.mean(dim=0)).norm(dim=1).mean()
    original = (lda(test_features).argmax(dim=-1) == test_labels).float().mean().item()
    assert original > 0.9
    for codec, most_lost, most_apart in ((WebPCodec(1), 0.08, 0.7), (LearnedCodec(30), 0.09, 0.9)):
        memory = SemiParametricMemory(codec, None, model.config.classes)
        memory.write(codec.encode(images), labels.numpy(), task=0)
        fill_lda(model, memory, reader)
        lost = original - (lda(test_features).argmax(dim=-1) == test_labels).float().mean().item()
        apart = ((lda.means - means).norm(dim=1).mean() / spread).item()
        record_property(codec.name, {"bytes": memory.num_bytes.codes / len(memory), "lost": lost, "apart": apart})
        assert lost < most_lost
        assert apart < most_apart


def test_lda_carried_through_a_sleep_is_nearest_to_that_of_the_originals(seen, make_args, record_property):
    """Ten small codes of each class, and a sleep of the whole network on them; distances of class means."""
    model, reader, (images, labels), _ = seen
    model.head.lda.update(features_of(model, reader, images), labels)
    memory = SemiParametricMemory(LearnedCodec(30), None, model.config.classes)
    few = torch.cat([(labels == label).nonzero()[:10, 0] for label in range(10)])
    memory.write(memory.codec.encode(images[few]), labels[few].numpy(), task=0)
    args = make_args(backbone_learning_rate_ratio=0.05, lda_weight=1.0, sleep_steps=10)
    stale = model.head.lda.means.clone()
    consolidate(model, memory, args.sleep_config(), reader=reader)
    carried = model.head.lda.means.clone()
    fill_lda(model, memory, reader)
    anew = model.head.lda.means.clone()
    model.head.lda.reset()
    model.head.lda.update(features_of(model, reader, images), labels)
    gaps = {
        name: (means - model.head.lda.means).norm(dim=1).mean().item()
        for name, means in (("stale", stale), ("carried", carried), ("anew", anew))
    }
    record_property("gaps", gaps)
    assert gaps["carried"] < 0.8 * min(gaps["stale"], gaps["anew"])
