"""Update of LDA after training: its statistics, and its weight in predictions."""

import math

import numpy as np
import torch
from accelerate import Accelerator
from torch.nn import functional as F

from ..data.images import ImageReader
from ..memory.memory import SemiParametricMemory
from ..model.head_wakesleep import LinearDiscriminant
from ..model.modeling_wakesleep import WakeSleepForImageClassification
from .distributed import share_buffers, share_value
from .drift import carry, drift_positions, measured_positions, memory_features
from .sleep_config import SleepConfig

NUM_FOLDS, CV_SHRINKAGE = 5, 0.3  # of cross-validation
WEIGHTS = [step / 10 for step in range(11)]  # of LDA in predictions, of which the best is chosen


def update_lda(
    model: WakeSleepForImageClassification,
    memory: SemiParametricMemory,
    reader: ImageReader,
    config: SleepConfig,
    *,
    features_before: torch.Tensor | None = None,
    accelerator: Accelerator | None = None,
) -> float:
    """Update LDA's statistics for the trained backbone, as `lda_update` says, and its weight on held-out memories.

    Args:
        model ([`WakeSleepForImageClassification`]): Its statistics and `config.lda_weight` are replaced.
        memory ([`SemiParametricMemory`]): Read, never written.
        reader ([`ImageReader`]): Turns decoded images into the model's input.
        config ([`SleepConfig`]): `lda_update`, `lda_weight`, `held_out_share`, ...
        features_before (`torch.Tensor` of shape `(M, D)`, *optional*): What [`drift_features`] returned when the
            statistics last fitted the backbone, before it was trained; needed for `lda_update="carry"`.
        accelerator (`Accelerator`, *optional*): Its processes all get what the first one computes.

    Returns:
        `float`: Accuracy of the classifier mixed with LDA on held-out memories; NaN if there are none. The statistics
        include the original images of these memories, so they may flatter it.

    Raises:
        ValueError: If they are to be carried along, but `features_before` is missing or of other memories.
    """
    if config.lda_update == "carry" and features_before is None:
        raise ValueError("Expected `features_before` to carry LDA along from. Pass it, or `lda_update='keep'`.")
    lda, share, accelerator = model.head.lda, config.held_out_share, accelerator or Accelerator()
    positions = drift_positions(memory, share)
    if config.lda_update == "carry" and len(features_before) != len(positions):
        raise ValueError(
            f"Expected `features_before` of {len(positions)} memories, as `drift_features` gives them now, got "
            f"{len(features_before)}. Take them when the memory holds the same."
        )
    found = list(memory_features(model, memory, reader, config, positions, "sleep: LDA"))
    features, labels = (torch.cat(parts) for parts in list(zip(*found, strict=True))[1:])  # (M, D), (M,)
    if config.lda_update == "carry":
        is_new = torch.from_numpy(memory.tasks[positions] == memory.tasks.max())
        carry(lda, features_before, features, labels, is_new)
    rows = torch.from_numpy(np.flatnonzero(np.isin(positions, measured_positions(memory, share)))).to(labels.device)
    weights = WEIGHTS if config.lda_weight is None else [config.lda_weight]
    accuracy, weight = math.nan, config.lda_weight
    if len(rows):
        weight = share_value(accelerator, _best_weight(model, features[rows], labels[rows], weights))
    set_lda_weight(model, weight)
    if len(rows):
        accuracy = _accuracy(model, features[rows], labels[rows])
    share_buffers(accelerator, model)
    return accuracy


def set_lda_weight(model: WakeSleepForImageClassification, weight: float | None) -> None:
    """Set the weight of LDA in predictions; do nothing if it is `None`."""
    if weight is not None:
        model.config.lda_weight = weight


def held_out_accuracy(
    model: WakeSleepForImageClassification, memory: SemiParametricMemory, reader: ImageReader, config: SleepConfig
) -> float:
    """Return the current accuracy of a model on the memories that a sleep is measured on; NaN if there are none.

    Sleep does not replay them. [`update_lda`] measures on the same ones after the sleep.
    """
    positions = measured_positions(memory, config.held_out_share)
    if len(positions) == 0:
        return math.nan
    correct = [
        model.head(features.to(model.dtype))[0].argmax(dim=-1) == labels
        for _, features, labels in memory_features(model, memory, reader, config, positions, "sleep: before")
    ]
    return torch.cat(correct).float().mean().item()


def rank_error(features: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the mean share of other classes that LDA, fitted to other features, ranks before the right one.

    0 is perfect, 0.5 is chance, whatever the number of classes. Five-fold cross-validation: memories of a class are
    dealt out to the folds in turn. Classes of a single memory are left out.

    Args:
        features (`torch.Tensor` of shape `(M, D)`): Features of memories.
        labels (`torch.Tensor` of shape `(M,)`): Their classes, int64, sorted.

    Returns:
        `float`: In [0, 1]; 0 if fewer than two classes have two memories.
    """
    counts = labels.bincount()
    is_used = counts[labels] > 1
    features, (kinds, labels) = features[is_used].float().cpu(), labels[is_used].cpu().unique(return_inverse=True)
    if len(kinds) < 2:
        return 0.0
    counts = labels.bincount()
    fold = (torch.arange(len(labels)) - (counts.cumsum(dim=0) - counts)[labels]) % NUM_FOLDS
    before = 0
    for number in range(NUM_FOLDS):
        tested = fold == number
        lda = LinearDiscriminant(features.shape[1], len(kinds), CV_SHRINKAGE)
        lda.update(features[~tested], labels[~tested])
        logits, own = lda(features[tested]), labels[tested]  # (B, C), (B,)
        before += (logits > logits.gather(1, own[:, None])).sum().item()
    return before / (len(labels) * (len(kinds) - 1))


@torch.no_grad()
def _best_weight(
    model: WakeSleepForImageClassification, features: torch.Tensor, labels: torch.Tensor, weights: list[float]
) -> float:
    """Return the weight of LDA with which the labels (M,) of features (M, D) are most likely."""
    classifier, lda = model.head.classifier(features.to(model.dtype)), model.head.lda(features)  # (M, C)
    losses = {weight: F.nll_loss(model.head.mix(classifier, lda, weight), labels).item() for weight in weights}
    return min(losses, key=losses.get)


@torch.no_grad()
def _accuracy(model: WakeSleepForImageClassification, features: torch.Tensor, labels: torch.Tensor) -> float:
    return (model.head(features.to(model.dtype))[0].argmax(dim=-1) == labels).float().mean().item()
