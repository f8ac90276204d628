"""Importance: how much what is known depends on each entry of a network's parameters."""

import copy
from collections.abc import Iterator

import numpy as np
import torch
from torch.nn import functional as F
from tqdm.auto import tqdm

from .images import ImageReader
from .memory import SemiParametricMemory
from .modeling_wakesleep import WakeSleepForImageClassification
from .synapses import Synapses, count_entries, make_room
from .training_args import ContinualTrainingArguments


def importance(
    model: WakeSleepForImageClassification,
    memory: SemiParametricMemory,
    reader: ImageReader,
    args: ContinualTrainingArguments,
    task: int,
) -> dict[str, torch.Tensor]:
    """Return the diagonal of the empirical Fisher information of the classifier, on memories of all classes.

    F = mean over images of (d log p(y | x) / d w)^2, with y the label of image x, one gradient per image, as in
    elastic weight consolidation (Kirkpatrick et al. 2017). Memory holds all tasks, so importance for all that is known
    is measured anew for the weights as they are; no sum over tasks needs to be kept.

    Args:
        model ([`WakeSleepForImageClassification`]): Stays as it is.
        memory ([`SemiParametricMemory`]): Read, never written.
        reader ([`ImageReader`]): Turns decoded images into the model's input.
        args ([`ContinualTrainingArguments`]): `importance_images`, `seed`, `per_device_eval_batch_size`.
        task (`int`): Number of the task, from 0; part of the seed.

    Returns:
        `dict[str, torch.Tensor]`: By the name of a parameter, float32 of its shape.
    """
    twin = copy.deepcopy(model).requires_grad_(True).eval()
    parameters = dict(twin.named_parameters())
    sums = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in parameters.values()]
    positions = memory.balanced().positions(args.importance_images, (args.seed, task))
    bar = tqdm(positions, desc="sleep: importance", disable=not args.shows_progress, leave=False)
    for _, (image, label) in zip(bar, _examples(memory, reader, positions, args), strict=True):
        logits = twin.head.classifier(twin.extract_features(image.to(model.device))).float()  # (1, C)
        loss = F.cross_entropy(logits, label.to(model.device))
        gradients = torch.autograd.grad(loss, parameters.values(), allow_unused=True, materialize_grads=True)
        for total, gradient in zip(sums, gradients, strict=True):
            total.add_(gradient.float().square())
    return {name: total / len(positions) for name, total in zip(parameters, sums, strict=True)}


def _examples(
    memory: SemiParametricMemory, reader: ImageReader, positions: np.ndarray, args: ContinualTrainingArguments
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield memories one by one, (1, 3, H, W) and (1,), decoded in batches."""
    size = args.per_device_eval_batch_size
    for indices in np.split(positions, range(size, len(positions), size)):
        images, labels = memory.read(indices)
        yield from zip(reader.normalise(images).split(1), labels.split(1), strict=True)


def most_important(importance: torch.Tensor, fraction: float) -> torch.Tensor:
    """Return which entries are the top share by importance, bool; of equal ones the first, of zeros none."""
    count = int(fraction * importance.numel())
    mask = torch.zeros(importance.numel(), dtype=torch.bool, device=importance.device)
    mask[importance.flatten().argsort(descending=True, stable=True)[:count]] = True
    return mask.view(importance.shape) & (importance > 0)


def freeze_synapses(
    model: WakeSleepForImageClassification,
    memory: SemiParametricMemory,
    reader: ImageReader,
    args: ContinualTrainingArguments,
    task: int,
) -> Synapses:
    """Return the synapses of a memory with the `freeze_fraction` most important entries of each parameter frozen, too.

    Arguments are those of [`importance`].
    """
    synapses = make_room(memory.synapses, count_entries(model), args.freeze_fraction)
    found = importance(model, memory, reader, args, task)
    return synapses.freeze({name: most_important(value, args.freeze_fraction) for name, value in found.items()})
