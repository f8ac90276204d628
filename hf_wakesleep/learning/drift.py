"""Drift: how training has moved features, measured on some memories, and how LDA's statistics are moved along."""

from collections.abc import Iterator

import numpy as np
import torch
from tqdm.auto import tqdm

from ..data.images import ImageReader
from ..memory.memory import SemiParametricMemory
from ..memory.sampling import held_out_mask, stratified_mask, subsample
from ..model.head_wakesleep import LinearDiscriminant
from ..model.modeling_wakesleep import WakeSleepForImageClassification
from .sleep_config import SleepConfig

PENALTIES = torch.logspace(-4, 4, 17)  # of ridge regression, as multiples of the mean squared singular value
MOST_REPLAYED, MOST_HELD_OUT = 1152, 384  # most memories that drift is measured on: the cost of LDA has a limit


def drift_positions(memory: SemiParametricMemory, held_out_share: float) -> np.ndarray:
    """Return the positions of the memories on which drift is measured, int64 (M,): of every class, replayed or not."""
    replayed = np.flatnonzero(~held_out_mask(memory.labels, memory.tasks, held_out_share))
    first = np.flatnonzero(np.diff(memory.labels, prepend=-1))  # one of each class at least
    measured = measured_positions(memory, held_out_share)
    return np.unique(np.concatenate([first, subsample(replayed, MOST_REPLAYED), measured]))


def measured_positions(memory: SemiParametricMemory, held_out_share: float) -> np.ndarray:
    """Return the positions of the memories that a sleep is measured on, before and after, int64 (M,).

    They are held out of replay, except the only memory of a class.
    """
    return subsample(np.flatnonzero(stratified_mask(memory.labels, memory.tasks, held_out_share)), MOST_HELD_OUT)


def drift_features(
    model: WakeSleepForImageClassification, memory: SemiParametricMemory, reader: ImageReader, config: SleepConfig
) -> torch.Tensor:
    """Return the current features of the memories at `drift_positions`, (M, D), float32."""
    positions = drift_positions(memory, config.held_out_share)
    batches = memory_features(model, memory, reader, config, positions, "drift")
    return torch.cat([features for _, features, _ in batches])


@torch.no_grad()
def memory_features(
    model: WakeSleepForImageClassification,
    memory: SemiParametricMemory,
    reader: ImageReader,
    config: SleepConfig,
    positions: np.ndarray,
    description: str,
) -> Iterator[tuple[np.ndarray, torch.Tensor, torch.Tensor]]:
    """Yield positions (b,), features (b, D) and labels (b,) of some memories, in batches."""
    was_training = model.training
    model.eval()
    size = config.eval_batch_size
    batches = np.split(positions, range(size, len(positions), size))
    for indices in tqdm(batches, desc=description, disable=not config.shows_progress, leave=False):
        images, labels = memory.read(indices)
        pixel_values = reader.normalise(images.to(model.device))
        with config.autocast(model.device):
            features = model.extract_features(pixel_values).float()
        yield indices, features, labels.to(model.device)
    model.train(was_training)


def carry(
    lda: LinearDiscriminant, before: torch.Tensor, after: torch.Tensor, labels: torch.Tensor, is_new: torch.Tensor
) -> None:
    """Carry LDA's statistics along with features that have moved, as measured on some memories.

    1. Errors of earlier sleeps are limited, so that they do not add up. The statistics of a class are exact if it was
       learned in the latest task: they were computed on this backbone before it was trained, and were never carried.
       The largest distance between the mean of an exact class and the mean of its memories is allowed for all
       classes; a mean that is further from its memories is moved towards them until it is that far away. Where no
       class is exact, as when known classes get a new domain, the distance to expect by chance is allowed.
    2. The class means are moved by a linear map f' = f A + c, which is fitted to the features of the memories before
       and after, by ridge regression of their drift.
    3. To each class mean, the mean residual of its memories (the drift that the map does not explain) is added,
       shrunk by how much of it is noise (an empirical Bayes estimate).
    4. The covariance becomes B' Sigma B plus the covariance of the residuals of B, a map like A that is fitted to
       deviations from class means; where no class has two memories, A takes the place of B.

    Compensation of drift by means: Yu et al. 2020, arXiv 2004.00440; by a learned map: Gomez-Villa et al. 2024, arXiv
    2407.08536.

    Args:
        lda ([`LinearDiscriminant`]): Its means and covariance are replaced; counts stay.
        before (`torch.Tensor` of shape `(M, D)`): Features of the memories when the statistics last fitted the
            backbone, before it was trained.
        after (`torch.Tensor` of shape `(M, D)`): Their current features.
        labels (`torch.Tensor` of shape `(M,)`): Their classes.
        is_new (`torch.Tensor` of shape `(M,)`): Which memories are of the latest task; a class that has no others is
            exact.
    """
    old, new, labels = before.double().cpu(), after.double().cpu(), labels.cpu()
    old_mean, new_mean = old.mean(dim=0), new.mean(dim=0)
    means = lda.means.double().cpu() - old_mean  # (C, D)
    old, new = old - old_mean, new - new_mean
    limits = _max_distances(lda, means, old, labels, is_new.cpu())
    means = _limit_distances(means, _class_means(old, labels, len(means)), limits)
    linear = _drift_map(old, new, len(labels) - 1)
    means = means @ linear + new_mean + _shrunk_residuals(new - old @ linear, labels, len(means))
    means[lda.counts.cpu() == 0] = 0.0
    old, new = (part - _class_means(part, labels, len(means))[labels] for part in (old, new))
    if len(labels) > len(labels.unique()):
        linear = _drift_map(old, new, _freedom(labels))
    rest = new - old @ linear  # zeros where no class has two
    covariance = linear.T @ lda.covariance().double().cpu() @ linear + rest.T @ rest / _freedom(labels)
    lda.set_moments(means, covariance)


def _max_distances(
    lda: LinearDiscriminant, means: torch.Tensor, old: torch.Tensor, labels: torch.Tensor, is_new: torch.Tensor
) -> torch.Tensor:
    """Return how far each class mean (C, D) may be from the mean of its memories, `old` (M, D); of shape (C,)."""
    num_new, num_all = (part.bincount(minlength=len(means)) for part in (labels[is_new], labels))
    is_exact = (num_new > 0) & (num_new == num_all)
    if is_exact.any():
        distances = (means - _class_means(old, labels, len(means))).norm(dim=1)  # (C,)
        return distances[is_exact].max().expand(len(means))
    return (lda.covariance().double().cpu().trace() / num_all.clamp(min=1)).sqrt()


def _limit_distances(means: torch.Tensor, remembered: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
    """Move class means (C, D) towards the means of their memories (C, D), to a distance of at most `limits` (C,)."""
    apart = means - remembered
    distances = apart.norm(dim=1)  # (C,)
    return remembered + (limits / distances.clamp(min=1e-30)).clamp(max=1)[:, None] * apart


def _drift_map(old: torch.Tensor, new: torch.Tensor, freedom: int) -> torch.Tensor:
    """Return the matrix (D, D) that maps centred features (M, D) to new ones, by ridge regression of new - old.

    Generalised cross-validation (Golub et al. 1979) chooses the penalty, with `freedom` degrees of freedom.
    """
    identity = torch.eye(old.shape[1], dtype=old.dtype)
    left, lengths, right = torch.linalg.svd(old, full_matrices=False)  # (M, R), (R,), (R, D)
    if lengths[0] == 0:
        return identity
    drift = left.T @ (new - old)  # (R, D)
    explained = drift.square().sum(dim=1)  # (R,)
    unexplained = ((new - old).square().sum() - explained.sum()).clamp(min=0)
    best, least = torch.ones_like(lengths), torch.inf
    for penalty in lengths.square().mean() * PENALTIES.to(old):
        left_out = penalty / (lengths.square() + penalty)  # (R,)
        error = (unexplained + explained @ left_out.square()) / (freedom - len(lengths) + left_out.sum()).square()
        if error < least:
            best, least = left_out, error
    return identity + right.T @ (((1 - best) / lengths.clamp(min=1e-30))[:, None] * drift)


def _class_means(features: torch.Tensor, labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Return the mean of each class (C, D); zero without features."""
    sums = features.new_zeros(num_classes, features.shape[1]).index_add(0, labels, features)
    return sums / labels.bincount(minlength=num_classes).clamp(min=1)[:, None]


def _freedom(labels: torch.Tensor) -> int:
    """Return the degrees of freedom within classes, at least 1."""
    return max(1, len(labels) - len(labels.unique()))


def _shrunk_residuals(residuals: torch.Tensor, labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Return the mean residual of each class (C, D), shrunk by how much of it is noise."""
    means = _class_means(residuals, labels, num_classes)
    counts = labels.bincount(minlength=num_classes)
    if len(labels) == (counts > 0).sum():
        return torch.zeros_like(means)  # with one memory of each class, the noise is unknown
    variance = (residuals - means[labels]).square().sum() / _freedom(labels)
    noise = variance / counts.clamp(min=1)  # (C,) expected squared length of a mean of noise alone
    signal = (means.square().sum(dim=1) - noise)[counts > 0].mean().clamp(min=0)
    return means * (signal / (signal + noise).clamp(min=1e-30))[:, None]
