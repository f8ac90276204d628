"""Evaluation datasets: turns what `evaluate` and `predict` are given into images with labels of the model.

Columns are found, and labels matched with classes by name, as in streams. Images without labels can be
predicted, but not scored.
"""

from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral
from types import MappingProxyType

import datasets
import numpy as np
import torch
from datasets import ClassLabel, Dataset, Value
from datasets import Image as ImageFeature
from PIL import Image
from torch.utils.data import ConcatDataset, Subset

from .columns import LABEL_COLUMNS, class_names, find_column, labelled_images, refuse_transform
from .images import TaskImages, check_known_classes, open_image, to_rgb
from .streams import Task

_GIVEN_IMAGES = "the given images"
_COLUMN_ADVICE = "Keep the right one, with `remove_columns`, or call it 'image' or 'label', with `rename_column`."


class EvalSets(ConcatDataset):
    """The evaluation images of several tasks, one after another.

    Args:
        sets (`Mapping[str, TaskImages]`): By the name of the stage of their task, in the order of the tasks.
    """

    def __init__(self, sets: Mapping[str, TaskImages]):
        super().__init__(list(sets.values()))
        self.sets = dict(sets)

    def slices(self) -> dict[str, slice]:
        """Return where the images of each task stand."""
        starts = [0, *self.cumulative_sizes]
        return {
            name: slice(*span) for name, span in zip(self.sets, zip(starts, starts[1:], strict=False), strict=True)
        }


class LabelReader:
    """Turns the label of an example into an index in a model's head.

    Text is the name of a class. A number is one, too, unless a dataset names its classes itself.

    Args:
        label2id (`dict[str, int]`): From class name to index in the head.
        names (`Sequence[str]`, *optional*): Names of the classes that the dataset's numbers count.
        are_numbers_names (`bool`, *optional*): Whether a number is the name of a class otherwise; by default where
            the names are 0, 1, ..., and count themselves.
    """

    def __init__(
        self, label2id: dict[str, int], names: Sequence[str] | None = None, are_numbers_names: bool | None = None
    ):
        self._label2id, self._names = label2id, names
        # Names such as '1' to '6' are counted from 0, and sorted as text '10' comes before '2'.
        are_counted = len(label2id) <= 10 and set(label2id) == set(map(str, range(len(label2id))))
        self._are_names = are_counted if are_numbers_names is None else are_numbers_names

    def read(self, label, where: str) -> int | None:
        """Return the index of a label; `None` for one that is missing or hidden (-1).

        Raises:
            ValueError: If it is no class that the model knows.
        """
        if isinstance(label, np.ndarray | torch.Tensor) and label.ndim == 0:
            label = label.item()
        is_number = isinstance(label, Integral) and not isinstance(label, bool)
        if label is None or (is_number and label == -1 and (self._names is not None or "-1" not in self._label2id)):
            return None
        if is_number and self._names is not None and 0 <= label < len(self._names):
            label = self._names[label]
        elif is_number and not self._are_names:
            raise ValueError(
                f"Expected the label of {where} as text, the name of its class, got the number {label}, which could "
                "count the classes of any list. Return the name, or give a torch dataset a list `classes` and a "
                "stream `features` with a `ClassLabel` (`map(..., features=...)`)."
            )
        elif not (isinstance(label, str) or (is_number and self._names is None)):
            raise ValueError(f"Expected the label of {where} to be a class by its name or number, got {label!r}.")
        check_known_classes([str(label)], self._label2id, where)
        return self._label2id[str(label)]


class ExampleImages(torch.utils.data.Dataset):
    """The images of a torch `Dataset` or a list, whose examples are read one by one.

    Args:
        dataset (`torch.utils.data.Dataset` or `Sequence`): Gives mappings with an image and perhaps a label, pairs of
            both, or images.
        labels ([`LabelReader`]): Reads the labels.
        columns (`Mapping[str, str]`): Where `image` and `label` are, if they are there.
    """

    def __init__(self, dataset, labels: LabelReader, columns: Mapping[str, str]):
        self.dataset, self._labels, self._columns = dataset, labels, columns

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> dict:
        return read_example(self.dataset[row], self._labels, self._columns, f"image {row} of {_GIVEN_IMAGES}")


class StreamedImages(torch.utils.data.IterableDataset):
    """The images of an iterable dataset, which are read as they come.

    Args:
        dataset (`Iterable`): Gives examples like those of [`ExampleImages`].
        labels ([`LabelReader`]): Reads the labels.
        columns (`Mapping[str, str]`): Where `image` and `label` are, if they are there.
    """

    def __init__(self, dataset, labels: LabelReader, columns: Mapping[str, str]):
        self.dataset, self._labels, self._columns = dataset, labels, columns

    def __iter__(self) -> Iterator[dict]:
        for row, example in enumerate(self.dataset):
            yield read_example(example, self._labels, self._columns, f"image {row} of {_GIVEN_IMAGES}")


def as_image_dataset(
    dataset, label2id: dict[str, int], columns: Mapping[str, str] = MappingProxyType({})
) -> torch.utils.data.Dataset:
    """Return the images of any dataset as a torch dataset of `{"image": RGB, "label": index in the head or None}`.

    Args:
        dataset: A [`Task`], whose evaluation images are meant; a `datasets.Dataset` or `IterableDataset`; a torch
            `Dataset` or `IterableDataset`; or a list of examples.
        label2id (`dict[str, int]`): From class name to index in the head.
        columns (`Mapping[str, str]`, *optional*): Columns of `image` and `label`, as of a stream, to take where they
            are there; found as streams do it otherwise.

    Raises:
        TypeError: If it is none of these.
        ValueError: If images are missing, only some of them have labels, or are of classes that the model does not
            know; of a dataset that has to be read for that, when it is read.
    """
    if isinstance(dataset, TaskImages | EvalSets):
        return dataset
    if isinstance(dataset, Task):
        return TaskImages(dataset.eval_dataset, label2id, f"the evaluation images of {dataset.name}")
    if isinstance(dataset, Dataset):
        images = _of_dataset(dataset, label2id, columns)
    elif isinstance(dataset, datasets.IterableDataset):
        images = _of_stream(dataset, label2id, columns)
    elif type(dataset) is Subset:  # one of another kind may change what it gives
        images = Subset(as_image_dataset(dataset.dataset, label2id, columns), dataset.indices)
    elif type(dataset) is ConcatDataset:
        images = ConcatDataset([as_image_dataset(part, label2id, columns) for part in dataset.datasets])
    elif isinstance(dataset, torch.utils.data.IterableDataset):
        images = StreamedImages(dataset, LabelReader(label2id, _names_of(dataset)), columns)
    elif isinstance(dataset, torch.utils.data.Dataset | list | tuple):
        images = ExampleImages(dataset, LabelReader(label2id, _names_of(dataset)), columns)
    else:
        raise TypeError(
            "Expected a `datasets.Dataset`, a torch `Dataset`, a list of examples or a `Task` to evaluate, got "
            f"{type(dataset).__name__}. Pass the dataset behind it, or its splits or tasks one by one."
        )
    if not isinstance(images, torch.utils.data.IterableDataset) and len(images) == 0:
        raise ValueError("Expected images to evaluate, but the given dataset is empty.")
    return images


def read_example(example, labels: LabelReader, columns: Mapping[str, str], where: str) -> dict:
    """Return `{"image": RGB, "label": index in the head or None}` of one example.

    Args:
        example (`Mapping`, `tuple` or image): An image as PIL, uint8 array or undecoded cell; and perhaps its label.
        labels ([`LabelReader`]): Reads the label.
        columns (`Mapping[str, str]`): Where `image` and `label` are, if they are there.
        where (`str`): What to call the image in an error.

    Raises:
        ValueError: If there is no image, or the label is no class that the model knows.
    """
    if isinstance(example, Mapping) and not _is_image(example):
        images = [value for value in example.values() if _is_image(value)]
        if columns.get("image") in example:
            images = [example[columns["image"]]] * _is_image(example[columns["image"]])
        label = next((example[name] for name in (columns.get("label"), *LABEL_COLUMNS) if name in example), None)
    else:
        parts = example if isinstance(example, tuple | list) else (example,)
        images, label = [part for part in parts[:1] if _is_image(part)], parts[1] if len(parts) == 2 else None
    if len(images) != 1:
        found = {name: type(value).__name__ for name, value in example.items()} if isinstance(example, Mapping) else ""
        raise ValueError(
            f"Expected {where} as a PIL image or an array of uint8, beside a label if it is known, got "
            f"{type(example).__name__} {found}. Convert it."
        )
    return {"image": _as_rgb(images[0], where), "label": labels.read(label, where)}


def _of_dataset(dataset: Dataset, label2id: dict[str, int], known: Mapping[str, str]) -> TaskImages:
    refuse_transform(dataset, _GIVEN_IMAGES)
    columns = _find(dataset, known)
    label = columns.get("label")
    if label is not None and _is_hidden(dataset, label):
        del columns["label"]
        label = None
    names = {} if label is None else {"label": class_names([dataset], label)}
    if label is not None and not isinstance(dataset.features[label], ClassLabel) and "-1" not in label2id:
        names["label"] = [name for name in names["label"] if name != "-1"]  # as hidden labels are written
    return TaskImages(labelled_images(dataset, columns, names), label2id, _GIVEN_IMAGES)


def _find(dataset: Dataset | datasets.IterableDataset, known: Mapping[str, str]) -> dict[str, str]:
    """Return the column of `image` and, if there is one, of `label`."""
    given = {role: name for role, name in known.items() if name in dataset.features}
    columns = {"image": find_column(dataset, "image", given.get("image"), _COLUMN_ADVICE)}
    is_typed = any(isinstance(feature, ClassLabel) for feature in dataset.features.values())
    if "label" in given or is_typed or any(name in LABEL_COLUMNS for name in dataset.features):
        columns["label"] = find_column(dataset, "label", given.get("label"), _COLUMN_ADVICE)
    return columns


def _is_hidden(dataset: Dataset, column: str) -> bool:
    """Whether there is nothing in a column of labels but what stands for hidden ones."""
    if not isinstance(dataset.features[column], ClassLabel | Value):
        return False
    values = dataset.select_columns([column]).with_format("arrow")[:].column(0).unique().to_pylist()
    return bool(values) and set(values) <= {None, -1}


def _of_stream(
    dataset: datasets.IterableDataset, label2id: dict[str, int], known: Mapping[str, str]
) -> StreamedImages:
    dataset = dataset.with_format(None)
    if dataset.features is None:  # as after `map`, which drops the names of the classes
        return StreamedImages(dataset, LabelReader(label2id, are_numbers_names=False), known)
    columns = _find(dataset, known)
    dataset = dataset.select_columns(list(columns.values()))
    if dataset.features[columns["image"]].mode is None:  # else `datasets` converts to that mode as it decodes
        dataset = dataset.cast_column(columns["image"], ImageFeature(decode=False))
    feature = dataset.features[columns["label"]] if "label" in columns else None
    names = feature.names if isinstance(feature, ClassLabel) else None
    return StreamedImages(dataset, LabelReader(label2id, names, are_numbers_names=True), columns)


def _names_of(dataset) -> Sequence[str] | None:
    """Return the names of the classes that a dataset of torchvision carries."""
    names = getattr(dataset, "classes", None)
    return names if isinstance(names, tuple | list) and all(isinstance(name, str) for name in names) else None


def _is_image(value) -> bool:
    is_cell = isinstance(value, Mapping) and set(value) == {"bytes", "path"}
    is_array = isinstance(value, np.ndarray | torch.Tensor) and value.ndim in (2, 3)
    return is_cell or is_array or isinstance(value, Image.Image)


def _as_rgb(image, where: str) -> Image.Image:
    if isinstance(image, Mapping):
        return open_image(image, where)
    if isinstance(image, Image.Image):
        return to_rgb(image)
    pixels = np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3) and pixels.shape[2] not in (1, 3):
        pixels = pixels.transpose(1, 2, 0)  # (H, W, channels)
    if pixels.dtype != np.uint8 or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3)):
        raise ValueError(
            f"Expected {where} as a PIL image or as uint8 of shape (H, W) or (H, W, 3), got {pixels.dtype} "
            f"{pixels.shape}. Convert it; the trainer resizes and normalises images itself."
        )
    return to_rgb(Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 and pixels.ndim == 3 else pixels))
