"""Reading images: modes, sizes, and errors that name the image."""

import functools
import io
import threading
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import datasets
import numpy as np
import pytest
import torch
from conftest import make_images
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from hf_wakesleep import WakeSleepConfig
from hf_wakesleep.data.images import ImageReader, TaskImages, make_image_processor, open_image, to_rgb


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


def test_an_unreadable_image_is_named_by_its_path_where_it_has_one():
    for cell in ({"bytes": None, "path": "/data/cats/7.jpg"}, {"bytes": b"broken", "path": "/data/cats/7.jpg"}):
        with pytest.raises(ValueError, match=r"image 3 of 'train' cannot be read \('/data/cats/7.jpg': "):
            open_image(cell, "image 3 of 'train'")


@pytest.fixture
def archive(tmp_path):
    """Return the path of a zip archive of `cats/7.png`, a red image of 4 x 3 pixels, and `cats/8.png`, no image."""
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as file:
        file.writestr("cats/7.png", encoded(Image.new("RGB", (4, 3), (255, 0, 0)))["bytes"])
        file.writestr("cats/8.png", b"broken")
    return tmp_path / "images.zip"


def test_images_in_archives_are_read_as_datasets_reads_them(archive, tmp_path):
    Image.new("RGB", (4, 3), (0, 255, 0)).save(tmp_path / "green.png")
    paths = [f"zip://cats/7.png::{archive}", str(tmp_path / "green.png")]
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a"])})
    dataset = Dataset.from_dict({"image": paths, "label": [0, 0]}, features=features)
    images = TaskImages(dataset, {"a": 0}, "some images")
    for row, image in enumerate(dataset["image"]):
        assert np.array_equal(np.asarray(images[row]["image"]), np.asarray(image))


def test_images_on_a_server_are_read(tmp_path):
    Image.new("RGB", (4, 3), (0, 255, 0)).save(tmp_path / "green.png")
    handler = functools.partial(QuietHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        image = open_image({"bytes": None, "path": f"{address}/green.png"}, "image 0")
        with pytest.raises(ValueError, match=rf"image 1 cannot be read \('{address}/none.png': "):
            open_image({"bytes": None, "path": f"{address}/none.png"}, "image 1")
        server.shutdown()
    assert np.asarray(image)[0, 0].tolist() == [0, 255, 0]


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.mark.parametrize(
    "path",
    [
        "zip://cats/9.png::{archive}",
        "zip://cats/8.png::{archive}",
        "zip://a.png::{archive}.none",
        "zip://a.png::{folder}/text",
        "tar://a.png::{folder}/text",
        "gzip://a.png::{folder}/text",
        "nothing://a.png",
        "http://127.0.0.1:1/a.png",
        "http://[broken/a.png",
        "http:///a.png",
        "s3://bucket/a.png",
        "hf://datasets/none",
        "hf://datasets/me/none/a.png",
    ],
)
def test_a_path_that_leads_nowhere_is_one_error_that_names_it(archive, tmp_path, monkeypatch, path):
    monkeypatch.setattr(datasets.config, "STREAMING_OPEN_MAX_RETRIES", 1)
    monkeypatch.setattr(datasets.config, "STREAMING_OPEN_RETRY_INTERVAL", 0)
    (tmp_path / "text").write_text("no archive")
    path = path.format(archive=archive, folder=tmp_path)
    with pytest.raises(ValueError, match="image 3 of 'train' cannot be read") as error:
        open_image({"bytes": None, "path": path}, "image 3 of 'train'")
    assert path in str(error.value)


def test_an_image_is_converted_to_the_mode_of_its_column_first():
    features = Features({"image": ImageFeature(mode="L"), "label": ClassLabel(names=["a"])})
    cell = encoded(Image.new("RGB", (4, 3), (255, 0, 0)))
    dataset = Dataset.from_dict({"image": [cell], "label": [0]}, features=features)
    assert np.asarray(TaskImages(dataset, {"a": 0}, "some images")[0]["image"])[0, 0].tolist() == [76, 76, 76]


def test_a_column_that_is_not_to_be_decoded_is_read_all_the_same():
    dataset = make_images([0], ["a"]).cast_column("image", ImageFeature(decode=False))
    assert TaskImages(dataset, {"a": 0}, "some images")[0]["image"].mode == "RGB"
