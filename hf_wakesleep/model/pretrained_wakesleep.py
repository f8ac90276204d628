"""PretrainedBackbone: loads a backbone from the Hub or a folder, with its weights and the images that it expects."""

from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedConfig, PreTrainedModel

from .backbone_wakesleep import (
    FOREIGN_ERRORS,
    POOLERS,
    backbone_class,
    first_line,
    own_image_size,
    pooling_without_pooler,
)
from .configuration_wakesleep import WakeSleepConfig, vision_part

UNUSED_WEIGHTS = ("mask_token", "num_batches_tracked")  # how names of weights end that features do not depend on

_TOWER = r"^(model\.)?(vision_model|image_model|vision_tower)\.(vision_model\.)?"
KEY_MAPPINGS = (  # from names of weights in a file that holds several towers to those of the one that looks at images
    None,
    {_TOWER: ""},
    {_TOWER + r"encoder\.layer\.": "encoder.layers.", _TOWER: ""},  # AltCLIP, as transformers 5 writes it
)


@dataclass(frozen=True)
class PretrainedBackbone:
    """A backbone and what else a model is built from.

    Args:
        network (`PreTrainedModel`): With pretrained weights.
        image_size (`int`): Side in pixels of the images.
        image_mean (`list[float]`): Normalisation.
        image_std (`list[float]`): Normalisation.
        pooling (`str`, *optional*): The only one that is left where the weights of its own pooler are missing.
    """

    network: PreTrainedModel
    image_size: int
    image_mean: list[float]
    image_std: list[float]
    pooling: str | None = None

    @classmethod
    def load(
        cls,
        name_or_path: str,
        image_size: int | None,
        image_mean: list[float] | None,
        image_std: list[float] | None,
        download: dict,
        **kwargs,
    ) -> "PretrainedBackbone":
        """Load a backbone; of a model with two towers, the one that looks at images.

        Args:
            name_or_path (`str`): Hub name or folder.
            image_size (`int`, *optional*): Side in pixels of the images to take, if not its own.
            image_mean (`list[float]`, *optional*): Normalisation, if not its own.
            image_std (`list[float]`, *optional*): Normalisation, if not its own.
            download (`dict`): Which files are meant: `revision`, `token`, ...
            kwargs: Passed on to `AutoModel.from_pretrained`.

        Raises:
            OSError: If there is no such backbone, or no file of weights that is no pickle.
            ValueError: If it is no backbone, weights are missing, or it does not say what images it takes.
        """
        given = {"image_size": image_size, "image_mean": image_mean, "image_std": image_std}
        config = _load_config(name_or_path, download)
        if config.model_type == "timm_wrapper":
            own = _timm_images(config)
            model_args = _timm_args(config, image_size, own["image_size"]) | (kwargs.pop("model_args", None) or {})
            kwargs = {**kwargs, "model_args": model_args} if model_args else kwargs
        else:
            own = _transformers_images(name_or_path, config, given, download)
            kwargs["config"] = config
        images = {name: own[name] if value is None else value for name, value in given.items()}
        if None in images.values():
            lacking = [name for name, value in images.items() if value is None]
            raise ValueError(
                f"{name_or_path} does not say what images it takes. Pass {', '.join(f'`{n}`' for n in lacking)}."
            )
        network, pooling = _load_network(name_or_path, config, images["image_size"], kwargs)
        return cls(network, **images, pooling=pooling)


def _load_config(name_or_path: str, download: dict) -> PreTrainedConfig:
    try:
        config = AutoConfig.from_pretrained(name_or_path, **download)
    except OSError as error:
        raise OSError(
            f"Expected the Hub name or the folder of a backbone, got {str(name_or_path)!r}, which is neither "
            f"({first_line(error)})."
        ) from error
    except FOREIGN_ERRORS as error:
        raise ValueError(
            f"Expected the Hub name or the folder of a backbone, got {str(name_or_path)!r} ({first_line(error)})."
        ) from error
    if config.model_type == WakeSleepConfig.model_type:
        raise ValueError(
            f"Expected a backbone, but {name_or_path} is a stage. Load it with "
            "`WakeSleepForImageClassification.from_pretrained`."
        )
    return vision_part(config)


def _load_network(
    name_or_path: str, config: PreTrainedConfig, image_size: int, kwargs: dict
) -> tuple[PreTrainedModel, str | None]:
    """Return a backbone, and the pooling that is left where the weights of its own pooler are missing."""
    kwargs = {"dtype": torch.float32, "use_safetensors": True, **kwargs}
    kwargs |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        for key_mapping in KEY_MAPPINGS if "config" in kwargs else KEY_MAPPINGS[:1]:
            names = {} if key_mapping is None else {"key_mapping": key_mapping}
            network, info = backbone_class(config).from_pretrained(name_or_path, **kwargs, **names)
            if not _lost(info):
                break
    except OSError as error:
        raise OSError(
            f"Expected weights of a backbone in {name_or_path}, in safetensors files ({first_line(error)})."
        ) from error
    except (*FOREIGN_ERRORS, SafetensorError) as error:
        raise ValueError(
            f"Expected a backbone for images of {image_size} pixels in {name_or_path}, but it cannot be loaded "
            f"({first_line(error)}). Choose another one, or another `image_size`."
        ) from error
    if info["mismatched_keys"]:
        raise ValueError(
            f"Expected weights of a {type(network).__name__} for an `image_size` of {image_size} in {name_or_path}, "
            f"but some have other shapes, such as {min(map(str, info['mismatched_keys']))}. Leave `image_size` out."
        )
    if lost := _lost(info):
        raise ValueError(
            f"Expected all weights of a {type(network).__name__} in {name_or_path}, but {len(lost)} are not there, "
            f"such as {lost[:3]}. Choose another backbone."
        )
    return network, pooling_without_pooler(network) if _missing(info) else None


def _missing(info: dict) -> list[str]:
    return sorted(name for name in info["missing_keys"] if not name.endswith(UNUSED_WEIGHTS))


def _lost(info: dict) -> list[str]:
    """Return which weights are missing that no choice of pooling can do without."""
    return [name for name in _missing(info) if name.split(".")[0] not in POOLERS]


def _transformers_images(name_or_path: str, config: PreTrainedConfig, given: dict, download: dict) -> dict:
    """Return size, mean and standard deviation of the images that a backbone of transformers takes."""
    own = {"image_size": own_image_size(config), "image_mean": None, "image_std": None}
    if any(own[name] is None and given[name] is None for name in own):
        try:
            processor = AutoImageProcessor.from_pretrained(name_or_path, **download)
        except OSError as error:
            lacking = ", ".join(f"`{name}`" for name in own if own[name] is None and given[name] is None)
            raise OSError(
                f"Expected an image processor beside the backbone in {name_or_path} ({first_line(error)}). Pass "
                f"{lacking} instead."
            ) from error
        except FOREIGN_ERRORS as error:
            raise ValueError(
                f"Expected an image processor beside the backbone in {name_or_path}, got none that loads "
                f"({first_line(error)})."
            ) from error
        fields = processor.to_dict()
        own["image_size"] = own["image_size"] or _processor_size(fields)
        own |= {name: fields.get(name) for name in ("image_mean", "image_std")}
    return own


def _processor_size(fields: dict) -> int | None:
    """Return the side in pixels of the square images that an image processor makes, if it does."""
    size = fields.get("crop_size") if fields.get("do_center_crop") else fields.get("size")
    sides = set((size or {}).values())
    return sides.pop() if len(sides) == 1 else None


def _timm_images(config: PreTrainedConfig) -> dict:
    """Return size, mean and standard deviation of the images that a backbone of timm takes."""
    processing, model_args = config.pretrained_cfg or {}, config.model_args or {}
    size = processing.get("input_size") or [3, *2 * [model_args.get("img_size", 224)]]
    if size[-1] != size[-2]:
        raise ValueError(f"Expected a backbone of square images, got an `input_size` of {size}.")
    return {"image_size": size[-1], "image_mean": processing.get("mean"), "image_std": processing.get("std")}


def _timm_args(config: PreTrainedConfig, image_size: int | None, own_size: int) -> dict:
    """Return what timm has to be told to take images of another size than a backbone's own."""
    own = dict(config.model_args or {})
    if image_size in (None, own_size):
        return own
    for further in ({"dynamic_img_size": True}, {"img_size": image_size}):
        trial = type(config)(architecture=config.architecture, model_args={**own, **further}, num_labels=0)
        try:
            with torch.device("meta"):
                AutoModel.from_config(trial)
        except TypeError:
            continue
        except FOREIGN_ERRORS as error:
            raise ValueError(
                f"Expected a backbone that takes images of `image_size` {image_size}, but timm does not build "
                f"{config.architecture} for them ({first_line(error)})."
            ) from error
        return {**own, **further}
    return own
