"""Freezing: which weights matter most for what the network has learned, and are frozen from then on."""

import copy
import math
from collections.abc import Iterator

import numpy as np
import torch
from tqdm.auto import tqdm

from ..data.images import ImageReader
from ..memory.memory import SemiParametricMemory
from ..memory.synapses import Synapses, count_entries, grow_synapses
from ..model.modeling_wakesleep import WakeSleepForImageClassification
from .sleep_config import SleepConfig

LEAST = 1e-6  # least size of the largest gradient by a logit: squares of smaller ones underflow in float32


def importance(
    model: WakeSleepForImageClassification,
    memory: SemiParametricMemory,
    reader: ImageReader,
    config: SleepConfig,
) -> dict[str, torch.Tensor]:
    """Return the diagonal of the empirical Fisher information of the classifier, on memories of all classes.

    F = mean over images of (d log p(y | x) / d w)^2, with y the label of image x, one gradient per image, as in
    elastic weight consolidation (Kirkpatrick et al. 2017). Memory holds images of all tasks, so the importance for all
    of them is measured again after each sleep, with the current weights; no sum over tasks needs to be kept.

    Entries are compared with others of the same parameter only, so a common factor changes nothing: where the classes
    are so well separated that all gradients would be too small for float32, all are multiplied by the same number.
    With a single class p(y | x) is always 1 and has no gradient; then the logit plus half the squared norm of the
    feature takes the place of log p(y | x), much as in memory aware synapses (Aljundi et al. 2018).

    Args:
        model ([`WakeSleepForImageClassification`]): Not changed.
        memory ([`SemiParametricMemory`]): Read, never written.
        reader ([`ImageReader`]): Turns decoded images into the model's input.
        config ([`SleepConfig`]): `importance_images`, `rng_key`, `eval_batch_size`.

    Returns:
        `dict[str, torch.Tensor]`: Importance of the entries of each parameter, by its name; float32 of its shape.
    """
    twin = copy.deepcopy(model).requires_grad_(True).eval()
    parameters = dict(twin.named_parameters())
    sums = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in parameters.values()]
    positions = memory.balanced_sampler().draw(config.importance_images, config.rng_key)
    slopes = _logit_gradients(twin, memory, reader, positions, config)
    bar = tqdm(slopes, desc="sleep: importance", disable=not config.shows_progress, leave=False)
    for slope, (image, _) in zip(bar, _examples(memory, reader, positions, config), strict=True):
        features = twin.extract_features(image.to(model.device))  # (1, D)
        value = (twin.head.classifier(features).float() * slope).sum()
        if slope.numel() == 1:
            value = value + features.float().square().sum() / 2
        gradients = torch.autograd.grad(value, parameters.values(), allow_unused=True, materialize_grads=True)
        for total, gradient in zip(sums, gradients, strict=True):
            total.add_(gradient.float().square())
    return {name: total / len(positions) for name, total in zip(parameters, sums, strict=True)}


@torch.no_grad()
def _logit_gradients(
    model: WakeSleepForImageClassification,
    memory: SemiParametricMemory,
    reader: ImageReader,
    positions: np.ndarray,
    config: SleepConfig,
) -> Iterator[torch.Tensor]:
    """Return d log p(y | x) / d logits of each memory, (1, C) float32; scaled as by `log_likelihood_gradients`."""
    logits, labels = [], []
    for image, label in _examples(memory, reader, positions, config):
        logits.append(model.head.classifier(model.extract_features(image.to(model.device))).double())
        labels.append(label.to(model.device))
    return log_likelihood_gradients(torch.cat(logits), torch.cat(labels)).float().split(1)


def log_likelihood_gradients(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return d log p(y | x) / d logits: 1 - p_y at the label y, -p_j elsewhere, without cancellation.

    Args:
        logits (`torch.Tensor` of shape `(N, C)`): float64.
        labels (`torch.Tensor` of shape `(N,)`): int64.

    Returns:
        `torch.Tensor`: float64 of shape (N, C); 1 for a single class. If the largest is below `LEAST`, all are
        multiplied by one number that makes it `LEAST`.
    """
    if logits.shape[1] == 1:
        return torch.ones_like(logits)
    is_label = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, labels[:, None], True)  # (N, C)
    others = logits.log_softmax(dim=-1).masked_fill(is_label, -math.inf)  # (N, C)
    sizes = torch.where(is_label, others.logsumexp(dim=-1, keepdim=True), others)  # log |gradient|
    scale = min(0.0, sizes.max().item() - math.log(LEAST))
    return torch.where(is_label, 1.0, -1.0) * (sizes - scale).exp()


def _examples(
    memory: SemiParametricMemory, reader: ImageReader, positions: np.ndarray, config: SleepConfig
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield memories one by one, (1, 3, H, W) and (1,), decoded in batches."""
    size = config.eval_batch_size
    for indices in np.split(positions, range(size, len(positions), size)):
        images, labels = memory.read(indices)
        yield from zip(reader.normalise(images).split(1), labels.split(1), strict=True)


def most_important(importance: torch.Tensor, fraction: float) -> torch.Tensor:
    """Return a mask of the most important `fraction` of entries, bool; the first of equal ones, none that are 0."""
    count = int(fraction * importance.numel())
    mask = torch.zeros(importance.numel(), dtype=torch.bool, device=importance.device)
    mask[importance.flatten().argsort(descending=True, stable=True)[:count]] = True
    return mask.view(importance.shape) & (importance > 0)


def freeze_synapses(
    model: WakeSleepForImageClassification,
    memory: SemiParametricMemory,
    reader: ImageReader,
    config: SleepConfig,
) -> Synapses:
    """Return the memory's synapses with the most important `freeze_fraction` of each parameter frozen as well.

    Arguments are those of [`importance`]. The memory itself is not changed.
    """
    synapses = grow_synapses(memory.synapses, count_entries(model), config.freeze_fraction)
    found = importance(model, memory, reader, config)
    return synapses.freeze({name: most_important(value, config.freeze_fraction) for name, value in found.items()})
