"""WakeSleepConfig: everything that fixes the shape and the input of a wake-sleep image classifier."""

from transformers import AutoConfig, PreTrainedConfig

POOLINGS = ("pooler", "cls", "mean")
CLASSIFIERS = ("linear", "cosine")


class WakeSleepConfig(PreTrainedConfig):
    """Configuration of [`WakeSleepForImageClassification`].

    `id2label` holds the classes in the order in which they were learned; the head has one output unit per entry and
    grows with it. It is empty for a model that has learned nothing yet.

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*):
            Configuration of the backbone, any that `AutoModel.from_config` accepts (a transformers ViT, or
            `TimmWrapperConfig` for timm). Defaults to `ViTConfig()`.
        backbone_revision (`str`, *optional*): Commit of the pretrained backbone on the Hub, for the record.
        pooling (`str`, defaults to `"cls"`):
            How tokens become one feature: `"cls"` (first token), `"mean"` (of all tokens) or `"pooler"` (the
            backbone's own `pooler_output`, the right one for timm).
        classifier (`str`, defaults to `"linear"`): `"linear"` or `"cosine"` (normalised features and weights).
        recall_weight (`float`, defaults to 0.5): Weight of recall in the mix of the two softmaxes, 0 to 1.
        recall_shrinkage (`float`, defaults to 0.3): Shrinkage e of recall's covariance to a multiple of I, in (0, 1].
        image_size (`int`, defaults to 224): Side in pixels of the square images that the model takes.
        image_mean (`list[float]`, defaults to `[0.5, 0.5, 0.5]`): Mean per channel, of pixels in 0 to 1.
        image_std (`list[float]`, defaults to `[0.5, 0.5, 0.5]`): Standard deviation per channel.
        id2label (`dict[int, str]`, *optional*): Names of the classes seen so far, in the order of learning.

    Raises:
        ValueError: If a value is out of its range.
    """

    model_type = "wakesleep"
    sub_configs = {"backbone_config": AutoConfig}
    keys_to_ignore_at_inference = ["classifier_logits", "recall_logits", "features"]

    def __init__(
        self,
        backbone_config=None,
        backbone_revision=None,
        pooling="cls",
        classifier="linear",
        recall_weight=0.5,
        recall_shrinkage=0.3,
        image_size=224,
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.5, 0.5, 0.5),
        id2label=None,
        **kwargs,
    ):
        if backbone_config is None:
            backbone_config = {"model_type": "vit"}
        if isinstance(backbone_config, dict):
            fields = dict(backbone_config)
            backbone_config = AutoConfig.for_model(fields.pop("model_type"), **fields)
        self.backbone_config = backbone_config
        self.backbone_revision = backbone_revision
        self.pooling = pooling
        self.classifier = classifier
        self.recall_weight = recall_weight
        self.recall_shrinkage = recall_shrinkage
        self.image_size = image_size
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)
        self._check()
        id2label = {int(index): name for index, name in (id2label or {}).items()}
        kwargs.pop("label2id", None)
        super().__init__(id2label=id2label, label2id={name: i for i, name in id2label.items()}, **kwargs)

    def _check(self):
        if self.pooling not in POOLINGS:
            raise ValueError(f"`pooling` must be one of {POOLINGS}, got {self.pooling!r}.")
        if self.classifier not in CLASSIFIERS:
            raise ValueError(f"`classifier` must be one of {CLASSIFIERS}, got {self.classifier!r}.")
        if not 0 <= self.recall_weight <= 1:
            raise ValueError(f"`recall_weight` must lie in [0, 1], got {self.recall_weight}.")
        if not 0 < self.recall_shrinkage <= 1:
            raise ValueError(f"`recall_shrinkage` must lie in (0, 1], got {self.recall_shrinkage}.")
        if self.image_size < 1:
            raise ValueError(f"`image_size` must be at least 1 pixel, got {self.image_size}.")
        if len(self.image_mean) != 3 or len(self.image_std) != 3 or min(self.image_std) <= 0:
            raise ValueError(
                "`image_mean` and `image_std` must hold 3 values (red, green, blue) and every standard deviation "
                f"must be positive, got {self.image_mean} and {self.image_std}."
            )

    def to_diff_dict(self) -> dict:
        """Return what differs from the defaults, and always the classes, even `LABEL_0, LABEL_1`."""
        return {**super().to_diff_dict(), "id2label": self.id2label, "label2id": self.label2id}

    @property
    def classes(self) -> list[str]:
        """Names of the classes seen so far, in the order of learning."""
        return [self.id2label[index] for index in range(len(self.id2label))]

    def add_classes(self, names: list[str]) -> None:
        """Append classes to `id2label` and `label2id`.

        Args:
            names (`list[str]`): The new classes, in order.

        Raises:
            ValueError: If a name is known already or comes twice.
        """
        known = self.classes
        repeated = sorted(set(names) & set(known)) + sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(
                f"New classes must be new, but {repeated} are known already or come twice. "
                "Rename them, or drop them from the task."
            )
        self.id2label = dict(enumerate(known + list(names)))
        self.label2id = {name: index for index, name in self.id2label.items()}
