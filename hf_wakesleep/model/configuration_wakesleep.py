"""WakeSleepConfig: the configuration of the model, with its backbone, its images and the order of its classes."""

import math
import re
from collections.abc import Sequence
from numbers import Integral, Real

from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

POOLINGS = ("pooler", "cls", "mean")
CLASSIFIERS = ("linear", "cosine")
VISION_CONFIGS = ("vision_config", "image_config")  # of the configuration of a model with several towers

# A configuration comes from strangers, and a model is built from it before its weights are looked at.
MAX_CLASSES = 100_000
MAX_NAME = 1_000  # characters in the name of a class
MAX_SIDE = 4_096  # pixels
MAX_LAYERS = 256
MAX_WIDTH = 65_536  # of anything else in a backbone
LAYERS = ("num_hidden_layers", "depth", "depths", "layers")
# Arguments of `timm.create_model` that fetch or unpickle weights, and what is no name of an architecture.
REFUSED_MODEL_ARGS = ("cache_dir", "checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay")
_ARCHITECTURE = re.compile(r"\w+(\.\w+)?").fullmatch


class WakeSleepConfig(PreTrainedConfig):
    """Configuration of [`WakeSleepForImageClassification`].

    `id2label` holds the classes in the order in which they were learned; the head has one output unit per entry and
    grows with it. It is empty for a model that has learned nothing yet.

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*):
            Configuration of the backbone, any that `AutoModel.from_config` accepts (a transformers ViT, or
            `TimmWrapperConfig` for timm). Of a model with two towers, such as CLIP, its vision part is taken. Defaults
            to `ViTConfig()`.
        backbone_revision (`str`, *optional*): Commit of the pretrained backbone on the Hub, for the record.
        pooling (`str`, *optional*):
            How an image becomes one feature: `"cls"` (the class token), `"mean"` (of all tokens, or over a feature
            map) or `"pooler"` (the backbone's own `pooler_output`). Chosen from the backbone, when a model is built,
            if missing.
        feature_dim (`int`, *optional*): Width D of that feature; found when a model is built.
        classifier (`str`, defaults to `"linear"`): `"linear"` or `"cosine"` (normalised features and weights).
        lda_weight (`float`, defaults to 0.5): Weight of LDA in the mix of the two softmaxes, 0 to 1.
        lda_shrinkage (`float`, *optional*):
            Shrinkage e of LDA's covariance to a multiple of I, in (0, 1]. Follows from LDA's statistics if missing.
        image_size (`int`, defaults to 224): Side in pixels of the square images that the model takes.
        image_mean (`list[float]`, defaults to `[0.5, 0.5, 0.5]`): Mean per channel, of pixels in 0 to 1.
        image_std (`list[float]`, defaults to `[0.5, 0.5, 0.5]`): Standard deviation per channel.
        id2label (`dict[int, str]`, *optional*): Names of the classes seen so far, in the order of learning.

    Raises:
        ValueError: If a value is out of its range.
    """

    model_type = "wakesleep"
    sub_configs = {"backbone_config": AutoConfig}
    keys_to_ignore_at_inference = ["classifier_logits", "lda_logits", "features"]

    def __init__(  # noqa: PLR0913, PLR0917
        self,
        backbone_config=None,
        backbone_revision=None,
        pooling=None,
        feature_dim=None,
        classifier="linear",
        lda_weight=0.5,
        lda_shrinkage=None,
        image_size=224,
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.5, 0.5, 0.5),
        id2label=None,
        **kwargs,
    ):
        if backbone_config is None:
            backbone_config = {"model_type": "vit"}
        if not isinstance(backbone_config, PreTrainedConfig):
            backbone_config = _build_backbone_config(backbone_config)
        _check_fields(kwargs, PreTrainedConfig, "the configuration")
        if kwargs.pop("model_type", self.model_type) != self.model_type:
            raise ValueError(f"Expected a configuration of the type {self.model_type!r}, got another.")
        self.backbone_config = vision_part(backbone_config)
        self.backbone_revision = backbone_revision
        self.pooling = pooling
        self.feature_dim = feature_dim
        self.classifier = classifier
        self.lda_weight = lda_weight
        self.lda_shrinkage = lda_shrinkage
        self.image_size = image_size
        self.image_mean = image_mean
        self.image_std = image_std
        self._check()
        self.image_mean, self.image_std = list(image_mean), list(image_std)
        names = _class_list({} if id2label is None else id2label)
        kwargs.pop("label2id", None)
        if kwargs.pop("num_labels", len(names)) != len(names):
            raise ValueError(f"`num_labels` is the number of classes learned, {len(names)}. Leave it out.")
        label2id = {name: index for index, name in enumerate(names)}
        try:
            super().__init__(id2label=dict(enumerate(names)), label2id=label2id, **kwargs)
        except (AttributeError, LookupError, StrictDataclassError, TypeError) as error:
            raise ValueError(
                f"Expected fields that transformers knows in the configuration, but {error!r}."
            ) from error

    def _check(self):
        if self.pooling is not None and self.pooling not in POOLINGS:
            raise ValueError(f"`pooling` must be one of {POOLINGS} or None, got {self.pooling!r}.")
        if self.feature_dim is not None and not (_is_whole(self.feature_dim) and 1 <= self.feature_dim <= MAX_WIDTH):
            raise ValueError(f"`feature_dim` must be 1 to {MAX_WIDTH:,} or None, got {self.feature_dim!r}.")
        if self.classifier not in CLASSIFIERS:
            raise ValueError(f"`classifier` must be one of {CLASSIFIERS}, got {self.classifier!r}.")
        if not (_is_number(self.lda_weight) and 0 <= self.lda_weight <= 1):
            raise ValueError(f"`lda_weight` must lie in [0, 1], got {self.lda_weight!r}.")
        given = self.lda_shrinkage
        if given is not None and not (_is_number(given) and 0 < given <= 1):
            raise ValueError(f"`lda_shrinkage` must lie in (0, 1] or be None, got {given!r}.")
        if not (_is_whole(self.image_size) and 1 <= self.image_size <= MAX_SIDE):
            raise ValueError(f"`image_size` must be 1 to {MAX_SIDE} pixels, got {self.image_size!r}.")
        if not (_is_triple(self.image_mean) and _is_triple(self.image_std) and min(self.image_std) > 0):
            raise ValueError(
                "`image_mean` and `image_std` must hold 3 values (red, green, blue) and every standard deviation "
                f"must be positive, got {self.image_mean} and {self.image_std}."
            )

    def to_diff_dict(self) -> dict:
        """Return what differs from the defaults, and always the classes and how an image becomes a feature."""
        always = ("id2label", "label2id", "pooling", "feature_dim")
        return {**super().to_diff_dict(), **{name: getattr(self, name) for name in always}}

    @property
    def classes(self) -> list[str]:
        """Names of the classes seen so far, in the order of learning."""
        return [self.id2label[index] for index in range(len(self.id2label))]

    def add_classes(self, names: list[str]) -> None:
        """Append classes to `id2label` and `label2id`.

        Args:
            names (`list[str]`): The new classes, in order.

        Raises:
            ValueError: If a name is known already, comes twice, or is no name.
        """
        known = self.classes
        repeated = sorted(set(names) & set(known)) + sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(
                f"New classes must be new, but {repeated} are known already or come twice. "
                "Rename them, or drop them from the task."
            )
        check_class_names([*known, *names])
        self.id2label = dict(enumerate(known + list(names)))
        self.label2id = {name: index for index, name in self.id2label.items()}

    def rename_class(self, old: str, new: str) -> None:
        """Give a class another name, at the same place.

        Args:
            old (`str`): Its name.
            new (`str`): Its new name.

        Raises:
            ValueError: If `old` is unknown, or `new` is known already or is no name.
        """
        known = self.classes
        if old not in known:
            raise ValueError(f"Expected a class that is known, got {old!r}. Known are {known[:10]}.")
        if new in known:
            raise ValueError(f"Expected a new name, but there is a class {new!r} already. Pass another.")
        check_class_names([*known, new])
        self.id2label = {index: new if name == old else name for index, name in enumerate(known)}
        self.label2id = {name: index for index, name in self.id2label.items()}

    def remove_class(self, name: str) -> int:
        """Remove a class; those after it move up by one.

        Args:
            name (`str`): Its name.

        Returns:
            `int`: The index that it had.

        Raises:
            ValueError: If it is unknown, or the only one.
        """
        known = self.classes
        if name not in known:
            raise ValueError(f"Expected a class that is known, got {name!r}. Known are {known[:10]}.")
        if len(known) == 1:
            raise ValueError(f"Expected a class to remain, but {name!r} is the only one. Teach another first.")
        index = known.index(name)
        self.id2label = dict(enumerate(known[:index] + known[index + 1 :]))
        self.label2id = {label: number for number, label in self.id2label.items()}
        return index


def vision_part(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the configuration of the tower that looks at images; of a model with one tower, its own.

    Raises:
        ValueError: If it has no such tower, or one that transformers does not build alone.
    """
    parts = type(config).sub_configs
    if not {"text_config", *VISION_CONFIGS} & set(parts):
        return config
    tower = next((getattr(config, name) for name in VISION_CONFIGS if name in parts), None)
    if not isinstance(tower, PreTrainedConfig) or tower.model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"`backbone_config` must have a part that looks at images, got {type(config).__name__} with "
            f"{sorted(parts)}. Choose a model for images."
        )
    return vision_part(tower)


def check_class_names(names: Sequence[str]) -> None:
    """Refuse what cannot be the names of classes, whatever the alphabet of those that can.

    Raises:
        ValueError: If there are too many, or one is no text, empty, too long, or not valid Unicode.
    """
    if len(names) > MAX_CLASSES:
        raise ValueError(f"Expected at most {MAX_CLASSES:,} classes, got {len(names):,}.")
    for name in names:
        if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME or any("\ud800" <= c <= "\udfff" for c in name):
            raise ValueError(
                f"Expected names of classes of 1 to {MAX_NAME} characters of valid Unicode, got {str(name)[:50]!r}. "
                "Rename that class."
            )


def _class_list(id2label: dict) -> list[str]:
    """Return the names in the order of their indices, which must be 0, 1, ..."""
    if not isinstance(id2label, dict):
        raise ValueError(f"`id2label` must be a dict from index to name, got {str(id2label)[:100]}.")
    if len(id2label) > MAX_CLASSES:
        raise ValueError(f"Expected at most {MAX_CLASSES:,} classes, got {len(id2label):,}.")
    if set(map(str, id2label)) != set(map(str, range(len(id2label)))):
        raise ValueError(f"`id2label` must name the classes 0, 1, 2, ..., got {str(list(id2label)[:5])[:100]}.")
    names = [name for _, name in sorted((int(index), name) for index, name in id2label.items())]
    check_class_names(names)
    if len(set(names)) < len(names):
        raise ValueError("`id2label` must name every class once, but some names come twice.")
    return names


def _build_backbone_config(fields: dict) -> PreTrainedConfig:
    """Return the configuration of a backbone, unless its values are absurd or would fetch something."""
    if not isinstance(fields, dict) or str(fields.get("model_type")) not in {*CONFIG_MAPPING.keys()} - {"wakesleep"}:
        found = fields.get("model_type") if isinstance(fields, dict) else fields
        raise ValueError(
            "`backbone_config` must be a configuration with a `model_type` that transformers knows, got "
            f"{str(found)[:100]!r}."
        )
    fields = dict(fields)
    config_class = CONFIG_MAPPING[fields.pop("model_type")]
    _check_fields(fields, config_class, "`backbone_config`")
    _check_sizes(fields, "backbone_config", MAX_WIDTH)
    model_args = fields.get("model_args") or {}
    refused = sorted(set(model_args) & set(REFUSED_MODEL_ARGS)) if isinstance(model_args, dict) else [str(model_args)]
    if refused or not _ARCHITECTURE(str(fields.get("architecture", "vit"))):
        raise ValueError(
            "`backbone_config` must name an architecture of timm and arguments that shape it, got architecture "
            f"{str(fields.get('architecture'))[:100]!r} and {refused}."
        )
    try:
        return config_class(**fields)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, StrictDataclassError, TypeError) as error:
        raise ValueError(f"`backbone_config` must describe a backbone, but {error!r}.") from error


def _check_fields(fields: dict, config_class: type, where: str) -> None:
    """Refuse fields that would replace a method, and attention that is code from the Hub."""
    methods = [name for name in fields if name in dir(config_class) and callable(getattr(config_class, name))]
    if methods:
        raise ValueError(f"Expected fields in {where}, got the names of methods: {methods[:5]}. Leave them out.")
    for name, value in fields.items():
        if isinstance(value, dict) and "attn_implementation" in value:
            _check_attention(value, f"{where} ({name})")
    _check_attention(fields, where)


def _check_attention(fields: dict, where: str) -> None:
    attention = fields.get("attn_implementation")
    if attention is not None and not (isinstance(attention, str) and "/" not in attention):
        raise ValueError(
            f"`attn_implementation` in {where} must be built in, such as 'sdpa', got {str(attention)[:100]!r}. Load "
            "kernels from the Hub with `model.set_attn_implementation(...)`."
        )


def _check_sizes(value, name: str, most: int) -> None:
    """Refuse numbers that no backbone has, at any depth."""
    if isinstance(value, dict):
        for key, item in value.items():
            most_here = MAX_LAYERS if key in LAYERS else MAX_WIDTH
            if _is_number(item) and item < 0 and (key.startswith("num_") or key.endswith("_size")):
                raise ValueError(f"`{name}.{key}` must not be negative, got {item}.")
            _check_sizes(item, f"{name}.{key}", most_here)
    elif isinstance(value, list):
        for item in value:
            _check_sizes(item, name, most)
    elif _is_number(value) and not abs(value) <= most:
        raise ValueError(f"`{name}` must be a number up to {most:,}, got {value}.")


def _is_whole(value) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_triple(values) -> bool:
    return (
        isinstance(values, list | tuple)
        and len(values) == 3
        and all(map(_is_number, values))
        and all(map(math.isfinite, values))
    )
