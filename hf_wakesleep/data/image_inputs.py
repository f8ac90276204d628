"""Images as a user holds them: files, arrays, tensors, mappings, datasets; opened, with the names of their classes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from PIL import Image, ImageOps

from .columns import class_names, find_column, labelled_images, refuse_transform
from .images import TaskImages, checked_rgb, open_image, reading_errors

Images = Image.Image | str | Path | np.ndarray | torch.Tensor | Sequence


def as_image(value, where: str) -> Image.Image:
    """Return an image in RGB, upright as its EXIF data says.

    Args:
        value (`PIL.Image.Image`, `str`, `Path`, `numpy.ndarray` or `torch.Tensor`): An image, the path or URL of one,
            or pixels, uint8: an array of shape (H, W), (H, W, 3) or (H, W, 4), or a tensor of shape (1, H, W) or
            (3, H, W).
        where (`str`): What to call the image in an error.

    Raises:
        TypeError: If it is nothing of that kind.
        ValueError: If it cannot be read, or its pixels have another shape or type.
    """
    if isinstance(value, str | Path):
        return open_image({"bytes": None, "path": str(value)}, where)
    if isinstance(value, torch.Tensor):
        _check_pixels(value, where, value.dtype == torch.uint8 and value.ndim == 3 and len(value) in (1, 3))
        value = value.cpu().permute(1, 2, 0).squeeze(2).numpy()
    if isinstance(value, np.ndarray):
        is_known = value.ndim == 2 or (value.ndim == 3 and value.shape[2] in (3, 4))
        _check_pixels(value, where, value.dtype == np.uint8 and is_known)
        value = Image.fromarray(value)
    if not isinstance(value, Image.Image):
        raise TypeError(
            f"Expected {where} to be an image of Pillow, a path, an array or a tensor, got {type(value).__name__}."
        )
    try:
        return checked_rgb(ImageOps.exif_transpose(value))
    except reading_errors() as error:
        raise ValueError(f"Expected a readable image, but {where} cannot be read ({error}). Leave it out.") from error


def as_list(images: Images) -> list:
    """Return images as a list; one image as a list of one."""
    return list(images) if isinstance(images, Sequence) and not isinstance(images, str | bytes) else [images]


def named_images(
    images: Images | Mapping[str, Images] | Dataset, label: str | None = None
) -> list[tuple[Image.Image, str]]:
    """Return opened images, each with the name of its class, in the order in which they were given.

    Args:
        images: Images of one class, a mapping from names of classes to images, or a `Dataset` with an image and a
            label column.
        label (`str`, *optional*): The class, if `images` are neither a mapping nor a `Dataset`.

    Raises:
        TypeError: If images or names are of another kind.
        ValueError: If there is no image, or one cannot be read or has no label.
    """
    is_named = isinstance(images, Mapping | Dataset)
    if is_named and label is not None:
        raise ValueError(
            f"A {type(images).__name__} names the classes itself, but `label` is {label!r}. Leave it out."
        )
    if isinstance(images, Dataset):
        named = _of_dataset(images)
    else:
        groups = images if is_named else {label: images}
        named = [pair for name, group in groups.items() for pair in _of_class(as_list(group), name)]
    if not named:
        raise ValueError("Expected images, got none. Pass at least one.")
    return named


def check_name(name) -> None:
    """Refuse a name of a class that is no text."""
    if not isinstance(name, str):
        raise TypeError(f"Expected the name of a class, a text, got {name!r}. Pass `label='okapi'`, for example.")


def _of_class(images: list, name: str) -> list[tuple[Image.Image, str]]:
    check_name(name)
    if not images:
        raise ValueError(f"Expected images of {name!r}, got none. Pass at least one.")
    return [(as_image(image, f"image {row} of {name!r}"), str(name)) for row, image in enumerate(images)]


def _of_dataset(dataset: Dataset) -> list[tuple[Image.Image, str]]:
    refuse_transform(dataset, "the dataset")
    columns = {role: find_column(dataset, role, None) for role in ("image", "label")}
    names = class_names([dataset], columns["label"])
    dataset = labelled_images(dataset, columns, {"label": names})
    opened = TaskImages(dataset, {name: index for index, name in enumerate(names)}, "the dataset")
    examples = [opened[row] for row in range(len(opened))]
    return [(example["image"], names[example["label"]]) for example in examples]


def _check_pixels(value, where: str, holds: bool) -> None:
    if not holds or not value.shape or 0 in value.shape:
        raise ValueError(
            f"Expected {where} to hold pixels 0..255, uint8, as an array of shape (H, W), (H, W, 3) or (H, W, 4) or a "
            f"tensor of shape (1, H, W) or (3, H, W), got {value.dtype} of shape {tuple(value.shape)}. Convert it, or "
            "pass a batch as `list(batch)`."
        )
