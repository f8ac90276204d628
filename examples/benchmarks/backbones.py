"""Which backbones work: tiny ones of many families, forward, trained, saved and loaded, as a table in Markdown.

    OMP_NUM_THREADS=1 python examples/benchmarks/backbones.py            # all, about 3 minutes
    OMP_NUM_THREADS=1 python examples/benchmarks/backbones.py swin clip  # some

Every one has random weights, so that nothing is downloaded.
"""

import sys
import tempfile
from dataclasses import dataclass

import torch
from transformers import AutoConfig, PreTrainedConfig, TimmWrapperConfig, logging

from hf_wakesleep import WakeSleepConfig, WakeSleepForImageClassification

LAYERS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VIT = {**LAYERS, "image_size": 32, "patch_size": 8, "initializer_range": 0.02}
SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
FOUR = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
PYRAMID = {**FOUR, "num_attention_heads": [1, 2, 2, 2]}
CONVOLUTIONS = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
TOWERS = {"vision_config": VIT, "text_config": {**LAYERS, "vocab_size": 99}}
TRANSFORMERS = {  # model_type: fields
    "vit": VIT,
    "deit": VIT,
    "beit": VIT,
    "data2vec-vision": VIT,
    "dinov2": VIT,
    "dinov2_with_registers": VIT,
    "dinov3_vit": VIT,
    "dinov3_convnext": FOUR,
    "vit_mae": VIT,
    "vit_msn": VIT,
    "ijepa": VIT,
    "dpt": VIT,
    "pixio": VIT,
    "radio": {**VIT, "max_img_size": 64},
    "sapiens2": VIT,
    "vitdet": VIT,
    "internvl_vision": VIT,
    "idefics3_vision": VIT,
    "sam_vision_model": {**VIT, "output_channels": 16, "window_size": 2, "global_attn_indexes": [1]},
    "clip": TOWERS,
    "siglip": TOWERS,
    "aimv2": TOWERS,
    "aimv2_vision_model": {**VIT, "use_head": False},
    "altclip": TOWERS,
    "chinese_clip": TOWERS,
    "metaclip_2": TOWERS,
    "blip": TOWERS,
    "clipseg": TOWERS,
    "owlvit": TOWERS,
    "groupvit": {"vision_config": {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_attention_heads": 2,
                                   "depths": [1, 1, 1], "num_group_tokens": [8, 4, 0],
                                   "num_output_groups": [8, 4, 0]}},
    "tipsv2": TOWERS,
    "mlcd_vision_model": VIT,
    "swin": SWIN,
    "swinv2": SWIN,
    "donut-swin": SWIN,
    "swin2sr": {**SWIN, "patch_size": 1},
    "focalnet": {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "focal_levels": [1, 1],
                 "focal_windows": [3, 3]},
    "hiera": {"image_size": [64, 64], "embed_dim": 16, "num_heads": [1, 2], "depths": [1, 1], "num_query_pool": 1},
    "convnext": FOUR,
    "convnextv2": FOUR,
    "resnet": CONVOLUTIONS,
    "regnet": {**CONVOLUTIONS, "groups_width": 4},
    "bit": {"embedding_size": 8, "hidden_sizes": [32, 64], "depths": [1, 1], "num_groups": 4},
    "levit": {"image_size": 64, "hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 2, 2], "depths": [1, 1, 1],
              "key_dim": [8, 8, 8]},
    "mobilevit": {"image_size": 64, "hidden_sizes": [16, 24, 32], "num_attention_heads": 2,
                  "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 48]},
    "mobilevitv2": {"image_size": 64, "width_multiplier": 0.25, "n_attn_blocks": [1, 1, 1]},
    "mobilenet_v1": {"image_size": 32, "depth_multiplier": 0.25},
    "mobilenet_v2": {"image_size": 32, "depth_multiplier": 0.25},
    "efficientnet": {"image_size": 32, "width_coefficient": 0.25, "depth_coefficient": 0.1, "hidden_dim": 320},
    "pvt": {**PYRAMID, "image_size": 64},
    "pvt_v2": {**PYRAMID, "image_size": 64},
    "cvt": {"embed_dim": [16, 24, 32], "num_heads": [1, 2, 2], "depth": [1, 2, 3]},
    "poolformer": FOUR,
    "segformer": PYRAMID,
    "glpn": PYRAMID,
    "swiftformer": {"image_size": 64, "depths": [1, 1, 1, 1], "embed_dims": [8, 16, 24, 32]},
    "textnet": {"image_size": [64, 64], "stem_out_channels": 8, "hidden_sizes": [8, 8, 16, 16, 24],
                "conv_layer_kernel_sizes": [[[3, 3]], [[3, 3]], [[3, 3]], [[3, 3]]],
                "conv_layer_strides": [[2], [2], [2], [2]]},
    "siglip2_vision_model": {**LAYERS, "num_patches": 16, "patch_size": 8},
    "pixtral": VIT,
    "hgnet_v2": {"embedding_size": 8, "stem_channels": [3, 8, 8], "hidden_sizes": [8, 8], "depths": [1, 1],
                 "stage_in_channels": [8, 8], "stage_mid_channels": [8, 8], "stage_out_channels": [8, 8],
                 "stage_num_blocks": [1, 1], "stage_numb_of_layers": [1, 1], "stage_downsample": [False, True],
                 "stage_light_block": [False, False], "stage_kernel_size": [3, 3], "stage_downsample_strides": [2, 2]},
    "xclip": {"vision_config": {**VIT, "mit_hidden_size": 32, "mit_intermediate_size": 64, "num_frames": 4},
              "text_config": {**LAYERS, "vocab_size": 99}},
    "flava": {"text_config": LAYERS, "multimodal_config": LAYERS, "image_config": VIT},
    "videomae": VIT,
    "vivit": VIT,
    "seggpt": VIT,
    "bert": {**LAYERS, "vocab_size": 99},
    "vilt": {**VIT, "vocab_size": 99},
}  # fmt: skip
TINY = {"embed_dim": 48, "depth": 2, "num_heads": 3}
TIMM = {  # architecture: arguments that make it small
    "vit_tiny_patch16_224": {**TINY, "img_size": 32},
    "vit_relpos_small_patch16_224": {**TINY, "img_size": 32},
    "deit3_small_patch16_224": {**TINY, "img_size": 32},
    "deit_tiny_distilled_patch16_224": {**TINY, "img_size": 32},
    "eva02_tiny_patch14_224": {**TINY, "img_size": 28},
    "beit_base_patch16_224": {**TINY, "img_size": 32},
    "beitv2_base_patch16_224": {**TINY, "img_size": 32},
    "vit_small_patch14_reg4_dinov2": {**TINY, "img_size": 28},
    "vit_small_patch16_dinov3": {**TINY, "img_size": 32},
    "vit_base_patch16_siglip_224": {**TINY, "img_size": 32},
    "vit_base_patch32_clip_224": {**TINY, "img_size": 32},
    "samvit_base_patch16_224": {**TINY, "img_size": 32},
    "cait_xxs24_224": {**TINY, "img_size": 32},
    "crossvit_tiny_240": {},
    "pit_ti_224": {"img_size": 64},
    "swin_tiny_patch4_window7_224": {"img_size": 64, "window_size": 2, "embed_dim": 24, "depths": [1, 1, 1, 1]},
    "swinv2_tiny_window8_256": {"img_size": 64, "window_size": 2, "embed_dim": 24, "depths": [1, 1, 1, 1]},
    "maxvit_pico_rw_256": {"img_size": 64},
    "coatnet_pico_rw_224": {"img_size": 64},
    "hiera_tiny_224": {"img_size": 64, "embed_dim": 24, "num_heads": 1, "stages": [1, 1, 1, 1]},
    "levit_128s": {"img_size": 64},
    "efficientformer_l1": {},
    "efficientformerv2_s0": {"img_size": 64},
    "tiny_vit_5m_224": {},
    "efficientvit_m0": {"img_size": 64},
    "efficientvit_b0": {},
    "mobilevit_xxs": {},
    "mobilevitv2_050": {},
    "mobileone_s0": {},
    "mobilenetv3_small_050": {},
    "mobilenetv4_conv_small": {},
    "fastvit_t8": {},
    "repvit_m0_9": {},
    "repvgg_a0": {},
    "convnext_atto": {},
    "convnextv2_atto": {},
    "resnet10t": {},
    "resnetv2_18": {},
    "regnetx_002": {},
    "efficientnet_b0": {},
    "densenet121": {"growth_rate": 8, "block_config": [1, 1, 1, 1]},
    "edgenext_xx_small": {},
    "ghostnet_050": {},
    "poolformer_s12": {},
    "pvt_v2_b0": {},
    "xcit_nano_12_p16_224": {"img_size": 64},
    "mixer_s32_224": {"img_size": 64},
    "resmlp_12_224": {"img_size": 64},
    "convit_tiny": {"img_size": 64},
    "visformer_tiny": {"img_size": 64},
    "mvitv2_tiny": {"img_size": 64},
    "gcvit_xxtiny": {"img_size": 64},
    "nest_tiny": {"img_size": 64},
    "mambaout_femto": {},
    "starnet_s1": {},
    "inception_next_atto": {},
    "hgnetv2_b0": {},
    "lcnet_050": {},
    "swiftformer_xs": {},
    "shvit_s1": {},
    "nf_resnet26": {},
    "twins_svt_small": {"img_size": 64},
    "vgg11_bn": {},
}  # fmt: skip
SIDES = {"efficientformer_l1": 224, "tiny_vit_5m_224": 224, "crossvit_tiny_240": 240}  # that these have alone
CLASSES = ["ape", "bee"]


@dataclass(frozen=True)
class Row:
    """What came of one backbone: how it is pooled and how wide, or why it is refused."""

    name: str
    pooling: str = ""
    width: int | None = None
    outcome: str = "exact"


def configurations(words: list[str] | None = None) -> dict[str, PreTrainedConfig]:
    """Return the configurations of all backbones by name, or of those whose names hold one of some words."""
    found = {}
    for name in [*TRANSFORMERS, *(f"timm {architecture}" for architecture in TIMM)]:
        if words and not any(word in name for word in words):
            continue
        if name in TRANSFORMERS:
            found[name] = AutoConfig.for_model(name, **TRANSFORMERS[name])
        else:
            architecture = name.removeprefix("timm ")
            found[name] = TimmWrapperConfig(architecture=architecture, model_args=TIMM[architecture], num_labels=0)
    return found


def side_of(backbone: PreTrainedConfig) -> int:
    """Return the side in pixels of images that are small and fit a backbone."""
    size = backbone.to_dict().get("vision_config", backbone.to_dict()).get("image_size")
    if backbone.model_type == "timm_wrapper":
        if backbone.architecture in SIDES:
            return SIDES[backbone.architecture]
        size = backbone.model_args.get("img_size")
    size = size[0] if isinstance(size, list | tuple) else size
    return 64 if size is None or size > 64 else size


def try_backbone(name: str, backbone: PreTrainedConfig) -> Row:
    """Build a model around a backbone, look at images, take three steps, save it and load it again.

    Raises:
        AssertionError: If something is not as it must be.
    """
    torch.manual_seed(0)
    side = side_of(backbone)
    try:
        model = WakeSleepForImageClassification(WakeSleepConfig(backbone_config=backbone, image_size=side))
    except ValueError as error:
        return Row(name, outcome=f"refused: {error}")
    model.grow(CLASSES)
    images, labels = torch.randn(4, 3, side, side), torch.tensor([0, 1, 0, 1])
    adapt(model, images)
    assert_sees_everything(model.eval(), images)
    with torch.no_grad():
        model.head.lda.update(model.extract_features(images), labels)
    train(model, images, labels)
    assert_loads_exactly(model.eval(), images)
    return Row(name, model.config.pooling, model.config.feature_dim)


@torch.no_grad()
def adapt(model: WakeSleepForImageClassification, images: torch.Tensor) -> None:
    """Set running statistics to those of some images, or features vanish with random weights."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    model.train().extract_features(images)


@torch.no_grad()
def assert_sees_everything(model: WakeSleepForImageClassification, images: torch.Tensor) -> None:
    """Check that a feature is the same twice, and another one when a quarter of the image changes, whichever."""
    features = model.extract_features(images)
    assert features.shape == (len(images), model.config.feature_dim), features.shape
    assert torch.equal(features, model.extract_features(images)), "two passes differ"
    half = images.shape[-1] // 2
    for rows in (slice(half), slice(half, None)):
        for columns in (slice(half), slice(half, None)):
            changed = images.clone()
            changed[:, :, rows, columns] += 3
            assert not torch.equal(model.extract_features(changed), features), "a quarter of the image is not seen"


def train(model: WakeSleepForImageClassification, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Take three steps and check that the loss is finite and the backbone moves."""
    before = {name: parameter.clone() for name, parameter in model.backbone.named_parameters()}
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-3)
    for _ in range(3):
        loss = model(images, labels=labels).loss
        assert loss.isfinite(), f"the loss is {loss}"
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    moved = [name for name, parameter in model.backbone.named_parameters() if not torch.equal(parameter, before[name])]
    assert len(moved) > len(before) / 2, f"only {len(moved)} of {len(before)} parameters moved"


@torch.no_grad()
def assert_loads_exactly(model: WakeSleepForImageClassification, images: torch.Tensor) -> None:
    """Check that a saved model comes back with the same weights, bit for bit, and the same answers."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded = WakeSleepForImageClassification.from_pretrained(folder, disable_mmap=True).eval()
    state, there = model.state_dict(), loaded.state_dict()
    assert state.keys() == there.keys(), state.keys() ^ there.keys()
    differing = [name for name, value in state.items() if not torch.equal(value, there[name])]
    assert not differing, f"{differing[:3]} differ"
    assert (loaded.config.pooling, loaded.config.feature_dim) == (model.config.pooling, model.config.feature_dim)
    difference = (loaded(images).logits - model(images).logits).abs().max()
    assert difference <= 1e-6, f"logits differ by {difference:.1e}"


def table(rows: list[Row]) -> str:
    """Return the rows in Markdown, those that are refused in a second table."""
    work = [f"| {row.name} | {row.pooling} | {row.width} | {row.outcome} |" for row in rows if row.width]
    refused = [f"| {row.name} | {row.outcome.removeprefix('refused: ')} |" for row in rows if not row.width]
    return "\n".join(
        ["| backbone | pooling | width | after save and load |", "|---|---|---|---|", *work]
        + ["", "| refused | with |", "|---|---|", *refused]
    )


def main() -> None:
    """Try all backbones, or those whose names hold one of the words given, and print the table."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    rows = []
    for name, backbone in configurations(sys.argv[1:]).items():
        print(f"{name} ...", file=sys.stderr)
        try:
            rows.append(try_backbone(name, backbone))
        except (AssertionError, RuntimeError, TypeError, AttributeError, LookupError) as error:
            rows.append(Row(name, outcome=f"FAILED: {type(error).__name__}: {error}"))
    print(table(rows))
    sys.exit(any(row.outcome.startswith("FAILED") for row in rows))


if __name__ == "__main__":
    main()
