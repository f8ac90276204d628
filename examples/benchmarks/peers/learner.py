"""Learner: what all peers share, from growing a head to training by one recipe."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import ClassVar

import torch
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import get_scheduler

from hf_wakesleep import WakeSleepForImageClassification
from hf_wakesleep.data.augmentation import augment

EVAL_BATCH = 256


@dataclass(frozen=True)
class Recipe:
    """How all peers train, and what they know of the stream beforehand.

    AdamW with a rate for the head and one for the backbone, a tenth of the steps to warm up, then a cosine to zero;
    gradients are clipped to norm 1. Published rates of SGD belong to convolutional networks and would cripple a ViT.

    Args:
        learning_rate (`float`): Peak learning rate of the head.
        backbone_learning_rate (`float`): That of the backbone.
        weight_decay (`float`): Of everything with two dimensions or more.
        label_smoothing (`float`): In the cross-entropy of those methods that have one over all classes.
        batch_size (`int`): Images in a step, memories among them.
        augmentation (`str`): `"none"`, `"crop"` or `"crop-flip"`.
        from_scratch (`bool`): Whether the backbone has learned nothing before the first task.
        bf16 (`bool`): Whether training and prediction run in bfloat16 autocast.
        seed (`int`): Seed of batches, augmentation and memory.
        budget (`int`, *optional*): Bytes for what is kept of the stream.
        num_tasks (`int`): Tasks of the stream.
        num_classes (`int`): Classes of the whole stream.
        random_features (`int`): Width of random projections.
        webp_quality (`int`): Quality of WebP codes.
        lr_scale (`float`): Factor of all learning rates.
    """

    learning_rate: float
    backbone_learning_rate: float
    weight_decay: float
    label_smoothing: float
    batch_size: int
    augmentation: str
    from_scratch: bool
    bf16: bool
    seed: int
    budget: int | None
    num_tasks: int
    num_classes: int
    random_features: int
    webp_quality: int
    lr_scale: float = 1.0


def shuffled(num: int, size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Yield positions, int64 of shape (size,), for ever; each pass over 0..num-1 has an order of its own."""
    left = torch.empty(0, dtype=torch.int64)
    while True:
        while len(left) < size:
            left = torch.cat([left, torch.randperm(num, generator=generator)])
        yield left[:size]
        left = left[size:]


class Learner(ABC):
    """One method of class-incremental learning.

    Args:
        model ([`WakeSleepForImageClassification`]): Backbone and linear classifier; its LDA is not used.
        recipe ([`Recipe`]): How to train.
        shows_progress (`bool`, defaults to `False`): Whether to show progress bars.

    Attributes:
        images_seen (`int`): Images trained on, repetitions and memories included; forward passes alone do not count.
        task (`int`): Number of the task at hand, from 0.
        first_class (`int`): Index of its first class.
    """

    constants: ClassVar[dict] = {}  # published hyper-parameters
    uses_budget: ClassVar[bool] = False
    needs_new_classes: ClassVar[bool] = False  # in every task

    def __init__(self, model: WakeSleepForImageClassification, recipe: Recipe, shows_progress: bool = False):
        self.model, self.recipe, self.shows_progress = model, recipe, shows_progress
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self.images_seen, self.task, self.first_class, self.num_classes = 0, -1, 0, 0
        self.task_sizes: list[int] = []

    def begin(self, classes: list[str]) -> None:
        """Grow the head by the classes of the next task."""
        self.task += 1
        self.first_class, self.num_classes = self.num_classes, self.num_classes + len(classes)
        self.task_sizes.append(len(classes))
        self.model.grow(classes, self.generator)

    @abstractmethod
    def learn(self, images: torch.Tensor, labels: torch.Tensor, num_images: int) -> None:
        """Learn a task.

        Args:
            images (`torch.Tensor` of shape `(N, 3, H, W)`): Its training images, uint8.
            labels (`torch.Tensor` of shape `(N,)`): Their index in the head.
            num_images (`int`): Images to train on, repetitions and memories included.
        """

    @property
    def num_bytes(self) -> int:
        """Bytes of all that is kept of the stream beside the weights of the model."""
        return 0

    @classmethod
    def hyper_parameters(cls, recipe: Recipe) -> dict:
        """Return the recipe and the constants of the method."""
        return {**asdict(recipe), **cls.constants}

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """Return the most likely class (N,) of uint8 images (N, 3, H, W)."""
        return self.logits_of(images).argmax(dim=1)

    @torch.no_grad()
    def logits_of(self, images: torch.Tensor) -> torch.Tensor:
        """Return float32 logits (N, C) of uint8 images, without augmentation."""
        self.model.eval()
        with self.autocast():
            parts = [self.logits(self.normalise(part)).float().cpu() for part in images.split(EVAL_BATCH)]
        return torch.cat(parts)

    @torch.no_grad()
    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return float32 features (N, D) of uint8 images, without augmentation or autocast."""
        self.model.eval()
        batches = tqdm(images.split(EVAL_BATCH), desc="features", disable=not self.shows_progress, leave=False)
        return torch.cat([self.model.extract_features(self.normalise(part)).float().cpu() for part in batches])

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """Return uint8 images (B, 3, H, W) as the model takes them, on its device."""
        config, device = self.model.config, self.model.device
        mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (config.image_mean, config.image_std))
        return (images.to(device).float() / 255 - mean) / std

    def augmented(self, images: torch.Tensor) -> torch.Tensor:
        """Return uint8 images normalised and augmented, as the library does it."""
        return augment(self.normalise(images), self.recipe.augmentation, self.generator)

    def logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return logits (B, C) of the classifier."""
        return self.model.head.classifier(self.model.extract_features(pixel_values))

    def cross_entropy(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the cross-entropy over the given classes."""
        return F.cross_entropy(logits.float(), labels.to(logits.device), label_smoothing=self.recipe.label_smoothing)

    def autocast(self) -> torch.autocast:
        """Return the context that all training and prediction runs in."""
        return torch.autocast(self.model.device.type, dtype=torch.bfloat16, enabled=self.recipe.bf16)

    def fit(
        self,
        num_images: int,
        step_loss: Callable[[], torch.Tensor],
        *,
        backbone_rate: float | None = None,
        head_only: bool = False,
    ) -> None:
        """Take the optimizer steps in which `num_images` images are seen.

        Args:
            num_images (`int`): Images to train on.
            step_loss (`Callable`): Draws a batch of `batch_size` images and returns its loss.
            backbone_rate (`float`, *optional*): Learning rate of the backbone, if not the recipe's.
            head_only (`bool`, defaults to `False`): Whether only the classifier learns.
        """
        steps = max(1, round(num_images / self.recipe.batch_size))
        self.model.backbone.requires_grad_(not head_only)
        rate = self.recipe.backbone_learning_rate if backbone_rate is None else backbone_rate
        optimizer = self.make_optimizer(rate, self.recipe.learning_rate)
        scheduler = get_scheduler("cosine", optimizer, steps // 10, steps)
        self.model.train()
        bar = tqdm(range(steps), desc=f"task {self.task + 1}", disable=not self.shows_progress, leave=False)
        for _ in bar:
            with self.autocast():
                loss = step_loss()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
        self.images_seen += steps * self.recipe.batch_size

    def make_optimizer(self, backbone_rate: float, head_rate: float) -> torch.optim.Optimizer:
        """Return AdamW over what is trainable, without weight decay of biases and norms."""
        return torch.optim.AdamW(self.groups(backbone_rate, head_rate, self.recipe.weight_decay))

    def groups(self, backbone_rate: float, head_rate: float, weight_decay: float) -> list[dict]:
        """Return optimizer groups of backbone and classifier."""
        groups = []
        for part, rate in ((self.model.backbone, backbone_rate), (self.model.head.classifier, head_rate)):
            trainable = [parameter for parameter in part.parameters() if parameter.requires_grad]
            for decay, is_matrix in ((weight_decay, True), (0.0, False)):
                members = [parameter for parameter in trainable if (parameter.ndim >= 2) == is_matrix]
                groups.append({"params": members, "lr": rate, "weight_decay": decay})
        return groups


class Finetune(Learner):
    """Trains on each task alone, with cross-entropy over all classes so far: the lower bound.

    On a stream of one task that holds everything, the same is joint training: the upper bound.
    """

    def learn(self, images, labels, num_images):
        """Learn a task from its own images."""
        rows = shuffled(len(images), self.recipe.batch_size, self.generator)

        def step_loss():
            batch = next(rows)
            return self.cross_entropy(self.logits(self.augmented(images[batch])), labels[batch])

        self.fit(num_images, step_loss)


class Cumulative(Finetune):
    """Trains anew, from the first weights on, on all images of all tasks so far, after each of them.

    Nothing is forgotten, so what its accuracy on a task loses is what more classes cost; no budget holds.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.first_weights = copy.deepcopy(self.model.backbone.state_dict())
        self.images, self.labels = torch.empty(0, dtype=torch.uint8), torch.empty(0, dtype=torch.int64)

    @property
    def num_bytes(self):
        """Bytes of all pixels."""
        return self.images.numel()

    def learn(self, images, labels, num_images):
        """Learn all tasks so far."""
        self.images = torch.cat([self.images.reshape(-1, *images.shape[1:]), images])
        self.labels = torch.cat([self.labels, labels])
        self.model.backbone.load_state_dict(self.first_weights)
        classifier = self.model.head.classifier
        torch.nn.init.normal_(classifier.weight, std=0.02, generator=self.generator)
        torch.nn.init.zeros_(classifier.bias)
        super().learn(self.images, self.labels, num_images)
