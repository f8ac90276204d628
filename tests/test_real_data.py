"""A pretrained ViT on photographs, where such files stand beside the project; skipped elsewhere."""

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import load_dataset

from hf_wakesleep import ClassIncrementalStream, ContinualTrainer, WakeSleepForImageClassification

SHARED = Path(__file__).parents[2] / "shared"
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


def test_recall_on_a_frozen_pretrained_backbone_does_not_depend_on_the_order(photos, make_args):
    scores = []
    for seed in (1993, 1994):
        model = WakeSleepForImageClassification.from_backbone(str(BACKBONE), image_size=64)
        weights = model.backbone.timm_model.blocks[0].attn.qkv.weight.detach().clone()
        args = make_args(str(seed), memory_budget="0", sleep_steps=0, num_train_epochs=0, recall_weight=1.0)
        stream = ClassIncrementalStream(photos, num_tasks=5, seed=seed)
        trainer = ContinualTrainer(model=model, args=args, stream=stream)
        trainer.train()
        assert torch.equal(model.backbone.timm_model.blocks[0].attn.qkv.weight, weights)
        scores.append(trainer.history.summary()["pooled_accuracy"])
    assert scores[0] == pytest.approx(scores[1], abs=0.006)
    assert scores[0] > 0.7
