"""Images: opens, checks, resizes and normalises the images of a dataset for a model and its memory."""

import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable

import numpy as np
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from fsspec.exceptions import FSTimeoutError
from huggingface_hub.errors import HTTPError
from PIL import Image
from transformers import ViTImageProcessor
from transformers.image_utils import PILImageResampling

from ..model.configuration_wakesleep import WakeSleepConfig
from .columns import label_array
from .streams import Task

MAX_RATIO = 256  # of the sides of an image: the shorter is resized to the model's, which lengthens the longer


def make_image_processor(config: WakeSleepConfig) -> ViTImageProcessor:
    """Return the image processor of a model: RGB, shorter side resized to `image_size`, centre crop, normalised."""
    return ViTImageProcessor(
        size={"shortest_edge": config.image_size},
        do_center_crop=True,
        crop_size={"height": config.image_size, "width": config.image_size},
        image_mean=config.image_mean,
        image_std=config.image_std,
        resample=PILImageResampling.BICUBIC,
        do_convert_rgb=True,
    )


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to RGB as the image processor of a pipeline does, but 16-bit grey by its upper 8 bits.

    Raises:
        ValueError: If the mode holds unbounded values (`"I"`, `"F"`), which have no defined white.
    """
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(
            f"Expected an image with a known range (1, L, I;16, P, RGB, RGBA, CMYK, ...), got mode {image.mode!r}. "
            "Scale it to 0..255 and convert it to 'L' or 'RGB'."
        )
    return image.convert("RGB")


def checked_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to RGB.

    Raises:
        ValueError: If its mode holds unbounded values, or it is too long a strip.
    """
    if not min(image.size) or max(image.size) > MAX_RATIO * min(image.size):
        raise ValueError(f"its {image.width} x {image.height} pixels are too long a strip, crop it")
    return to_rgb(image)


def open_image(encoded: dict, where: str, mode: str | None = None) -> Image.Image:
    """Decode one cell of an undecoded `Image` column to RGB, as `datasets` does, turned upright as its EXIF data says.

    Args:
        encoded (`dict`): `{"bytes": bytes or None, "path": str or None}`. A path may lead to another machine or into
            an archive (`"https://..."`, `"hf://..."`, `"zip://inner.png::archive.zip"`).
        where (`str`): What to call the image in an error, for example `"image 3 of 'train'"`; its path is added.
        mode (`str`, *optional*): The `mode` of the column, which the image is converted to first.

    Raises:
        ValueError: If the image is missing, cannot be read, or has a mode without a known range.
    """
    try:
        return checked_rgb(ImageFeature(mode=mode).decode_example(encoded))
    except reading_errors() as error:
        path = encoded.get("path") if isinstance(encoded, dict) else None
        raise ValueError(
            f"Expected a readable image, but {where} cannot be read ({f'{path!r:.500}: ' if path else ''}"
            f"{(str(error) or type(error).__name__)[:200]}). Repair it or drop that row."
        ) from error


def reading_errors() -> tuple[type[Exception], ...]:
    """Return what Pillow, file systems, archives and the network raise for an image that cannot be read."""
    from aiohttp import ClientError  # slow to import, and needed after an error only

    return (
        ClientError,
        ArithmeticError,
        AttributeError,
        EOFError,
        FSTimeoutError,
        HTTPError,
        Image.DecompressionBombError,
        ImportError,
        LookupError,
        lzma.LZMAError,
        MemoryError,
        OSError,
        RuntimeError,
        struct.error,
        SyntaxError,
        tarfile.TarError,
        TypeError,
        ValueError,
        zipfile.BadZipFile,
        zlib.error,
    )


class TaskImages(torch.utils.data.Dataset):
    """Images of a task with their index in a model's head.

    Args:
        dataset (`datasets.Dataset`): Columns `image` (`Image`) and, where labels are known, `label` (`ClassLabel`).
        label2id (`dict[str, int]`): From class name to index in the head.
        name (`str`): What to call the dataset in an error.

    Raises:
        ValueError: If there are images of a class that `label2id` does not know.
    """

    def __init__(self, dataset: Dataset, label2id: dict[str, int], name: str):
        self.name = name
        self.head_index = None
        if "label" in dataset.features:
            names = dataset.features["label"].names
            check_known_classes({names[label] for label in np.unique(label_array(dataset, "label"))}, label2id, name)
            self.head_index = [label2id.get(class_name, -1) for class_name in names]
        self.mode = dataset.features["image"].mode
        self.dataset = dataset.with_format(None).cast_column("image", ImageFeature(mode=self.mode, decode=False))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> dict:
        example = self.dataset[row]
        image = open_image(example["image"], f"image {row} of {self.name}", self.mode)
        return {"image": image, "label": None if self.head_index is None else self.head_index[example["label"]]}


def unlabelled_images(task: Task) -> TaskImages:
    """Return the training images of a task, all with label 0: no model need know their classes."""
    return TaskImages(task.train_dataset, {name: 0 for name in task.classes}, f"the training images of {task.name}")


def check_known_classes(names: Iterable[str], label2id: dict[str, int], where: str) -> None:
    """Refuse images of classes that a model does not know.

    Args:
        names (`Iterable[str]`): The classes of the images.
        label2id (`dict[str, int]`): From class name to index in the head.
        where (`str`): What to call the images in the error.

    Raises:
        ValueError: If one of the classes is unknown.
    """
    unknown = sorted(set(names) - set(label2id))
    if unknown:
        raise ValueError(
            f"Expected images of classes that the model knows, but {where} are of {unknown[:5]}. Teach these classes "
            "first, or leave them out."
        )


class ImageReader:
    """Data collator: from images to the `pixel_values` of a model, or to resized uint8 images for its memory.

    Args:
        processor (`BaseImageProcessor`): Resizes and normalises.
    """

    def __init__(self, processor):
        self.processor = processor

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        """Return `pixel_values` (B, 3, H, W) float32 and, if they are known, `labels` (B,) int64."""
        images, labels = self.read(examples)
        batch = {"pixel_values": self.normalise(images)}
        return batch if labels is None else {**batch, "labels": labels}

    def read(self, examples: list[dict]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return images (B, 3, H, W) uint8 and labels (B,) int64; `None` for labels that are all unknown.

        Raises:
            ValueError: If only some of the labels are known.
        """
        images = self.resize([example["image"] for example in examples])
        labels = [example["label"] for example in examples]
        if all(label is None for label in labels):
            return images, None
        if None in labels:
            raise ValueError(
                f"Every image needs a label, or none, but {labels.count(None)} of {len(labels)} in a batch have none. "
                "Drop those images, or all labels."
            )
        return images, torch.tensor(labels)

    def resize(self, images: list[Image.Image]) -> torch.Tensor:
        """Return images as uint8 of shape (B, 3, H, W), at the size of the model's input."""
        return self._process(images, do_rescale=False, do_normalize=False)

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """Return uint8 images (B, 3, H, W) as normalised float32 of the same shape, on the same device."""
        return self._process(images, do_resize=False, do_center_crop=False)

    def _process(self, images: list[Image.Image] | torch.Tensor, **leaves_out: bool) -> torch.Tensor:
        # Grouped by shape, images are processed together: twice as fast, to the same bits.
        return self.processor(images, disable_grouping=False, return_tensors="pt", **leaves_out)["pixel_values"]
