"""Recall brought up to date: its statistics computed anew from memory, its weight set on memories held out."""

import copy
from collections.abc import Iterator

import numpy as np
import torch
from torch.nn import functional as F
from tqdm.auto import tqdm

from .budget import ranks_within
from .images import ImageReader
from .memory import SemiParametricMemory
from .modeling_wakesleep import WakeSleepForImageClassification
from .recombination import align_classifier
from .training_args import ContinualTrainingArguments


def held_out(labels: np.ndarray, tasks: np.ndarray, share: float) -> np.ndarray:
    """Return which memories take no part in replay, evenly over each class, task by task; bool of shape (M,).

    Args:
        labels (`numpy.ndarray` of shape `(M,)`): Labels of all memories.
        tasks (`numpy.ndarray` of shape `(M,)`): Their tasks, which take turns in memory.
        share (`float`): Share of a class that is held out, in [0, 1); 0.1 for every tenth.
    """
    order = np.lexsort((tasks, labels))  # stable
    is_held_out = np.zeros(len(labels), dtype=bool)
    ranks = ranks_within(labels[order])
    is_held_out[order] = np.floor((ranks + 1) * share) > np.floor(ranks * share)
    return is_held_out


def update_recall(
    model: WakeSleepForImageClassification,
    memory: SemiParametricMemory,
    reader: ImageReader,
    args: ContinualTrainingArguments,
    task: int = 0,
) -> float:
    """Recompute recall's statistics of all classes from memory and set `recall_weight` on held-out memories.

    In between, the classifier is aligned with the statistics, if `alignment_steps` says so.

    Statistics of a backbone that neither wake nor sleep trains stay as they are, those of the original images.

    Args:
        model ([`WakeSleepForImageClassification`]): Its statistics and `config.recall_weight` are replaced.
        memory ([`SemiParametricMemory`]): Read, never written.
        reader ([`ImageReader`]): Turns decoded images into the model's input.
        args ([`ContinualTrainingArguments`]): `recall_weight`, `held_out_share`, `alignment_steps`, ...
        task (`int`, defaults to 0): Number of the task, from 0; part of the seed.

    Returns:
        `float`: Accuracy of the mix on the held-out memories before they entered the statistics; NaN without such.
    """
    recall = model.head.recall
    is_frozen = args.wake_plasticity_of(task) == args.sleep_plasticity == "head"
    originals = copy.deepcopy(recall.state_dict()) if is_frozen else None
    recall.reset()
    kept_back, accuracy = [], float("nan")
    is_held_out = held_out(memory.labels, memory.tasks, args.held_out_share)
    for indices, features, labels in _features(model, memory, reader, args, np.arange(len(memory)), "sleep: recall"):
        out = torch.from_numpy(is_held_out[indices]).to(model.device)
        recall.update(features[~out], labels[~out])
        kept_back.append((features[out], labels[out]))
    features, labels = (torch.cat(parts) for parts in zip(*kept_back, strict=True))
    if args.alignment_steps and not is_frozen:
        align_classifier(model, args, task, memory.synapses)
    if len(labels):
        accuracy = _fit_recall_weight(model, features, labels, args.recall_weight)
        recall.update(features, labels)
    elif args.recall_weight is not None:
        model.config.recall_weight = args.recall_weight
    if originals is not None:
        recall.load_state_dict(originals)
    return accuracy


def held_out_accuracy(
    model: WakeSleepForImageClassification,
    memory: SemiParametricMemory,
    reader: ImageReader,
    args: ContinualTrainingArguments,
) -> float:
    """Return the accuracy of a model, as it is, on the memories that are held out of replay; NaN without such."""
    positions = np.flatnonzero(held_out(memory.labels, memory.tasks, args.held_out_share))
    if len(positions) == 0:
        return float("nan")
    correct = [
        model.head(features.to(model.dtype))[0].argmax(dim=-1) == labels
        for _, features, labels in _features(model, memory, reader, args, positions, "sleep: before")
    ]
    return torch.cat(correct).float().mean().item()


@torch.no_grad()
def _fit_recall_weight(
    model: WakeSleepForImageClassification, features: torch.Tensor, labels: torch.Tensor, fixed: float | None
) -> float:
    """Set the weight with the best likelihood on these features, or the fixed one; return the accuracy with it."""
    classifier = model.head.classifier(features.to(model.dtype))
    recalled = model.head.recall(features)
    scores = {}
    for weight in (fixed,) if fixed is not None else [step / 10 for step in range(11)]:
        model.config.recall_weight = weight
        scores[weight] = F.nll_loss(model.head.mix(classifier, recalled), labels).item()
    model.config.recall_weight = min(scores, key=scores.get)
    return (model.head.mix(classifier, recalled).argmax(dim=-1) == labels).float().mean().item()


@torch.no_grad()
def _features(
    model: WakeSleepForImageClassification,
    memory: SemiParametricMemory,
    reader: ImageReader,
    args: ContinualTrainingArguments,
    positions: np.ndarray,
    description: str,
) -> Iterator[tuple[np.ndarray, torch.Tensor, torch.Tensor]]:
    """Yield positions (b,), features (b, D) and labels (b,) of some memories, in batches."""
    was_training = model.training
    model.eval()
    size = args.per_device_eval_batch_size
    batches = np.split(positions, range(size, len(positions), size))
    for indices in tqdm(batches, desc=description, disable=not args.shows_progress, leave=False):
        images, labels = memory.read(indices)
        pixel_values = reader.normalise(images).to(model.device)
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=args.bf16):
            features = model.extract_features(pixel_values).float()
        yield indices, features, labels.to(model.device)
    model.train(was_training)
