"""StreamImages: the images of all tasks, for training, writing into memory, and evaluation."""

from datasets import Dataset

from ..data.evaluation import EvalSets
from ..data.images import TaskImages
from ..data.splits import shorten
from ..data.streams import Task
from ..stages.stage import stage_name


class StreamImages:
    """The images of all tasks by their number, from 0.

    Args:
        tasks (`list[Task | None]`): All tasks; `None` for learned ones that are not in the stream.
        known_images (`dict[int, Dataset]`): Evaluation images of tasks that are `None`, by their number.

    Raises:
        ValueError: If there are evaluation images of one task in both.
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
        """Check that the tasks from `first` on have at least one full batch of `size` images.

        Raises:
            ValueError: If a task has fewer images.
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
        """Return the training and evaluation images of a task, with labels among its own classes, and their number."""
        task = self.tasks[number]
        names = dict.fromkeys(task.train_dataset.features["label"].names + task.eval_dataset.features["label"].names)
        label2id = {name: index for index, name in enumerate(names)}
        evaluated = TaskImages(task.eval_dataset, label2id, f"the evaluation images of {task.name}")
        return self.train_images(number, label2id), evaluated, len(names)

    def evaluated(self, num_tasks: int) -> dict[int, Dataset]:
        """Return the available evaluation images of the first `num_tasks` tasks, by the number of the task."""
        own = {number: task.eval_dataset for number, task in enumerate(self.tasks[:num_tasks]) if task is not None}
        return dict(sorted({**self._known, **own}.items()))

    def eval_sets(self, num_tasks: int, label2id: dict[str, int]) -> EvalSets | dict:
        """Return the available evaluation images of the first `num_tasks` tasks; an empty `dict` if there are none."""
        sets = {
            stage_name(number): TaskImages(images, label2id, f"the evaluation images of {stage_name(number)}")
            for number, images in self.evaluated(num_tasks).items()
        }
        return EvalSets(sets) if sets else {}
