"""WakePass: one pass over the images of a task, without a gradient, that fills memory and LDA."""

import copy
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..codecs.learned.codec import LearnedCodec
from ..data.columns import label_array
from ..data.images import ImageReader, TaskImages
from ..data.streams import Task
from ..memory.memory import SemiParametricMemory
from ..memory.sampling import herding_ranks
from ..memory.synapses import count_entries, grow_synapses
from ..model.head_wakesleep import LinearDiscriminant
from ..model.modeling_wakesleep import WakeSleepForImageClassification
from .arguments import ContinualTrainingArguments
from .distributed import share_buffers
from .lora import WAKE

FIT_IMAGES = 1000  # about as many images of the first task tell a codec what the stream looks like


class WakePass:
    """Reads images in batches, on all processes, and shows them to a model that does not learn by gradient.

    Args:
        model ([`WakeSleepForImageClassification`]): Gives the features.
        reader ([`ImageReader`]): Resizes and normalises.
        args ([`ContinualTrainingArguments`]): Batch size, workers, progress bars.
        accelerator (`Accelerator`): Spreads batches over processes and gathers what they give.
    """

    def __init__(
        self,
        model: WakeSleepForImageClassification,
        reader: ImageReader,
        args: ContinualTrainingArguments,
        accelerator: Accelerator,
    ):
        self.model = model
        self.reader = reader
        self.args = args
        self.accelerator = accelerator

    def write(self, images: TaskImages, memory: SemiParametricMemory | None, task: int) -> None:
        """Write a task into memory, if there is one, and into LDA's statistics.

        Args:
            images ([`TaskImages`]): Training images of the task.
            memory ([`SemiParametricMemory`], *optional*): Gets a code of every image.
            task (`int`): Number of the task, from 0.
        """
        codes, code_labels, code_features = [], [], []
        for pixels, features, labels in self._batches(images, "wake: writing memory"):
            self.model.head.lda.update(features, labels)
            if memory is not None:
                codes += self.accelerator.gather_for_metrics(memory.codec.encode(pixels), use_gather_object=True)
                code_labels += labels.tolist()
                code_features.append(features.cpu().numpy())
        self.model.head.lda.refresh()
        if memory is not None:
            is_herded = self.args.memory_selection == "herding" and codes
            ranks = herding_ranks(np.concatenate(code_features), np.asarray(code_labels)) if is_herded else None
            memory.write(codes, code_labels, task, ranks)
        share_buffers(self.accelerator, self.model)

    def pixels_of(self, task: Task, number: int) -> list[torch.Tensor]:
        """Return about so many training images of a task, uint8 of shape (3, H, W), as the model takes them."""
        images = _unlabelled(task)
        rows = range(0, len(images), max(1, len(images) // number))
        return list(self.reader.read([images[row] for row in rows])[0])

    def fitted(self, codec: LearnedCodec, task: Task) -> LearnedCodec:
        """Return a codec fitted to images of a task, as `codec_target_bytes` and `codec_fit_*` say."""
        args = self.args
        return codec.fit(
            self.pixels_of(task, FIT_IMAGES),
            args.codec_target_bytes,
            steps=args.codec_fit_steps,
            layers=args.codec_fit_layers,
            seed=args.seed,
            shows_progress=args.shows_progress,
        )

    def check_budget(self, tasks: Sequence[Task], memory: SemiParametricMemory) -> None:
        """Try whether the budget can hold one code of every class, old and to come, with all that the network needs.

        Args:
            tasks (`Sequence[Task]`): The tasks to come; the first image of each of their classes is encoded.
            memory ([`SemiParametricMemory`]): What is remembered so far; it stays as it is.

        Raises:
            ValueError: If the budget is too small.
        """
        new = [name for task in tasks for name in task.new_classes if name not in memory.classes]
        codes = []
        for task in tasks:
            images = _unlabelled(task)
            for row in _first_rows(task, [name for name in task.new_classes if name in new]):
                codes += memory.codec.encode(self.reader.read([images[row]])[0])
        lda = self.model.head.lda
        statistics_bytes = lda.num_bytes + lda.bytes_per_class * len(new)
        trial = copy.copy(memory)
        trial.budget = None
        entries = count_entries(self.model, len(new))
        trial.synapses = grow_synapses(memory.synapses, entries, self.args.freeze_fraction)
        trial.set_classes([*memory.classes, *new], statistics_bytes)
        trial.budget = memory.budget
        trial.write(codes, range(len(memory.classes), len(trial.classes)), task=0)

    def probe(self, train_images: TaskImages, eval_images: TaskImages, num_classes: int) -> float:
        """Return the accuracy of LDA, fitted to one task alone, with the features as they are.

        Args:
            train_images ([`TaskImages`]): What LDA is fitted to.
            eval_images ([`TaskImages`]): What it is tested on.
            num_classes (`int`): Number of classes that the labels of both count.
        """
        lda = LinearDiscriminant(self.model.head.feature_dim, num_classes, self.model.config.lda_shrinkage)
        lda.to(self.model.device)
        for _, features, labels in self._batches(train_images, "forward transfer: fitting"):
            lda.update(features, labels)
        return self._score(lda, eval_images, "forward transfer: testing")

    def score(self, images: TaskImages) -> float:
        """Return the accuracy of the model's LDA alone, as it is, on some images."""
        return self._score(self.model.head.lda, images, "wake: LDA alone")

    def _score(self, lda: LinearDiscriminant, images: TaskImages, description: str) -> float:
        correct = [
            lda(features).argmax(dim=-1) == labels for _, features, labels in self._batches(images, description)
        ]
        return torch.cat(correct).float().mean().item()

    @torch.no_grad()
    def _batches(
        self, images: TaskImages, description: str
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Yield this process's images (b, 3, H, W) uint8, and of all processes features (B, D) and labels (B,)."""
        loader = DataLoader(
            images,
            batch_size=self.args.per_device_eval_batch_size,
            collate_fn=self.reader.read,
            num_workers=self.args.dataloader_num_workers,
        )
        was_training = self.model.training
        self.model.eval()
        batches = self.accelerator.prepare_data_loader(loader)
        for pixels, labels in tqdm(batches, desc=description, disable=not self.args.shows_progress, leave=False):
            pixel_values = self.reader.normalise(pixels).to(self.model.device)
            with self.accelerator.autocast():
                features = self.model.extract_features(pixel_values).float()  # (b, D)
            yield pixels, *self.accelerator.gather_for_metrics((features, labels))
        self.model.train(was_training)


class WakeReplay:
    """Memories of earlier tasks for the batches of wake, in one balanced sequence over all steps and processes.

    Args:
        memory ([`SemiParametricMemory`]): Read, never written; holds the task at hand already.
        reader ([`ImageReader`]): Turns decoded images into the model's input.
        task (`int`): Number of the task at hand, from 0; its own memories are left out.
        seed (`int`): Chooses the memories, with the task.

    Attributes:
        is_empty (`bool`): Whether there are no earlier memories.
    """

    def __init__(self, memory: SemiParametricMemory, reader: ImageReader, task: int, seed: int):
        earlier = np.flatnonzero(memory.tasks != task)
        self.is_empty = len(earlier) == 0
        self._memory, self._reader, self._seed = memory, reader, (seed, task, WAKE)
        self._draw = memory.balanced_sampler(earlier)

    def join(self, inputs: dict[str, torch.Tensor], start: int) -> dict[str, torch.Tensor]:
        """Return a batch twice as large, the second half memories; the batch itself if there are none.

        Args:
            inputs (`dict`): `pixel_values` (B, 3, H, W) and `labels` (B,).
            start (`int`): Number of the first of its memories in the sequence.
        """
        if self.is_empty:
            return inputs
        images, labels = self._memory.read(self._draw.draw(len(inputs["labels"]), self._seed, start))
        device = inputs["labels"].device
        return {
            "pixel_values": torch.cat([inputs["pixel_values"], self._reader.normalise(images.to(device))]),
            "labels": torch.cat([inputs["labels"], labels.to(device)]),
        }


def _unlabelled(task: Task) -> TaskImages:
    """Return the training images of a task, whose labels are not known to the model yet."""
    return TaskImages(task.train_dataset, {name: 0 for name in task.classes}, f"the training images of {task.name}")


def _first_rows(task: Task, classes: Sequence[str]) -> list[int]:
    """Return the row of the first training image of each class."""
    names = task.train_dataset.features["label"].names
    labels = label_array(task.train_dataset, "label")
    return [int(np.argmax(labels == names.index(name))) for name in classes]
