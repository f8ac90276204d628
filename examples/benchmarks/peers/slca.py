"""SLCA: a slow backbone, a Gaussian for every class, and a classifier aligned on samples of them."""

import torch
from torch.nn import functional as F

from .learner import Learner, shuffled


def normalised_logits(logits: torch.Tensor, task_sizes: list[int], temperature: float) -> torch.Tensor:
    """Return logits (B, C) divided by the mean over tasks of the norm of each task's part, and by a temperature."""
    norms = [part.norm(dim=1, keepdim=True) + 1e-7 for part in logits.split(task_sizes, dim=1)]
    return logits / torch.cat(norms, dim=1).mean(dim=1, keepdim=True) / temperature


class SLCA(Learner):
    """SLCA (Zhang et al. 2023): slow learner with classifier alignment.

    Training: cross-entropy over the classes of the task at hand, the backbone at a hundredth of the head's rate (at
    the recipe's in the first task of a backbone from scratch). Then mean and covariance of each new class are stored,
    four bytes a number, and the classifier alone is trained for 5 epochs of 256 samples per class from
    N(mu_k (0.9 + 0.1 (t_k + 1)/(t + 1)), Sigma_k + 1e-4 I), logits divided by their mean norm per task and by 0.1.
    Samples are features, so they do not count as images seen.
    """

    needs_new_classes = True
    constants = {
        "slow_ratio": 0.01,
        "samples_per_class": 256,
        "alignment_epochs": 5,
        "alignment_rate": 0.01,
        "alignment_weight_decay": 5e-4,
        "temperature": 0.1,
        "added_variance": 1e-4,
    }

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.means: list[torch.Tensor] = []  # of (D,)
        self.factors: list[torch.Tensor] = []  # Cholesky factors of covariances (D, D)

    @property
    def num_bytes(self):
        """Bytes of means and covariances."""
        return 4 * sum(tensor.numel() for tensor in (*self.means, *self.factors))

    def learn(self, images, labels, num_images):
        """Learn a task, describe its classes, and align the classifier."""
        rows = shuffled(len(images), self.recipe.batch_size, self.generator)

        def step_loss():
            batch = next(rows)
            logits = self.logits(self.augmented(images[batch]))[:, self.first_class :]
            return self.cross_entropy(logits, labels[batch] - self.first_class)

        is_slow = self.task > 0 or not self.recipe.from_scratch
        rate = self.constants["slow_ratio"] * self.recipe.learning_rate if is_slow else None
        self.fit(num_images, step_loss, backbone_rate=rate)
        self.describe(self.features(images), labels)
        if self.task > 0:
            self._align()

    def describe(self, features: torch.Tensor, labels: torch.Tensor) -> None:
        """Store mean and covariance of the new classes."""
        added = self.constants["added_variance"] * torch.eye(features.shape[1], dtype=torch.float64)
        for label in range(self.first_class, self.num_classes):
            members = features[labels == label].double()
            covariance = torch.cov(members.T) if len(members) > 1 else torch.zeros_like(added)
            self.means.append(members.mean(dim=0).float())
            self.factors.append(torch.linalg.cholesky(covariance + added).float())

    def samples(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features (256 C, D) drawn from the Gaussians, and their labels."""
        count = self.constants["samples_per_class"]
        task_of = torch.repeat_interleave(torch.arange(self.task + 1), torch.tensor(self.task_sizes))
        drawn = []
        for mean, factor, task in zip(self.means, self.factors, task_of.tolist(), strict=True):
            noise = torch.randn(count, len(mean), generator=self.generator)
            drawn.append(mean * (0.9 + 0.1 * (task + 1) / (self.task + 1)) + noise @ factor.T)
        return torch.cat(drawn), torch.repeat_interleave(torch.arange(self.num_classes), count)

    def _align(self) -> None:
        classifier, constants = self.model.head.classifier, self.constants
        batch, steps = constants["samples_per_class"], constants["alignment_epochs"] * self.num_classes
        optimizer = torch.optim.SGD(
            classifier.parameters(),
            lr=constants["alignment_rate"] * self.recipe.lr_scale,
            momentum=0.9,
            weight_decay=constants["alignment_weight_decay"],
        )
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(constants["alignment_epochs"]):
            features, labels = self.samples()
            for rows in torch.randperm(len(features), generator=self.generator).split(batch):
                logits = classifier(features[rows].to(self.model.device))
                logits = normalised_logits(logits, self.task_sizes, constants["temperature"])
                F.cross_entropy(logits, labels[rows].to(logits.device)).backward()
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step()
