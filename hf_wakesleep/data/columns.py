"""Columns of a dataset: finds images and labels, and turns labels into `ClassLabel` without decoding an image."""

import re

import numpy as np
import pyarrow as pa
import pyarrow.types as pat
from datasets import ClassLabel, Dataset, Image, LargeList, List, Value

from ..model.configuration_wakesleep import check_class_names

LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target")


def find_column(dataset: Dataset, role: str, column: str | None, advice: str | None = None) -> str:
    """Return the name of the image or label column of a dataset.

    Args:
        dataset (`datasets.Dataset`): Any.
        role (`str`): `"image"` or `"label"`.
        column (`str`, *optional*): The name that the user gave.
        advice (`str`, *optional*): What to do if no column or several could be meant; to pass its name if missing.

    Raises:
        ValueError: If there is no such column, or more than one that could be meant.
    """
    found = {name: _type_name(feature) for name, feature in dataset.features.items()}
    if column is not None:
        if column not in found:
            raise ValueError(f"Expected a column {column!r}, found {found}. Pass the name of the right one.")
        candidates = [column]
    elif role == "image":
        candidates = [name for name, feature in dataset.features.items() if isinstance(feature, Image)]
    else:
        labels = [name for name, feature in dataset.features.items() if isinstance(feature, ClassLabel)]
        named = [name for name in LABEL_COLUMNS if name in found]
        candidates = named[:1] or labels
        if named and labels and named[0] not in labels:
            candidates = [named[0], *labels]  # a name says one thing, a type another
    if len(candidates) != 1:
        is_folder = role == "label" and list(found.values()) == ["Image"]
        of_folder = " Of a folder with images of one class, load labels with `drop_labels=False`." if is_folder else ""
        raise ValueError(
            f"Expected one column of {role}s, found {candidates} among {found}. "
            f"{advice or f'Pass `{role}_column=`.'}{of_folder}"
        )
    if role == "image" and isinstance(dataset.features[candidates[0]], list | List | LargeList):
        raise ValueError(
            f"Expected one image a row in column {candidates[0]!r}, found a list. Give every image a row of its own, "
            "with its label."
        )
    if role == "image" and not isinstance(dataset.features[candidates[0]], Image):
        raise ValueError(
            f"Expected column {candidates[0]!r} to be of type Image, found {found[candidates[0]]}. "
            f"Cast it: `dataset.cast_column({candidates[0]!r}, datasets.Image())`."
        )
    return candidates[0]


def refuse_transform(dataset: Dataset, what: str) -> None:
    """Raise a `ValueError` for a dataset with a transform of its own, which would be lost.

    Other formats (`with_format("torch")`, ...) only change how rows are shown, and are fine.

    Args:
        dataset (`datasets.Dataset`): Any.
        what (`str`): What to call it in the error.
    """
    if dataset.format["type"] == "custom":
        raise ValueError(
            f"Expected images as they are stored, but {what} have a transform (`with_transform` or `set_transform`), "
            "which is not used here. Apply it with `dataset.map`, or leave it out (`dataset.with_format(None)`) and "
            "pass `augmentation=` to `ContinualTrainingArguments` or a `processing_class` to `ContinualTrainer`."
        )


def class_names(datasets: list[Dataset], column: str) -> list[str]:
    """Return the class names of a column over several datasets: its `ClassLabel` names, or its sorted values.

    Raises:
        ValueError: If the column is missing somewhere, or holds neither classes, integers nor strings.
    """
    names = []
    for dataset in datasets:
        find_column(dataset, "label", column)
        feature = dataset.features[column]
        if isinstance(feature, ClassLabel):
            names.append(list(feature.names))
        else:
            _check_convertible(feature, column)
            values = sorted(set(_column(dataset, column).to_pylist()) - {None})
            names.append([str(value) for value in values])
        check_class_names(names[-1])
    if all(isinstance(dataset.features[column], ClassLabel) for dataset in datasets):
        merged = list(names[0])
        return merged + [name for name in dict.fromkeys(sum(names[1:], [])) if name not in merged]
    merged = sorted(set(sum(names, [])))
    return sorted(merged, key=int) if all(re.fullmatch("-?[0-9]+", name) for name in merged) else merged


def labelled_images(dataset: Dataset, columns: dict[str, str], names: dict[str, list[str]]) -> Dataset:
    """Return a dataset with the given columns only, labels as `ClassLabel`; no image is decoded.

    Args:
        dataset (`datasets.Dataset`): The source.
        columns (`dict[str, str]`): From new to old column name; `"image"` among them.
        names (`dict[str, list[str]]`): Class names of each label column, by its new name.

    Raises:
        ValueError: If images or labels are missing.
    """
    for old in columns.values():
        find_column(dataset, "image" if old == columns["image"] else "label", old)
    missing = _column(dataset, columns["image"]).null_count
    if missing:
        raise ValueError(f"Every row needs an image, but {missing} of {len(dataset)} have none. Drop those rows.")
    result = dataset.select_columns(list(columns.values())).rename_columns(
        {old: new for new, old in columns.items() if new != old}
    )
    for new, class_list in names.items():
        indices = _indices(dataset, columns[new], class_list)
        feature = ClassLabel(names=class_list)
        if result.features[new] != feature:
            result = result.remove_columns(new).add_column(new, indices, feature=feature)
    return result


def label_array(dataset: Dataset, column: str) -> np.ndarray:
    """Return a `ClassLabel` column as int64 of shape (N,), without touching any other column."""
    return _column(dataset, column).to_numpy(zero_copy_only=False).astype(np.int64)


def hub_source(dataset: Dataset) -> dict[str, str] | None:
    """Return `name` and `revision` of the Hub repository that a dataset was loaded from; `None` if from elsewhere."""
    for source in dataset.info.download_checksums or ():
        match = re.match(r"hf://datasets/([^@]+)@([^/]+)/", source)
        if match:
            return {"name": match[1], "revision": match[2]}
    return None


def _type_name(feature) -> str:
    return feature.dtype if isinstance(feature, Value) else type(feature).__name__


def _column(dataset: Dataset, column: str) -> pa.ChunkedArray:
    return dataset.select_columns([column]).with_format("arrow")[:].column(0)


def _check_convertible(feature, column: str) -> None:
    arrow_type = feature.pa_type if isinstance(feature, Value) else None
    if arrow_type is None or not (
        pat.is_integer(arrow_type) or pat.is_string(arrow_type) or pat.is_large_string(arrow_type)
    ):
        raise ValueError(
            f"Expected labels of type ClassLabel, integer or string in column {column!r}, found "
            f"{_type_name(feature)}. Convert them, or pass another column."
        )


def _indices(dataset: Dataset, column: str, class_list: list[str]) -> np.ndarray:
    """Return the labels of a column as positions in `class_list`, int64 of shape (N,)."""
    values = _column(dataset, column)
    feature = dataset.features[column]
    missing = values.null_count
    if isinstance(feature, ClassLabel):
        own = np.asarray([class_list.index(name) for name in feature.names], dtype=np.int64)
        labels = values.fill_null(-1).to_numpy(zero_copy_only=False)
        missing = int(((labels < 0) | (labels >= len(own))).sum())
        indices = own[np.clip(labels, 0, None)] if not missing else labels
    else:
        position = {name: index for index, name in enumerate(class_list)}
        indices = np.asarray([position.get(str(value), -1) for value in values.to_pylist()], dtype=np.int64)
        missing = int((indices < 0).sum())
    if missing:
        raise ValueError(
            f"Every row needs a label, but {missing} of {len(dataset)} in column {column!r} have none (or a number "
            "that is no class, such as -1 in a hidden test set). Drop those rows, or use another split."
        )
    return indices.astype(np.int64)
