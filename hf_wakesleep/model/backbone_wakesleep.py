"""Backbone: the network of transformers or timm that turns images into features."""

import inspect
from dataclasses import dataclass

import torch
import transformers
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING
from transformers.utils import ModelOutput

FOREIGN_ERRORS = (  # what other libraries raise for a network, a file or an input that does not fit
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
CLASS_TOKENS = ("cls_token", "class_token", "class_embedding", "cls_embedding")
POOLERS = ("pooler", "head")  # what makes `pooler_output`, where that has weights of its own
RUNNING_BUFFERS = (
    "running_",
    "num_batches_tracked",
)  # how names of buffers start that a forward pass in training changes


def backbone_class(config: PreTrainedConfig):
    """Return what builds and loads a backbone: `AutoModel`, or the class of a vision tower that it does not know."""
    if config.model_type == "timm_wrapper" or type(config) in MODEL_MAPPING:
        return AutoModel
    name = type(config).__name__.removesuffix("Config") + "Model"
    if name not in dir(transformers) or not name.endswith(("VisionModel", "ImageModel")):
        raise ValueError(
            f"Expected a `backbone_config` that AutoModel builds a network from, got {type(config).__name__}."
        )
    return getattr(transformers, name)


def build_backbone(config: PreTrainedConfig) -> PreTrainedModel:
    """Return a backbone with new weights.

    Raises:
        ValueError: If there is no such network.
    """
    build = backbone_class(config)
    try:
        return AutoModel.from_config(config) if build is AutoModel else build._from_config(config)
    except FOREIGN_ERRORS as error:
        raise ValueError(f"`backbone_config` must describe a backbone, but {first_line(error)}") from error


@dataclass(frozen=True)
class BackboneCall:
    """How a backbone is called, and what of its outputs is the feature.

    Args:
        pooling (`str`): `"pooler"`, `"cls"` or `"mean"`.
        interpolates (`bool`): Whether it must be told that images are not of its own size.
        num_patches (`int`, *optional*): Number of patches of a masked autoencoder, which is to mask none of them.
    """

    pooling: str
    interpolates: bool = False
    num_patches: int | None = None

    def __call__(self, backbone: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return features (B, D) of images (B, 3, H, W)."""
        return pool(self.outputs(backbone, pixel_values), self.pooling)

    def outputs(self, backbone: PreTrainedModel, pixel_values: torch.Tensor) -> ModelOutput:
        """Return all that the backbone gives for images (B, 3, H, W)."""
        inputs = {"interpolate_pos_encoding": True} if self.interpolates else {}
        if self.num_patches is not None:
            order = torch.arange(self.num_patches, dtype=torch.float32, device=pixel_values.device)
            inputs["noise"] = order.expand(
                len(pixel_values), -1
            )  # (B, N) patches are kept in the order of their noise
        return backbone(pixel_values, **inputs)


def make_call(backbone: PreTrainedModel, image_size: int, pooling: str) -> BackboneCall:
    """Return how a backbone is called with square images of one size; a masked autoencoder is told to mask nothing."""
    accepted = inspect.signature(backbone.forward).parameters
    own_size = own_image_size(backbone.config)
    num_patches = None
    if backbone.config.model_type == "vit_mae":
        backbone.config.mask_ratio = 0.0
        num_patches = (image_size // backbone.config.patch_size) ** 2
    interpolates = "interpolate_pos_encoding" in accepted and own_size != image_size
    return BackboneCall(pooling, interpolates, num_patches)


def pool(outputs: ModelOutput, pooling: str) -> torch.Tensor:
    """Return features (B, D): the pooler's, the class token, or the mean over tokens or over a feature map."""
    if pooling == "pooler":
        return outputs.pooler_output.flatten(1)  # (B, D)
    tokens = outputs.last_hidden_state
    if pooling == "cls":
        return tokens[:, 0] if tokens.ndim == 3 else outputs.cls_token_value[:, 0]  # (B, D)
    if tokens.ndim == 3:
        return tokens.mean(dim=1)  # (B, N, D) -> (B, D)
    is_last = tokens.shape[1] == tokens.shape[2] != tokens.shape[3]  # images are square, so maps are
    return tokens.mean(dim=(1, 2) if is_last else (2, 3))  # (B, H, W, D) or (B, D, H, W) -> (B, D)


def find_pooling(
    backbone: PreTrainedModel, image_size: int, pooling: str | None = None, *, checks: bool = True
) -> tuple[str, int]:
    """Return the pooling, chosen if it is not given, and the width of the features, from one pass of black images.

    timm pools by itself. A class token is the feature where there is one, unless the backbone's own output is more
    than that (normalised once more, as in CLIP, or the mean of several). Without one it is what the backbone's own
    pooler gives, or the mean.

    Args:
        backbone (`PreTrainedModel`): With real weights; stays as it is.
        image_size (`int`): Side in pixels of its images.
        pooling (`str`, *optional*): What was asked for.
        checks (`bool`, defaults to `True`): Whether to refuse a pooling that the backbone does not have.

    Raises:
        ValueError: If it does not turn images into features, or does not have the pooling.
    """
    _check_inputs(backbone)
    if checks:
        _check_patches(backbone, image_size)
    outputs = _outputs_of_black_images(backbone, image_size)
    found = _poolings(backbone, outputs)
    if not found:
        raise ValueError(
            f"Expected a backbone that turns images into features, but {type(backbone).__name__} gives neither "
            f"`last_hidden_state` nor `pooler_output`, only {list(outputs)}. Choose another `backbone_config`."
        )
    if pooling is None:
        pooling = found[0]
    elif checks and pooling not in found:
        raise ValueError(
            f"`pooling` is {pooling!r}, but {type(backbone).__name__} has no such feature, only {found}. Leave it out."
        )
    width = pool(outputs, pooling).shape
    if len(width) != 2 or width[0] != 2:
        raise ValueError(
            f"Expected a backbone that gives one feature per image, but {type(backbone).__name__} gives features of "
            f"shape {tuple(width)} for 2 images with `pooling` {pooling!r}. Choose another `backbone_config`."
        )
    return pooling, width[1]


def pooling_without_pooler(backbone: PreTrainedModel) -> str:
    """Return the pooling of a backbone whose own pooler has no trained weights."""
    return "cls" if has_class_token(backbone) else "mean"


def drop_pooler(backbone: PreTrainedModel) -> None:
    """Drop the weights of a pooler that nothing would use or train."""
    pooler = dict(backbone.named_children()).get("pooler")
    if pooler is not None and next(pooler.parameters(), None) is not None:
        backbone.pooler = None


def has_class_token(backbone: PreTrainedModel) -> bool:
    """Return whether the tokens of a backbone begin with one for the whole image."""
    names = [name.split(".") for name, _ in backbone.named_parameters()]
    return any(name[-1] in CLASS_TOKENS and not set(name) & {*POOLERS, "attn_pool"} for name in names)


def is_on_meta(backbone: nn.Module) -> bool:
    """Return whether a backbone has no weights yet, only shapes (the meta device)."""
    return any(parameter.is_meta for parameter in backbone.parameters())


def own_image_size(config: PreTrainedConfig) -> int | None:
    """Return the side in pixels of the square images that a backbone of transformers is made for, if it says so.

    Raises:
        ValueError: If they are not square.
    """
    size = config.to_dict().get("image_size")
    if isinstance(size, dict):
        size = [size.get("height"), size.get("width")]
    if isinstance(size, list | tuple):
        if len(set(size)) != 1:
            raise ValueError(f"Expected a backbone of square images, got an `image_size` of {list(size)}.")
        size = size[0]
    return size


def freeze_running_statistics(backbone: nn.Module) -> None:
    """Put all modules with running statistics into evaluation mode, so that a forward pass does not change them."""
    for module in backbone.modules():
        if any(name.startswith(RUNNING_BUFFERS) for name, _ in module.named_buffers(recurse=False)):
            module.eval()


class OneTimeCache(dict):
    """A dictionary that drops an entry when it is read, so that nothing outlives its forward pass."""

    def __getitem__(self, key):
        return self.pop(key)


def disable_caches(backbone: nn.Module) -> None:
    """Replace caches of values that depend on weights, as in LeViT: they would keep old values and gradients."""
    for module in backbone.modules():
        if type(vars(module).get("attention_bias_cache")) is dict:
            module.attention_bias_cache = OneTimeCache()


def first_line(error: BaseException) -> str:
    """Return the name of an error and the first line of what it says."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


def _check_inputs(backbone: PreTrainedModel) -> None:
    parameters = inspect.signature(backbone.forward).parameters.values()
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is inspect.Parameter.empty and p.kind not in kinds]
    first = next(iter(parameters)).name
    if first != "pixel_values" or set(needed) - {first}:
        raise ValueError(
            f"Expected a backbone that takes images alone (`pixel_values`), but {type(backbone).__name__} takes "
            f"{needed or [first]}. Choose another `backbone_config`."
        )
    if "num_frames" in backbone.config.to_dict():
        raise ValueError(
            f"Expected a backbone that takes images alone, but {type(backbone).__name__} takes videos. Choose another "
            "`backbone_config`."
        )


def _check_patches(backbone: PreTrainedModel, image_size: int) -> None:
    """Refuse a size whose last pixels would be cut off, because patches side by side do not divide it."""
    for module in backbone.modules():
        is_stem = isinstance(module, nn.Conv2d) and module.in_channels == 3 and module.padding in ("valid", (0, 0))
        side = module.kernel_size[0] if is_stem and module.kernel_size == module.stride else 1
        if image_size % side:
            raise ValueError(
                f"`image_size` must be a multiple of the backbone's patches of {side} pixels, got {image_size}. Take "
                f"{(image_size // side + 1) * side}."
            )


@torch.no_grad()
def _outputs_of_black_images(backbone: PreTrainedModel, image_size: int) -> ModelOutput:
    """Return what a backbone in evaluation mode gives for two black images."""
    was_training = backbone.training
    backbone.eval()
    try:
        with torch.random.fork_rng(devices=[]):
            images = torch.zeros(2, 3, image_size, image_size, device=backbone.device, dtype=backbone.dtype)
            outputs = make_call(backbone, image_size, "pooler").outputs(backbone, images)
            if not isinstance(outputs, ModelOutput):
                raise TypeError(f"it gives a {type(outputs).__name__}")
    except FOREIGN_ERRORS as error:
        raise ValueError(
            f"Expected a backbone that turns images of 3 x {image_size} x {image_size} into features, but "
            f"{type(backbone).__name__} does not ({first_line(error)}). Choose another `image_size` or "
            "`backbone_config`."
        ) from error
    finally:
        backbone.train(True)  # drops what evaluation has cached
        backbone.train(was_training)
    return outputs


def _poolings(backbone: PreTrainedModel, outputs: ModelOutput) -> list[str]:
    """Return the poolings that a backbone has, the right one first."""
    tokens, pooled = outputs.get("last_hidden_state"), outputs.get("pooler_output")
    has_tokens = isinstance(tokens, torch.Tensor) and tokens.ndim in (3, 4)
    has_pooled = isinstance(pooled, torch.Tensor) and pooled.ndim in (2, 4)
    has_class = has_tokens and (tokens.ndim == 3 and has_class_token(backbone) or "cls_token_value" in outputs)
    found = [("pooler", has_pooled), ("cls", has_class), ("mean", has_tokens)]
    found = [pooling for pooling, is_there in found if is_there]
    if backbone.config.model_type == "timm_wrapper" or not (has_class and has_pooled):
        return found
    pooler = dict(backbone.named_children()).get("pooler")
    is_own = pooler is not None and next(pooler.parameters(), None) is not None
    is_cls = pooled.shape == tokens[:, 0].shape and torch.equal(pooled, tokens[:, 0])
    return ["cls", "pooler", "mean"] if is_own or is_cls else found
