"""Reading images: modes, sizes, and errors that name the image."""

import io

import numpy as np
import pytest
import torch
from conftest import make_images
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from hf_wakesleep import WakeSleepConfig
from hf_wakesleep.images import ImageReader, TaskImages, make_image_processor, open_image, to_rgb


def encoded(image, file_format="PNG") -> dict:
    buffer = io.BytesIO()
    image.save(buffer, file_format)
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_mode_becomes_rgb(mode):
    image = open_image(encoded(Image.new("RGB", (4, 3), (255, 255, 255)).convert(mode)), "image 0")
    assert image.mode == "RGB"
    assert np.asarray(image).shape == (3, 4, 3)
    assert (np.asarray(image) == 255).all()


def test_an_image_stands_upright_as_its_exif_data_says():
    image = Image.new("RGB", (4, 3))
    exif = image.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    assert open_image({"bytes": buffer.getvalue(), "path": None}, "image 0").size == (3, 4)


def test_an_image_that_is_a_bomb_is_named(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ValueError, match="image 7 cannot be read"):
        open_image(encoded(Image.new("L", (64, 64))), "image 7")


def test_sixteen_bit_grey_keeps_its_upper_bits():
    grey = Image.fromarray(np.asarray([[0, 256 * 7 + 5, 65535]], dtype=np.uint16))
    assert np.asarray(to_rgb(grey))[0, :, 0].tolist() == [0, 7, 255]


def test_images_without_a_known_range_are_refused():
    with pytest.raises(ValueError, match="got mode 'F'"):
        to_rgb(Image.fromarray(np.zeros((2, 2), dtype=np.float32)))


@pytest.mark.parametrize(
    "cell",
    [
        {"bytes": b"no image", "path": None},
        {"bytes": b"", "path": None},
        {"bytes": encoded(Image.new("L", (64, 64)))["bytes"][:60], "path": None},
        {"bytes": None, "path": "/no/such/file.png"},
        {"bytes": None, "path": None},
        None,
    ],
)
def test_an_unreadable_image_is_named(cell):
    with pytest.raises(ValueError, match="image 3 of 'train' cannot be read"):
        open_image(cell, "image 3 of 'train'")


def test_images_of_any_shape_are_cropped_to_the_size_of_the_model():
    reader = ImageReader(make_image_processor(WakeSleepConfig(image_size=16)))
    images = [Image.new("RGB", size) for size in [(16, 16), (40, 20), (3, 200), (1, 1)]]
    assert reader.resize(images).shape == (4, 3, 16, 16)


def test_an_image_of_the_right_size_keeps_its_pixels():
    reader = ImageReader(make_image_processor(WakeSleepConfig(image_size=8)))
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert np.array_equal(reader.resize([Image.fromarray(pixels)])[0].permute(1, 2, 0).numpy(), pixels)


def test_read_and_normalise_give_what_the_processor_gives_in_one_step():
    config = WakeSleepConfig(image_size=16, image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.6, 0.7])
    processor = make_image_processor(config)
    reader = ImageReader(processor)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    batch = reader([{"image": image, "label": 1}])
    torch.testing.assert_close(batch["pixel_values"], processor([image], return_tensors="pt")["pixel_values"])
    assert batch["labels"].tolist() == [1]


def test_labels_become_positions_in_the_head():
    images = TaskImages(make_images([0, 1, 1], ["ape", "bee"]), {"bee": 4, "ape": 9}, "some images")
    assert [images[row]["label"] for row in range(len(images))] == [9, 4, 4]
    assert images[0]["image"].mode == "RGB"


def test_an_unreadable_image_in_a_dataset_is_named_by_row_and_dataset():
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a"])})
    cells = [encoded(Image.new("L", (4, 4))), {"bytes": b"broken", "path": None}]
    images = TaskImages(Dataset.from_dict({"image": cells, "label": [0, 0]}, features=features), {"a": 0}, "my images")
    assert images[0]["label"] == 0
    with pytest.raises(ValueError, match="image 1 of my images cannot be read"):
        images[1]
