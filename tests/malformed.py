"""Malformed datasets and arguments, each with the one clear error or the exact result that it must give."""

import io
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from conftest import FAST, make_images
from datasets import ClassLabel, Dataset, DatasetDict, Features, Sequence, Value
from datasets import Image as ImageFeature
from PIL import Image

from hf_wakesleep import (
    ClassIncrementalStream,
    ContinualTrainingArguments,
    DomainIncrementalStream,
    RawCodec,
    SemiParametricMemory,
    TaskStream,
    WakeSleepConfig,
    WebPCodec,
)
from hf_wakesleep.codecs.base import add_checksum
from hf_wakesleep.data.images import ImageReader, TaskImages, make_image_processor, open_image
from hf_wakesleep.memory.budget import parse_bytes

NAN, INF = float("nan"), float("inf")


@dataclass(frozen=True)
class Case:
    """One input and what must come of it.

    Args:
        name (`str`): In words.
        run (`Callable`): Gives the input to the library; returns what came of it.
        message (`str`, *optional*): What the error must say; `None` if there must be none.
        result (`object`, *optional*): What must come of it otherwise.
    """

    name: str
    run: Callable[[], object]
    message: str | None = None
    result: object = None


def cases(folder: Path) -> list[Case]:
    """Return all cases; `folder` is where runs would write."""
    return [*_arguments(folder), *_sizes(), *_streams(), *_labels(), *_images(), *_configs(), *_codecs(), *_random()]


# Arguments of a run


def _arguments(folder: Path) -> Iterator[Case]:
    bad = (NAN, INF, -INF, -1, "x", None, [], True)
    numbers = (
        *("learning_rate", "num_train_epochs", "weight_decay"),
        "backbone_learning_rate_ratio",
    )
    chosen_if_none = ("learning_rate", "backbone_learning_rate_ratio", "sleep_steps")
    wholes = ("codec_fit_steps", "sleep_steps", "sleep_batch_size", "per_device_train_batch_size", "nap_steps")
    values = {
        **dict.fromkeys(numbers, bad),
        **dict.fromkeys(wholes, (*bad, 2.5, 2**40)),
        **{
            "lda_weight": (NAN, INF, -0.1, 1.1, "x", [], True),
            "codec_quality": (NAN, -1, 101, 5.5, "50", [], True),
        },
        **{
            name: ("", "FULL", 3, [], True)
            for name in ("codec", "wake_plasticity", "sleep_plasticity", "augmentation", "measure")
        },
    }
    for name, given in values.items():
        for value in given:
            if value is not None or name not in chosen_if_none:
                yield Case(f"{name}={value!r}", _args(folder, **{name: value}), f"`{name}` must be|`{name}`")
    for name, value in {"learning_rate": 0, "nap_steps": 0}.items():
        yield Case(f"{name}={value!r}", _args(folder, **{name: value}), f"`{name}` must be")
    for name, value in {"sleep_steps": 0, "lda_weight": 1, "codec_quality": 0}.items():
        yield Case(f"{name}={value!r}", _args(folder, name, **{name: value}), None, value)


def _args(folder: Path, wanted: str = "sleep_steps", **changes) -> Callable[[], object]:
    return lambda: getattr(ContinualTrainingArguments(str(folder / "out"), **{**FAST, **changes}), wanted)


def _sizes() -> Iterator[Case]:
    refused = (
        *("abc", "-1", "1e3MB", "", " ", "MB", "1 2", "1MB2", "1.5.5MB", "+5", "0x10", "1_000", "1,000", "inf", "nan"),
        *(
            "20 apples",
            "2G",
            "1TB",
            "1MBit",
            "٣MB",
            "９KB",
            "1e6",
            "1MB\n1",
            "0.1",
            "0.0000001MB",
            "9" * 400,
            "1." + "0" * 400,
        ),
        *(NAN, INF, -INF, -1, -0.5, 1e30, True, [], {}, b"20MB", (1,)),
    )
    for size in refused:
        yield Case(f"size {str(size)[:20]!r}", lambda size=size: parse_bytes(size), "Expected a size such as")
    right = {"0": 0, "00": 0, "1": 1, " 20 mb ": 20_000_000, "1.5KiB": 1536, "2GB": 2 * 10**9, "7kb": 7000, "0MB": 0}
    for size, expected in right.items():
        yield Case(f"size {size!r}", lambda size=size: parse_bytes(size), None, expected)


# Streams


def _splits(counts=(2, 2, 2), names=None) -> DatasetDict:
    names = names or [f"class {index}" for index in range(len(counts))]
    train = [label for label, count in enumerate(counts) for _ in range(count)]
    test = list(range(len(counts)))
    return DatasetDict(train=make_images(train, names, side=2, seed=1), test=make_images(test, names, side=2, seed=2))


def _stream(dataset=None, **arguments) -> Callable[[], object]:
    def run():
        stream = ClassIncrementalStream(_splits() if dataset is None else dataset, **{"num_tasks": 1, **arguments})
        return [list(task.classes) for task in stream]

    return run


def _streams() -> Iterator[Case]:
    for value in (0, -1, 4, 10**9, 1.0, 2.5, NAN, INF, "2", [], [1], True, False, b"1", {}):
        yield Case(f"num_tasks={value!r}", _stream(num_tasks=value), r"`num_tasks` must lie in 1\.\.3")
    for value in ([], [0, 3], [4], [1, 1], [-1, 4], "3", 3, [1.5, 1.5], ["1", "2"], [None], [NAN], {1: 2}, [[1, 2]]):
        arguments = {"num_tasks": None, "classes_per_task": value}
        yield Case(f"classes_per_task={value!r}", _stream(**arguments), "`classes_per_task` must")
    for value in (-1, 2**32, 2**70, 1.5, "7", NAN, [], True):
        yield Case(f"seed={value!r}", _stream(seed=value), "`seed` must")
    for value in (0, 1, -0.5, 1.5, NAN, INF, "0.5", None, []):
        yield Case(f"eval_fraction={value!r}", _stream(eval_fraction=value), "`eval_fraction` must")
    for value in ("", "nothing", "Label", "label ", "\u202elabel"):
        yield Case(f"label_column={value!r}", _stream(label_column=value), "Expected a column")
        yield Case(f"image_column={value!r}", _stream(image_column=value), "Expected a column")
    for value in (None, 5, "cifar100", [1], b"x", {"train": [1]}, {"train": None}, np.zeros(3), ()):
        run = _stream(dataset=value) if value is not None else lambda: ClassIncrementalStream(None, num_tasks=1)
        yield Case(f"dataset={type(value).__name__}", run, "Expected a `datasets.Dataset` or `DatasetDict`")
    yield Case("no train split", _stream(DatasetDict(test=_splits()["test"])), "Expected a split 'train'")
    yield Case("no split", _stream(DatasetDict()), "Expected a split 'train'")
    yield Case("no image to train on", _stream(_splits()["train"].select([])), "the split 'train' is empty")
    empty = DatasetDict(train=_splits()["train"], test=_splits()["test"].select([]))
    yield Case("no image to evaluate on", _stream(empty), "no evaluation image")
    yield Case("one image", _stream(_splits()["train"].select([0])), "no evaluation image")
    missing = DatasetDict(train=_splits()["train"].select([0, 1]), test=_splits()["test"])
    yield Case("classes missing in train", _stream(missing), "only have evaluation images")
    missing = DatasetDict(train=_splits()["train"], test=_splits()["test"].select([0, 1]))
    yield Case("a class missing in test", _stream(missing, num_tasks=3), "has no evaluation image")
    yield Case(
        "single-image classes", _stream(_splits((1, 1, 1)), num_tasks=3), None, [[f"class {i}"] for i in range(3)]
    )
    yield Case("500 tasks", lambda: len(_stream(_splits((1,) * 500), num_tasks=500)()), None, 500)
    yield Case("500 classes in one task", lambda: len(_stream(_splits((1,) * 500))()[0]), None, 500)
    for names in UNICODE:
        yield Case(f"names {names!r}"[:60], _stream(_splits((1, 1), names), num_tasks=2), None, [[n] for n in names])
    for names in (["", "b"], ["x" * 10_000, "b"]):
        yield Case(f"names {names!r}"[:60], _stream(_splits((1, 1), names)), "Expected names of classes")
    yield Case("domains of nothing", lambda: DomainIncrementalStream(_splits()["train"]), "Expected a column 'domain'")
    yield Case("splits of nothing", lambda: TaskStream.from_splits({}), "at least one task")
    for value in (None, 5, [1], {"a": 5}):
        yield Case(
            f"splits={value!r}", lambda value=value: TaskStream.from_splits(value), "Expected a `datasets.Dataset`"
        )


UNICODE = (
    ["日本", "Ägypten"],
    ["a/b", "../../x"],
    ["a\nb", "a\tb"],
    ["\u202eevil", "evil"],
    ["\x00", "\x1b[31m"],
    ["é", "e\u0301"],  # the same to the eye, and two classes
    ["A", "a"],
    [" a", "a"],
    ["👩‍🔬", "👩"],
    ["`|*_", "<script>"],
    ["None", "nan"],
    ["0", "00"],
    ["LABEL_1", "LABEL_0"],
    ["x" * 1_000, "y" * 999],
)


# Labels


def _labelled(labels, feature) -> Dataset:
    base = make_images([0] * len(labels), ["x"], side=2).remove_columns("label")
    return base.add_column("label", labels, feature=feature)


def _labels() -> Iterator[Case]:
    refused = [
        ([0.5, 1.0], Value("float32")),
        ([NAN, 1.0], Value("float64")),
        ([True, False], Value("bool")),
        ([[0], [1]], Sequence(Value("int64"))),
        ([["a"], []], Sequence(Value("string"))),
        ([{"a": 1}, {"a": 2}], {"a": Value("int64")}),
        ([b"a", b"b"], Value("binary")),
        ([None, None], Value("null")),
        ([0, 1], Value("float16")),
        ([0, 1], Value("date32")),
        ([0, 1], Value("timestamp[s]")),
    ]
    for labels, feature in refused:
        yield Case(
            f"labels {feature}", _lazy(labels, feature), "Expected labels of type ClassLabel, integer or string"
        )
    missing = [
        ([0, None], ClassLabel(names=["a", "b"])),
        ([-1, 1], ClassLabel(names=["a", "b"])),
        (["a", None], Value("string")),
        ([None, None], Value("string")),
        ([1, None], Value("int64")),
        ([None, 7], Value("uint8")),
    ]
    for labels, feature in missing:
        yield Case(f"labels {labels} of {feature}", _lazy(labels, feature), "Every row needs a label")
    right = [
        ([1, 0, 1, 0], ClassLabel(names=["b", "a"]), ["b", "a"]),
        ([10, 9, 10, 9], Value("int64"), ["9", "10"]),
        ([255, 0, 255, 0], Value("uint8"), ["0", "255"]),
        ([-(2**63), 2**63 - 1] * 2, Value("int64"), [str(-(2**63)), str(2**63 - 1)]),
        ([2**64 - 1, 0] * 2, Value("uint64"), ["0", str(2**64 - 1)]),
        (["b", "a"] * 2, Value("string"), ["a", "b"]),
        (["10", "9"] * 2, Value("string"), ["9", "10"]),
        (["日本", "a b"] * 2, Value("large_string"), ["a b", "日本"]),
        ([0, 0], ClassLabel(names=["only", "never"]), ["only"]),
    ]
    for labels, feature, classes in right:
        yield Case(f"labels {labels} of {feature}", _lazy(labels, feature), None, [classes])
    yield Case("empty names as text", _lazy(["", "a"], Value("string")), "Expected names of classes")
    yield Case("long names as text", _lazy(["x" * 2000, "a"], Value("string")), "Expected names of classes")
    order = DatasetDict(
        train=make_images([0, 1], ["a", "b"], side=2), test=make_images([0, 1], ["b", "a"], side=2, seed=1)
    )
    yield Case("classes in another order in test", lambda: _names_of_eval(order), None, ["b", "a"])


def _lazy(labels, feature) -> Callable[[], object]:
    return lambda: _stream(_labelled(labels, feature))()


def _names_of_eval(dataset: DatasetDict) -> list[str]:
    evaluation = ClassIncrementalStream(dataset, num_tasks=1)[0].eval_dataset
    return [evaluation.features["label"].names[label] for label in evaluation["label"]]


# Images


def _encode(image: Image.Image, file_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format)
    return buffer.getvalue()


def _read(content: bytes | None, path: str | None = None) -> Callable[[], object]:
    def run():
        features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a"])})
        rows = Dataset.from_dict({"image": [{"bytes": content, "path": path}], "label": [0]}, features=features)
        images = TaskImages(rows, {"a": 0}, "the images")
        reader = ImageReader(make_image_processor(WakeSleepConfig(image_size=8)))
        return tuple(reader.read([images[0]])[0].shape), images[0]["image"].mode

    return run


def _images() -> Iterator[Case]:
    right = ((1, 3, 8, 8), "RGB")
    white = Image.new("RGB", (9, 7), (255, 255, 255))
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        image = Image.fromarray(np.full((7, 9), 65535, np.uint16)) if mode == "I;16" else white.convert(mode)
        yield Case(f"mode {mode}", _read(_encode(image)), None, right)
    for mode, file_format in (("CMYK", "TIFF"), ("CMYK", "JPEG"), ("YCbCr", "JPEG"), ("LAB", "TIFF"), ("RGB", "BMP")):
        yield Case(f"mode {mode} in {file_format}", _read(_encode(white.convert(mode), file_format)), None, right)
    for mode in ("F", "I"):
        yield Case(f"mode {mode}", _read(_encode(white.convert("L").convert(mode), "TIFF")), "known range")
    for size in ((1, 1), (1, 2), (1, 256), (256, 1), (8, 8), (3000, 2000), (7, 1000)):
        yield Case(f"size {size}", _read(_encode(Image.new("L", size))), None, right)
    for size in ((1, 257), (257, 1), (1, 60_000), (60_000, 2)):
        yield Case(f"size {size}", _read(_encode(Image.new("L", size))), "image 0 of the images cannot be read.*strip")
    for content in (
        b"",
        b"\0",
        b"no image",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        b"RIFF\0\0\0\0WEBPVP8 ",
        b"BM",
        b"\xff\xd8",
    ):
        yield Case(f"bytes {content!r}", _read(content), "image 0 of the images cannot be read")
    for path in ("/no/such/file.png", "", "\0", "../" * 50, "/", "x" * 5_000):
        yield Case(f"path {path[:20]!r}", _read(None, path), "image 0 of the images cannot be read")
    for cell in (
        None,
        {},
        [],
        5,
        {"bytes": None},
        {"path": None},
        {"bytes": 5, "path": None},
        {"bytes": "x", "path": None},
    ):
        yield Case(
            f"cell {cell!r}", lambda cell=cell: open_image(cell, "image 3 of 'x'"), "image 3 of 'x' cannot be read"
        )
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    for file_format in ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF"):
        content = _encode(noise, file_format)
        for part in (0.05, 0.2, 0.5):
            cut = content[: int(part * len(content))]
            yield Case(f"{file_format} cut at {part}", _read(cut), "image 0 of the images cannot be read")
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a"])})
    none = Dataset.from_dict({"image": [None, None], "label": [0, 0]}, features=features)
    yield Case("no images", _stream(none), "Every row needs an image, but 2 of 2")
    arrays = Dataset.from_dict({"image": [[[0, 1]], [[2, 3]]], "label": [0, 0]})
    yield Case("arrays for images", _stream(arrays), "Expected one column of images")
    yield Case("arrays for images, by name", _stream(arrays, image_column="image"), "Expected one image a row")


# Configurations and codecs


def _configs() -> Iterator[Case]:
    fields = {
        "image_size": (0, -1, 1.5, "8", None, 10**9, [8], True, NAN),
        "lda_weight": (-0.1, 1.1, NAN, "x", None, [], True),
        "lda_shrinkage": (0, 1.1, NAN, "x"),
        "pooling": ("max", 5, []),
        "feature_dim": (0, -1, 1.5, "8", True, 10**9, []),
        "classifier": ("svm", None, 5, {}),
        "image_mean": ([], [0.5], "abc", None, [NAN] * 3, ["a"] * 3, 5),
        "image_std": ([], [0, 1, 1], [-1] * 3, [INF] * 3, None, 5),
        "id2label": ({1: "a"}, {"x": "a"}, {0: ""}, {0: 5}, {0: "a", 1: "a"}, ["a"], "ab", {0: "\ud800"}, {-1: "a"}),
        "backbone_config": ("vit", 5, [], {"model_type": "no"}, {"model_type": "vit", "hidden_size": -1}),
        "num_labels": (5, -1, "x"),
    }
    words = {"id2label": "names of classes|`id2label`"}
    for name, values in fields.items():
        for value in values:
            run = lambda name=name, value=value: WakeSleepConfig(**{name: value})  # noqa: E731
            yield Case(f"config {name}={str(value)[:30]!r}", run, words.get(name, f"`{name}|`image_mean` and"))
    for names in (["a", "a"], [""], [5], [None], ["\ud800"], ["x" * 1001], ["known"]):
        run = lambda names=names: WakeSleepConfig(id2label={0: "known"}).add_classes(names)  # noqa: E731
        yield Case(f"add classes {str(names)[:30]}", run, "New classes must be new|Expected names of classes")
    yield Case("classes in order", lambda: WakeSleepConfig(id2label={"1": "b", "0": "a"}).classes, None, ["a", "b"])


def _codecs() -> Iterator[Case]:
    for value in (-1, 101, 5.5, "50", None, True, NAN, []):
        yield Case(f"webp quality {value!r}", lambda value=value: WebPCodec(value), "`quality` of WebP must")
    for codec in (WebPCodec(), RawCodec()):
        for code in (
            b"",
            b"\0",
            b"x" * 29,
            b"x" * 500,
            b"RIFF" + bytes(40),
            b"\x03\xff\xff\xff\xff",
            b"\x02\x01\0\x01\0\0",
        ):
            for content in (code, add_checksum(code)):
                run = lambda codec=codec, content=content: codec.decode([content])  # noqa: E731
                yield Case(f"{codec.name} code {content[:9]!r}", run, "Expected a")
    memory = SemiParametricMemory(RawCodec(), None, ["a"])
    for labels in ([1], [-1], [0, 0], [], [2**40]):
        run = lambda labels=labels: memory.write([b"x"], labels, task=0)  # noqa: E731
        yield Case(f"memory labels {labels}", run, r"Expected one label in 0\.\.0 per code")


# Random bytes for images and codes


def _random() -> Iterator[Case]:
    """Yield damaged images and codes: read to their right shape where the damage left them readable, else refused."""
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    codec = WebPCodec()
    for seed in range(120):
        generator = random.Random(seed)
        file_format = generator.choice(("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF"))
        content = bytearray(_encode(noise, file_format))
        for _ in range(generator.choice((1, 4, 30))):
            content[generator.randrange(len(content))] = generator.randrange(256)
        yield Case(
            f"{file_format} with noise {seed}", _either(_read(bytes(content)), "cannot be read|must be positive")
        )
        code = bytearray(_encode(noise, "WEBP"))
        code[generator.randrange(len(code))] = generator.randrange(256)
        yield Case(
            f"code with noise {seed}",
            _either(lambda code=code: codec.decode([add_checksum(bytes(code))]), "Expected a"),
        )


def _either(run: Callable[[], object], message: str) -> Callable[[], object]:
    """Return a function that gives `None` where `run` gives a result or an error with that message."""

    def checked():
        try:
            run()
        except ValueError as error:
            if not any(part in str(error) for part in message.split("|")):
                raise

    return checked


def verdict(case: Case) -> str | None:
    """Run a case and return what is wrong with what came of it; `None` if it is as it must be."""
    try:
        result = case.run()
    except (ValueError, TypeError) as error:
        text = str(error)
        if isinstance(error, TypeError) and not text.startswith("Expected"):
            return f"{case.name}: {error!r}"
        is_right = case.message is not None and re.search(case.message, text, re.DOTALL) and len(text) < 2_000
        return None if is_right else f"{case.name}: expected {case.message or case.result!r}, got {text[:300]!r}"
    except Exception as error:  # noqa: BLE001  a crash is what is looked for, of any kind
        return f"{case.name}: {type(error).__name__}: {str(error)[:200]}"
    is_right = case.message is None and result == case.result
    return None if is_right else f"{case.name}: expected {case.message or case.result!r}, got {str(result)[:200]}"
