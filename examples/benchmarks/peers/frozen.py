"""Learners on frozen features: SimpleCIL, StreamingLDA and RanPAC, each a classifier in closed form."""

import math
from abc import abstractmethod

import torch
from torch.nn import functional as F

from .learner import Finetune

RIDGES = 10.0 ** torch.arange(-8, 9, dtype=torch.float64)


class FrozenLearner(Finetune):
    """Fine-tunes the backbone on the first task, if at all, and never again; features are computed once.

    Without a pretrained backbone the first task is always fine-tuned on: there would be no features otherwise.
    """

    needs_new_classes = True
    tunes_first = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._seen: dict[int, torch.Tensor] = {}  # features by address of the images, which the caller holds on to

    def learn(self, images, labels, num_images):
        """Add a task to the statistics."""
        if self.task == 0 and (self.tunes_first or self.recipe.from_scratch):
            super().learn(images, labels, num_images)
        self.update(self.features(images), labels)

    def predict(self, images):
        """Return the class (N,) with the highest score."""
        address = images.data_ptr()
        if address not in self._seen:
            self._seen[address] = self.features(images)
        return self.scores(self._seen[address]).argmax(dim=1)

    @abstractmethod
    def update(self, features: torch.Tensor, labels: torch.Tensor) -> None:
        """Add features (N, D) with labels (N,) to the statistics."""

    @abstractmethod
    def scores(self, features: torch.Tensor) -> torch.Tensor:
        """Return scores (N, C) of features (N, D)."""


class SimpleCIL(FrozenLearner):
    """SimpleCIL (Zhou et al. 2023): cosine similarity to the mean feature of each class."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.means = torch.empty(0)  # (C, D)

    @property
    def num_bytes(self):
        """Bytes of the means."""
        return 4 * self.means.numel()

    def update(self, features, labels):
        """Append the means of new classes."""
        new = torch.stack(
            [features[labels == label].mean(dim=0) for label in range(self.first_class, self.num_classes)]
        )
        self.means = torch.cat([self.means, new]) if len(self.means) else new

    def scores(self, features):
        """Return cosine similarities (N, C)."""
        return F.normalize(features, dim=1) @ F.normalize(self.means, dim=1).T


class StreamingLDA(FrozenLearner):
    """Deep SLDA (Hayes & Kanan 2020), one image at a time.

    Sigma <- (t Sigma + t/(t+1) (z - mu_y)(z - mu_y)') / (t+1), then mu_y <- mu_y + (z - mu_y)/(n_y+1); prediction by
    w_k = Lambda mu_k, b_k = -1/2 mu_k' Lambda mu_k, Lambda = [(1-e) Sigma + e I]^-1. The covariance of the first task
    is shrunk by OAS (Chen et al. 2010), as in the authors' base initialisation.
    """

    constants = {"shrinkage": 1e-4}

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.means = self.counts = self.covariance = torch.empty(0)
        self.num_updates = 0

    @property
    def num_bytes(self):
        """Bytes of means, counts and covariance."""
        return 4 * (self.means.numel() + self.counts.numel() + self.covariance.numel())

    def update(self, features, labels):
        """Start with the first task as a whole, then go image by image."""
        new = self.num_classes - len(self.counts)
        self.counts = F.pad(self.counts, (0, new))
        self.means = F.pad(self.means.reshape(-1, features.shape[1]), (0, 0, 0, new))
        if self.num_updates == 0:
            self.fit_base(features, labels)
            return
        for row in torch.randperm(len(features), generator=self.generator).tolist():
            self.fit_one(features[row], int(labels[row]))

    def fit_base(self, features: torch.Tensor, labels: torch.Tensor) -> None:
        """Set means and covariance from a first batch."""
        from sklearn.covariance import OAS

        self.counts = labels.bincount(minlength=self.num_classes).float()
        self.means.index_add_(0, labels, features)
        self.means /= self.counts.clamp(min=1)[:, None]
        fitted = OAS(assume_centered=True).fit((features - self.means[labels]).double().numpy())
        self.covariance = torch.from_numpy(fitted.covariance_).float()
        self.num_updates = len(features)

    def fit_one(self, feature: torch.Tensor, label: int) -> None:
        """Add one image."""
        deviation, t = feature - self.means[label], self.num_updates
        self.covariance.mul_(t / (t + 1)).addr_(deviation, deviation, alpha=t / (t + 1) ** 2)
        self.means[label] += deviation / (self.counts[label] + 1)
        self.counts[label] += 1
        self.num_updates += 1

    def scores(self, features):
        """Return the discriminant's scores (N, C)."""
        shrinkage, identity = self.constants["shrinkage"], torch.eye(len(self.covariance), dtype=torch.float64)
        shrunk = (1 - shrinkage) * self.covariance.double() + shrinkage * identity
        weights = torch.linalg.solve(shrunk, self.means.double().T)  # (D, C)
        biases = -0.5 * (self.means.double().T * weights).sum(dim=0)  # (C,)
        return features.double() @ weights + biases


def choose_ridge(features: torch.Tensor, targets: torch.Tensor) -> float:
    """Return the ridge whose fit to the first 80 % of some rows has the smallest squared error on the rest.

    Args:
        features (`torch.Tensor` of shape `(N, M)`): In random order.
        targets (`torch.Tensor` of shape `(N, C)`): One-hot.
    """
    num_fit = int(0.8 * len(features))
    fit, held_out = features[:num_fit].double(), features[num_fit:].double()
    wanted, missed = targets[:num_fit].double(), targets[num_fit:].double()
    if num_fit <= features.shape[1]:  # dual: H' (H H' + lambda I)^-1 Y
        values, vectors = torch.linalg.eigh(fit @ fit.T)
        left, right = held_out @ (fit.T @ vectors), vectors.T @ wanted
    else:  # primal: (H' H + lambda I)^-1 H' Y
        values, vectors = torch.linalg.eigh(fit.T @ fit)
        left, right = held_out @ vectors, vectors.T @ (fit.T @ wanted)
    errors = [(left @ (right / (values + ridge)[:, None]) - missed).square().mean() for ridge in RIDGES]
    return float(RIDGES[int(torch.stack(errors).nan_to_num(torch.inf).argmin())])


class RanPAC(FrozenLearner):
    """RanPAC (McDonnell et al. 2023, equations 4 and 5) without first-session tuning.

    h = relu(f W) with W random and fixed, G <- G + h h', Q <- Q + h y', W_o = (G + lambda I)^-1 Q; lambda in 1e-8 to
    1e8 by the squared error on the last fifth of the task at hand (of at most 4,000 of its images). The paper has
    M = 10,000 random features; the recipe says how many here. G and Q count as bytes, W follows from a seed.
    """

    constants = {"ridge_rows": 4_000}

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.width = self.choose_width()
        generator = torch.Generator().manual_seed(self.recipe.seed)
        self.projection = torch.randn(self.model.head.feature_dim, self.width, generator=generator)
        self.gram = torch.zeros(self.width, self.width)
        self.cross = torch.zeros(self.width, 0)
        self.ridge, self._weights = 1.0, None

    def choose_width(self) -> int:
        """Return the number of random features."""
        return self.recipe.random_features

    @property
    def num_bytes(self):
        """Bytes of both matrices."""
        return 4 * (self.gram.numel() + self.cross.numel())

    def hidden(self, features: torch.Tensor) -> torch.Tensor:
        """Return random features (N, M)."""
        return (features @ self.projection).relu()

    def update(self, features, labels):
        """Add images to both matrices and choose the ridge."""
        order = torch.randperm(len(features), generator=self.generator)
        hidden = self.hidden(features[order])
        targets = F.one_hot(labels[order], self.num_classes).float()  # (N, C)
        self.gram += hidden.T @ hidden
        self.cross = F.pad(self.cross, (0, self.num_classes - self.cross.shape[1])) + hidden.T @ targets
        few = self.constants["ridge_rows"]
        self.ridge, self._weights = choose_ridge(hidden[:few], targets[:few]), None

    def scores(self, features):
        """Return the regression's outputs (N, C)."""
        if self._weights is None:
            regular = self.gram.double() + self.ridge * torch.eye(self.width, dtype=torch.float64)
            self._weights = torch.linalg.solve(regular, self.cross.double()).float()  # (M, C)
        return self.hidden(features) @ self._weights


class RanPACTuned(RanPAC):
    """RanPAC with first-session tuning: of the whole network by the shared recipe, where the paper has an adapter."""

    tunes_first = True


class RanPACInBudget(RanPAC):
    """RanPAC with as many random features as the budget holds: 4 M (M + C) bytes, C classes in the whole stream."""

    uses_budget = True

    def choose_width(self):
        """Return the largest width that fits, no more than the recipe's."""
        if self.recipe.budget is None:
            return self.recipe.random_features
        classes = self.recipe.num_classes
        width = int((math.sqrt(classes**2 + self.recipe.budget) - classes) / 2)
        return max(1, min(width, self.recipe.random_features))
