"""WakeSleepForImageClassification: forward, growth, exact save and load, Auto classes, pipeline, timm."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import equal_states
from PIL import Image
from torch.nn import functional as F
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    TimmWrapperConfig,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
    pipeline,
)

from hf_wakesleep import WakeSleepConfig, WakeSleepForImageClassification
from hf_wakesleep.data.images import make_image_processor
from hf_wakesleep.model import modeling_wakesleep

PACKAGE = Path(modeling_wakesleep.__file__).parent

PIXELS = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def timm_folder(tmp_path):
    """Return a folder with a timm ViT of 32 pixels, as `save_pretrained` writes it."""
    config = TimmWrapperConfig(
        architecture="vit_tiny_patch16_224",
        model_args={"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 3},
        pretrained_cfg={"input_size": [3, 32, 32], "mean": [0.4, 0.4, 0.4], "std": [0.25, 0.25, 0.25]},
        num_labels=0,
    )
    AutoModel.from_config(config).save_pretrained(tmp_path / "timm")
    return tmp_path / "timm"


def teach(model, names, seed=0):
    """Grow a model and fill LDA with features of random images."""
    model.grow(names, torch.Generator().manual_seed(seed))
    size = model.config.image_size
    pixels = torch.randn(20, 3, size, size, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        features = model.eval().extract_features(pixels)
    model.head.lda.update(features, torch.arange(20) % len(model.config.classes))
    return model


def test_outputs_have_their_shapes_and_the_loss_is_that_of_the_classifier(make_model):
    model = teach(make_model(), ["a", "b", "c"])
    labels = torch.tensor([0, 1, 2, 0, 1])
    output = model(PIXELS, labels=labels)
    assert output.features.shape == (5, 32)
    assert output.logits.shape == output.classifier_logits.shape == output.lda_logits.shape == (5, 3)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.classifier_logits, labels))
    assert model(PIXELS).loss is None
    assert len(model(PIXELS, labels=labels, return_dict=False)) == 5


@pytest.mark.parametrize("classifier", ["linear", "cosine"])
def test_save_and_load_is_exact_after_every_growth(make_model, tmp_path, classifier):
    model = make_model(classifier=classifier)
    for step, names in enumerate([[], ["zebra", "ape"], ["cat"], [f"class {index}" for index in range(20)]]):
        if names:
            teach(model, names, seed=step)
        model.save_pretrained(tmp_path / str(step))
        loaded = WakeSleepForImageClassification.from_pretrained(tmp_path / str(step))
        assert equal_states(model, loaded)
        assert loaded.config.classes == model.config.classes
    loaded = WakeSleepForImageClassification.from_pretrained(tmp_path / "3", disable_mmap=True)
    assert torch.equal(loaded.eval()(PIXELS).logits, model.eval()(PIXELS).logits)


def test_save_and_load_is_exact_in_shards(make_model, tmp_path):
    model = teach(make_model(), ["a", "b", "c"])
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    assert equal_states(model, WakeSleepForImageClassification.from_pretrained(tmp_path))


def test_statistics_stay_float32_in_a_half_precision_model(make_model, tmp_path):
    teach(make_model(), ["a", "b"]).save_pretrained(tmp_path)
    model = WakeSleepForImageClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert model.head.classifier.weight.dtype == torch.bfloat16
    assert model.head.lda.scatter.dtype == torch.float32
    assert model.head.lda.counts.dtype == torch.int64
    assert not model(PIXELS).logits.isnan().any()


def test_auto_classes_and_pipeline_work_from_a_folder(make_model, tmp_path):
    model = teach(make_model(), ["ape", "bee"])
    model.save_pretrained(tmp_path)
    make_image_processor(model.config).save_pretrained(tmp_path)
    assert isinstance(AutoModelForImageClassification.from_pretrained(tmp_path), WakeSleepForImageClassification)
    assert isinstance(AutoImageProcessor.from_pretrained(tmp_path), ViTImageProcessor)
    classify = pipeline("image-classification", model=str(tmp_path))
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    answers = classify([image, image.convert("RGBA"), image.convert("1")])
    assert [{answer["label"] for answer in one} for one in answers] == [{"ape", "bee"}] * 3
    assert all(sum(answer["score"] for answer in one) == pytest.approx(1, abs=1e-5) for one in answers)


def test_a_saved_folder_holds_the_code_that_reads_it(make_model, tmp_path):
    teach(make_model(), ["a"]).save_pretrained(tmp_path)
    names = {path.name for path in tmp_path.glob("*.py")}
    assert names == {path.name for path in PACKAGE.glob("*_wakesleep.py")}
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert auto_map["AutoModelForImageClassification"] == "modeling_wakesleep.WakeSleepForImageClassification"
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path, trust_remote_code=True)
    assert loaded.config.classes == ["a"]


def test_gradient_checkpointing_gives_the_same_gradients(make_model):
    gradients = []
    for checkpointing in (False, True):
        model = teach(make_model(), ["a", "b"]).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert model.is_gradient_checkpointing
        torch.manual_seed(0)
        model(PIXELS, labels=torch.tensor([0, 1, 0, 1, 0])).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 10
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second)


def test_gradient_checkpointing_works_with_timm(timm_folder):
    model = teach(WakeSleepForImageClassification.from_backbone(str(timm_folder)), ["a", "b"]).train()
    model.gradient_checkpointing_enable()
    assert model.backbone.timm_model.grad_checkpointing
    model(torch.randn(2, 3, 32, 32), labels=torch.tensor([0, 1])).loss.backward()
    assert all(p.grad is not None for p in model.backbone.parameters())


def test_from_backbone_keeps_the_pretrained_weights_of_timm_and_its_normalisation(timm_folder, tmp_path):
    expected = AutoModel.from_pretrained(timm_folder)
    model = WakeSleepForImageClassification.from_backbone(str(timm_folder))
    assert equal_states(expected, model.backbone)
    assert model.config.image_size == 32
    assert model.config.image_mean == [0.4, 0.4, 0.4]
    assert model.config.image_std == [0.25, 0.25, 0.25]
    assert model.config.classes == []
    pixels = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model.eval().extract_features(pixels), expected.eval()(pixels).pooler_output)
    teach(model, ["a", "b"]).save_pretrained(tmp_path / "saved")
    assert equal_states(model, WakeSleepForImageClassification.from_pretrained(tmp_path / "saved"))


def test_from_backbone_takes_another_image_size(timm_folder, tmp_path):
    model = WakeSleepForImageClassification.from_backbone(str(timm_folder), image_size=48)
    teach(model, ["a", "b"])
    assert model(torch.randn(2, 3, 48, 48)).logits.shape == (2, 2)
    model.save_pretrained(tmp_path / "saved")
    loaded = WakeSleepForImageClassification.from_pretrained(tmp_path / "saved")
    assert loaded(torch.randn(2, 3, 48, 48)).logits.shape == (2, 2)


def test_from_backbone_takes_a_transformers_vit(tmp_path):
    vit = ViTModel(ViTConfig(image_size=16, patch_size=8, hidden_size=32, num_hidden_layers=1, num_attention_heads=2))
    vit.save_pretrained(tmp_path)
    ViTImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.6, 0.7]).save_pretrained(tmp_path)
    model = WakeSleepForImageClassification.from_backbone(str(tmp_path), image_size=32)
    assert model.config.image_mean == [0.1, 0.2, 0.3]
    assert teach(model, ["a"])(torch.randn(2, 3, 32, 32)).features.shape == (2, 32)
    assert model.backbone.config._attn_implementation == "sdpa"
    pretrained, kept = vit.state_dict(), model.backbone.state_dict()
    assert {name for name in pretrained if name not in kept} == {"pooler.dense.weight", "pooler.dense.bias"}
    assert all(torch.equal(kept[name], pretrained[name]) for name in kept)


def test_a_known_class_cannot_be_taught_again(make_model):
    model = teach(make_model(), ["a", "b"])
    with pytest.raises(ValueError, match="known already"):
        model.grow(["b"])
    assert len(model.head.classifier.weight) == 2


def test_config_alone_builds_a_model():
    vit = ViTConfig(hidden_size=48, num_hidden_layers=1, num_attention_heads=2)
    model = WakeSleepForImageClassification(WakeSleepConfig(backbone_config=vit))
    assert model.head.feature_dim == 48


@pytest.mark.parametrize("missing", [["pooling", "feature_dim"], ["feature_dim"]])
def test_pooling_and_width_are_written_and_a_stage_without_them_is_refused(make_model, tmp_path, missing):
    teach(make_model(pooling=None), ["a", "b"]).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text())
    assert (fields["pooling"], fields["feature_dim"]) == ("cls", 32)
    for name in missing:
        del fields[name]
    path.write_text(json.dumps(fields))
    (tmp_path / "digests.json").unlink()
    with pytest.raises(ValueError, match=r"It is of hf_wakesleep 0\.1, .* load it with that version"):
        WakeSleepForImageClassification.from_pretrained(tmp_path)


def test_a_stage_that_says_a_width_but_no_pooling_is_refused(make_model, tmp_path):
    make_model().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pooling": None}))
    (tmp_path / "digests.json").unlink()
    with pytest.raises(ValueError, match="holds `feature_dim` and `pooling`"):
        WakeSleepForImageClassification.from_pretrained(tmp_path)


def saved_stage(folder, backbone, is_taught):
    """Save a model with two classes, and return what it answers to an image."""
    torch.manual_seed(0)
    model = WakeSleepForImageClassification(WakeSleepConfig(backbone_config=backbone, image_size=8))
    if is_taught:
        teach(model, ["a", "b"])
    else:
        model.grow(["a", "b"])
    model.save_pretrained(folder)
    return model.eval()(PIXELS[:1]).logits


def exported(model):
    return torch.export.export(model, (PIXELS[:1],)).module()(PIXELS[:1]).logits


def compiled(model):
    torch._dynamo.reset()
    return torch.compile(model, fullgraph=True, backend="eager")(PIXELS[:1]).logits


def in_onnx(model):
    pytest.importorskip("onnxscript")
    program = torch.onnx.export(model, (PIXELS[:1],), dynamo=True, verbose=False)
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(program.model_proto)
    name = evaluator.input_names[0]
    return torch.from_numpy(evaluator.run(None, {name: PIXELS[:1].numpy()})[0])


SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
BACKBONES = {
    "transformers": ViTConfig(image_size=8, patch_size=4, **SMALL),
    "timm": TimmWrapperConfig(
        architecture="vit_tiny_patch16_224",
        model_args={"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2},
        num_labels=0,
    ),
}


@pytest.mark.parametrize("is_taught", [True, False])
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("take_along", [exported, compiled])
def test_a_loaded_stage_can_be_taken_along_at_once(tmp_path, take_along, backbone, is_taught):
    expected = saved_stage(tmp_path, BACKBONES[backbone], is_taught)
    model = WakeSleepForImageClassification.from_pretrained(tmp_path, disable_mmap=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(take_along(model), expected)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_loaded_stage_becomes_onnx_at_once(tmp_path, backbone):
    expected = saved_stage(tmp_path, BACKBONES[backbone], is_taught=True)
    model = WakeSleepForImageClassification.from_pretrained(tmp_path, disable_mmap=True).eval()
    torch.testing.assert_close(in_onnx(model), expected, rtol=1e-3, atol=1e-4)


def test_a_model_can_be_trained_after_it_has_predicted_in_inference_mode(make_model, tmp_path):
    teach(make_model(), ["a", "b"]).save_pretrained(tmp_path)
    model = WakeSleepForImageClassification.from_pretrained(tmp_path)
    with torch.inference_mode():
        model.eval()(PIXELS)
    output = model.train()(PIXELS, labels=torch.tensor([0, 1, 0, 1, 0]))
    (output.loss + output.logits.sum()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
