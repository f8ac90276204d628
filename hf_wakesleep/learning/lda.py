"""LDA brought up to date: statistics that fit the trained backbone, a weight set on memories held out."""

import numpy as np
import torch
from torch.nn import functional as F

from ..data.images import ImageReader
from ..memory.memory import SemiParametricMemory
from ..memory.sampling import held_out_mask
from ..model.modeling_wakesleep import WakeSleepForImageClassification
from .arguments import ContinualTrainingArguments
from .drift import carry, landmarks, measured, memory_features


def update_lda(
    model: WakeSleepForImageClassification,
    memory: SemiParametricMemory,
    reader: ImageReader,
    args: ContinualTrainingArguments,
    task: int = 0,
    before: torch.Tensor | None = None,
) -> float:
    """Bring LDA's statistics to the trained backbone and set `lda_weight` on held-out memories.

    The statistics are carried along from where they were right or, without such a place, computed anew from all
    memories. Those of a backbone that neither wake nor sleep trains stay as they are.

    Args:
        model ([`WakeSleepForImageClassification`]): Its statistics and `config.lda_weight` are replaced.
        memory ([`SemiParametricMemory`]): Read, never written.
        reader ([`ImageReader`]): Turns decoded images into the model's input.
        args ([`ContinualTrainingArguments`]): `lda_weight`, `held_out_share`, ...
        task (`int`, defaults to 0): Number of the task, from 0; part of the seed.
        before (`torch.Tensor` of shape `(M, D)`, *optional*): What [`landmark_features`] gave when they were right.

    Returns:
        `float`: Accuracy of the mix on held-out memories; NaN without such. Statistics that are computed anew do not
        know them yet; those that are carried along know their originals.
    """
    lda = model.head.lda
    is_frozen = not args.trains_backbone(task)
    is_recomputed = not is_frozen and before is None
    if is_recomputed:
        lda.reset()
    positions = np.arange(len(memory)) if is_recomputed else landmarks(memory, args)
    found = list(memory_features(model, memory, reader, args, positions, "sleep: LDA"))
    features, labels = (torch.cat(parts) for parts in list(zip(*found, strict=True))[1:])  # (M, D), (M,)
    is_out = held_out_mask(memory.labels, memory.tasks, args.held_out_share)[positions]
    if is_recomputed:
        replayed = torch.from_numpy(np.flatnonzero(~is_out)).to(labels.device)
        lda.update(features[replayed], labels[replayed])
    elif not is_frozen:
        is_new = torch.from_numpy(memory.tasks[positions] == memory.tasks.max())
        carry(lda, before, features, labels, is_new)
    rows = torch.from_numpy(np.flatnonzero(np.isin(positions, measured(memory, args)))).to(labels.device)
    accuracy = float("nan")
    if len(rows):
        accuracy = _fit_lda_weight(model, features[rows], labels[rows], args.lda_weight)
    elif args.lda_weight is not None:
        model.config.lda_weight = args.lda_weight
    if is_recomputed:
        out = torch.from_numpy(np.flatnonzero(is_out)).to(labels.device)
        lda.update(features[out], labels[out])
        lda.refresh()
    return accuracy


def held_out_accuracy(
    model: WakeSleepForImageClassification,
    memory: SemiParametricMemory,
    reader: ImageReader,
    args: ContinualTrainingArguments,
) -> float:
    """Return the accuracy of a model, as it is, on the memories that a sleep is measured on; NaN without such.

    They are held out of replay, and the same that [`update_lda`] measures on afterwards.
    """
    positions = measured(memory, args)
    if len(positions) == 0:
        return float("nan")
    correct = [
        model.head(features.to(model.dtype))[0].argmax(dim=-1) == labels
        for _, features, labels in memory_features(model, memory, reader, args, positions, "sleep: before")
    ]
    return torch.cat(correct).float().mean().item()


@torch.no_grad()
def _fit_lda_weight(
    model: WakeSleepForImageClassification, features: torch.Tensor, labels: torch.Tensor, fixed: float | None
) -> float:
    """Set the weight with the best likelihood on these features, or the fixed one; return the accuracy with it."""
    classifier = model.head.classifier(features.to(model.dtype))
    discriminant = model.head.lda(features)
    scores = {}
    for weight in (fixed,) if fixed is not None else [step / 10 for step in range(11)]:
        model.config.lda_weight = weight
        scores[weight] = F.nll_loss(model.head.mix(classifier, discriminant), labels).item()
    model.config.lda_weight = min(scores, key=scores.get)
    return (model.head.mix(classifier, discriminant).argmax(dim=-1) == labels).float().mean().item()
