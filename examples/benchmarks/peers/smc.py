"""SMC: every image of the past as a code, and a sleep of the whole network on all of them after each task."""

import torch

from hf_wakesleep import SemiParametricMemory, WebPCodec

from .learner import Finetune, shuffled


class SMC(Finetune):
    """Semi-parametric memory consolidation as published with its code (Liu et al. 2025, arXiv 2504.14727).

    First task: the whole network on the task's images. Later tasks: one epoch of the classifier alone on new images,
    then the whole network on the codes of all classes, new ones included, without class balance. Every image is coded
    until the budget is full. Published are 100 epochs for the first task and 70 per sleep, so that a sleep costs more
    with every task; here both are scaled by one factor, which makes images seen over the stream those of all methods.
    Codes are WebP instead of those of a learned codec, whose published decoders take 5.8 MB per task.
    """

    uses_budget = True
    constants = {"first_epochs": 100, "sleep_epochs": 70}

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.memory = SemiParametricMemory(WebPCodec(self.recipe.webp_quality), self.recipe.budget)

    @property
    def num_bytes(self):
        """Bytes of the codes, as the library counts them."""
        return self.memory.num_bytes.total

    def begin(self, classes):
        """Grow head and memory."""
        super().begin(classes)
        self.memory.set_classes([*self.memory.classes, *classes], 0)

    def share(self, num_images: int) -> int:
        """Return the images to see in this task, given those of a task on average."""
        first, sleep = self.constants["first_epochs"], self.constants["sleep_epochs"]
        weights = [first] + [sleep * number for number in range(2, self.recipe.num_tasks + 1)]
        return round(num_images * self.recipe.num_tasks * weights[self.task] / sum(weights))

    def learn(self, images, labels, num_images):
        """Remember a task, then wake and sleep."""
        num_images = self.share(num_images)
        self.memory.write(self.memory.codec.encode(images), labels.tolist(), self.task)
        if self.task == 0:
            super().learn(images, labels, num_images)
            return
        wake = min(len(images), num_images // 2)
        rows = shuffled(len(images), self.recipe.batch_size, self.generator)

        def wake_loss():
            batch = next(rows)
            return self.cross_entropy(self.logits(self.augmented(images[batch])), labels[batch])

        self.fit(wake, wake_loss, head_only=True)
        memories = shuffled(len(self.memory), self.recipe.batch_size, self.generator)

        def sleep_loss():
            decoded, classes = self.memory.read(next(memories).numpy())
            return self.cross_entropy(self.logits(self.augmented(decoded)), classes)

        self.fit(num_images - wake, sleep_loss)


class SMCWithSGD(SMC):
    """SMC with its published optimizer, made for a ResNet: SGD, momentum 0.9, rate 0.1, weight decay 2e-4.

    The backbone keeps its rate relative to the head's, so that a pretrained one is not destroyed.
    """

    constants = {**SMC.constants, "rate": 0.1, "momentum": 0.9, "weight_decay": 2e-4}

    def make_optimizer(self, backbone_rate, head_rate):
        """Return SGD over what is trainable."""
        rate = self.constants["rate"] * self.recipe.lr_scale
        groups = self.groups(rate * backbone_rate / head_rate, rate, self.constants["weight_decay"])
        return torch.optim.SGD(groups, momentum=self.constants["momentum"])
