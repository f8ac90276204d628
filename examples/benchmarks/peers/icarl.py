"""ICaRL: distillation while training, herding for memory, the nearest mean of exemplars for prediction."""

import copy

import torch
from torch.nn import functional as F

from .learner import Learner, shuffled
from .store import LABEL_BYTES, ImageStore, pixel_bytes


def herding(features: torch.Tensor, count: int) -> torch.Tensor:
    """Return positions (count,) so that the mean of every first k comes as close to the mean of all as greed can get.

    p_k = argmin_x |mu - (phi(x) + sum_{j<k} phi(p_j)) / k|, each image once (Rebuffi et al. 2017, algorithm 4).

    Args:
        features (`torch.Tensor` of shape `(N, D)`): Normalised features of a class.
        count (`int`): Number of exemplars to choose.
    """
    mean, total = features.mean(dim=0), torch.zeros_like(features[0])
    free, chosen = torch.ones(len(features), dtype=torch.bool), []
    for k in range(1, min(count, len(features)) + 1):
        distance = (mean - (features + total) / k).norm(dim=1)  # (N,)
        best = int(distance.masked_fill(~free, torch.inf).argmin())
        chosen.append(best)
        free[best] = False
        total += features[best]
    return torch.tensor(chosen, dtype=torch.int64)


class ICaRL(Learner):
    """iCaRL (Rebuffi et al. 2017, algorithms 1 to 5).

    Loss: binary cross-entropy of every output; its target is the label for new classes, and for old classes the output
    of the network before the task. Training images are those of the task and all exemplars. Memory: herding, all
    classes with as many exemplars. Prediction: the nearest mean of exemplars, by normalised features. The algorithm
    takes one exemplar a class for granted; where the budget does not hold that, the network's outputs predict.
    """

    uses_budget = True
    needs_new_classes = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.store = ImageStore(self.recipe.budget)
        self._means: torch.Tensor | None = None

    @property
    def num_bytes(self):
        """Bytes of the raw images; means follow from them."""
        return self.store.num_bytes

    def learn(self, images, labels, num_images):
        """Learn a task from its images and all exemplars, then choose exemplars of the new classes."""
        old = copy.deepcopy(self.model).requires_grad_(False).eval() if self.first_class else None
        x = torch.cat([images, self.store.images]) if len(self.store) else images
        y = torch.cat([labels, self.store.labels])
        rows = shuffled(len(x), self.recipe.batch_size, self.generator)

        def step_loss():
            batch = next(rows)
            pixel_values = self.augmented(x[batch])
            logits = self.logits(pixel_values).float()
            targets = F.one_hot(y[batch], self.num_classes).to(logits)  # (B, C)
            if old is not None:
                with torch.no_grad():
                    taught = old.head.classifier(old.extract_features(pixel_values))[:, : self.first_class]
                targets[:, : self.first_class] = taught.float().sigmoid()
            return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(batch)

        self.fit(num_images, step_loss)
        self._remember(images, labels)
        self._means = self._class_means()

    def _remember(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        features = F.normalize(self.features(images), dim=1)
        chosen, keys = [], []
        for label in labels.unique():
            members = (labels == label).nonzero().flatten()
            count = len(members)
            if self.recipe.budget is not None:
                size = int(pixel_bytes(images[members]).min()) + LABEL_BYTES
                count = min(count, self.recipe.budget // (size * self.num_classes) + 1)
            order = herding(features[members], count)
            chosen.append(members[order])
            keys.append(torch.arange(len(order), dtype=torch.float32))
        rows = torch.cat(chosen)
        self.store.add(images[rows], labels[rows], torch.cat(keys))

    def _class_means(self) -> torch.Tensor | None:
        if len(self.store.labels.unique()) < self.num_classes:
            return None
        features = F.normalize(self.features(self.store.images), dim=1)
        sums = torch.zeros(self.num_classes, features.shape[1]).index_add_(0, self.store.labels, features)
        return F.normalize(sums, dim=1)  # (C, D)

    def predict(self, images):
        """Return the class (N,) of the nearest mean."""
        if self._means is None:
            return super().predict(images)
        return (F.normalize(self.features(images), dim=1) @ self._means.T).argmax(dim=1)
