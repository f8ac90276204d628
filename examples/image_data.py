"""The images that a script learns: scikit-learn's digits, a data set of the Hub, Parquet files or a folder."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, load_dataset
from PIL import Image as Pillow


@dataclass
class DataArguments:
    """What to learn, and in how many tasks."""

    dataset_name: str | None = field(
        default=None, metadata={"help": "Dataset on the Hub. Default: scikit-learn's digits."}
    )
    train_file: str | None = field(default=None, metadata={"help": "Parquet file of training images."})
    test_file: str | None = field(default=None, metadata={"help": "Parquet file of test images."})
    image_folder: str | None = field(
        default=None,
        metadata={"help": "Folder with one subfolder of images per class, or with such folders 'train' and 'test'."},
    )
    image_column: str | None = field(default=None, metadata={"help": "Column of images, if not the only one."})
    label_column: str | None = field(default=None, metadata={"help": "Column of labels, if not the only one."})
    num_tasks: int | None = field(default=None, metadata={"help": "Number of tasks. Default: 1, or 5 of the digits."})
    classes_per_task: list[int] | None = field(
        default=None, metadata={"help": "Number of classes of each task, instead of --num_tasks."}
    )

    @property
    def is_digits(self) -> bool:
        """Whether no data are named."""
        return not (self.dataset_name or self.train_file or self.image_folder)

    @property
    def columns(self) -> dict[str, str | None]:
        """The columns, as streams take them."""
        return {"image_column": self.image_column, "label_column": self.label_column}


def load_images(args: DataArguments) -> Dataset | DatasetDict:
    """Return the dataset that the arguments name."""
    if args.test_file and not args.train_file:
        raise ValueError("`--test_file` goes with `--train_file`, which is missing.")
    given = [name for name in ("dataset_name", "train_file", "image_folder") if getattr(args, name)]
    if len(given) > 1:
        raise ValueError(f"Expected one source of images, got {', '.join(f'`--{name}`' for name in given)}.")
    if args.dataset_name:
        return load_dataset(args.dataset_name)
    if args.image_folder:
        return load_folder(Path(args.image_folder))
    if args.train_file:
        files = {"train": args.train_file} | ({"test": args.test_file} if args.test_file else {})
        return load_dataset("parquet", data_files=files)
    return load_digits()


def load_digits() -> Dataset:
    """Return scikit-learn's digits: 1,797 grey images of 8 x 8 pixels, 10 classes."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8)
    features = Features({"image": Image(), "label": ClassLabel(names=[str(name) for name in digits.target_names])})
    return Dataset.from_dict({"image": list(images), "label": digits.target}, features=features)


def load_folder(folder: Path) -> DatasetDict:
    """Return the images of a folder with one subfolder per class, one class included.

    Raises:
        ValueError: If there is no such folder, a subfolder has no images, or images lie elsewhere.
    """
    if not folder.is_dir():
        raise ValueError(
            f"`--image_folder` must be a folder with one subfolder of images per class, but there is no folder "
            f"{str(folder)!r}."
        )
    known = Pillow.registered_extensions()
    if not any(path.suffix.lower() in known for path in folder.rglob("*")):
        raise ValueError(f"`--image_folder` must hold one subfolder of images per class, but {folder} has no images.")
    if any(folder.rglob("metadata.*")):  # labels are in a file
        return load_dataset("imagefolder", data_dir=str(folder))
    images = load_dataset("imagefolder", data_dir=str(folder), drop_labels=False)
    check_folder(Path(os.path.abspath(folder)), images)
    return images


def check_folder(folder: Path, images: DatasetDict) -> None:
    """Refuse a folder of which something would be left out, or taken for another class, without a word."""
    undecoded = [split.cast_column("image", Image(decode=False)) for split in images.values()]
    classes = {Path(cell["path"]).parent for split in undecoded for cell in split["image"]}
    homes = {path.parent for path in classes}  # the folder itself, or its folders of splits
    if not (homes == {folder} or {home.parent for home in homes} == {folder}) or homes & classes:
        odd = sorted(str(path) for path in classes if path == folder or path.parent in classes or len(homes) > 1)
        raise ValueError(
            f"`--image_folder` must hold one subfolder of images per class, or such folders 'train' and 'test', but "
            f"images lie in {(odd or sorted(map(str, classes)))[:5]}. Move them."
        )
    subfolders = {path for home in homes for path in home.iterdir() if path.is_dir() and path.name[0] not in "._"}
    if homes != {folder}:
        subfolders |= {path for path in folder.iterdir() if path.is_dir() and path.name[0] not in "._"} - homes
    if empty := sorted(str(path) for path in subfolders - classes):
        raise ValueError(
            f"`--image_folder` must hold images of every class, but none are read from {empty[:5]}. Put images there, "
            "or remove the folder; names such as 'train' and 'test' are those of splits."
        )
    read = {cell["path"] for split in undecoded for cell in split["image"]}
    known = Pillow.registered_extensions()
    here = {str(path) for path in folder.rglob("*") if path.suffix.lower() in known and path.name[0] not in "._"}
    if left_out := sorted(here - read):
        raise ValueError(
            f"`--image_folder` must hold images that are all read, but {len(left_out)} of {len(here)} are not, such "
            f"as {left_out[:3]}. Give files no names of splits, such as 'train_0.jpg', and move what lies elsewhere."
        )
