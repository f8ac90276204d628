"""Streams: every image in exactly one task, order by seed, no evaluation image in training."""

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import make_images
from datasets import ClassLabel, DatasetDict, Image
from hypothesis import given
from hypothesis import strategies as st

from hf_wakesleep import ClassIncrementalStream, DomainIncrementalStream, Task, TaskStream
from hf_wakesleep.data.columns import label_array

NAMES = [f"class {index}" for index in range(8)]


def splits_of(counts, names=NAMES, seed=0) -> DatasetDict:
    """Return `counts[c]` training images and one evaluation image of every class c, in a shuffled order."""
    generator = np.random.default_rng(seed)
    train = generator.permutation(np.repeat(np.arange(len(counts)), counts)).tolist()
    test = generator.permutation(len(counts)).tolist()
    return DatasetDict(
        train=make_images(train, names[: len(counts)], side=2, seed=1),
        test=make_images(test, names[: len(counts)], side=2, seed=2),
    )


def undecoded(dataset) -> list[bytes]:
    return [cell["bytes"] for cell in dataset.cast_column("image", Image(decode=False))["image"]]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=8), st.data())
def test_every_image_is_in_exactly_one_task(counts, data):
    dataset = splits_of(counts)
    num_tasks = data.draw(st.integers(1, len(counts)))
    stream = ClassIncrementalStream(dataset, num_tasks=num_tasks, seed=data.draw(st.integers(0, 99)))
    assert len(stream) == num_tasks
    for split, name in (("train", "train_dataset"), ("test", "eval_dataset")):
        images = [image for task in stream for image in undecoded(getattr(task, name))]
        assert sorted(images) == sorted(undecoded(dataset[split]))
    assert sorted(stream.classes) == sorted(NAMES[: len(counts)])
    for task in stream:
        names = task.train_dataset.features["label"].names
        for part in (task.train_dataset, task.eval_dataset):
            assert {names[label] for label in label_array(part, "label")} <= set(task.classes)
        assert task.classes == task.new_classes


@given(st.lists(st.integers(2, 6), min_size=1, max_size=6), st.integers(0, 99), st.floats(0.05, 0.9))
def test_a_held_out_image_is_never_trained_on(counts, seed, fraction):
    dataset = splits_of(counts)["train"]
    stream = ClassIncrementalStream(dataset, num_tasks=1, seed=seed, eval_fraction=fraction)
    train, evaluation = undecoded(stream[0].train_dataset), undecoded(stream[0].eval_dataset)
    assert sorted(train + evaluation) == sorted(undecoded(dataset))
    assert set(label_array(stream[0].eval_dataset, "label")) == set(range(len(counts)))


def test_the_class_order_is_that_of_the_seed():
    dataset = splits_of([1] * 8)
    expected = [NAMES[index] for index in np.random.RandomState(1993).permutation(8)]
    assert list(ClassIncrementalStream(dataset, num_tasks=4, seed=1993).classes) == expected
    assert list(ClassIncrementalStream(dataset, num_tasks=2, seed=1993).classes) == expected
    assert list(ClassIncrementalStream(dataset, num_tasks=4).classes) == NAMES


def test_tasks_may_be_uneven():
    dataset = splits_of([1] * 8)
    assert [len(task.classes) for task in ClassIncrementalStream(dataset, classes_per_task=[5, 1, 2])] == [5, 1, 2]
    assert [len(task.classes) for task in ClassIncrementalStream(dataset, num_tasks=3)] == [3, 3, 2]
    assert [task.name for task in ClassIncrementalStream(dataset, num_tasks=3)] == ["task-01", "task-02", "task-03"]


def test_no_image_is_decoded_to_build_a_stream():
    features = Image(decode=False)
    dataset = splits_of([3] * 4)
    broken = DatasetDict(
        {
            name: part.cast_column("image", features)
            .map(lambda row: {"image": {"bytes": b"no image", "path": None}})
            .cast_column("image", Image())
            for name, part in dataset.items()
        }
    )
    stream = ClassIncrementalStream(broken, num_tasks=2, seed=0)
    assert [len(task.train_dataset) for task in stream] == [6, 6]


def test_classes_without_images_are_left_out():
    dataset = DatasetDict(train=make_images([0, 2], NAMES), test=make_images([2, 0], NAMES))
    assert ClassIncrementalStream(dataset, num_tasks=2).classes == ("class 0", "class 2")


def test_integers_and_strings_make_streams():
    dataset = splits_of([2, 2])
    for convert in (str, int):
        columns = {
            name: part.remove_columns("label").add_column("label", [convert(x) for x in part["label"]])
            for name, part in dataset.items()
        }
        assert ClassIncrementalStream(DatasetDict(columns), num_tasks=2).classes == ("0", "1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_tasks": 5}, r"`num_tasks` must lie in 1\.\.4"),
        ({"num_tasks": 0}, r"`num_tasks` must lie in 1\.\.4"),
        ({}, "either `num_tasks` or `classes_per_task`"),
        ({"num_tasks": 2, "classes_per_task": [2, 2]}, "either `num_tasks` or `classes_per_task`"),
        ({"classes_per_task": [3, 2]}, "add up to the 4 classes"),
        ({"classes_per_task": [4, 0]}, "positive numbers"),
        ({"num_tasks": 2, "label_column": "species"}, "Expected a column 'species'"),
        ({"num_tasks": 2, "image_column": "label"}, "to be of type Image"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ClassIncrementalStream(splits_of([2] * 4), **arguments)


def test_a_task_without_evaluation_images_is_refused():
    dataset = DatasetDict(train=make_images([0, 1, 0], NAMES), test=make_images([0], NAMES))
    with pytest.raises(ValueError, match="'task-02' .* has no evaluation image"):
        ClassIncrementalStream(dataset, num_tasks=2)


def test_a_class_with_evaluation_images_only_is_refused():
    dataset = DatasetDict(train=make_images([0, 0], NAMES), test=make_images([0, 3], NAMES))
    with pytest.raises(ValueError, match="'class 3'.* only have evaluation images"):
        ClassIncrementalStream(dataset, num_tasks=1)


def test_the_same_images_for_training_and_evaluation_are_refused():
    images = make_images([0, 1], NAMES)
    with pytest.raises(ValueError, match="are the same"):
        ClassIncrementalStream(DatasetDict(train=images, test=images), num_tasks=2)


def test_other_things_than_datasets_are_refused():
    with pytest.raises(TypeError, match=r"Expected a `datasets.Dataset` or `DatasetDict`, got list"):
        ClassIncrementalStream([1, 2], num_tasks=1)
    with pytest.raises(ValueError, match="Expected a split 'train', found"):
        ClassIncrementalStream(DatasetDict(test=make_images([0], NAMES)), num_tasks=1)
    with pytest.raises(ValueError, match="at least one task"):
        TaskStream([], {})
    with pytest.raises(ValueError, match="at least one task"):
        TaskStream.from_splits({})


def test_streaming_datasets_are_refused():
    streaming = make_images([0, 1], NAMES).to_iterable_dataset()
    for build in (
        lambda: ClassIncrementalStream(streaming, num_tasks=1),
        lambda: ClassIncrementalStream({"train": streaming}, num_tasks=1),
        lambda: TaskStream.from_splits({"a": streaming}),
        lambda: TaskStream.from_splits(make_images([0, 1], NAMES)),
    ):
        with pytest.raises(TypeError, match="must be materialised first"):
            build()


def test_tasks_of_the_same_name_are_refused():
    task = ClassIncrementalStream(splits_of([2, 2]), num_tasks=1)[0]
    with pytest.raises(ValueError, match="a name of its own"):
        TaskStream([task, task], {})


def test_a_stream_of_numpy_numbers_has_a_protocol_of_plain_ones():
    stream = ClassIncrementalStream(splits_of([2, 2]), num_tasks=np.int64(2), seed=np.int64(3))
    assert json.loads(json.dumps(stream.protocol))["seed"] == 3


def test_the_source_on_the_hub_is_part_of_the_protocol():
    dataset = make_images([0, 1] * 5, NAMES)
    assert ClassIncrementalStream(dataset, num_tasks=2).protocol["dataset"] is None
    dataset.info.download_checksums = {"hf://datasets/me/things@abc123/data/train.parquet": {}}
    source = ClassIncrementalStream(dataset, num_tasks=2).protocol["dataset"]
    assert source == {"name": "me/things", "revision": "abc123"}


def test_domains_without_images_are_left_out_and_the_label_is_no_domain():
    images = make_images([0, 1] * 5, ["x", "y"])
    dataset = images.add_column("domain", [2] * 10, feature=ClassLabel(names=["a", "b", "c"]))
    assert [task.name for task in DomainIncrementalStream(dataset)] == ["c"]
    with pytest.raises(ValueError, match="holds the images or labels"):
        DomainIncrementalStream(dataset, by="label", label_column="label")
    with pytest.raises(ValueError, match="Expected a column 'camera'"):
        DomainIncrementalStream(dataset, by="camera")


def test_splits_become_tasks_in_their_order():
    splits = DatasetDict(birds=make_images([0, 1] * 5, ["wren", "owl"]), fish=make_images([0] * 5, ["carp"]))
    stream = TaskStream.from_splits(splits)
    assert [task.name for task in stream] == ["birds", "fish"]
    assert stream.classes == ("wren", "owl", "carp")
    assert [len(task.eval_dataset) for task in stream] == [2, 1]
    joint = stream.joint()
    assert joint[0].classes == stream.classes
    assert len(joint[0].train_dataset) == 12


def test_splits_take_their_own_evaluation_images():
    train = {"a": make_images([0], ["x"], seed=1), "b": make_images([0], ["y"], seed=2)}
    evaluation = {"b": make_images([0, 0], ["y"], seed=3), "a": make_images([0, 0, 0], ["x"], seed=4)}
    assert [len(task.eval_dataset) for task in TaskStream.from_splits(train, evaluation)] == [3, 2]
    with pytest.raises(ValueError, match="same names"):
        TaskStream.from_splits(train, {"a": evaluation["a"]})


def test_a_class_that_comes_again_in_another_split_is_refused():
    splits = {"a": make_images([0, 1] * 2, ["x", "y"]), "b": make_images([0, 1] * 2, ["y", "z"])}
    with pytest.raises(ValueError, match="'y'.* of 'b' came before"):
        TaskStream.from_splits(splits)


def domains_of(rows):
    """Return images from (class, domain) pairs."""
    images = make_images([label for label, _ in rows], ["x", "y"])
    return images.add_column("domain", [domain for _, domain in rows])


def test_domains_become_tasks_and_bring_their_classes_once():
    rows = [(0, "sketch"), (1, "sketch"), (0, "photo"), (1, "photo")] * 5
    stream = DomainIncrementalStream(domains_of(rows))
    assert [task.name for task in stream] == ["photo", "sketch"]
    assert stream[0].new_classes == stream[0].classes == stream[1].classes == ("x", "y")
    assert stream[1].new_classes == ()
    assert stream[0].train_dataset.column_names == ["image", "label"]
    assert sum(len(task.train_dataset) + len(task.eval_dataset) for task in stream) == 20


def test_a_domain_may_use_another_column_and_order():
    rows = [(0, 3), (1, 3), (0, 1), (1, 1)] * 3
    dataset = domains_of(rows).rename_column("domain", "camera")
    assert [task.name for task in DomainIncrementalStream(dataset, by="camera")] == ["1", "3"]
    orders = {
        tuple(task.name for task in DomainIncrementalStream(dataset, by="camera", seed=seed)) for seed in range(9)
    }
    assert orders == {("1", "3"), ("3", "1")}


def test_a_domain_that_tests_what_was_never_trained_is_refused():
    dataset = DatasetDict(
        train=domains_of([(0, "a"), (0, "b"), (1, "b")]), test=domains_of([(0, "a"), (1, "a"), (1, "b")])
    )
    with pytest.raises(ValueError, match="'y'.* of the domain 'a'"):
        DomainIncrementalStream(dataset)


def test_fingerprints_tell_streams_apart():
    dataset = splits_of([2, 3, 2, 2])
    prints = [ClassIncrementalStream(dataset, num_tasks=2, seed=seed).fingerprints() for seed in (0, 0, 1)]
    assert prints[0] == prints[1] != prints[2]
    assert prints[0] != ClassIncrementalStream(splits_of([2, 3, 2, 1]), num_tasks=2, seed=0).fingerprints()


def test_a_task_holds_class_labels():
    stream = ClassIncrementalStream(splits_of([2, 2]), num_tasks=1)
    assert isinstance(stream[0], Task)
    assert isinstance(stream[0].train_dataset.features["label"], ClassLabel)
    assert [task.name for task in stream[:1]] == ["task-01"]


def test_a_transform_is_refused_wherever_a_stream_is_built():
    plain = splits_of([2, 2])
    changed = plain.with_transform(dict)
    task = ClassIncrementalStream(plain, num_tasks=1)[0]
    for build in (
        lambda: ClassIncrementalStream(changed, num_tasks=2),
        lambda: ClassIncrementalStream({"train": plain["train"], "test": changed["test"]}, num_tasks=2),
        lambda: DomainIncrementalStream(changed["train"], by="label"),
        lambda: TaskStream.from_splits(changed),
        lambda: TaskStream.from_splits({"a": plain["train"]}, {"a": changed["test"]}),
        lambda: TaskStream([replace(task, eval_dataset=task.eval_dataset.with_transform(dict))], {}),
    ):
        with pytest.raises(ValueError, match="have a transform"):
            build()


def test_a_task_of_other_columns_is_refused():
    task = ClassIncrementalStream(splits_of([2, 2]), num_tasks=1)[0]
    for column in ("image", "label"):
        wrong = replace(task, train_dataset=task.train_dataset.rename_column(column, "other"))
        with pytest.raises(ValueError, match=f"Expected a column '{column}' of type .* in the training images"):
            TaskStream([wrong], {})


def test_uneven_tasks_and_classes_without_images_are_said_and_can_be_silenced(caplog):
    ClassIncrementalStream(splits_of([1] * 8), num_tasks=3)
    assert "8 classes cannot be spread evenly over 3 tasks, which have [3, 3, 2] classes" in caplog.text
    assert "`classes_per_task=[3, 3, 2]`" in caplog.text
    caplog.clear()
    ClassIncrementalStream(splits_of([1] * 8), classes_per_task=[3, 3, 2])
    ClassIncrementalStream(splits_of([1] * 8), num_tasks=4)
    assert caplog.text == ""
    for build in (
        lambda: ClassIncrementalStream(make_images([0, 1, 1, 0], NAMES[:3]), num_tasks=2),
        lambda: DomainIncrementalStream(make_images([0, 1] * 4, NAMES[:3]).add_column("domain", ["a", "b"] * 4)),
        lambda: TaskStream.from_splits({"a": make_images([0, 1] * 2, NAMES[:3])}),
    ):
        caplog.clear()
        build()
        assert "1 of 3 classes have no training image and are left out: ['class 2']" in caplog.text


def test_classes_may_come_again_in_splits_with_repeats():
    splits = {"a": make_images([0, 1] * 2, ["x", "y"]), "b": make_images([0, 1] * 2, ["y", "z"], seed=1)}
    stream = TaskStream.from_splits(splits, repeats=True)
    assert [(task.classes, task.new_classes) for task in stream] == [(("x", "y"),) * 2, (("y", "z"), ("z",))]
    assert stream.classes == ("x", "y", "z")
    assert stream.protocol["kind"] == "splits with repeats"
