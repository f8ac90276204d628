"""Plasticity: which weights are trained, and with which learning rate."""

from ..model.modeling_wakesleep import WakeSleepForImageClassification


def parameter_groups(
    model: WakeSleepForImageClassification, learning_rate: float, weight_decay: float, backbone_ratio: float
) -> list[dict]:
    """Return optimizer groups for the trainable parameters: backbone and head, with and without weight decay.

    Args:
        model ([`WakeSleepForImageClassification`]): The model.
        learning_rate (`float`): Learning rate of the head.
        weight_decay (`float`): Weight decay of all parameters with two dimensions or more.
        backbone_ratio (`float`): Learning rate of the backbone divided by that of the head.
    """
    groups = []
    for part, ratio in ((model.backbone, backbone_ratio), (model.head, 1.0)):
        trainable = [parameter for parameter in part.parameters() if parameter.requires_grad]
        for decay, is_matrix in ((weight_decay, True), (0.0, False)):
            members = [parameter for parameter in trainable if (parameter.ndim >= 2) == is_matrix]
            if members:
                groups.append({"params": members, "lr": learning_rate * ratio, "weight_decay": decay})
    return groups


def set_plasticity(model: WakeSleepForImageClassification, plasticity: str) -> None:
    """Make all weights trainable (`"full"`), or only the head (`"head"`, and `"lora"` before factors are injected)."""
    model.requires_grad_(True)
    model.backbone.requires_grad_(plasticity == "full")
    model.trains_backbone = plasticity == "full"
    model.train(model.training)
