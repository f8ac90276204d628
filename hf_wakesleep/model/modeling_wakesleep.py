"""WakeSleepForImageClassification: the model, a backbone with a semi-parametric head that grows with new classes."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .backbone_wakesleep import (
    build_backbone,
    disable_caches,
    drop_pooler,
    find_pooling,
    freeze_running_statistics,
    is_on_meta,
    make_call,
)
from .configuration_wakesleep import WakeSleepConfig
from .head_wakesleep import SemiParametricHead
from .loading_wakesleep import DOWNLOAD, WakeSleepPreTrainedModel, commit_of
from .pretrained_wakesleep import PretrainedBackbone


@dataclass
class WakeSleepOutput(ModelOutput):
    """Output of [`WakeSleepForImageClassification`]; B images, C classes, feature width D.

    Args:
        loss (`torch.Tensor` of shape `()`, *optional*): Cross-entropy of the classifier, given `labels`.
        logits (`torch.Tensor` of shape `(B, C)`): Log-probabilities of the mix of classifier and LDA.
        classifier_logits (`torch.Tensor` of shape `(B, C)`): Logits of the parametric half.
        lda_logits (`torch.Tensor` of shape `(B, C)`): Logits of the non-parametric half.
        features (`torch.Tensor` of shape `(B, D)`): Pooled features of the backbone.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    classifier_logits: torch.Tensor | None = None
    lda_logits: torch.Tensor | None = None
    features: torch.Tensor | None = None


class WakeSleepForImageClassification(WakeSleepPreTrainedModel):
    """Image classifier that can be taught new classes without forgetting the old ones.

    Args:
        config ([`WakeSleepConfig`]): The configuration.
        backbone (`PreTrainedModel`, *optional*): A ready backbone; built from `config.backbone_config` if missing.
    """

    trains_backbone: bool  # whether the backbone is trained as a whole; `set_plasticity` says so

    def __init__(self, config: WakeSleepConfig, backbone: PreTrainedModel | None = None):
        super().__init__(config)
        self.backbone = build_backbone(config.backbone_config) if backbone is None else backbone
        self.trains_backbone = True
        self._set_feature_config()
        if config.pooling != "pooler":
            drop_pooler(self.backbone)
        self._call_backbone = make_call(self.backbone, config.image_size, config.pooling)
        self.head = SemiParametricHead(config, config.feature_dim)
        self.post_init()
        disable_caches(self.backbone)

    def _set_feature_config(self) -> None:
        """Set `pooling` and `feature_dim` of the configuration."""
        config = self.config
        if not is_on_meta(self.backbone):
            pooling, width = find_pooling(
                self.backbone, config.image_size, config.pooling, checks=config.feature_dim is None
            )
            if config.feature_dim not in (None, width):
                raise ValueError(
                    f"`feature_dim` is {config.feature_dim}, but features are {width} wide. Leave it out."
                )
            config.pooling, config.feature_dim = pooling, width
        elif config.feature_dim is None or config.pooling is None:
            raise ValueError(
                "Expected a stage whose configuration holds `feature_dim` and `pooling`, got none. It is of "
                "hf_wakesleep 0.1, which chose features and held images out in another way: load it with that "
                "version, or teach its classes anew."
            )

    @classmethod
    def from_backbone(
        cls,
        name_or_path: str,
        *,
        image_size: int | None = None,
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
        config_kwargs: dict | None = None,
        **kwargs,
    ) -> "WakeSleepForImageClassification":
        """Build a model without classes around a pretrained backbone of timm or transformers.

        Of a model with two towers, such as CLIP, it takes the one that looks at images.

        Args:
            name_or_path (`str`): Hub name or folder of the backbone.
            image_size (`int`, *optional*): Side in pixels of the images to take, if not the backbone's own; position
                embeddings are interpolated.
            image_mean (`list[float]`, *optional*): Normalisation, if not the backbone's own.
            image_std (`list[float]`, *optional*): Normalisation, if not the backbone's own.
            config_kwargs (`dict`, *optional*): Further fields of [`WakeSleepConfig`].
            kwargs: Passed on to `AutoModel.from_pretrained` (`revision`, `token`, `cache_dir`, ...).

        Returns:
            [`WakeSleepForImageClassification`]: With pretrained backbone and an empty head, in float32 unless `dtype`
            says otherwise.

        Raises:
            OSError: If the backbone, or the image processor of a transformers backbone, cannot be found.
            ValueError: If it does not turn square images alone into features, lacks weights, does not say what images
                it takes, or is a stage.
        """
        download = {key: kwargs[key] for key in DOWNLOAD if key in kwargs}
        config_kwargs = dict(config_kwargs or {})
        loaded = PretrainedBackbone.load(name_or_path, image_size, image_mean, image_std, download, **kwargs)
        backbone = loaded.network
        backbone.config.num_labels = 0  # the label names of its pretraining are not ours
        if Path(name_or_path).is_dir():
            backbone.config._name_or_path = Path(name_or_path).name  # no path of this machine goes into a checkpoint
        if loaded.pooling is not None and config_kwargs.setdefault("pooling", loaded.pooling) == "pooler":
            raise ValueError(
                f"`pooling` is 'pooler', but {name_or_path} has no weights of its own pooler. Leave it out."
            )
        config = WakeSleepConfig(
            backbone_config=backbone.config,
            backbone_revision=commit_of(name_or_path, download),
            image_size=loaded.image_size,
            image_mean=loaded.image_mean,
            image_std=loaded.image_std,
            attn_implementation=backbone.config._attn_implementation,
            **config_kwargs,
        )
        model = cls(config, backbone=backbone)
        model.head.classifier.to(backbone.dtype)
        return model

    @property
    def memory(self):
        """The memory of the stage that this model was loaded from: fetched, and checked, only when asked for.

        Returns:
            [`SemiParametricMemory`].

        Raises:
            ImportError: If `hf_wakesleep` is not installed; a stage predicts without it, but its memory needs it.
            ValueError: If the stage keeps no memory, or its files are damaged.
        """
        try:
            from hf_wakesleep import SemiParametricMemory
        except ImportError as error:
            raise ImportError("The memory of a stage is read by hf_wakesleep: `pip install hf-wakesleep`.") from error
        return SemiParametricMemory.from_pretrained(self.name_or_path, revision=self.stage_revision)

    def push_to_hub(self, repo_id: str, **kwargs) -> str:
        """Push the model as `PreTrainedModel.push_to_hub` does, with a card of its own if `hf_wakesleep` is there."""
        url = super().push_to_hub(repo_id, **kwargs)
        try:
            from hf_wakesleep import push_card
        except ImportError:
            return url
        push_card(self, repo_id, revision=kwargs.get("revision"), token=kwargs.get("token"))
        return url

    def train(self, mode: bool = True) -> "WakeSleepForImageClassification":
        """Set the mode as `nn.Module.train` does; running statistics of a backbone that is not trained stay."""
        super().train(mode)
        disable_caches(self.backbone)  # loading makes new ones
        if not self.trains_backbone:
            freeze_running_statistics(self.backbone)
        return self

    def grow(self, classes: list[str], generator: torch.Generator | None = None) -> None:
        """Add output units for new classes; the old ones keep their values, bit for bit.

        Args:
            classes (`list[str]`): Names of the new classes.
            generator (`torch.Generator`, *optional*): CPU generator that the new weights are drawn from.

        Raises:
            ValueError: If a class is known already.
        """
        self.config.add_classes(classes)
        self.head.grow(len(classes), generator)

    def forget(self, name: str, own_covariance: torch.Tensor | None = None) -> None:
        """Remove a class: its name, its output unit and its statistics. The backbone stays as it is.

        Args:
            name (`str`): The class.
            own_covariance (`torch.Tensor` of shape `(D, D)`, *optional*): Covariance of features within the class,
                whose share of the statistics is removed; that of all classes if missing.

        Raises:
            ValueError: If it is unknown, or the only one.
        """
        self.head.forget(self.config.remove_class(name), own_covariance)

    def extract_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the backbone's pooled features.

        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, image_size, image_size)`): Normalised images.

        Returns:
            `torch.Tensor` of shape `(B, D)`.
        """
        return self._call_backbone(self.backbone, pixel_values.to(self.dtype))

    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
    ) -> WakeSleepOutput | tuple:
        """Classify images.

        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, image_size, image_size)`): Normalised images.
            labels (`torch.Tensor` of shape `(B,)`, *optional*): Class indices, int64.
            return_dict (`bool`, *optional*): Whether to return a [`WakeSleepOutput`] rather than a tuple.

        Returns:
            [`WakeSleepOutput`] or `tuple`.
        """
        features = self.extract_features(pixel_values)
        logits, classifier_logits, lda_logits = self.head(features)
        loss = None if labels is None else F.cross_entropy(classifier_logits.float(), labels)
        output = WakeSleepOutput(
            loss=loss,
            logits=logits,
            classifier_logits=classifier_logits,
            lda_logits=lda_logits,
            features=features,
        )
        return output if return_dict in (None, True) else output.to_tuple()

    def _set_gradient_checkpointing(self, enable: bool = True, *args, **kwargs) -> None:
        if enable and not self.backbone.supports_gradient_checkpointing:
            raise ValueError(
                "`gradient_checkpointing` needs a backbone that supports it, but "
                f"{self.config.backbone_config.model_type!r} does not. Leave it out."
            )
        self.backbone._set_gradient_checkpointing(enable, *args, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        """Return the patch embedding of the backbone."""
        return self.backbone.get_input_embeddings()
