"""Whatever is evaluated or predicted is read like training data: columns found, labels turned into classes."""

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Image, IterableDataset, Value
from torch.utils.data import ConcatDataset, Subset

from hf_wakesleep import ClassIncrementalStream
from hf_wakesleep.data.evaluation import EvalSets, LabelReader, as_image_dataset

NAMES = ["0", "1", "2", "3"]


class Examples(torch.utils.data.Dataset):
    """A torch dataset of what a function makes of image and label."""

    def __init__(self, data, make, classes=None):
        self.data, self.make = data, make
        if classes is not None:
            self.classes = classes

    def __len__(self):
        return len(self.data)

    def __getitem__(self, row):
        example = self.data[row]
        return self.make(example["image"], example["label"])


class Stream(torch.utils.data.IterableDataset):
    """A torch stream of pairs."""

    def __init__(self, data):
        self.data = data

    def __iter__(self):
        for example in self.data:
            yield example["image"], example["label"]


def relabelled(data, feature, values):
    return data.remove_columns("label").add_column("label", values, feature=feature)


def generated(data):
    return IterableDataset.from_generator(
        lambda: iter([{"img": row["image"], "target": str(row["label"])} for row in data])
    )


def reversed_names(data):
    """The same classes under other numbers."""
    return relabelled(data, ClassLabel(names=NAMES[::-1]), [3 - label for label in data["label"]])


LABELLED = {
    "as it is": lambda data: data,
    "other columns": lambda data: data.rename_columns({"image": "img", "label": "fine_label"}),
    "more columns": lambda data: data.add_column("weight", [0.5] * len(data)),
    "names in another order": reversed_names,
    "names as text": lambda data: relabelled(data, Value("string"), [str(label) for label in data["label"]]),
    "plain numbers": lambda data: relabelled(data, Value("int64"), list(data["label"])),
    "in the format of torch": lambda data: data.with_format("torch"),
    "a format of one column": lambda data: data.with_format("numpy", columns=["label"]),
    "a stream": lambda data: data.to_iterable_dataset(),
    "a stream of other columns": lambda data: data.to_iterable_dataset().rename_columns(
        {"image": "a", "label": "labels"}
    ),
    "a stream of names in another order": lambda data: reversed_names(data).to_iterable_dataset(),
    "a stream of names as text": lambda data: LABELLED["names as text"](data).to_iterable_dataset(),
    "a stream of unknown types": lambda data: data.to_iterable_dataset().map(
        lambda row: {**row, "label": str(row["label"])}
    ),
    "a stream in the format of numpy": lambda data: data.to_iterable_dataset().with_format("numpy"),
    "a generated stream": generated,
    "a torch dataset of mappings": lambda data: Examples(data, lambda image, label: {"image": image, "label": label}),
    "a torch dataset of pairs": lambda data: Examples(data, lambda image, label: (image, label)),
    "arrays and names": lambda data: Examples(data, lambda image, label: (np.asarray(image), str(label))),
    "tensors": lambda data: Examples(
        data, lambda image, label: {"img": torch.from_numpy(np.array(image)), "target": torch.tensor(label)}
    ),
    "channels first": lambda data: Examples(
        data, lambda image, label: (np.asarray(image.convert("RGB")).transpose(2, 0, 1), label)
    ),
    "a torch dataset that names its classes": lambda data: Examples(
        data, lambda image, label: (image, 3 - label), classes=NAMES[::-1]
    ),
    "a torch stream": Stream,
    "a list": list,
    "a subset": lambda data: Subset(reversed_names(data), range(len(data))),
    "a subset of another kind": lambda data: Reversed(reversed_names(data), range(len(data))),
    "two datasets": lambda data: ConcatDataset(
        [data.select(range(100)), reversed_names(data).select(range(100, 160))]
    ),
}

UNLABELLED = {
    "no column of labels": lambda data: data.remove_columns("label"),
    "hidden labels": lambda data: relabelled(data, ClassLabel(names=NAMES), [-1] * len(data)),
    "plain hidden labels": lambda data: relabelled(data, Value("int32"), [-1] * len(data)),
    "empty labels": lambda data: relabelled(data, ClassLabel(names=NAMES), [None] * len(data)),
    "empty text": lambda data: relabelled(data, Value("string"), [None] * len(data)),
    "a stream": lambda data: data.remove_columns("label").to_iterable_dataset(),
    "a stream of hidden labels": lambda data: UNLABELLED["hidden labels"](data).to_iterable_dataset(),
    "images": lambda data: [row["image"] for row in data],
    "a torch dataset of images": lambda data: Examples(data, lambda image, label: image),
    "a torch dataset of hidden labels": lambda data: Examples(
        data, lambda image, label: {"image": image, "label": -1}
    ),
}

PARTLY_LABELLED = {
    "hidden": lambda data: relabelled(data, ClassLabel(names=NAMES), [-1, *list(data["label"])[1:]]),
    "plain hidden": lambda data: relabelled(data, Value("int64"), [-1, *list(data["label"])[1:]]),
    "empty": lambda data: relabelled(data, ClassLabel(names=NAMES), [None, *list(data["label"])[1:]]),
    "a stream": lambda data: PARTLY_LABELLED["hidden"](data).to_iterable_dataset(),
    "whole batches of a stream": lambda data: relabelled(
        data, ClassLabel(names=NAMES), [-1] * 128 + list(data["label"])[128:]
    ).to_iterable_dataset(),
    "a list": lambda data: [{"image": row["image"]} if number else row for number, row in enumerate(data)],
}

UNKNOWN = {
    "a class": lambda data: relabelled(data, ClassLabel(names=[*NAMES[:3], "9"]), list(data["label"])),
    "a stream of a class": lambda data: UNKNOWN["a class"](data).to_iterable_dataset(),
    "a number": lambda data: Examples(data, lambda image, label: (image, label + 6)),
    "text": lambda data: Examples(data, lambda image, label: (image, f"digit {label}")),
}


class Reversed(Subset):
    """A part of a dataset whose numbers count its classes backwards."""

    def __getitem__(self, row):
        example = self.dataset[self.indices[row]]
        return {**example, "label": str(3 - example["label"])}

    def __getitems__(self, rows):
        return [self[row] for row in rows]


@pytest.mark.parametrize("way", LABELLED)
def test_images_are_scored_alike_whatever_holds_them(whole, digits, way):
    right = whole.evaluate(digits["test"])
    seen = whole.evaluate(LABELLED[way](digits["test"]))
    assert seen["eval_accuracy"] == right["eval_accuracy"]
    assert seen["eval_loss"] == pytest.approx(right["eval_loss"], abs=1e-6)


@pytest.mark.parametrize("way", UNLABELLED)
def test_images_without_labels_have_predictions_and_no_accuracy(whole, digits, way):
    right = whole.predict(digits["test"]).predictions
    data = UNLABELLED[way](digits["test"])
    seen = whole.predict(data)
    assert np.array_equal(seen.predictions, right)
    assert seen.label_ids is None
    assert not [name for name in {**seen.metrics, **whole.evaluate(data)} if "accuracy" in name or "loss" in name]


@pytest.mark.parametrize("way", PARTLY_LABELLED)
def test_images_of_which_some_have_labels_are_refused(whole, digits, way):
    with pytest.raises(ValueError, match=r"needs a label.*(\d+ of \d+)"):
        whole.evaluate(PARTLY_LABELLED[way](digits["test"]))


@pytest.mark.parametrize("way", UNKNOWN)
def test_a_class_that_was_not_taught_is_refused_by_name(whole, digits, way):
    with pytest.raises(ValueError, match=r"classes that the model knows, but .* are of \['(9|digit \d|\d)'\]"):
        whole.evaluate(UNKNOWN[way](digits["test"]))


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda data: 3, TypeError, "got int"),
        (lambda data: data.with_transform(lambda batch: batch), ValueError, "with_transform"),
        (lambda data: data.select([]), ValueError, "is empty"),
        (lambda data: data.remove_columns("image"), ValueError, "one column of images"),
        (lambda data: [{"image": "a.png"}], ValueError, "image 0 of the given images"),
        (lambda data: [np.zeros((8, 8, 3), dtype=np.float32)], ValueError, "as uint8"),
        (lambda data: [(row["image"], 0.5) for row in data], ValueError, "got 0.5"),
        (lambda data: data.to_iterable_dataset().remove_columns("image"), ValueError, "one column of images"),
    ],
)
def test_what_holds_no_images_is_refused(whole, digits, wrong, error, message):
    with pytest.raises(error, match=message):
        whole.evaluate(wrong(digits["test"]))


def test_a_task_a_split_and_a_stage_by_its_name_can_be_evaluated(whole, digits):
    expected = whole.history.accuracy_matrix[-1]
    for number, task in enumerate(whole.stream):
        for given in (task, task.eval_dataset, f"task-{number + 1:02d}"):
            assert whole.evaluate(given)["eval_accuracy"] == expected[number]
    by_split = whole.evaluate(DatasetDict(test=digits["test"]))
    assert by_split["eval_test_accuracy"] == whole.evaluate(digits["test"])["eval_accuracy"]
    with pytest.raises(ValueError, match=r"one of \['task-01', 'task-02'\], got 'task-03'"):
        whole.evaluate("task-03")


def test_all_tasks_are_scored_together_and_each_by_itself(whole):
    metrics = whole.evaluate()
    row = whole.history.accuracy_matrix[-1]
    assert [metrics[f"eval_task-{number:02d}_accuracy"] for number in (1, 2)] == row
    assert metrics["eval_accuracy"] == pytest.approx(np.mean(row))
    assert metrics["eval_loss"] > 0


def test_predictions_are_scores_of_all_classes(whole, digits):
    output = whole.predict(digits["test"])
    assert output.predictions.shape == (160, 4)
    assert output.metrics["test_accuracy"] == (output.predictions.argmax(axis=1) == output.label_ids).mean()
    images = as_image_dataset(digits["test"], whole.model.config.label2id)
    batch = whole.reader([images[row] for row in range(20)])
    with torch.no_grad():
        logits = whole.model.eval()(batch["pixel_values"]).logits
    assert np.allclose(output.predictions[:20], logits, atol=1e-5)


def test_keys_that_are_not_ignored_come_along_and_accuracy_stays_the_same(whole, digits):
    right = whole.predict(digits["test"])
    more = whole.predict(digits["test"], ignore_keys=["features"])
    assert [part.shape for part in more.predictions] == [(160, 4)] * 3
    assert np.array_equal(more.predictions[0], right.predictions)
    assert more.metrics["test_accuracy"] == right.metrics["test_accuracy"]
    with pytest.raises(ValueError, match="`ignore_keys` must not hold 'logits'"):
        whole.predict(digits["test"], ignore_keys=["logits"])


def test_numbers_are_no_names_where_they_could_count_classes():
    """Folders called 0 to 19 are sorted as text, so that class number 2 is called '10'."""
    label2id = {str(number): number for number in range(20)}
    assert LabelReader(label2id, sorted(label2id)).read(2, "image 0") == 10
    assert LabelReader(label2id).read("2", "image 0") == 2
    with pytest.raises(ValueError, match="label of image 0 as text, the name of its class, got the number 2"):
        LabelReader(label2id).read(2, "image 0")
    with pytest.raises(ValueError, match="got the number 0"):
        LabelReader({"cat": 0, "dog": 1}).read(0, "image 0")


def test_a_stream_that_has_lost_the_names_of_its_classes_wants_them_as_text(whole, digits):
    mapped = reversed_names(digits["test"]).to_iterable_dataset().map(lambda row: {**row, "more": 1})
    with pytest.raises(ValueError, match="as text, the name of its class, got the number"):
        whole.evaluate(mapped)


def test_the_images_of_several_tasks_stand_one_after_another():
    sets = EvalSets({"task-01": range(3), "task-03": range(5)})
    assert len(sets) == 8
    assert sets.slices() == {"task-01": slice(0, 3), "task-03": slice(3, 8)}


def test_an_image_of_an_undecoded_column_is_read(whole, digits):
    undecoded = digits["test"].cast_column("image", Image(decode=False))
    assert isinstance(undecoded, Dataset)
    assert whole.evaluate(undecoded)["eval_accuracy"] == whole.evaluate(digits["test"])["eval_accuracy"]


@pytest.mark.parametrize("names", ["123456", "0124", ["0", "1", "10"]])
def test_numbers_are_no_names_unless_these_are_counted_from_zero(names):
    with pytest.raises(ValueError, match="the name of its class, got the number 1"):
        LabelReader({name: index for index, name in enumerate(names)}).read(1, "image 0")
    assert LabelReader({"2": 0, "0": 1, "1": 2}).read(1, "image 0") == 2


def test_columns_of_the_stream_are_taken_where_a_dataset_has_them(make_trainer, digits):
    def renamed(data):
        wrong = [(label + 1) % 4 for label in data["label"]]
        data = data.rename_columns({"image": "photo", "label": "species"})
        cells = list(data.cast_column("photo", Image(decode=False))["photo"])
        return data.add_column("target", wrong).add_column("mask", cells, feature=Image())

    data = DatasetDict({name: renamed(part) for name, part in digits.items()})
    with pytest.raises(ValueError, match=r"one column of labels, found \['target', 'species'\]"):
        ClassIncrementalStream(data, num_tasks=1, image_column="photo")
    stream = ClassIncrementalStream(data, num_tasks=1, image_column="photo", label_column="species")
    trainer = make_trainer(stream=stream)
    trainer.train()
    right = trainer.evaluate()["eval_accuracy"]
    for given in (data["test"], data["test"].to_iterable_dataset(), list(LABELLED["names as text"](digits["test"]))):
        assert trainer.evaluate(given)["eval_accuracy"] == right
    named = [{**row, "species": str(row["species"])} for row in data["test"]]
    assert trainer.evaluate(named)["eval_accuracy"] == right
    with pytest.raises(ValueError, match="found List"):
        trainer.evaluate(digits["test"].remove_columns("label").add_column("label", [[0, 1]] * 160))
