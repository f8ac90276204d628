"""Recall brought up to date: its statistics computed anew from memory, its weight set on memories held out."""

import copy

import numpy as np
import torch
from torch.nn import functional as F
from tqdm.auto import tqdm

from .budget import ranks_within
from .images import ImageReader
from .memory import SemiParametricMemory
from .modeling_wakesleep import WakeSleepForImageClassification
from .training_args import ContinualTrainingArguments

HOLD_OUT_EVERY = 10  # one memory in ten of each class sets the weight of recall and is not replayed


def held_out(labels: np.ndarray, tasks: np.ndarray) -> np.ndarray:
    """Return which memories take no part in replay: every tenth of its class, task by task; bool of shape (M,).

    Args:
        labels (`numpy.ndarray` of shape `(M,)`): Labels of all memories.
        tasks (`numpy.ndarray` of shape `(M,)`): Their tasks, which take turns in memory.
    """
    order = np.lexsort((tasks, labels))  # stable
    is_held_out = np.zeros(len(labels), dtype=bool)
    is_held_out[order] = ranks_within(labels[order]) % HOLD_OUT_EVERY == HOLD_OUT_EVERY - 1
    return is_held_out


def update_recall(
    model: WakeSleepForImageClassification,
    memory: SemiParametricMemory,
    reader: ImageReader,
    args: ContinualTrainingArguments,
) -> float:
    """Recompute recall's statistics of all classes from memory and set `recall_weight` on held-out memories.

    Statistics of a backbone that neither wake nor sleep trains stay as they are, those of the original images.

    Args:
        model ([`WakeSleepForImageClassification`]): Its statistics and `config.recall_weight` are replaced.
        memory ([`SemiParametricMemory`]): Read, never written.
        reader ([`ImageReader`]): Turns decoded images into the model's input.
        args ([`ContinualTrainingArguments`]): `recall_weight`, `per_device_eval_batch_size`.

    Returns:
        `float`: Accuracy of the mix on the held-out memories before they entered the statistics; NaN without such.
    """
    recall = model.head.recall
    is_frozen = args.wake_plasticity == args.sleep_plasticity == "head"
    originals = copy.deepcopy(recall.state_dict()) if is_frozen else None
    recall.reset()
    was_training = model.training
    model.eval()
    kept_back, accuracy = [], float("nan")
    is_held_out = held_out(memory.labels, memory.tasks)
    batches = _batches(memory, args.per_device_eval_batch_size)
    for indices in tqdm(batches, desc="sleep: recall", disable=not args.shows_progress, leave=False):
        images, labels = memory.read(indices)
        with torch.no_grad():
            features = model.extract_features(reader.normalise(images).to(model.device)).float()
        labels, out = labels.to(model.device), torch.from_numpy(is_held_out[indices]).to(model.device)
        recall.update(features[~out], labels[~out])
        kept_back.append((features[out], labels[out]))
    features, labels = (torch.cat(parts) for parts in zip(*kept_back, strict=True))
    if len(labels):
        accuracy = _fit_recall_weight(model, features, labels, args.recall_weight)
        recall.update(features, labels)
    elif args.recall_weight is not None:
        model.config.recall_weight = args.recall_weight
    if originals is not None:
        recall.load_state_dict(originals)
    model.train(was_training)
    return accuracy


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


def _batches(memory: SemiParametricMemory, size: int) -> list[np.ndarray]:
    return np.split(np.arange(len(memory)), range(size, len(memory), size))
