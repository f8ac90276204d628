"""Evaluation images of known classes, by the task that each class was learned in."""

import numpy as np
import pytest
from conftest import make_images
from datasets import DatasetDict, Value
from histories import make_history

from hf_wakesleep import ClassIncrementalStream, ContinualTrainer, TaskStream, WakeSleepForImageClassification
from hf_wakesleep.data.columns import label_array
from hf_wakesleep.stages.eval_sets import count_evaluated, eval_sets_of

NAMES = ["class 3", "class 1", "class 9"]


def names_of(images) -> list[str]:
    return [images.features["label"].names[label] for label in label_array(images, "label")]


def test_images_are_sorted_by_the_task_of_their_class_whatever_their_columns_are_called():
    images = make_images([0, 1, 0], NAMES)
    strings = images.remove_columns("label").add_column("fine_label", ["class 3", "class 1", "class 3"])
    for given in (images, strings.rename_column("image", "img")):
        found = eval_sets_of(given, make_history())
        assert {number: names_of(part) for number, part in found.items()} == {0: ["class 1"], 2: ["class 3"] * 2}
        assert all(part.column_names == ["image", "label"] for part in found.values())
        assert np.array_equal(np.asarray(found[0]["image"][0]), np.asarray(images["image"][1]))
    assert count_evaluated(found, make_history().classes, 3) == ([1, 0, 2], 1)


def test_of_a_task_its_evaluation_images_are_taken():
    splits = DatasetDict(train=make_images([0, 1], NAMES[:2]), test=make_images([0, 1, 1], NAMES[:2], seed=1))
    task = ClassIncrementalStream(splits, num_tasks=1)[0]
    assert {number: len(part) for number, part in eval_sets_of(task, make_history()).items()} == {0: 2, 2: 1}


def test_what_is_no_image_of_a_known_class_is_refused_by_name():
    images = make_images([0, 2], NAMES)
    for given, error, message in [
        (images, ValueError, r"1 of its classes are not known \(\['class 9'\]\)"),
        (images.select([]), ValueError, "`eval_dataset`, but it is empty"),
        (images.remove_columns("label"), ValueError, "Expected one column of labels"),
        (images.cast_column("label", Value("float32")), ValueError, "Expected labels of type"),
        (images.with_transform(dict), ValueError, "'eval_dataset' have a transform"),
        (images.to_iterable_dataset(), TypeError, "got IterableDataset"),
        ([images], TypeError, "got list"),
    ]:
        with pytest.raises(error, match=message):
            eval_sets_of(given, make_history())


def test_old_tasks_are_evaluated_where_images_of_their_classes_are_given(make_trainer, make_args, digits, tmp_path):
    first, second = ClassIncrementalStream(digits, num_tasks=2)
    make_trainer(stream=TaskStream([first], {})).train()
    model = WakeSleepForImageClassification.from_pretrained(tmp_path / "out" / "task-01")
    old = digits["test"].filter(lambda label: label == 1, input_columns="label")
    rest = TaskStream([second], {})
    trainer = ContinualTrainer(model=model, args=make_args("next"), stream=rest, eval_dataset=old)
    trainer.train()
    record = trainer.history.records[1]
    assert record.accuracy[0] == trainer.evaluate(old)["eval_accuracy"]
    assert (record.evaluated_images, record.num_unevaluated) == ([40, 80], 1)
    card = (tmp_path / "next" / "task-02" / "README.md").read_text()
    assert "on 3 classes**, and **unknown for 1 of 4 classes**" in card
