"""Recipe: what a run does where its arguments do not say, chosen from backbone, stream and first images."""

import copy
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from ..codecs.base import Codec
from ..codecs.learned.codec import LearnedCodec
from ..data.images import unlabelled_images
from ..data.streams import Task
from ..memory.table import INDEX_BYTES
from ..model.modeling_wakesleep import WakeSleepForImageClassification
from .argument_checks import check_combinations, check_numbers
from .arguments import ContinualTrainingArguments

ENOUGH_LOSS = 0.01  # of a sleep with nothing left to learn, above what label smoothing leaves
QUALITIES = range(30, 91)  # of the learned codec
GREY = 4.0  # mean difference of the bands of a pixel, of 255, up to which an image is grey: files lose some bits
LOOKED_AT = 16  # images that tell what the others look like
REPLAYED_PRETRAINED = 12  # memories that a sleep replays for each new image
REPLAYED_SCRATCH = (8000, 3.6)  # the same from scratch: so many, and so many for each new image


@dataclass(frozen=True)
class Facts:
    """What the recipe looks at.

    Args:
        is_pretrained (`bool`): Whether the backbone has a name, so that it was loaded and not built.
        feature_dim (`int`): Its feature width D.
        side (`int`): Shorter side of the first images in pixels, or that of the model's input if it is smaller.
        is_coloured (`bool`): Whether one of these images is not grey.
    """

    is_pretrained: bool
    feature_dim: int
    side: int
    is_coloured: bool


@dataclass(frozen=True)
class Choice:
    """A value that the recipe chose.

    Args:
        value (`float`, `int` or `str`): The value.
        reason (`str`): Why, in a few words.
    """

    value: float | int | str
    reason: str


def is_pretrained(model: WakeSleepForImageClassification) -> bool:
    """Return whether a model has a backbone that was loaded by its name, and not built from scratch."""
    return bool(model.config.backbone_config._name_or_path)


def facts_of(model: WakeSleepForImageClassification, pictures: Sequence[Image.Image]) -> Facts:
    """Look at a model and the first images of a stream.

    Args:
        model ([`WakeSleepForImageClassification`]): The model, before any training of this run.
        pictures (`Sequence[PIL.Image.Image]`): Some of the first images of the stream.
    """
    pixels = [np.asarray(picture.convert("RGB"), dtype=np.float32) for picture in pictures]
    spans = [np.ptp(image, axis=-1).mean() for image in pixels]
    return Facts(
        is_pretrained=is_pretrained(model),
        feature_dim=model.head.feature_dim,
        side=min(model.config.image_size, *(min(picture.size) for picture in pictures)),
        is_coloured=max(spans) > GREY,
    )


def choose(args: ContinualTrainingArguments, facts: Facts) -> dict[str, Choice]:
    """Return what the recipe chooses for arguments that are `None`, by their names.

    docs/recipe.md says on what evidence each line stands.
    """
    if facts.is_pretrained:
        chosen = {
            "wake_plasticity": Choice("head", "a pretrained backbone learns asleep, among all classes"),
            "learning_rate": Choice(1e-3, "of the head"),
            "backbone_learning_rate_ratio": Choice(0.05, "asleep 1 to 4 times as much, the more classes overlap"),
        }
    else:
        rate = round(min(1e-3, 1e-3 * 128 / facts.feature_dim), 6)
        chosen = {
            "wake_plasticity": Choice("full-first", "all weights in the first task; then the backbone learns asleep"),
            "learning_rate": Choice(rate, f"1e-3 up to width 128, the less the wider; here {facts.feature_dim}"),
            "backbone_learning_rate_ratio": Choice(1.0, "a backbone from scratch learns as fast as the head"),
        }
    chosen["label_smoothing_factor"] = label_smoothing(facts.is_pretrained)
    chosen["augmentation"] = _augmentation(facts)
    return {name: choice for name, choice in chosen.items() if getattr(args, name) is None}


def label_smoothing(is_pretrained: bool) -> Choice:
    """Return what the recipe chooses for `label_smoothing_factor`."""
    if is_pretrained:
        return Choice(0.1, "few images of each class, which a pretrained backbone learns by heart")
    return Choice(0.0, "a backbone from scratch is unsure enough")


def _augmentation(facts: Facts) -> Choice:
    if facts.side < 16:
        return Choice("none", f"images of {facts.side} pixels have none to spare")
    if facts.is_coloured:
        return Choice("crop-flip", "coloured images are photographs as a rule, whose mirror image is as good")
    return Choice("crop", "grey images can be characters, whose mirror image is another")


def sleep_ratio(rank_error: float) -> float:
    """Return the learning rate of a pretrained backbone over that of the head in a sleep.

    The rate that is right for a backbone that knows enough starves one that has much to learn, and the other way round
    tears what is known. What tells the two apart is how well LDA on the features ranks the classes before the sleep.

    Args:
        rank_error (`float`): See [`rank_error`] of `lda.py`.
    """
    return round(0.05 * min(max(200 * rank_error, 1.0), 4.0), 4)


def sleep_steps(args: ContinualTrainingArguments, is_pretrained: bool, num_new: int, num_before: list[int]) -> int:
    """Return the steps of the sleep after a task, if `sleep_steps` is `None`.

    They follow the training images of the task, or the mean over all tasks so far if that is more: a small task after
    large ones would else be too short a sleep to keep what these have taught.

    Args:
        args ([`ContinualTrainingArguments`]): `sleep_batch_size`.
        is_pretrained (`bool`): Whether the backbone is pretrained.
        num_new (`int`): Training images of the task.
        num_before (`list[int]`): Those of the tasks before.
    """
    size = max(num_new, sum([*num_before, num_new]) / (len(num_before) + 1))
    base, each = (0, REPLAYED_PRETRAINED) if is_pretrained else REPLAYED_SCRATCH
    return max(1, round((base + each * size) / args.sleep_batch_size))


def with_choices(args: ContinualTrainingArguments, choices: dict[str, Choice]) -> ContinualTrainingArguments:
    """Return a copy of arguments with what was chosen for them.

    Raises:
        ValueError: If what is given does not go together with it.
    """
    args = copy.copy(args)
    for name, choice in choices.items():
        setattr(args, name, choice.value)
    check_numbers(args)
    check_combinations(args)
    return args


def code_quality(pixels: Sequence[torch.Tensor], num_images: int, free_bytes: int) -> int:
    """Return the best quality of the learned codec at which codes of all images of the stream fit, else the lowest.

    Args:
        pixels (`Sequence[torch.Tensor]`): Some of the images, uint8 of shape (3, H, W).
        num_images (`int`): Number of training images of all tasks of the stream.
        free_bytes (`int`): Bytes of the budget that are left for codes.
    """

    def is_too_large(quality: int) -> bool:
        sizes = [len(code) + INDEX_BYTES for code in LearnedCodec(quality).encode(pixels)]
        return sum(sizes) / len(sizes) * num_images > free_bytes

    return QUALITIES[max(0, bisect_left(QUALITIES, True, key=is_too_large) - 1)]


def some_of(task: Task) -> list[Image.Image]:
    """Return about `LOOKED_AT` training images of a task, evenly spread; all if there are fewer."""
    images = unlabelled_images(task)
    rows = range(0, len(images), max(1, len(images) // LOOKED_AT))
    return [images[row]["image"] for row in rows]


def first_task(tasks: list[Task | None], num_done: int) -> Task | None:
    """Return the first task that is still to be learned; `None` if there is none."""
    return next((task for task in tasks[num_done:] if task is not None), None)


def also_chosen(args: ContinualTrainingArguments, num_steps: int, codec: Codec | None) -> dict[str, Choice]:
    """Return what is chosen beside [`choose`], to be shown: the codec of a new memory, and the length of sleeps.

    Args:
        args ([`ContinualTrainingArguments`]): What is given is not returned.
        num_steps (`int`): Steps of the first sleep.
        codec ([`Codec`], *optional*): The codec of a new memory; `None` for one that goes on.
    """
    chosen = {}
    if args.sleep_steps is None:
        chosen["sleep_steps"] = Choice(num_steps, "in the first task; they follow the images of a task")
    if codec is not None and args.codec is None:
        chosen["codec"] = Choice(codec.name, "learned codes if there is a budget, else WebP")
    if codec is not None and args.codec_quality is None and "quality" in codec.settings():
        chosen["codec_quality"] = Choice(
            codec.settings()["quality"], "its default; with a budget the best at which all images fit"
        )
    return chosen


def choices_table(choices: dict[str, Choice]) -> str:
    """Return what was chosen, and why, as plain text."""
    names, values = (max(map(len, column)) for column in (choices, [str(choice.value) for choice in choices.values()]))
    lines = [f"  {name:<{names}}  {choice.value!s:<{values}}  {choice.reason}" for name, choice in choices.items()]
    return "\n".join(["Chosen for what the arguments leave open:", *lines])
