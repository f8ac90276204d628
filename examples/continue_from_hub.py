"""Teach a stage from the Hub more, on a machine that has never seen the images of the earlier tasks.

    accelerate launch examples/continue_from_hub.py me/digits --revision task-03 --output_dir out/next

goes on with the stream of `train_cil.py`: same data and, unless the command line says otherwise, the stage's seed and
number of tasks. It learns the first task that the stage does not know. Of other images, such as

    accelerate launch examples/continue_from_hub.py me/digits --image_folder DIR --output_dir out/next

all new classes are one task (`--num_tasks` or `--classes_per_task` make more of them), and those that the stage knows
get more images. Test images of known classes tell what becomes of their old tasks. A folder with a stage does as well
as a repository; `--push_to_hub true --hub_model_id me/digits` publishes.
"""

import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import one_line
from datasets import ClassLabel, Dataset, DatasetDict, Image, concatenate_datasets
from image_data import DataArguments, load_images
from train_cil import TrainingArguments, resume_point
from transformers import HfArgumentParser

from hf_wakesleep import (
    ClassIncrementalStream,
    ContinualTrainer,
    History,
    Task,
    TaskStream,
    WakeSleepForImageClassification,
)


def parse_arguments() -> tuple[DataArguments, TrainingArguments, Namespace, History]:
    """Return the arguments and the history of the stage, which says what is not typed."""
    parser = HfArgumentParser([DataArguments, TrainingArguments], allow_abbrev=False)
    parser.add_argument("stage", help="Repository on the Hub, or folder of a stage.")
    parser.add_argument("--revision", help="Tag, branch or commit of the repository, such as 'task-03'.")
    if {"--help", "-h"} & set(sys.argv):
        parser.parse_args()
    where = parser.parse_known_args()[0]
    folder = Path(where.stage)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ValueError(f"Expected the folder of a stage, such as 'out/digits/task-03', got {where.stage!r}.")
    history = History.from_pretrained(where.stage, revision=where.revision)
    parser.set_defaults(seed=history.protocol["seed"])
    if history.protocol["memory"] is None:
        parser.set_defaults(memory_budget="0", sleep_steps=0)
    return *parser.parse_args_into_dataclasses(), history


def build_stream(args: DataArguments, seed: int, history: History) -> tuple[TaskStream, Dataset | None]:
    """Return what to learn, and evaluation images of classes that the stage knows."""
    if args.is_digits and not set(history.classes) <= set(map(str, range(10))):
        raise ValueError(
            f"Expected images to teach, such as `--image_folder DIR`, since the stage knows "
            f"{history.classes[:3]}, ... and not scikit-learn's digits."
        )
    images, old = part_tests(load_images(args), args.label_column, history)
    (task,) = ClassIncrementalStream(images, num_tasks=1, seed=seed, **args.columns)
    sizes = sizes_of(args, len(task.classes), history)
    if args.is_digits or (sizes and set(history.classes) <= set(task.classes)):
        stream = ClassIncrementalStream(images, seed=seed, **sizes, **args.columns)
        learned = [record.fingerprint for record in history.records]
        if args.is_digits or stream.fingerprints()[: len(learned)] == learned:
            return next_task(stream, history), old
    is_held_out = len(task.train_dataset) < len(images["train"] if isinstance(images, DatasetDict) else images)
    stream, again = new_tasks(task, split_classes(args, task, history), history, is_held_out)
    evaluation = [part for part in (old, again) if part is not None and len(part)]
    return stream, concatenate_datasets(evaluation) if evaluation else None


def part_tests(
    images: Dataset | DatasetDict, label_column: str | None, history: History
) -> tuple[Dataset | DatasetDict, Dataset | None]:
    """Return the images, and apart from them the test images of known classes of which there are no others."""
    if not isinstance(images, DatasetDict) or "test" not in images:
        return images, None
    train, test = images["train"], images["test"]
    typed = [name for name, feature in test.features.items() if isinstance(feature, ClassLabel)]
    column = label_column or (typed[0] if len(typed) == 1 else None)
    if column not in typed:
        return images, None
    trained = {train.features[column].names[label] for label in set(train[column])}
    names = [test.features[column].names[label] for label in test[column]]
    is_old = np.array([name in history.classes and name not in trained for name in names], dtype=bool)
    if not is_old.any():
        return images, None
    rest = {"train": train} | ({} if is_old.all() else {"test": test.select(np.flatnonzero(~is_old))})
    old = test.select(np.flatnonzero(is_old)).select_columns(
        [name for name, feature in test.features.items() if name == column or isinstance(feature, Image)]
    )
    return DatasetDict(rest), old.rename_column(column, "label") if column != "label" else old


def sizes_of(args: DataArguments, num_classes: int, history: History) -> dict:
    """Return the sizes of tasks that the command line gives, else those that the stage has planned for its classes."""
    if args.num_tasks is not None or args.classes_per_task is not None:
        return {"num_tasks": args.num_tasks, "classes_per_task": args.classes_per_task}
    planned = [len(task["classes"]) for task in history.protocol["stream"]["tasks"]]
    if sum(planned) == num_classes:
        return {"classes_per_task": planned}
    return {"num_tasks": 5} if args.is_digits else {}


def next_task(stream: TaskStream, history: History) -> TaskStream:
    """Return the first task of a stream that brings classes."""
    new = [task for task in stream if not set(task.classes) <= set(history.classes)]
    if not new:
        raise ValueError("The stage knows all classes of these images. Pass others, such as `--image_folder DIR`.")
    return TaskStream(new[:1], stream.protocol)


def split_classes(args: DataArguments, task: Task, history: History) -> list[list[str]]:
    """Return the new classes of each task: of one, unless the command line says otherwise."""
    new = [name for name in task.classes if name not in history.classes]
    if args.classes_per_task is None:
        count = 1 if args.num_tasks is None else args.num_tasks
        if not 1 <= count <= max(1, len(new)):
            raise ValueError(f"`--num_tasks` must lie in 1..{len(new)}, the number of new classes, got {count}.")
        return [list(part) for part in np.array_split(np.asarray(new, dtype=object), count)]
    if min(args.classes_per_task) < 1 or sum(args.classes_per_task) != len(new):
        raise ValueError(
            f"`--classes_per_task` must be positive numbers that add up to the {len(new)} new classes, got "
            f"{args.classes_per_task}."
        )
    ends = np.cumsum(args.classes_per_task)
    return [new[end - size : end] for size, end in zip(args.classes_per_task, ends, strict=True)]


def new_tasks(
    task: Task, groups: list[list[str]], history: History, is_held_out: bool
) -> tuple[TaskStream, Dataset | None]:
    """Return a stream of tasks, and the test images of known classes, of which the first task has more images."""
    again = [name for name in task.classes if name in history.classes]
    is_old_test = bool(again) and bool(groups[0]) and not is_held_out
    train, evaluation = {}, {}
    for number, new in enumerate(groups):
        name, more = f"task-{len(history) + 1 + number:02d}", [] if number else again
        train[name] = images_of(task.train_dataset, more + new)
        evaluation[name] = images_of(task.eval_dataset, new if is_old_test else more + new)
    stream = TaskStream.from_splits(train, evaluation, repeats=bool(again))
    return stream, images_of(task.eval_dataset, again) if is_old_test else None


def images_of(dataset: Dataset, classes: list[str]) -> Dataset:
    """Return the images of some classes."""
    names = dataset.features["label"].names
    return dataset.select(np.flatnonzero([names[label] in classes for label in dataset["label"]]))


def main() -> None:
    """Load the stage, learn, and print what came of it."""
    data_args, args, where, history = parse_arguments()
    model = WakeSleepForImageClassification.from_pretrained(where.stage, revision=where.revision)
    stream, evaluation = build_stream(data_args, args.seed, history)
    old = {} if evaluation is None else {"eval_dataset": evaluation}
    trainer = ContinualTrainer(model=model, args=args, stream=stream, **old)
    trainer.train(resume_from_checkpoint=resume_point(args))
    if trainer.is_world_process_zero():
        print(f"\n{trainer.history.table()}")
    trainer.accelerator.end_training()  # leaves the group of processes, if there is one


if __name__ == "__main__":
    one_line.run(main)
