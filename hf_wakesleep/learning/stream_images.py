"""StreamImages: the images of all tasks, as training, writing and evaluation take them."""

from datasets import Dataset

from ..data.evaluation import EvalSets
from ..data.images import TaskImages
from ..data.splits import shorten
from ..data.streams import Task
from ..stages.stage import stage_name


class StreamImages:
    """The images of all tasks by their number, from 0.

    Args:
        tasks (`list[Task | None]`): All tasks; `None` for finished ones whose images are not at hand.
        known_images (`dict[int, Dataset]`): Evaluation images of tasks that are `None`.

    Raises:
        ValueError: If there are evaluation images of a task in both.
    """

    def __init__(self, tasks: list[Task | None], known_images: dict[int, Dataset]):
        twice = [stage_name(number) for number in known_images if tasks[number] is not None]
        if twice:
            raise ValueError(
                f"`eval_dataset` holds images of {shorten(twice)}, but the stream brings evaluation images of them. "
                "Leave out one or the other."
            )
        self.tasks, self._known = tasks, known_images

    def check_batches(self, first: int, size: int) -> None:
        """Check that tasks from `first` on have a batch of `size` images, the last ones being dropped.

        Raises:
            ValueError: If not.
        """
        for task in self.tasks[first:]:
            if len(task.train_dataset) < size:
                raise ValueError(
                    f"`dataloader_drop_last` leaves no batch of {size} images of {task.name}, which has "
                    f"{len(task.train_dataset)}. Leave it out, or pass a smaller `per_device_train_batch_size`."
                )

    def train_images(self, number: int, label2id: dict[str, int]) -> TaskImages:
        """Return the training images of a task."""
        task = self.tasks[number]
        return TaskImages(task.train_dataset, label2id, f"the training images of {task.name}")

    def probe_images(self, number: int) -> tuple[TaskImages, TaskImages, int]:
        """Return the training and evaluation images of a task by itself, and how many classes it has."""
        task = self.tasks[number]
        names = dict.fromkeys(task.train_dataset.features["label"].names + task.eval_dataset.features["label"].names)
        label2id = {name: index for index, name in enumerate(names)}
        evaluated = TaskImages(task.eval_dataset, label2id, f"the evaluation images of {task.name}")
        return self.train_images(number, label2id), evaluated, len(names)

    def evaluated(self, num_tasks: int) -> dict[int, Dataset]:
        """Return the evaluation images of the first tasks that are at hand, by their number."""
        own = {number: task.eval_dataset for number, task in enumerate(self.tasks[:num_tasks]) if task is not None}
        return dict(sorted({**self._known, **own}.items()))

    def eval_sets(self, num_tasks: int, label2id: dict[str, int]) -> EvalSets | dict:
        """Return the evaluation images of the first tasks that are at hand; an empty `dict` if none are."""
        sets = {
            stage_name(number): TaskImages(images, label2id, f"the evaluation images of {stage_name(number)}")
            for number, images in self.evaluated(num_tasks).items()
        }
        return EvalSets(sets) if sets else {}
