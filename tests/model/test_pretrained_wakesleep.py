"""Pretrained backbones: the right tower, all weights, the right size of image, or one clear error."""

import backbones
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    CLIPImageProcessor,
    ConvNextImageProcessor,
    ResNetConfig,
    SiglipVisionConfig,
    TimmWrapperConfig,
    ViTConfig,
    ViTImageProcessor,
)

from hf_wakesleep import WakeSleepConfig, WakeSleepForImageClassification

from_backbone = WakeSleepForImageClassification.from_backbone
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
PROCESSOR = ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.3])
RESNET = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
GIVEN = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


@pytest.fixture
def save(tmp_path):
    """Return a function that saves a backbone with random weights and its processor, and gives both back."""

    def build(config, processor=PROCESSOR, drop=()):
        torch.manual_seed(0)
        backbone = AutoModel.from_config(config).eval()
        backbone.save_pretrained(tmp_path)
        if processor is not None:
            processor.save_pretrained(tmp_path)
        if drop:
            state = load_file(tmp_path / "model.safetensors")
            kept = {name: value for name, value in state.items() if not any(part in name for part in drop)}
            assert len(kept) < len(state)
            save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
        return backbone, str(tmp_path)

    return build


@pytest.mark.parametrize(
    "name", ["clip", "siglip", "aimv2", "altclip", "chinese_clip", "metaclip_2", "blip", "clipseg", "owlvit"]
)
def test_of_two_towers_the_one_that_looks_at_images_is_taken_with_its_weights(name, save):
    both, folder = save(backbones.configurations([name])[name])
    model = from_backbone(folder).eval()
    assert model.config.pooling == "pooler"
    assert model.config.image_mean == [0.1, 0.2, 0.3]
    torch.testing.assert_close(model.extract_features(IMAGES), both.vision_model(IMAGES).pooler_output)
    assert not [key for key, _ in model.named_parameters() if "text" in key]


def test_two_towers_for_other_inputs_than_images_alone_are_refused(save):
    _, folder = save(backbones.configurations(["xclip"])["xclip"])
    with pytest.raises(ValueError, match="XCLIPVisionModel takes videos"):
        from_backbone(folder)


def test_weights_that_are_not_there_are_an_error_and_not_random(save):
    _, folder = save(ViTConfig(**backbones.VIT), drop=["layer.1."])
    with pytest.raises(ValueError, match=r"Expected all weights of a ViTModel .* are not there, such as .*layers\.1"):
        from_backbone(folder)


def test_a_pooler_without_weights_is_not_used(save):
    backbone, folder = save(SiglipVisionConfig(**backbones.VIT), drop=["head."])
    model = from_backbone(folder).eval()
    assert model.config.pooling == "mean"
    torch.testing.assert_close(model.extract_features(IMAGES), backbone(IMAGES).last_hidden_state.mean(dim=1))
    with pytest.raises(ValueError, match="`pooling` is 'pooler', but .* has no weights of its own pooler"):
        from_backbone(folder, config_kwargs={"pooling": "pooler"})


def test_weights_of_another_size_are_refused_by_name(save):
    config = backbones.configurations(["timm mixer"])["timm mixer_s32_224"]
    config.pretrained_cfg = {"input_size": [3, 64, 64], "mean": [0.5] * 3, "std": [0.5] * 3}
    _, folder = save(config, None)
    with pytest.raises(ValueError, match="for an `image_size` of 96 .* other shapes"):
        from_backbone(folder, image_size=96)


@pytest.mark.parametrize(
    ("processor", "side"),
    [
        (ConvNextImageProcessor(size={"shortest_edge": 96}), 96),
        (CLIPImageProcessor(size={"shortest_edge": 70}, crop_size={"height": 64, "width": 64}), 64),
        (PROCESSOR, 32),
    ],
)
def test_without_a_size_of_its_own_a_backbone_takes_that_of_its_image_processor(processor, side, save):
    assert from_backbone(save(RESNET, processor)[1]).config.image_size == side


def test_a_size_that_nobody_knows_is_asked_for(save):
    with pytest.raises(ValueError, match="does not say what images it takes. Pass `image_size`"):
        from_backbone(save(RESNET, ViTImageProcessor(size={"height": 32, "width": 48}))[1])


def test_without_an_image_processor_everything_can_be_given(save):
    _, folder = save(RESNET, None)
    with pytest.raises(OSError, match="Pass `image_size` instead"):
        from_backbone(folder, **GIVEN)
    assert from_backbone(folder, image_size=48, **GIVEN).config.image_size == 48


def test_sizes_may_be_written_as_pairs_if_they_are_square(save):
    assert from_backbone(save(ViTConfig(**{**backbones.VIT, "image_size": [32, 32]}))[1]).config.image_size == 32
    with pytest.raises(ValueError, match=r"backbone of square images, got an `image_size` of \[32, 48\]"):
        from_backbone(save(ViTConfig(**{**backbones.VIT, "image_size": [32, 48]}))[1])


def test_a_size_of_zero_is_refused_by_name(save):
    with pytest.raises(ValueError, match="`image_size` must be 1 to"):
        from_backbone(save(ViTConfig(**backbones.VIT))[1], image_size=0)


@pytest.mark.parametrize(
    ("architecture", "own", "side"),
    [("resnet10t", 32, 48), ("vit_tiny_patch16_224", 32, 48), ("swin_tiny_patch4_window7_224", 64, 96)],
)
def test_timm_is_told_of_another_size_as_each_architecture_understands_it(architecture, own, side, save):
    config = TimmWrapperConfig(
        architecture=architecture,
        model_args=backbones.TIMM.get(architecture, {}),
        pretrained_cfg={"input_size": [3, own, own], "mean": [0.4] * 3, "std": [0.2] * 3},
        num_labels=0,
    )
    model = from_backbone(save(config, None)[1], image_size=side)
    assert model.extract_features(torch.zeros(1, 3, side, side)).shape == (1, model.config.feature_dim)


def test_timm_with_images_that_are_not_square_is_refused(save):
    config = TimmWrapperConfig(architecture="resnet10t", pretrained_cfg={"input_size": [3, 32, 48]}, num_labels=0)
    with pytest.raises(ValueError, match=r"square images, got an `input_size` of \[3, 32, 48\]"):
        from_backbone(save(config, None)[1])


def test_a_stage_is_no_backbone(tmp_path):
    config = WakeSleepConfig(backbone_config=ViTConfig(**backbones.VIT), image_size=32)
    WakeSleepForImageClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"is a stage. Load it with .*from_pretrained"):
        from_backbone(str(tmp_path))


def pickle_weights(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


BROKEN = {
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), OSError, "Expected weights"),
    "a pickle": (pickle_weights, OSError, "Expected weights of a backbone .* in safetensors files"),
    "damaged weights": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"xx"),
        ValueError,
        "cannot be loaded",
    ),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), ValueError, "Expected the Hub name"),
    "half a configuration": (lambda folder: (folder / "config.json").write_text("{"), OSError, "Expected the Hub"),
    "a type that nobody knows": (
        lambda folder: (folder / "config.json").write_text('{"model_type": "xyz"}'),
        ValueError,
        "model type `xyz`",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_folder_without_a_backbone_is_one_clear_error(what, save, tmp_path):
    damage, kind, message = BROKEN[what]
    save(ViTConfig(**backbones.VIT))
    damage(tmp_path)
    with pytest.raises(kind, match=message) as caught:
        from_backbone(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["/no/such/folder", "./no/such/folder", "no/such-model", "no name??"])
def test_a_name_that_leads_nowhere_is_one_clear_error(name):
    with pytest.raises(OSError, match="Expected the Hub name or the folder of a backbone, got .*, which is") as caught:
        from_backbone(name)
    assert "\n" not in str(caught.value)
