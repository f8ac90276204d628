"""Shrinkage of LDA: how far its covariance and its class means are drawn in, chosen from sufficient statistics."""

import torch


def choose_shrinkage(counts: torch.Tensor, means: torch.Tensor, covariance: torch.Tensor) -> float:
    """Return the weight e of the identity in the covariance that fits the images best: the larger of two.

    LDA with the covariance (1 - e) Sigma + e v I, v = tr(Sigma)/D, answers with the directions of a ridge regression
    of class indicators on features, its penalty being r = f v e / (1 - e), f = N - C the degrees of freedom of Sigma
    (Hastie, Buja & Tibshirani 1995). The first is the e whose answers for images that were left out correlate best
    with their classes. For this no image is needed: with T = V diag(l) V' the scatter of all features around their
    mean, s_c = n_c (mu_c - mu), q_d = sum_c (s_c' v_d)^2 and t = N - sum_c n_c^2 / N, the answers Y^ for the
    indicators Y have <Y, Y^> = a = sum_d q_d / (l_d + r) and <Y^, Y^> = b = sum_d q_d l_d / (l_d + r)^2. Without an
    image of leverage h its answer is (y^ - h y) / (1 - h), and with the mean leverage h = (1 + sum_d l_d / (l_d + r))
    / N for all of them (Golub, Heath & Wahba 1979) the correlation is (a - h t) / sqrt(t (b - 2 h a + h^2 t)).

    The second is what a sample of normal vectors needs for the covariance itself, by OAS (Chen et al. 2010, arXiv
    0907.4698, eq. 23, with f for the number of samples). Few images tell little of the first.

    Args:
        counts (`torch.Tensor` of shape `(C,)`): Images of each class.
        means (`torch.Tensor` of shape `(C, D)`): Their means.
        covariance (`torch.Tensor` of shape `(D, D)`): Covariance Sigma within classes.

    Returns:
        `float`: In (0, 1]; 1 where features do not vary within classes, or are not finite.
    """
    known = counts > 0
    counts, means, covariance = (_exact(part) for part in (counts[known], means[known], covariance))
    variance = covariance.diagonal().mean()
    if not (variance > 0 and means.isfinite().all() and covariance.isfinite().all()):
        return 1.0
    size, dim = counts.sum(), len(covariance)  # N, D
    freedom = (size - len(counts)).clamp(min=1)
    least = _oas(covariance, freedom)
    if len(counts) == 1:
        return least
    centred = means - counts @ means / size  # (C, D)
    sums = counts[:, None] * centred  # (C, D)
    lengths, directions = torch.linalg.eigh(freedom * covariance + centred.T @ sums)  # (D,), (D, D)
    lengths, signal = lengths.clamp(min=0), (sums @ directions).square().sum(dim=0)  # (D,), (D,)
    power = size - counts.square().sum() / size  # t
    odds = torch.logspace(-2, 2, 33).to(lengths)  # (G,), e / (1 - e)
    inverse = 1 / (lengths + (freedom * variance * odds)[:, None])  # (G, D)
    leverage = ((1 + inverse @ lengths) / size).clamp(max=1)  # (G,)
    fit, fitted = inverse @ signal, inverse.square() @ (signal * lengths)  # a, b, (G,)
    left_out = fitted - 2 * leverage * fit + leverage.square() * power  # (G,)
    correlation = (fit - leverage * power) / left_out.clamp(min=1e-12 * power / dim).sqrt()
    best = odds[correlation.argmax()]
    return max(least, (best / (1 + best)).item())


def _oas(covariance: torch.Tensor, freedom: torch.Tensor) -> float:
    dim, trace, square = len(covariance), covariance.trace(), covariance.square().sum()
    excess = (freedom + 1 - 2 / dim) * (square - trace.square() / dim)
    needed = (1 - 2 / dim) * square + trace.square()
    return 1.0 if needed >= excess else (needed / excess).item()


def _exact(tensor: torch.Tensor) -> torch.Tensor:
    """Return float64, which sums of squares need; on the CPU where the device has none."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def mean_weights(counts: torch.Tensor, distances: torch.Tensor, noise: torch.Tensor, dim: int) -> torch.Tensor:
    """Return how much of the way from the grand mean to its own mean each class keeps, float of shape (C,), in (0, 1].

    The mean of n_c images is off by `noise` / n_c, in squared distance, so that means of few images lie too far out.
    Where class means scatter around the grand mean by t^2, the best estimate keeps a_c = t^2 / (t^2 + noise / n_c) of
    the way (empirical Bayes: Efron & Morris 1973), and moments give t^2 = sum_c distances_c / (C - 1) - noise
    mean_c(1 / n_c) without bias for unequal n_c (Hedges 1983). It is taken to be one standard error of that at least,
    or else classes that cannot be told apart would get the same answer.

    Args:
        counts (`torch.Tensor` of shape `(C,)`): Images of each class, some of them 0.
        distances (`torch.Tensor` of shape `(C,)`): Squared distance of each mean from the mean of all means.
        noise (`torch.Tensor` of shape `()`): Expected squared distance of an image from its class mean.
        dim (`int`): Feature width.
    """
    known = counts > 0
    freedom = (known.sum() - 1).clamp(min=1)
    error = noise / counts.clamp(min=1)  # (C,)
    chance = error[known].sum() / known.sum().clamp(min=1)
    spread = distances[known].sum() / freedom - chance
    spread = torch.maximum(spread, chance * (2 / (freedom * dim)).sqrt())
    is_certain = (error <= 0) | (known.sum() < 2)
    return torch.where(is_certain, 1.0, spread / (spread + error).clamp(min=1e-30))
