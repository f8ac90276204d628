"""One run of `cil.py`: a method learns a stream, and what is measured becomes one record."""

import datetime
import os
import platform
import shlex
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from cil_benchmarks import Benchmark
from cil_data import build_model, load_stream, make_processor, read_images, through_codec
from peers import PEERS, Recipe
from tqdm.auto import tqdm
from transformers import PrinterCallback, set_seed

import hf_wakesleep
from hf_wakesleep import ContinualTrainer, ContinualTrainingArguments
from hf_wakesleep.learning.recipe import sleep_steps
from hf_wakesleep.memory.budget import parse_bytes
from hf_wakesleep.reporting import metrics
from hf_wakesleep.reporting.metrics import confusion_counts

FIXED = {
    "report_to": "none",
    "save_strategy": "no",
    "per_device_eval_batch_size": 256,
}

UNLIMITED = ("cumulative", "joint")  # peers that see every image of all tasks so far for some epochs


@dataclass(frozen=True)
class Run:
    """What a run is: all that its numbers depend on beside the code.

    Args:
        benchmark (`str`): Name of the benchmark.
        method (`str`): `"wakesleep"` or a key of `PEERS`.
        label (`str`): What the table calls it.
        seed (`int`): Seed of class order, weights and batches.
        budget (`str`, *optional*): Size of memory; `None` for methods that know no budget.
        lr_scale (`float`): Factor of all learning rates.
        bf16 (`bool`): Whether to train in bfloat16.
        images_per_task (`int`, *optional*): Training images of a peer; by default what `wakesleep` sees.
        train_images (`int`, *optional*): Most training images of a class; as the benchmark says if missing.
        codec (`str`, *optional*): Name and quality of the codec whose images a peer learns from; its own if missing.
        hyper_parameters (`dict`): Those of the method.
    """

    benchmark: str
    method: str
    label: str
    seed: int
    budget: str | None
    lr_scale: float
    bf16: bool
    images_per_task: int | None
    train_images: int | None
    codec: str | None
    hyper_parameters: dict

    @property
    def name(self) -> str:
        """Name of the file of its record."""
        scale = "" if self.lr_scale == 1 else f"-lr{self.lr_scale:g}"
        return f"{self.label}-{self.budget or 'any'}{scale}-{self.seed}"


@dataclass
class Measured:
    """What a run measures after every task, and the settings that it ran with."""

    settings: dict

    accuracy_matrix: list[list[float]] = field(default_factory=list)
    num_eval_images: list[int] = field(default_factory=list)
    memory_bytes: list[int] = field(default_factory=list)
    images_per_task: list[int] = field(default_factory=list)
    seconds_per_task: list[float] = field(default_factory=list)
    class_accuracy: dict[str, float] = field(default_factory=dict)  # after the last task
    forward_transfer: float | None = None  # of `wakesleep`, if it measures it


@dataclass(frozen=True)
class Place:
    """Where runs find what they need: nothing here changes a number.

    Args:
        data_dir (`Path`, *optional*): Holds the folders of images.
        backbone (`str`, *optional*): Pretrained ViT.
        scratch (`Path`): Folder for the stages of `wakesleep`.
        shows_progress (`bool`): Whether to show progress bars.
    """

    data_dir: Path | None
    backbone: str | None
    scratch: Path
    shows_progress: bool


def peer_settings(benchmark: Benchmark, method: str, epochs: float) -> dict:
    """Return what a peer is trained with before rates are scaled; `epochs` only where it is not limited by images."""
    settings = {**benchmark.recipe, **PEERS[method].constants}
    return {**settings, "epochs": epochs} if method in UNLIMITED else settings


def images_of(benchmark: Benchmark, num_images: list[int]) -> int:
    """Return the images that `wakesleep` sees in the last of some tasks, awake and, unless it ends early, asleep.

    Args:
        benchmark ([`Benchmark`]): Which.
        num_images (`list[int]`): Training images of the tasks so far.
    """
    args = ContinualTrainingArguments("unused", report_to="none")
    *before, new = num_images
    steps = sleep_steps(args, benchmark.vit is None, new, before)
    return round(args.num_train_epochs * new) + steps * args.sleep_batch_size


def peer_recipe(benchmark: Benchmark, run: Run, num_classes: int) -> Recipe:
    """Return the recipe that all peers of a benchmark share."""
    fields = dict(benchmark.recipe)
    for name in ("learning_rate", "backbone_learning_rate"):
        fields[name] *= run.lr_scale
    return Recipe(
        **fields,
        from_scratch=benchmark.vit is not None,
        bf16=run.bf16,
        seed=run.seed,
        budget=parse_bytes(run.budget),
        num_tasks=benchmark.num_tasks,
        num_classes=num_classes,
        lr_scale=run.lr_scale,
    )


def learn_with_wakesleep(run: Run, benchmark: Benchmark, place: Place) -> Measured:
    """Learn a stream with the library."""
    stream = load_stream(benchmark, place.data_dir, run.seed, run.train_images)
    model = build_model(benchmark, place.backbone, run.seed)
    args = ContinualTrainingArguments(
        str(place.scratch / run.name),
        seed=run.seed,
        memory_budget=run.budget,
        bf16=run.bf16,
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=not place.shows_progress,
        **run.hyper_parameters,
    )
    trainer = ContinualTrainer(model=model, args=args, stream=stream, processing_class=make_processor(model.config))
    if not place.shows_progress:
        trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=True)
    own = {name: getattr(args, name) for name in ContinualTrainingArguments.__annotations__}
    records = trainer.history.records
    return Measured(
        settings={**own, **trainer.history.settings},
        accuracy_matrix=trainer.history.accuracy_matrix,
        num_eval_images=[record.num_eval_images for record in records],
        memory_bytes=[record.memory_bytes["total"] for record in records],
        images_per_task=[record.wake_images + record.sleep_images for record in records],
        seconds_per_task=[record.wake_seconds + record.sleep_seconds for record in records],
        class_accuracy=class_accuracy_of(trainer.history.confusion, trainer.history.classes),
        forward_transfer=trainer.history.to_dict()["forward_transfer"][-1],
    )


def learn_with_peer(run: Run, benchmark: Benchmark, place: Place) -> Measured:
    """Learn a stream with a peer; seconds are those of learning, without reading and testing."""
    stream = load_stream(benchmark, place.data_dir, run.seed, run.train_images)
    recipe = peer_recipe(benchmark, run, len(stream.classes))
    if run.method == "joint":
        stream = stream.joint()
    model = build_model(benchmark, place.backbone, run.seed)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    processor = make_processor(model.config)
    set_seed(run.seed)
    learner = PEERS[run.method](model, recipe, place.shows_progress)
    measured, tests, sizes = Measured(settings=learner.hyper_parameters(recipe)), [], []
    for task in tqdm(stream, desc=run.name, disable=not place.shows_progress, leave=False):
        learner.begin(list(task.new_classes))
        images, labels = read_images(task.train_dataset, processor, model.config.label2id)
        if run.codec is not None:
            images = through_codec(images, run.codec)
        tests.append(read_images(task.eval_dataset, processor, model.config.label2id))
        sizes.append(len(images))
        num_images = run.images_per_task or images_of(benchmark, sizes)
        if run.method in UNLIMITED:
            num_images = round(run.hyper_parameters["epochs"] * sum(sizes))
        start, before = time.perf_counter(), learner.images_seen
        learner.learn(images, labels, num_images)
        measured.seconds_per_task.append(time.perf_counter() - start)
        measured.images_per_task.append(learner.images_seen - before)
        measured.memory_bytes.append(learner.num_bytes)
        measured.num_eval_images.append(len(tests[-1][1]))
        answers = [learner.predict(images) for images, _ in tests]
        pairs = [(given == labels).float() for given, (_, labels) in zip(answers, tests, strict=True)]
        measured.accuracy_matrix.append([right.mean().item() for right in pairs])
    labels = torch.cat([labels for _, labels in tests]).numpy()
    confusion = confusion_counts(labels, torch.cat(answers).numpy())
    measured.class_accuracy = class_accuracy_of(confusion, list(stream.classes))
    return measured


def class_accuracy_of(confusion: list[list[int]], classes: list[str]) -> dict[str, float]:
    """Return the share of right answers by class, of those that have test images.

    Args:
        confusion (`list[list[int]]`): Rows of true class, answered class and number of images.
        classes (`list[str]`): Names of the classes, in the order of learning.
    """
    right, total = Counter(), Counter()
    for true, answer, count in confusion:
        total[true] += count
        right[true] += count * (true == answer)
    return {name: right[index] / total[index] for index, name in enumerate(classes) if total[index]}


def record_of(run: Run, benchmark: Benchmark, measured: Measured) -> dict:
    """Return what is written of a run, JSON-able: metrics after every task, costs, and where it ran."""
    matrix, sizes = measured.accuracy_matrix, measured.num_eval_images
    prefixes = [matrix[:count] for count in range(1, len(matrix) + 1)]
    seconds, images = sum(measured.seconds_per_task), sum(measured.images_per_task)
    return {
        "run": dict(vars(run)),
        "title": benchmark.title,
        "budget_bytes": parse_bytes(run.budget),
        **vars(measured),
        "pooled_accuracy": [metrics.pooled_accuracy(part, sizes[: len(part)]) for part in prefixes],
        "average_incremental_accuracy": metrics.average_incremental_accuracy(matrix),
        "forgetting": metrics.forgetting(matrix),
        "backward_transfer": metrics.backward_transfer(matrix),
        "learning_accuracy": metrics.learning_accuracy(matrix),
        "images": images,
        "seconds": seconds,
        "images_per_second": images / seconds if images else 0.0,
        "hardware": hardware(),
        "command": shlex.join(sys.argv),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            "hf_wakesleep": hf_wakesleep.__version__,
            "commit": commit(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def hardware() -> str:
    """Return processor, threads and, if there is one, the accelerator, in one line."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line for line in lines if line.startswith("model name")]
    name = names[0].split(":", 1)[1].strip() if names else platform.processor()
    device = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}, {torch.get_num_threads()} of {os.cpu_count()} threads{device}"


def commit() -> str:
    """Return the commit of this tree and `+` if files differ from it; nothing outside of a repository."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return done.stdout.strip()
