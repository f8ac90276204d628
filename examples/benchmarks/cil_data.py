"""What all methods of `cil.py` start from: a stream, a model without classes, and images as tensors."""

from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from cil_benchmarks import Benchmark
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, concatenate_datasets, load_dataset
from timm.layers import set_fused_attn
from transformers import ViTConfig, ViTImageProcessor, set_seed
from transformers.image_utils import PILImageResampling

from hf_wakesleep import (
    ClassIncrementalStream,
    Codec,
    DomainIncrementalStream,
    TaskStream,
    WakeSleepConfig,
    WakeSleepForImageClassification,
)
from hf_wakesleep.codecs.registry import make_codec

LOOKS = {  # what an image of a domain is, by its name or the degrees that it is turned by
    **{angle: partial(PIL.Image.Image.rotate, angle=angle) for angle in (0, 90, 180, 270)},
    "plain": PIL.Image.Image.copy,
    "grey": PIL.ImageOps.grayscale,
    "inverted": PIL.ImageOps.invert,
    "turned": partial(PIL.Image.Image.rotate, angle=180),
}


def load_digits() -> Dataset:
    """Return scikit-learn's digits: 1,797 grey images of 8 x 8 pixels, 10 classes."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8)
    features = Features({"image": Image(), "label": ClassLabel(names=[str(name) for name in digits.target_names])})
    return Dataset.from_dict({"image": list(images), "label": digits.target}, features=features)


def domain_parts(dataset: Dataset, looks: tuple) -> list[Dataset]:
    """Return a part of a dataset for every look, with its images changed to it and a column that names it."""

    def change(batch, look):
        return {"image": list(map(LOOKS[look], batch["image"])), "domain": [look] * len(batch["image"])}

    return [
        dataset.shard(len(looks), index, contiguous=False).map(change, batched=True, fn_kwargs={"look": look})
        for index, look in enumerate(looks)
    ]


def first_of_classes(dataset: Dataset, most: tuple[int, ...]) -> Dataset:
    """Return the first images of every class, at most so many: the numbers go to the classes in turn."""
    labels = np.asarray(dataset["label"])
    rows = [np.flatnonzero(labels == label)[: most[label % len(most)]] for label in np.unique(labels)]
    return dataset.select(np.concatenate(rows))


def load_stream(benchmark: Benchmark, data_dir: Path | None, seed: int, train_images: int | None) -> TaskStream:
    """Return the tasks of a benchmark, in the order of a seed.

    Args:
        benchmark ([`Benchmark`]): Which.
        data_dir (`Path`, *optional*): Holds the folder of the benchmark.
        seed (`int`): Seed of the order of classes or domains.
        train_images (`int`, *optional*): Most training images of a class; as the benchmark says if missing.
    """
    if benchmark.folder is None:
        data = load_digits()
    elif data_dir is None:
        raise ValueError(f"Benchmark needs the folder {benchmark.folder!r} of images. Pass `--data_dir`.")
    else:
        files = {split: str(data_dir / benchmark.folder / f"{split}.parquet") for split in ("train", "test")}
        data = load_dataset("parquet", data_files=files)
        most = {"train": benchmark.train_images if train_images is None else (train_images,)}
        most["test"] = () if benchmark.test_images is None else (benchmark.test_images,)
        data = DatasetDict(
            {name: first_of_classes(data[name], most[name]) if most[name] else data[name] for name in most}
        )
    if benchmark.looks:
        parts = {split: concatenate_datasets(domain_parts(part, benchmark.looks)) for split, part in data.items()}
        return DomainIncrementalStream(DatasetDict(parts), seed=seed)
    return ClassIncrementalStream(data, num_tasks=benchmark.num_tasks, seed=seed)


def build_model(benchmark: Benchmark, backbone: str | None, seed: int) -> WakeSleepForImageClassification:
    """Return a model without classes, the same one for every method and seed."""
    set_seed(seed)
    is_fused = torch.cuda.is_available()  # on a CPU, torch's fused attention takes most of a backward pass
    if benchmark.vit is None:
        if backbone is None:
            raise ValueError("Benchmark needs a pretrained backbone. Pass `--backbone`.")
        set_fused_attn(is_fused)
        return WakeSleepForImageClassification.from_backbone(backbone, image_size=benchmark.image_size)
    vit = ViTConfig(image_size=benchmark.image_size, **benchmark.vit)
    config = WakeSleepConfig(backbone_config=vit, pooling="mean", image_size=benchmark.image_size)
    model = WakeSleepForImageClassification(config)
    model.backbone.set_attn_implementation("sdpa" if is_fused else "eager")
    return model


def make_processor(config: WakeSleepConfig) -> ViTImageProcessor:
    """Return the image processor of all methods: shorter side resized, centre crop, normalised."""
    return ViTImageProcessor(
        size={"shortest_edge": config.image_size},
        do_center_crop=True,
        crop_size={"height": config.image_size, "width": config.image_size},
        image_mean=config.image_mean,
        image_std=config.image_std,
        resample=PILImageResampling.BICUBIC,
        do_convert_rgb=True,
    )


def read_images(dataset: Dataset, processor, label2id: dict[str, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all images of a dataset (N, 3, H, W) uint8 and their index in the head (N,)."""
    names = dataset.features["label"].names
    labels = torch.tensor([label2id[names[label]] for label in dataset["label"]])
    parts = []
    for start in range(0, len(dataset), 256):
        images = [image.convert("RGB") for image in dataset[start : start + 256]["image"]]
        parts.append(processor(images, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"])
    return torch.cat(parts), labels


def codec_of(name: str) -> Codec:
    """Return a codec by its name and quality, such as `"learned:45"`."""
    codec_name, _, quality = name.partition(":")
    return make_codec(codec_name, **({"quality": int(quality)} if quality else {}))


def through_codec(images: torch.Tensor, name: str) -> torch.Tensor:
    """Return what a codec makes of images (N, 3, H, W) uint8, the same shape.

    Args:
        images (`torch.Tensor`): The images.
        name (`str`): Name and quality of the codec, such as `"learned:45"`.
    """
    codec = codec_of(name)
    codes = codec.encode(images)
    print(f"{name}: {sum(map(len, codes)) / len(codes):.0f} bytes an image", flush=True)
    return torch.stack(codec.decode(codes))
