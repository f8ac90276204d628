"""Backbones of every shape: pooling and width that fit, what is refused, and nothing cached that could be stale."""

import backbones
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    CLIPConfig,
    TimmWrapperConfig,
    ViTConfig,
    ViTMAEConfig,
    ViTModel,
)

from hf_wakesleep import WakeSleepConfig, WakeSleepForImageClassification
from hf_wakesleep.model.backbone_wakesleep import BackboneCall, find_pooling, make_call, pool

WORKING = {  # what stands for its family: pooling and width
    "vit": ("cls", 32),
    "beit": ("cls", 32),
    "dinov2": ("cls", 32),
    "dinov3_convnext": ("pooler", 32),
    "vit_mae": ("cls", 32),
    "ijepa": ("mean", 32),
    "pixio": ("pooler", 32),
    "clip": ("pooler", 32),
    "siglip": ("pooler", 32),
    "aimv2": ("pooler", 32),
    "aimv2_vision_model": ("mean", 32),
    "blip": ("pooler", 32),
    "swin": ("pooler", 32),
    "convnext": ("pooler", 32),
    "resnet": ("pooler", 16),
    "levit": ("pooler", 32),
    "pvt": ("cls", 32),
    "pvt_v2": ("mean", 32),
    "cvt": ("cls", 32),
    "poolformer": ("mean", 32),
    "timm vit_tiny_patch16_224": ("pooler", 48),
    "timm swin_tiny_patch4_window7_224": ("pooler", 192),
    "timm mobilenetv3_small_050": ("pooler", 1024),
    "timm efficientvit_b0": ("pooler", 1280),
}
REFUSED = {
    "siglip2_vision_model": "takes images alone .* takes .*spatial_shapes",
    "pixtral": "one feature per image",
    "hgnet_v2": "gives neither",
    "xclip": "takes videos",
    "videomae": "takes videos",
    "bert": "takes images alone .* takes .'input_ids'",
}


def build(name, **config) -> WakeSleepForImageClassification:
    """Return a model without classes around the small backbone of that name."""
    torch.manual_seed(0)
    backbone = backbones.configurations([name])[name]
    fields = {"backbone_config": backbone, "image_size": backbones.side_of(backbone), **config}
    return WakeSleepForImageClassification(WakeSleepConfig(**fields))


def images_for(model, count=2) -> torch.Tensor:
    side = model.config.image_size
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", WORKING)
def test_a_backbone_sees_the_whole_image_learns_and_comes_back(name):
    row = backbones.try_backbone(name, backbones.configurations([name])[name])
    assert (row.pooling, row.width, row.outcome) == (*WORKING[name], "exact")


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_in_one_line(name):
    with pytest.raises(ValueError, match=REFUSED[name]) as caught:
        build(name)
    assert "\n" not in str(caught.value)


def tokens_of(model, images):
    """Return the tokens that the backbone makes of images on the way to their features."""
    outputs = []
    with model.backbone.register_forward_hook(lambda module, inputs, output: outputs.append(output)):
        model.extract_features(images)
    return outputs[0].last_hidden_state


def test_a_masked_autoencoder_sees_all_patches_in_their_order_in_training_too():
    model = build("vit_mae")
    model.backbone.config.mask_ratio = 0.75  # as a configuration from elsewhere says
    fields = {**backbones.VIT, "mask_ratio": 0.75}
    model = WakeSleepForImageClassification(WakeSleepConfig(backbone_config=ViTMAEConfig(**fields), image_size=32))
    plain = ViTModel(ViTConfig(**backbones.VIT), add_pooling_layer=False)
    plain.load_state_dict(model.backbone.state_dict())
    images = images_for(model)
    torch.testing.assert_close(tokens_of(model, images), plain(images).last_hidden_state)
    assert torch.equal(model.train().extract_features(images), model.extract_features(images))
    assert torch.equal(model.eval().extract_features(images), model.extract_features(images))


def test_another_size_of_image_is_seen_by_a_masked_autoencoder():
    model = build("vit_mae", image_size=48)
    assert tokens_of(model, images_for(model)).shape == (2, 1 + 36, 32)


@pytest.mark.parametrize("name", ["dinov2", "clip", "swin", "beit", "resnet", "timm resnet10t"])
def test_backbones_take_images_of_another_size_each_in_its_way(name):
    model = build(name, image_size=96)
    assert model.extract_features(images_for(model)).shape == (2, model.config.feature_dim)


@pytest.mark.parametrize("name", ["vit", "dinov2", "siglip", "timm vit_tiny_patch16_224"])
def test_a_size_that_patches_do_not_divide_is_refused(name):
    with pytest.raises(ValueError, match="`image_size` must be a multiple of the backbone's patches of (8|16) pixels"):
        build(name, image_size=44)


@pytest.mark.parametrize(
    ("name", "pooling", "has"), [("swin", "cls", "pooler"), ("vit_mae", "pooler", "cls"), ("pvt_v2", "cls", "mean")]
)
def test_a_pooling_that_a_backbone_does_not_have_is_refused_by_name(name, pooling, has):
    with pytest.raises(ValueError, match=f"`pooling` is '{pooling}', but .* only .*{has}"):
        build(name, pooling=pooling)


@pytest.mark.parametrize("name", ["vit", "swin", "resnet", "clip", "siglip", "hiera"])
def test_every_backbone_with_tokens_can_be_averaged(name):
    model = build(name, pooling="mean").eval()
    images = images_for(model)
    tokens = model.backbone(images).last_hidden_state
    expected = tokens.mean(dim=1) if tokens.ndim == 3 else tokens.mean(dim=(2, 3))
    torch.testing.assert_close(model.extract_features(images), expected)


def test_a_feature_map_with_channels_last_is_averaged_over_height_and_width():
    maps = torch.randn(2, 4, 4, 7)
    outputs = type("Outputs", (), {"last_hidden_state": maps})
    torch.testing.assert_close(pool(outputs, "mean"), maps.mean(dim=(1, 2)))
    outputs.last_hidden_state = maps.permute(0, 3, 1, 2)
    torch.testing.assert_close(pool(outputs, "mean"), maps.mean(dim=(1, 2)))


def test_two_towers_become_the_one_that_looks_at_images():
    config = WakeSleepConfig(backbone_config=CLIPConfig(**backbones.TOWERS))
    assert config.backbone_config.model_type == "clip_vision_model"
    fields = CLIPConfig(**backbones.TOWERS).to_dict()
    assert WakeSleepConfig(backbone_config=fields).backbone_config.hidden_size == 32


def test_a_model_without_a_tower_for_images_is_refused():
    with pytest.raises(ValueError, match="must have a part that looks at images, got ClapConfig"):
        WakeSleepConfig(backbone_config=AutoConfig.for_model("clap"))


def test_attention_from_strangers_is_refused_in_a_tower_too():
    fields = CLIPConfig(**backbones.TOWERS).to_dict()
    fields["vision_config"]["attn_implementation"] = "stranger/kernel"
    with pytest.raises(ValueError, match="must be built in"):
        WakeSleepConfig(backbone_config=fields)


def test_looking_at_a_backbone_leaves_it_and_the_random_numbers_as_they_were():
    backbone = AutoModel.from_config(backbones.configurations(["resnet"])["resnet"]).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    torch.manual_seed(3)
    assert find_pooling(backbone, 64) == ("pooler", 16)
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(1))
    assert backbone.training
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_a_width_that_is_not_the_backbones_is_refused():
    with pytest.raises(ValueError, match="`feature_dim` is 7, but features are 32 wide"):
        build("vit", feature_dim=7)


def test_a_network_that_cannot_be_built_is_refused():
    config = WakeSleepConfig(backbone_config=TimmWrapperConfig(architecture="vit_of_nobody", num_labels=0))
    with pytest.raises(ValueError, match="`backbone_config` must describe a backbone, but .*vit_of_nobody"):
        WakeSleepForImageClassification(config)


def test_a_backbone_that_fails_at_a_size_names_it():
    with pytest.raises(ValueError, match="turns images of 3 x 96 x 96 into features, .*`image_size`") as caught:
        build("levit", image_size=96)
    assert "\n" not in str(caught.value)


def test_how_a_backbone_is_called_is_plain_data():
    backbone = build("clip").backbone
    assert make_call(backbone, 64, "pooler") == BackboneCall("pooler", interpolates=True)
    assert make_call(backbone, 32, "pooler") == BackboneCall("pooler")


@pytest.mark.parametrize("name", ["levit", "timm levit_128s"])
def test_attention_biases_of_evaluation_outlive_neither_weights_nor_gradients(name, tmp_path):
    model = build(name)
    images = images_for(model)
    backbones.adapt(model, images)
    with torch.no_grad():
        before = model.eval().extract_features(images)
    state = {key: torch.randn_like(value) for key, value in model.state_dict().items() if "attention_biases" in key}
    model.load_state_dict(state, strict=False)
    changed = model.extract_features(images)
    assert not torch.allclose(changed, before)
    model.save_pretrained(tmp_path)
    loaded = WakeSleepForImageClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded.extract_features(images), changed)
    biases = [p for key, p in loaded.named_parameters() if "attention_biases" in key]
    with torch.inference_mode():
        loaded.extract_features(images)
    for _ in range(2):
        gradients = torch.autograd.grad(loaded.extract_features(images).square().sum(), biases)
        assert sum(gradient.abs().sum() for gradient in gradients) > 0


@pytest.mark.parametrize("name", ["resnet", "clip", "swin", "timm levit_128s"])
def test_gradient_checkpointing_works_or_is_refused_at_once(name):
    model = build(name).train()
    model.grow(["a", "b"])
    if name == "resnet":
        with pytest.raises(ValueError, match="`gradient_checkpointing` needs a backbone that supports it"):
            model.gradient_checkpointing_enable()
        return
    model.gradient_checkpointing_enable()
    model(images_for(model), labels=torch.tensor([0, 1])).loss.backward()
    assert sum(p.grad is not None for p in model.backbone.parameters()) > 5
