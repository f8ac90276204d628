"""Label columns: found, converted, or refused."""

import numpy as np
import pytest
from conftest import make_images
from datasets import ClassLabel, Dataset, Features, Image, Sequence, Value

from hf_wakesleep.data.columns import (
    class_names,
    find_column,
    label_array,
    labelled_images,
    refuse_transform,
)
from hf_wakesleep.data.splits import stratified_split


def dataset_with(labels, feature) -> Dataset:
    base = make_images([0] * len(labels), ["x"]).remove_columns("label")
    return base.add_column("label", labels, feature=feature)


def as_classes(dataset):
    names = class_names([dataset], "label")
    return labelled_images(dataset, {"image": "image", "label": "label"}, {"label": names})


@pytest.mark.parametrize(
    ("labels", "feature", "names", "indices"),
    [
        ([2, 0, 2], ClassLabel(names=["a", "b", "c"]), ["a", "b", "c"], [2, 0, 2]),
        ([10, 9, 10], Value("int64"), ["9", "10"], [1, 0, 1]),
        ([-1, 5, 5], Value("int16"), ["-1", "5"], [0, 1, 1]),
        (["dog", "ape", "dog"], Value("string"), ["ape", "dog"], [1, 0, 1]),
        (["Ägypten", "日本", "日本"], Value("large_string"), ["Ägypten", "日本"], [0, 1, 1]),
    ],
)
def test_classes_integers_and_strings_become_class_labels(labels, feature, names, indices):
    result = as_classes(dataset_with(labels, feature))
    assert result.features["label"].names == names
    assert label_array(result, "label").tolist() == indices


@pytest.mark.parametrize(
    ("labels", "feature"),
    [
        ([0.5, 1.0], Value("float32")),
        ([True, False], Value("bool")),
        ([[1], [2]], Sequence(Value("int64"))),
    ],
)
def test_other_types_are_refused(labels, feature):
    with pytest.raises(ValueError, match="Expected labels of type ClassLabel, integer or string"):
        as_classes(dataset_with(labels, feature))


@pytest.mark.parametrize(
    ("labels", "feature"),
    [
        ([0, None], ClassLabel(names=["a", "b"])),
        ([0, -1], ClassLabel(names=["a", "b"])),
        (["a", None], Value("string")),
        ([1, None], Value("int64")),
    ],
)
def test_rows_without_a_label_are_refused_with_their_number(labels, feature):
    with pytest.raises(ValueError, match="1 of 2"):
        as_classes(dataset_with(labels, feature))


def test_rows_without_an_image_are_refused_with_their_number():
    features = Features({"image": Image(), "label": ClassLabel(names=["a"])})
    dataset = Dataset.from_dict(
        {"image": [np.zeros((4, 4), dtype=np.uint8), None], "label": [0, 0]}, features=features
    )
    with pytest.raises(ValueError, match="1 of 2 have none"):
        as_classes(dataset)


def test_class_names_of_two_splits_are_merged():
    first = make_images([0, 1], ["a", "b"])
    second = make_images([0, 1], ["b", "c"])
    assert class_names([first, second], "label") == ["a", "b", "c"]


def test_columns_are_found_by_type_and_name():
    dataset = make_images([0, 1], ["a", "b"]).rename_columns({"image": "img", "label": "fine_label"})
    dataset = dataset.add_column("coarse_label", [0, 0], feature=ClassLabel(names=["z"]))
    assert find_column(dataset, "image", None) == "img"
    assert find_column(dataset, "label", None) == "fine_label"
    assert find_column(dataset, "label", "coarse_label") == "coarse_label"


@pytest.mark.parametrize(
    ("role", "column", "message"),
    [
        ("label", "species", "Expected a column 'species', found .*'label': 'ClassLabel'"),
        ("image", "label", "to be of type Image, found ClassLabel"),
    ],
)
def test_missing_and_mistyped_columns_are_refused_with_what_was_found(role, column, message):
    with pytest.raises(ValueError, match=message):
        find_column(make_images([0], ["a"]), role, column)


@pytest.mark.parametrize("role", ["image", "label"])
def test_a_dataset_without_the_column_is_refused(role):
    with pytest.raises(ValueError, match=f"Expected one column of {role}s, found"):
        find_column(make_images([0], ["a"]).remove_columns(role), role, None)


def test_a_split_is_stratified_disjoint_and_repeats_with_its_seed():
    dataset = make_images([0] * 10 + [1] * 20 + [2], ["a", "b", "c"])
    dataset = dataset.add_column("row", list(range(31)))
    train, evaluation = stratified_split(dataset, ["label"], 0.2, seed=3)
    assert sorted([*train["row"], *evaluation["row"]]) == list(range(31))
    assert np.bincount(label_array(train, "label")).tolist() == [8, 16, 1]
    assert np.bincount(label_array(evaluation, "label")).tolist() == [2, 4]
    assert stratified_split(dataset, ["label"], 0.2, seed=3)[0]["row"][:] == train["row"][:]
    assert stratified_split(dataset, ["label"], 0.2, seed=4)[0]["row"][:] != train["row"][:]


def test_a_transform_is_refused_and_other_formats_are_not():
    dataset = make_images([0, 1], ["a", "b"])
    for changed in (dataset.with_transform(lambda batch: batch), dataset.with_transform(dict).select([0])):
        with pytest.raises(ValueError, match=r"the images have a transform .*`dataset.map`.*`augmentation="):
            refuse_transform(changed, "the images")
    for shown in (dataset, dataset.with_format("torch"), dataset.with_format("numpy", columns=["label"])):
        refuse_transform(shown, "the images")
        assert label_array(as_classes(shown), "label").tolist() == [0, 1]


def test_a_folder_of_one_class_is_told_how_to_get_its_label():
    with pytest.raises(ValueError, match="`drop_labels=False`"):
        find_column(make_images([0], ["a"]).remove_columns("label"), "label", None)
    with pytest.raises(ValueError, match="Pass `label_column=`") as error:
        find_column(
            make_images([0], ["a"]).rename_column("label", "kind").cast_column("kind", Value("int64")), "label", None
        )
    assert "drop_labels" not in str(error.value)


def test_a_row_less_in_one_class_leaves_what_is_held_out_of_the_others():
    labels = np.random.default_rng(0).integers(0, 3, 60).tolist()
    dataset = make_images(labels, ["a", "b", "c"]).add_column("row", list(range(60)))
    less = dataset.select([row for row in range(60) if row != labels.index(0)])
    pairs = zip(stratified_split(dataset, ["label"], 0.2, 3), stratified_split(less, ["label"], 0.2, 3), strict=True)
    for whole, part in pairs:
        rows = [[row for row, label in zip(one["row"], one["label"], strict=True) if label] for one in (whole, part)]
        assert rows[0] == rows[1]


def test_a_list_of_images_a_row_is_refused():
    features = Features({"images": Sequence(Image()), "label": ClassLabel(names=["a"])})
    pixels = np.zeros((4, 4), dtype=np.uint8)
    dataset = Dataset.from_dict({"images": [[pixels, pixels]], "label": [0]}, features=features)
    with pytest.raises(ValueError, match="Expected one column of images, found"):
        find_column(dataset, "image", None)
    with pytest.raises(ValueError, match="one image a row in column 'images', found a list"):
        find_column(dataset, "image", "images")
