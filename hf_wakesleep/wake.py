"""WakePass: one pass over the images of a task, without a gradient, that fills memory and recall."""

from collections.abc import Iterator

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from .head_wakesleep import Recall
from .images import ImageReader, TaskImages
from .memory import SemiParametricMemory
from .modeling_wakesleep import WakeSleepForImageClassification
from .training_args import ContinualTrainingArguments


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
        """Write a task into memory, if there is one, and into recall's statistics.

        Args:
            images ([`TaskImages`]): Training images of the task.
            memory ([`SemiParametricMemory`], *optional*): Gets a code of every image.
            task (`int`): Number of the task, from 0.
        """
        codes, code_labels = [], []
        for pixels, features, labels in self._batches(images, "wake: writing memory"):
            self.model.head.recall.update(features, labels)
            if memory is not None:
                codes += self.accelerator.gather_for_metrics(memory.codec.encode(pixels), use_gather_object=True)
                code_labels += labels.tolist()
        if memory is not None:
            memory.write(codes, code_labels, task)

    def probe(self, train_images: TaskImages, eval_images: TaskImages) -> float:
        """Return the accuracy of recall, fitted to one task alone, with the features as they are.

        Args:
            train_images ([`TaskImages`]): What recall is fitted to.
            eval_images ([`TaskImages`]): What it is tested on.
        """
        num_classes = len(train_images.head_index)
        recall = Recall(self.model.head.feature_dim, num_classes, self.model.config.recall_shrinkage)
        recall.to(self.model.device)
        for _, features, labels in self._batches(train_images, "forward transfer: fitting"):
            recall.update(features, labels)
        correct = [
            recall(features).argmax(dim=-1) == labels
            for _, features, labels in self._batches(eval_images, "forward transfer: testing")
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
        shows = self.accelerator.is_main_process and not self.args.disable_tqdm
        for pixels, labels in tqdm(
            self.accelerator.prepare_data_loader(loader), desc=description, disable=not shows, leave=False
        ):
            pixel_values = self.reader.normalise(pixels).to(self.model.device)
            features = self.model.extract_features(pixel_values).float()  # (b, D)
            yield pixels, *self.accelerator.gather_for_metrics((features, labels))
        self.model.train(was_training)
