"""Recombination: what REM makes of memories, in pixels and in feature space."""

import torch
from torch.nn import functional as F
from torchvision.transforms import v2

from .augment import seeded_generator
from .modeling_wakesleep import WakeSleepForImageClassification
from .synapses import FrozenEntries, Synapses
from .training_args import ContinualTrainingArguments

MIXUP_ALPHA = 0.4  # of the Beta distribution of the mixing weight; 1.0, the uniform one, for cutmix
SAMPLES_PER_CLASS = 8  # feature vectors of each class in a step of alignment


def is_rem(step: int, num_steps: int, num_cycles: int, share: float) -> bool:
    """Whether a step of sleep is REM: the last `share` of each of the cycles that the steps are cut into.

    Args:
        step (`int`): Number of the step, from 0.
        num_steps (`int`): Steps of the whole sleep.
        num_cycles (`int`): NREM-REM cycles in it.
        share (`float`): Share of REM, in [0, 1].
    """
    place = step * num_cycles % num_steps / num_steps  # in [0, 1), within the cycle
    return place >= 1 - share


def recombine(
    pixel_values: torch.Tensor, labels: torch.Tensor, num_classes: int, kind: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix every image of a batch with its neighbour, which is of another class as a rule, and their labels alike.

    Mixup (Zhang et al. 2018, arXiv 1710.09412) or cutmix (Yun et al. 2019, arXiv 1905.04899), from torch's own random
    numbers.

    Args:
        pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): Images.
        labels (`torch.Tensor` of shape `(B,)`): Class indices, int64.
        num_classes (`int`): Number of classes C.
        kind (`str`): `"mixup"` or `"cutmix"`.

    Returns:
        `tuple`: Images (B, 3, H, W) and soft targets (B, C).
    """
    if kind == "mixup":
        mix = v2.MixUp(alpha=MIXUP_ALPHA, num_classes=num_classes)
    else:
        mix = v2.CutMix(alpha=1.0, num_classes=num_classes)
    return mix(pixel_values, labels)


def align_classifier(
    model: WakeSleepForImageClassification,
    args: ContinualTrainingArguments,
    task: int,
    synapses: Synapses | None = None,
) -> float:
    """Train the classifier alone on feature vectors drawn around the class means of recall.

    Each step draws `SAMPLES_PER_CLASS` vectors per class from the Gaussian of the class mean and the covariance that
    all classes share: the alignment of SLCA (Zhang et al. 2023, arXiv 2303.05118) without a covariance per class.

    Args:
        model ([`WakeSleepForImageClassification`]): Its classifier is trained, nothing else.
        args ([`ContinualTrainingArguments`]): `alignment_steps`, `sleep_learning_rate`, `label_smoothing_factor`, ...
        task (`int`): Number of the task, from 0; part of the seed.
        synapses ([`Synapses`], *optional*): What is frozen, and stays.

    Returns:
        `float`: Cross-entropy of the last step.
    """
    recall, classifier = model.head.recall, model.head.classifier
    known = (recall.counts > 0).nonzero()[:, 0]  # (K,)
    variances, directions = torch.linalg.eigh(recall.covariance().double())
    root = (directions * variances.clamp(min=0).sqrt()).float()  # (D, D), root root' = covariance
    labels = known.repeat(SAMPLES_PER_CLASS)  # (S,)
    generator = seeded_generator(args.seed, task)
    parameters = list(classifier.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=args.sleep_learning_rate, weight_decay=0.0)
    FrozenEntries(model, synapses).attach(optimizer)
    loss = recall.means.new_zeros(())
    with torch.enable_grad():
        for _ in range(args.alignment_steps):
            noise = torch.randn(len(labels), len(root), generator=generator).to(root)
            features = recall.means[labels] + noise @ root.T  # (S, D)
            logits = classifier(features.to(parameters[0].dtype)).float()  # (S, C)
            loss = F.cross_entropy(logits, labels, label_smoothing=args.label_smoothing_factor)
            gradients = torch.autograd.grad(loss, parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            optimizer.zero_grad()
    return loss.item()
