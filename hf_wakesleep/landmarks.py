"""Landmarks: memories whose features, before and after training, tell how it moved those of all images ever seen."""

from collections.abc import Iterator

import numpy as np
import torch
from tqdm.auto import tqdm

from .balance import evenly
from .head_wakesleep import Recall
from .images import ImageReader
from .memory import SemiParametricMemory
from .modeling_wakesleep import WakeSleepForImageClassification
from .training_args import ContinualTrainingArguments

MOST_REPLAYED, MOST_HELD_OUT = 1536, 512  # landmarks, so that recall costs the same with any number of memories


def landmarks(memory: SemiParametricMemory, args: ContinualTrainingArguments) -> np.ndarray:
    """Return the positions of the landmarks, int64 (M,): memories of all classes, replayed as well as held out."""
    labels, tasks = memory.labels, memory.tasks
    is_held_out = evenly(labels, tasks, args.held_out_share)
    chosen = []
    for group, most in ((~is_held_out, MOST_REPLAYED), (is_held_out, MOST_HELD_OUT)):
        positions = np.flatnonzero(group)
        share = min(1.0, most / max(1, len(positions)))
        chosen.append(positions[evenly(labels[positions], tasks[positions], share)])
    return np.sort(np.concatenate(chosen))


def landmark_features(
    model: WakeSleepForImageClassification,
    memory: SemiParametricMemory,
    reader: ImageReader,
    args: ContinualTrainingArguments,
) -> torch.Tensor:
    """Return the features of the landmarks, (M, D), float32."""
    positions = landmarks(memory, args)
    batches = memory_features(model, memory, reader, args, positions, "landmarks")
    return torch.cat([features for _, features, _ in batches])


@torch.no_grad()
def memory_features(
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


def carry(recall: Recall, before: torch.Tensor, after: torch.Tensor, labels: torch.Tensor) -> None:
    """Carry recall's statistics from where the landmarks were to where they are.

    A linear map f' = f A + c is fitted to the landmarks, by ridge regression of their drift, and moves means and
    covariance of all images that recall has seen, not only of those that are remembered. What the map leaves over is
    the drift of a class of its own, added to its mean as far as it stands out from the noise (an empirical Bayes
    estimate), and a covariance. Compensation of drift by means: Yu et al. 2020, arXiv 2004.00440; by a learned map:
    Gomez-Villa et al. 2024, arXiv 2407.08536.

    Args:
        recall ([`Recall`]): Its means and covariance are replaced; counts stay.
        before (`torch.Tensor` of shape `(M, D)`): Features of the landmarks when the statistics were right.
        after (`torch.Tensor` of shape `(M, D)`): Their features now.
        labels (`torch.Tensor` of shape `(M,)`): Their classes.
    """
    old, new, labels = before.double().cpu(), after.double().cpu(), labels.cpu()
    dim, (old_mean, new_mean) = old.shape[1], (old.mean(dim=0), new.mean(dim=0))
    old, new = old - old_mean, new - new_mean
    identity = torch.eye(dim, dtype=old.dtype)
    ridge = dim * old.square().mean() + torch.finfo(torch.float32).tiny
    linear = identity + torch.linalg.solve(old.T @ old + ridge * identity, old.T @ (new - old))  # (D, D), A
    left_over, covariance = _left_over(new - old @ linear, labels, len(recall.counts))
    means = (recall.means.double().cpu() - old_mean) @ linear + new_mean + left_over  # (C, D)
    means[recall.counts.cpu() == 0] = 0.0
    recall.set_moments(means, linear.T @ recall.covariance().double().cpu() @ linear + covariance)


def _left_over(residuals: torch.Tensor, labels: torch.Tensor, num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the residuals (M, D) of a map say of each class (C, D), and their covariance within classes."""
    counts = labels.bincount(minlength=num_classes).to(residuals)  # (C,)
    known = counts > 0
    means = torch.zeros(num_classes, residuals.shape[1], dtype=residuals.dtype)
    means.index_add_(0, labels, residuals)
    means /= counts.clamp(min=1)[:, None]
    freedom = len(labels) - int(known.sum())
    if freedom == 0:
        return torch.zeros_like(means), residuals.T @ residuals / len(labels)
    within = residuals - means[labels]
    covariance = within.T @ within / freedom
    noise = covariance.trace() / counts.clamp(min=1)  # (C,) expected squared length of a mean that says nothing
    signal = (means[known].square().sum(dim=1).mean() - noise[known].mean()).clamp(min=0)
    return means * (signal / (signal + noise).clamp(min=1e-30))[:, None], covariance
