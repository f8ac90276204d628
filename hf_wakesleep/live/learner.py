"""Learner: a classifier that learns a class from a few images in seconds, and sleeps when there is time."""

import copy
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import logging

from ..codecs.base import Codec
from ..codecs.registry import DEFAULT_CODEC, make_codec
from ..data.augmentation import seeded_generator
from ..data.image_inputs import Images, as_image, as_list, check_name, named_images
from ..data.images import ImageReader, make_image_processor
from ..data.streams import digest_labels
from ..learning.arguments import ContinualTrainingArguments
from ..learning.drift import drift_features, drift_positions, measured_positions, memory_features
from ..learning.lda import rank_error, set_lda_weight
from ..learning.recipe import (
    ENOUGH_LOSS,
    choose,
    facts_of,
    is_pretrained,
    label_smoothing,
    sleep_ratio,
    sleep_steps,
    with_choices,
)
from ..learning.sleep import SleepReport, consolidate, is_worse
from ..learning.sleep_config import SleepConfig
from ..learning.wake import WakePass
from ..memory.budget import parse_bytes
from ..memory.memory import SemiParametricMemory
from ..memory.synapses import count_entries
from ..model.modeling_wakesleep import WakeSleepForImageClassification
from ..reporting.history import History
from ..reporting.task_record import TaskRecord
from ..stages.hub import publish_stage
from ..stages.protocol import describe_run
from ..stages.stage import Stage, load_processor, load_stage_state, stage_folder, stage_name

logger = logging.get_logger(__name__)

IMAGES_LOOKED_AT = 16  # memories that tell the recipe what the images look like
COSTS_OF_SLEEP = ("steps", "images", "seconds")


class Learner:
    """A classifier with its memory and history, which is taught live; see [`Learner.from_pretrained`].

    Every change is made on a copy, which takes the place of what was there when it is complete. So a change that
    fails, or is interrupted, changes nothing, and [`Learner.undo`] takes the last one back.

    Args:
        model ([`WakeSleepForImageClassification`]): The model.
        history ([`History`]): What it has learned.
        memory ([`SemiParametricMemory`], *optional*): Its memory; without one it predicts, but cannot be taught.
        processing_class (`BaseImageProcessor`, *optional*): Image processor; made from the model's config if missing.

    Attributes:
        model ([`WakeSleepForImageClassification`]): The model as it is now.
        history ([`History`]): One record for each task of a run, and for each call of [`Learner.teach`].
        memory ([`SemiParametricMemory`], *optional*): The memory as it is now.
    """

    def __init__(
        self,
        model: WakeSleepForImageClassification,
        history: History,
        memory: SemiParametricMemory | None = None,
        processing_class: BaseImageProcessor | None = None,
    ):
        with tempfile.TemporaryDirectory() as unused:  # nothing is written there
            self._args = ContinualTrainingArguments(unused, report_to="none", seed=history.protocol.get("seed", 42))
        self.model = model.to(Accelerator().device).eval()
        self.history, self.memory = history, memory
        self._reader = ImageReader(processing_class or make_image_processor(model.config))
        self._before: tuple | None = None

    def __repr__(self) -> str:
        memories = "no memory" if self.memory is None else f"{len(self.memory):,} memories"
        return f"Learner({len(self.classes)} classes, {memories})"

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **kwargs) -> "Learner":
        """Load a stage from its folder or from the Hub.

        Args:
            name_or_path (`str` or `Path`): Folder of a stage, or name of a repository.
            kwargs: Passed on to `PreTrainedModel.from_pretrained` (`revision`, `token`, ...).

        Raises:
            OSError: If there is no such stage.
            ValueError: If its files are damaged, or of different stages.
        """
        model = WakeSleepForImageClassification.from_pretrained(name_or_path, **kwargs)
        token = kwargs.get("token")
        history, memory = load_stage_state(stage_folder(model, token), model)
        return cls(model, history, memory, load_processor(model, token))

    @classmethod
    def from_backbone(
        cls,
        name_or_path: str,
        *,
        image_size: int | None = None,
        memory_budget: str | int | None = None,
        codec: Codec | None = None,
        **kwargs,
    ) -> "Learner":
        """Make a learner that knows no class yet around a pretrained backbone.

        Args:
            name_or_path (`str`): Backbone of timm or transformers, on the Hub or in a folder.
            image_size (`int`, *optional*): Side in pixels of the images to take, if not the backbone's own.
            memory_budget (`str` or `int`, *optional*): Bytes for everything that is kept of the images, such as
                `"20MB"`; no limit if missing.
            codec ([`Codec`], *optional*): How memories are coded; the learned codec if there is a budget, else WebP.
            kwargs: Passed on to [`WakeSleepForImageClassification.from_backbone`].

        Raises:
            OSError: If the backbone cannot be found.
            ValueError: If it cannot be used, or `memory_budget` is not a size, or 0.
        """
        budget = parse_bytes(memory_budget)
        if budget == 0:
            raise ValueError(
                "A learner learns from what it remembers, but `memory_budget` is 0. Pass a size, or none."
            )
        model = WakeSleepForImageClassification.from_backbone(name_or_path, image_size=image_size, **kwargs)
        memory = SemiParametricMemory(codec or make_codec("learned" if budget else DEFAULT_CODEC), budget)
        return cls(model, History(), memory)

    @property
    def classes(self) -> list[str]:
        """Names of all classes, in the order of the scores of the model."""
        return list(self.model.config.classes)

    def teach(self, images: Images | Mapping[str, Images] | Dataset, label: str | None = None) -> None:
        """Learn new classes, or more images of known ones, in closed form, without gradients.

        Images are written into memory and into the statistics of LDA; the output units of new classes start from LDA.

        Args:
            images: Images of one class (with `label`), a mapping from classes to images, or a `Dataset` with an
                image and a label column. An image is a PIL image, a path or URL, an array of shape (H, W), (H, W, 3)
                or (H, W, 4), or a tensor of shape (1, H, W) or (3, H, W), uint8.
            label (`str`, *optional*): The class of `images`, if they are neither a mapping nor a `Dataset`.

        Raises:
            TypeError: If images or names are of another kind.
            ValueError: If there is no image, an image cannot be read, there is no memory, or the budget cannot hold
                a code of every class. Nothing is learned then.
        """
        start = time.perf_counter()
        if self.memory is None:
            raise ValueError(
                "This learner has no memory, so it would forget what it is taught. Load a stage with a memory, or "
                "start with `Learner.from_backbone`."
            )
        examples = named_images(images, label)
        model, history, memory = self._copies()
        number, names = len(history), [name for _, name in examples]
        new = [name for name in dict.fromkeys(names) if name not in model.config.label2id]
        first_new = len(model.config.classes)
        model.grow(new, seeded_generator(self._args.seed, number))
        memory.set_classes(model.config.classes, model.head.lda.num_bytes)
        if memory.synapses is not None:
            memory.set_synapses(memory.synapses.grow(count_entries(model)))
        labelled = [{"image": image, "label": model.config.label2id[name]} for image, name in examples]
        WakePass(model, self._reader, self._args, Accelerator()).write(labelled, memory, number)
        model.head.start_from_lda(first_new, label_smoothing(is_pretrained(model)).value)
        if not history.num_steps:
            set_lda_weight(model, 1.0)  # nothing has been trained, and both halves are LDA
        record = _record(history, names, new, model.config.label2id)
        record.wake_images, record.wake_seconds = len(examples), time.perf_counter() - start
        history.records.append(record)
        stream = {"kind": "taught", "dataset": None, "tasks": [each.fingerprint for each in history.records]}
        history.protocol = describe_run(model, self._args.seed, stream, memory)
        history.settings, history.chosen = {}, {}  # no argument had a part in it
        self._replace(model, history, memory)

    def predict(self, images: Images, top_k: int = 5) -> list[dict] | list[list[dict]]:
        """Return the most likely classes of images, as a pipeline of transformers does.

        Args:
            images: One image, or a list of images, of any kind that [`Learner.teach`] takes.
            top_k (`int`, defaults to 5): Number of classes to return; all if there are fewer.

        Returns:
            `list[dict]`: `{"label": str, "score": float}`, the best first; a list of such lists for a list of images.

        Raises:
            ValueError: If no class is known, `top_k` is not positive, or an image cannot be read.
        """
        if not self.classes:
            raise ValueError("No class is known yet. Teach one first.")
        if type(top_k) is not int or top_k < 1:
            raise ValueError(f"`top_k` must be a positive integer, got {top_k!r}.")
        group = as_list(images)
        opened = [as_image(image, f"image {position}") for position, image in enumerate(group)]
        found, size = [], self._args.per_device_eval_batch_size
        for start in range(0, len(opened), size):
            pixels = self._reader.resize(opened[start : start + size])
            pixel_values = self._reader.normalise(pixels).to(self.model.device)
            with torch.no_grad():
                scores, order = self.model(pixel_values).logits.exp().topk(min(top_k, len(self.classes)))  # (B, k)
            found += [
                [{"label": self.classes[index], "score": score} for score, index in zip(*row, strict=True)]
                for row in zip(scores.tolist(), order.tolist(), strict=True)
            ]
        return found if isinstance(images, Sequence) and not isinstance(images, str) else found[0]

    def sleep(self, config: SleepConfig | None = None) -> SleepReport:
        """Consolidate memories of all classes into the network: better, and slower, than teaching alone.

        Args:
            config ([`SleepConfig`], *optional*): How the sleep goes; chosen by the recipe if missing, its length by
                the images that were taught since the last sleep.

        Raises:
            ValueError: If there is nothing in memory.
        """
        if self.memory is None or not len(self.memory):
            raise ValueError("A sleep replays memories, but there are none. Teach a class first.")
        model, history, memory = self._copies()
        config, features = self._sleep_config(model, history, memory) if config is None else (config, None)
        report = consolidate(model, memory, config, reader=self._reader, features_before=features)
        record = history.records[-1]
        record.sleep = _add(report, record.sleep)
        record.sleep_images += report.images
        record.sleep_seconds += report.seconds
        self._replace(model, history, memory)
        before, after = report.held_out_accuracy_before, report.held_out_accuracy
        if is_worse(before, after, len(measured_positions(memory, config.held_out_share))):
            logger.warning(
                f"This sleep did harm: {after:.1%} of held-out memories are right after it, {before:.1%} before. "
                "`undo()` takes it back."
            )
        return report

    def rename(self, old: str, new: str) -> None:
        """Give a class another name.

        Args:
            old (`str`): Its name.
            new (`str`): Its new name.

        Raises:
            TypeError: If a name is no text.
            ValueError: If `old` is unknown or `new` is taken.
        """
        check_name(new)
        model, history, memory = self._copies()
        model.config.rename_class(old, new)
        if memory is not None:
            memory.rename(old, new)
        history.rename_class(old, new)
        self._replace(model, history, memory, keeps_answers=True)

    def forget(self, label: str) -> None:
        """Remove a class: its codes, its statistics, its output unit, and its name, also in the history.

        Weights of the backbone that a sleep has trained on it stay as they are, and so do older stages on disk.
        Statistics of all classes share one covariance: the share of this class is taken out as its memories show it,
        which is exact where all its images are remembered without loss.

        Args:
            label (`str`): The class.

        Raises:
            ValueError: If it is unknown or the only one, or weights are frozen.
        """
        model, history, memory = self._copies()
        own_covariance = None
        if memory is not None and label in memory.classes:
            own_covariance = self._own_covariance(model, memory, memory.classes.index(label))
        model.forget(label, own_covariance)
        if memory is not None:
            memory.forget(label, model.head.lda.num_bytes)
        history.rename_class(label, None)
        self._replace(model, history, memory)

    def _own_covariance(
        self, model: WakeSleepForImageClassification, memory: SemiParametricMemory, index: int
    ) -> torch.Tensor | None:
        """Return the covariance of features within a class, as its memories show it; `None` if it has one memory."""
        config = SleepConfig(shows_progress=False)
        positions = np.flatnonzero(memory.labels == index)
        if len(positions) < 2:
            return None
        found = memory_features(model, memory, self._reader, config, positions, "")
        return torch.cat([features for _, features, _ in found]).float().T.cov()

    def undo(self) -> None:
        """Take back the last change; a second call takes back nothing more.

        Raises:
            ValueError: If nothing has changed since the learner was made, or since the last undo.
        """
        if self._before is None:
            raise ValueError("There is no change to take back.")
        (self.model, self.history, self.memory), self._before = self._before, None

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a stage, from which `from_pretrained`, a pipeline and [`ContinualTrainer`] go on.

        Args:
            folder (`str` or `Path`): The stage appears there, or replaces an older one, only when it is complete.

        Raises:
            ValueError: If no class is known.
            OSError: If the disk is full or cannot be written to.
        """
        self._stage().save(folder)

    def push_to_hub(self, repo_id: str, tag: str | None = None, **kwargs) -> str:
        """Send a stage to the Hub as one commit, and tag it.

        Args:
            repo_id (`str`): Repository; created if missing.
            tag (`str`, *optional*): Name of the tag; `"task-03"` after three tasks if missing. A tag holds one stage:
                after a sleep or another change without teaching, pass one of your own.
            kwargs: Passed on to [`publish_stage`] (`private`, `revision`, `token`).

        Returns:
            `str`: Hash of the commit.

        Raises:
            ValueError: If no class is known.
            HfHubHTTPError, HTTPError, OSError: If the Hub cannot be reached or refuses the upload.
        """
        with tempfile.TemporaryDirectory() as folder:
            self._stage(repo_id).save(Path(folder) / "stage")
            return publish_stage(
                Path(folder) / "stage", repo_id, tag=tag or stage_name(len(self.history) - 1), **kwargs
            )

    def _stage(self, repo_id: str | None = None) -> Stage:
        if not self.classes:
            raise ValueError("No class is known yet, so there is nothing to save. Teach one first.")
        return Stage(self.model, self._reader.processor, self.history, self.memory, repo_id)

    def _copies(self) -> tuple[WakeSleepForImageClassification, History, SemiParametricMemory | None]:
        """Return copies of model, history and memory, whose codes are shared and never changed in place."""
        return copy.deepcopy(self.model), copy.deepcopy(self.history), copy.copy(self.memory)

    def _replace(
        self,
        model: WakeSleepForImageClassification,
        history: History,
        memory: SemiParametricMemory | None,
        keeps_answers: bool = False,
    ) -> None:
        """Take over a changed model, history and memory; what was measured is unknown now, unless answers are kept."""
        record = history.records[-1]
        record.lda_weight = model.config.lda_weight
        if memory is not None:
            record.memory_bytes, record.num_codes = memory.num_bytes.to_dict(), len(memory)
        if not keeps_answers:
            record.accuracy, record.evaluated_images = [math.nan] * len(history), []
            record.num_unevaluated, history.confusion = -1, []
        self._before = (self.model, self.history, self.memory)
        self.model, self.history, self.memory = model.eval(), history, memory

    def _sleep_config(
        self, model: WakeSleepForImageClassification, history: History, memory: SemiParametricMemory
    ) -> tuple[SleepConfig, torch.Tensor]:
        """Return what the recipe says of the sleep to come, and the features from which LDA is carried along."""
        rows = range(0, len(memory), max(1, len(memory) // IMAGES_LOOKED_AT))
        pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in memory.read(list(rows))[0]]
        args = with_choices(self._args, choose(self._args, facts_of(model, pictures)))
        counts = [record.num_train_images for record in history.records]
        awake = next((n for n, record in enumerate(reversed(history.records)) if record.sleep), len(counts))
        split = len(counts) - max(awake, 1)
        steps = sleep_steps(args, is_pretrained(model), sum(counts[split:]), counts[:split])
        config = replace(
            args.sleep_config(len(history) - 1),
            steps=steps,
            enough_loss=ENOUGH_LOSS,
            rng_key=(args.seed, len(history) - 1, history.num_steps),
        )
        features = drift_features(model, memory, self._reader, config)
        if is_pretrained(model):
            labels = torch.from_numpy(memory.labels[drift_positions(memory, config.held_out_share)])
            config = replace(config, backbone_learning_rate_ratio=sleep_ratio(rank_error(features, labels)))
        return config, features


def _record(history: History, names: list[str], new: list[str], label2id: dict[str, int]) -> TaskRecord:
    """Return what the history keeps of images that were taught, by the names of their classes."""
    name, classes = history.free_name(stage_name(len(history))), list(dict.fromkeys(names))
    labels = digest_labels(np.array([label2id[each] for each in names]))
    fingerprint = {"name": name, "classes": list(classes), "num_train": len(names), "num_eval": 0, "labels": labels}
    return TaskRecord(name, classes, new, num_train_images=len(names), num_eval_images=0, fingerprint=fingerprint)


def _add(report: SleepReport, before: dict) -> dict:
    """Return a report as the history keeps it, with what sleeps after the same task have cost before."""
    return {**report.to_dict(), **{name: getattr(report, name) + before.get(name, 0) for name in COSTS_OF_SLEEP}}
