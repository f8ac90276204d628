"""Rehearsal: Replay and DarkReplay, which mix raw images of the past into every batch."""

import torch
from torch.nn import functional as F

from .learner import Finetune, Learner, shuffled
from .store import ImageStore


class Replay(Finetune):
    """Experience replay (ER; Riemer et al. 2019, Chaudhry et al. 2019): half of a batch is drawn from memory.

    Loss: cross-entropy over all classes so far on new images and memories alike. Memory: after each task, a reservoir
    per class, all classes with as many images.
    """

    uses_budget = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.store = ImageStore(self.recipe.budget)

    @property
    def num_bytes(self):
        """Bytes of the raw images."""
        return self.store.num_bytes

    def learn(self, images, labels, num_images):
        """Learn a task from its images and as many memories, then remember some of it."""
        num_memories = self.recipe.batch_size // 2 if len(self.store) else 0
        rows = shuffled(len(images), self.recipe.batch_size - num_memories, self.generator)

        def step_loss():
            new = next(rows)
            x, y = images[new], labels[new]
            if num_memories:
                old = self.store.draw(num_memories, self.generator)
                x, y = torch.cat([x, self.store.images[old]]), torch.cat([y, self.store.labels[old]])
            return self.cross_entropy(self.logits(self.augmented(x)), y)

        self.fit(num_images, step_loss)
        self.store.add(images, labels, torch.rand(len(images), generator=self.generator))


def dark_loss(logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return the mean squared difference between logits (B, C) and stored ones (B, C), where these are not NaN."""
    known = ~rows.isnan()
    return F.mse_loss(logits.float()[known], rows[known])


class DarkReplay(Learner):
    """DER++ (Buzzega et al. 2020, equation 6).

    Loss: CE(f(x), y) + alpha |f(x') - z'|^2 + beta CE(f(x''), y''), with x new, (x', z') and (x'', y'') two draws of
    memory, each a third of the batch, and z' the logits with which x' was stored. As published, images enter the
    reservoir while they are trained on, so that z' come from all along the trajectory: each is offered once, in a
    random one of its repetitions. Logits of a growing head cover the classes of their time, and only those are matched
    and counted, four bytes each.
    """

    uses_budget = True
    constants = {"alpha": 0.1, "beta": 0.5}  # Split CIFAR-10, 200 memories

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.store = ImageStore(self.recipe.budget)

    @property
    def num_bytes(self):
        """Bytes of the raw images and their logits."""
        return self.store.num_bytes

    def learn(self, images, labels, num_images):
        """Learn a task, and remember images with their logits on the way."""
        third = self.recipe.batch_size // 3
        size = self.recipe.batch_size - 2 * third
        rows = shuffled(len(images), size, self.generator)
        repetitions = max(1, round(num_images / self.recipe.batch_size * size / len(images)))
        turns = torch.randint(repetitions, (len(images),), generator=self.generator)  # until an image is offered
        keys = torch.rand(len(images), generator=self.generator)

        def step_loss():
            new = next(rows)
            if len(self.store) == 0:
                new = torch.cat([new, torch.randint(len(images), (2 * third,), generator=self.generator)])
            logits = self.logits(self.augmented(images[new]))
            loss = self.cross_entropy(logits, labels[new])
            if len(self.store):
                loss = loss + self._memory_loss(third)
            due = new[turns[new] == 0].unique()
            turns[new] -= 1
            if len(due):
                first = torch.stack([(new == position).nonzero()[0, 0] for position in due])
                self.store.add(images[due], labels[due], keys[due], logits[first].detach().float().cpu())
            return loss

        self.fit(num_images, step_loss)

    def _memory_loss(self, size: int) -> torch.Tensor:
        one, two = (self.store.draw(size, self.generator) for _ in range(2))
        logits = self.logits(self.augmented(self.store.images[torch.cat([one, two])]))
        stored = self.store.rows[one].to(logits.device)
        unknown = logits.shape[1] - stored.shape[1]  # classes that came after the last image was stored
        dark = dark_loss(logits[:size], F.pad(stored, (0, unknown), value=torch.nan))
        classified = self.cross_entropy(logits[size:], self.store.labels[two])
        return self.constants["alpha"] * dark + self.constants["beta"] * classified
