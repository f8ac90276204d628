"""Wake without gradients: WakePass fills memory and LDA from the images of a task; WakeReplay draws old memories.

Training awake, by gradient, is the usual loop of `Trainer`; task_run.py prepares the model and the batches for it.
"""

import copy
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..codecs.learned.codec import LearnedCodec
from ..data.columns import label_array
from ..data.images import ImageReader, TaskImages, unlabelled_images
from ..data.streams import Task
from ..memory.memory import SemiParametricMemory
from ..memory.sampling import herding_ranks
from ..memory.synapses import count_entries, grow_synapses
from ..model.head_wakesleep import LinearDiscriminant
from ..model.modeling_wakesleep import WakeSleepForImageClassification
from .arguments import ContinualTrainingArguments
from .distributed import share_buffers
from .lora import WAKE
from .recipe import code_quality

TRIED_IMAGES = 32  # on which qualities of the codec are tried
FIT_IMAGES = 1000  # about as many images of the first task are enough to fit a codec to a stream


class WakePass:
    """Computes features of images in batches, on all processes, to fill memory and LDA; no weights are trained.

    Args:
        model ([`WakeSleepForImageClassification`]): Computes the features; its LDA is filled.
        reader ([`ImageReader`]): Resizes and normalises.
        args ([`ContinualTrainingArguments`]): Batch size, workers, progress bars.
        accelerator (`Accelerator`): Spreads batches over processes and gathers the features.
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
        """Write the images of a task into memory, if there is one, and into LDA's statistics.

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
            ranks = herding_ranks(np.concatenate(code_features), np.asarray(code_labels)) if codes else None
            memory.write(codes, code_labels, task, ranks)
        share_buffers(self.accelerator, self.model)

    def fitted(self, memory: SemiParametricMemory, tasks: Sequence[Task]) -> LearnedCodec:
        """Return the learned codec of a new memory, fitted to images of the first task.

        If no quality is given, the budget chooses it.

        Args:
            memory ([`SemiParametricMemory`]): An empty memory.
            tasks (`Sequence[Task]`): The tasks to come.
        """
        args, codec = self.args, memory.codec
        if memory.budget is not None and args.codec_quality is None:
            num_classes = len({name for task in tasks for name in task.classes})
            statistics = self.model.head.lda.num_bytes + self.model.head.lda.bytes_per_class * num_classes
            free_bytes = memory.budget - statistics - codec.num_bytes
            num_images = sum(len(task.train_dataset) for task in tasks)
            codec = LearnedCodec(code_quality(self._pixels_of(tasks[0], TRIED_IMAGES), num_images, free_bytes))
        return codec.fit(
            self._pixels_of(tasks[0], FIT_IMAGES),
            steps=args.codec_fit_steps,
            seed=args.seed,
            shows_progress=args.shows_progress,
        )

    def _pixels_of(self, task: Task, number: int) -> list[torch.Tensor]:
        """Return about so many training images of a task, uint8 of shape (3, H, W), as the model takes them."""
        images = unlabelled_images(task)
        rows = range(0, len(images), max(1, len(images) // number))
        return list(self.reader.read([images[row] for row in rows])[0])

    def check_budget(self, tasks: Sequence[Task], memory: SemiParametricMemory) -> None:
        """Check that the budget can hold one code of every class, known or to come, with all else that it counts.

        Args:
            tasks (`Sequence[Task]`): The tasks to come; the first image of each of their classes is encoded.
            memory ([`SemiParametricMemory`]): What is remembered so far; not changed.

        Raises:
            ValueError: If the budget is too small.
        """
        new = [name for task in tasks for name in task.new_classes if name not in memory.classes]
        codes = []
        for task in tasks:
            images = unlabelled_images(task)
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
        """Return the accuracy of a new LDA that is fitted to one task alone, with the current features.

        Args:
            train_images ([`TaskImages`]): What LDA is fitted to.
            eval_images ([`TaskImages`]): What it is tested on.
            num_classes (`int`): Number of classes that the labels of both refer to.
        """
        lda = LinearDiscriminant(self.model.head.feature_dim, num_classes, self.model.config.lda_shrinkage)
        lda.to(self.model.device)
        for _, features, labels in self._batches(train_images, "forward transfer: fitting"):
            lda.update(features, labels)
        return self._score(lda, eval_images, "forward transfer: testing")

    def score(self, images: TaskImages) -> float:
        """Return the accuracy of the model's LDA alone on some images."""
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
        """Yield images (b, 3, H, W) uint8 of this process, with features (B, D) and labels (B,) of all processes."""
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
    """Draws memories of earlier tasks for the batches of wake, from one sequence for all steps and processes.

    The sequence is balanced over classes.

    Args:
        memory ([`SemiParametricMemory`]): Read, never written; holds the current task already.
        reader ([`ImageReader`]): Turns decoded images into the model's input.
        task (`int`): Number of the current task, from 0; its own memories are left out.
        seed (`int`): Seed of the run; together with `task` it determines which memories are drawn.

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
            start (`int`): Position in the sequence of the first memory to draw.
        """
        if self.is_empty:
            return inputs
        images, labels = self._memory.read(self._draw.draw(len(inputs["labels"]), self._seed, start))
        device = inputs["labels"].device
        return {
            "pixel_values": torch.cat([inputs["pixel_values"], self._reader.normalise(images.to(device))]),
            "labels": torch.cat([inputs["labels"], labels.to(device)]),
        }


def _first_rows(task: Task, classes: Sequence[str]) -> list[int]:
    """Return the row of the first training image of each class."""
    names = task.train_dataset.features["label"].names
    labels = label_array(task.train_dataset, "label")
    return [int(np.argmax(labels == names.index(name))) for name in classes]
