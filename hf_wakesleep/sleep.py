"""consolidate: one sleep, in which memories of all classes are replayed into the network."""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils.memory import should_reduce_batch_size
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import get_scheduler

from .augment import augment, seeded_generator
from .guard import StepGuard
from .images import ImageReader
from .memory import SemiParametricMemory
from .modeling_wakesleep import WakeSleepForImageClassification
from .shards import load_optimizer_state, optimizer_state, shards, whole_state
from .training_args import ContinualTrainingArguments

HOLD_OUT_EVERY = 10  # one memory in ten of each class sets the weight of recall and is not replayed


@dataclass(frozen=True)
class SleepReport:
    """What one sleep did.

    Args:
        steps (`int`): Optimizer steps.
        images (`int`): Memories replayed, repetitions included.
        seconds (`float`): Wall-clock time, recall included.
        loss (`float`): Mean total loss over the last tenth of the steps.
        cross_entropy (`float`): Its part that classifies.
        distillation (`float`): Its part that distils, before weighting.
        recall_weight (`float`): Weight of recall in predictions from now on.
        held_out_accuracy (`float`): Accuracy on the memories that were held out of this sleep (the wake of their task
            has seen their images); NaN without such.
    """

    steps: int
    images: int
    seconds: float
    loss: float
    cross_entropy: float
    distillation: float
    recall_weight: float
    held_out_accuracy: float

    def to_dict(self) -> dict[str, float]:
        """Return all fields."""
        return asdict(self)


def parameter_groups(
    model: WakeSleepForImageClassification, learning_rate: float, weight_decay: float, backbone_ratio: float
) -> list[dict]:
    """Return optimizer groups for the trainable parameters: backbone and head, with and without weight decay.

    Args:
        model ([`WakeSleepForImageClassification`]): The model.
        learning_rate (`float`): Learning rate of the head.
        weight_decay (`float`): Weight decay of everything with two dimensions or more.
        backbone_ratio (`float`): Learning rate of the backbone over that of the head.
    """
    groups = []
    for part, ratio in ((model.backbone, backbone_ratio), (model.head, 1.0)):
        trainable = [parameter for parameter in part.parameters() if parameter.requires_grad]
        for decay, is_matrix in ((weight_decay, True), (0.0, False)):
            members = [parameter for parameter in trainable if (parameter.ndim >= 2) == is_matrix]
            if members:
                groups.append({"params": members, "lr": learning_rate * ratio, "weight_decay": decay})
    return groups


def set_plasticity(model: WakeSleepForImageClassification, plasticity: str) -> None:
    """Make all weights trainable (`"full"`) or only the head's (`"head"`)."""
    model.requires_grad_(True)
    model.backbone.requires_grad_(plasticity == "full")


def held_out(labels: np.ndarray) -> np.ndarray:
    """Return which memories take no part in replay: every tenth of its class; bool of shape (M,).

    Args:
        labels (`numpy.ndarray` of shape `(M,)`): Sorted labels of all memories.
    """
    starts = np.flatnonzero(np.diff(labels, prepend=-1))
    rank = np.arange(len(labels)) - np.repeat(starts, np.diff(starts, append=len(labels)))  # (M,) within its class
    return rank % HOLD_OUT_EVERY == HOLD_OUT_EVERY - 1


def consolidate(
    model: torch.nn.Module,
    memory: SemiParametricMemory,
    reader: ImageReader,
    args: ContinualTrainingArguments,
    *,
    teacher: WakeSleepForImageClassification | None = None,
    task: int = 0,
    accelerator: Accelerator | None = None,
    guard: StepGuard | None = None,
    state: dict | None = None,
    on_step_end: Callable[["Replay"], object] | None = None,
) -> SleepReport:
    """Sleep: replay memories of all classes into the network, then bring recall up to date.

    The loss of a step is cross-entropy over all classes plus `distillation_weight` times the divergence from the
    teacher on the classes that the teacher knows (Hinton et al. 2015). The number of steps is fixed, so a sleep costs
    the same after every task.

    Args:
        model (`torch.nn.Module`): A [`WakeSleepForImageClassification`], bare or prepared by `accelerator`.
        memory ([`SemiParametricMemory`]): Read, never written.
        reader ([`ImageReader`]): Turns decoded images into the model's input.
        args ([`ContinualTrainingArguments`]): `sleep_*`, `distillation_*`, `augmentation`, `recall_weight`, ...
        teacher ([`WakeSleepForImageClassification`], *optional*): The network to stay close to.
        task (`int`, defaults to 0): Number of the task, from 0; part of the seed.
        accelerator (`Accelerator`, *optional*): Needed for several processes and for mixed precision.
        guard ([`StepGuard`], *optional*): Judges the loss of every step; made from `args` if missing.
        state (`dict`, *optional*): What [`Replay.state_dict`] returned at some step; with the weights of that step in
            `model`, sleep goes on from there and ends as if it had never stopped.
        on_step_end (`Callable`, *optional*): Called with the [`Replay`] after every step.

    Returns:
        [`SleepReport`].

    Raises:
        ValueError: If the memory is empty.
        FloatingPointError: If a loss is not finite and `non_finite_loss` is `"stop"`.
        MemoryError: If the device has not enough memory.
    """
    if len(memory) == 0:
        raise ValueError(
            "Sleep replays memories, but the memory is empty. Write a task first, or pass `sleep_steps=0`."
        )
    start = time.perf_counter()
    accelerator = accelerator or Accelerator(cpu=model.device.type == "cpu")
    bare = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    bare.__dict__.pop("_is_accelerate_prepared", None)  # a wrapper of wake knows only what wake trained
    guard = guard or StepGuard(args, accelerator)
    with _memory_advice("`sleep_batch_size`", args.sleep_batch_size):
        replay = Replay(bare, memory, reader, args, teacher=teacher, task=task, accelerator=accelerator, guard=guard)
        if state is not None:
            replay.load_state_dict(state)
        replay.run(on_step_end)
    with _memory_advice("`per_device_eval_batch_size`", args.per_device_eval_batch_size):
        accuracy = update_recall(bare, memory, reader, args)
    loss, cross_entropy, distillation = replay.mean_losses()
    return SleepReport(
        steps=args.sleep_steps,
        images=args.sleep_steps * args.sleep_batch_size,
        seconds=replay.seconds_before + time.perf_counter() - start,
        loss=loss,
        cross_entropy=cross_entropy,
        distillation=distillation,
        recall_weight=bare.config.recall_weight,
        held_out_accuracy=accuracy,
    )


def update_recall(
    model: WakeSleepForImageClassification,
    memory: SemiParametricMemory,
    reader: ImageReader,
    args: ContinualTrainingArguments,
) -> float:
    """Recompute recall's statistics of all classes from memory and set `recall_weight` on held-out memories.

    Statistics of a backbone that neither wake nor sleep trains stay as they are, those of the original images.

    Args:
        model ([`WakeSleepForImageClassification`]): Its statistics and `config.recall_weight` are replaced.
        memory ([`SemiParametricMemory`]): Read, never written.
        reader ([`ImageReader`]): Turns decoded images into the model's input.
        args ([`ContinualTrainingArguments`]): `recall_weight`, `per_device_eval_batch_size`.

    Returns:
        `float`: Accuracy of the mix on the held-out memories before they entered the statistics; NaN without such.
    """
    recall = model.head.recall
    is_frozen = args.wake_plasticity == args.sleep_plasticity == "head"
    originals = copy.deepcopy(recall.state_dict()) if is_frozen else None
    recall.reset()
    was_training = model.training
    model.eval()
    kept_back, accuracy = [], float("nan")
    is_held_out = held_out(memory.labels)
    batches = _batches(memory, args.per_device_eval_batch_size)
    for indices in tqdm(batches, desc="sleep: recall", disable=not args.shows_progress, leave=False):
        images, labels = memory.read(indices)
        with torch.no_grad():
            features = model.extract_features(reader.normalise(images).to(model.device)).float()
        labels, out = labels.to(model.device), torch.from_numpy(is_held_out[indices]).to(model.device)
        recall.update(features[~out], labels[~out])
        kept_back.append((features[out], labels[out]))
    features, labels = (torch.cat(parts) for parts in zip(*kept_back, strict=True))
    if len(labels):
        accuracy = _fit_recall_weight(model, features, labels, args.recall_weight)
        recall.update(features, labels)
    elif args.recall_weight is not None:
        model.config.recall_weight = args.recall_weight
    if originals is not None:
        recall.load_state_dict(originals)
    model.train(was_training)
    return accuracy


@torch.no_grad()
def _fit_recall_weight(
    model: WakeSleepForImageClassification, features: torch.Tensor, labels: torch.Tensor, fixed: float | None
) -> float:
    """Set the weight with the best likelihood on these features, or the fixed one; return the accuracy with it."""
    classifier = model.head.classifier(features.to(model.dtype))
    recalled = model.head.recall(features)
    scores = {}
    for weight in (fixed,) if fixed is not None else [step / 10 for step in range(11)]:
        model.config.recall_weight = weight
        scores[weight] = F.nll_loss(model.head.mix(classifier, recalled), labels).item()
    model.config.recall_weight = min(scores, key=scores.get)
    return (model.head.mix(classifier, recalled).argmax(dim=-1) == labels).float().mean().item()


class Replay:
    """The steps of one sleep, which can be left after any of them and gone on with.

    What is random in a step follows from the seed, the task, the step and the process, so it is no part of the state.

    Args:
        model ([`WakeSleepForImageClassification`]): The bare model; its weights change, and are saved by the caller.
        memory ([`SemiParametricMemory`]): Read, never written.
        reader ([`ImageReader`]): Turns decoded images into the model's input.
        args ([`ContinualTrainingArguments`]): `sleep_*`, `distillation_*`, `augmentation`, ...
        teacher ([`WakeSleepForImageClassification`], *optional*): The network to stay close to.
        task (`int`): Number of the task, from 0; part of the seed.
        accelerator (`Accelerator`): Spreads every batch over its processes.
        guard ([`StepGuard`]): Judges the loss of every step.

    Attributes:
        step (`int`): Steps done.
    """

    def __init__(self, model, memory, reader, args, *, teacher, task, accelerator, guard):
        self.memory, self.reader, self.args = memory, reader, args
        self.teacher, self.task, self.accelerator, self.guard = teacher, task, accelerator, guard
        self.bare = model
        set_plasticity(model, args.sleep_plasticity)
        trained = copy.deepcopy(model) if shards(accelerator) else model
        groups = parameter_groups(
            trained, args.sleep_learning_rate, args.weight_decay, args.backbone_learning_rate_ratio
        )
        self.model, self.optimizer = accelerator.prepare(trained, torch.optim.AdamW(groups, fused=True))
        self.scheduler = get_scheduler("cosine", self.optimizer, args.sleep_steps // 10, args.sleep_steps)
        self.step, self.seconds_before = 0, 0.0
        self._start = time.perf_counter()
        self._losses: list[tuple[float, float, float]] = []  # total, cross-entropy, distillation of the last steps
        self._replayed = memory.balanced(np.flatnonzero(~held_out(memory.labels)))

    def run(self, on_step_end: Callable[["Replay"], object] | None = None) -> None:
        """Do the steps that are left, and call `on_step_end` after each."""
        self.model.train()
        steps = range(self.step, self.args.sleep_steps)
        bar = tqdm(steps, desc="sleep", disable=not self.args.shows_progress, leave=False, initial=self.step)
        for _ in bar:
            self._take_step()
            bar.set_postfix(loss=f"{self._losses[-1][0]:.3f}", refresh=False)
            if on_step_end is not None:
                on_step_end(self)
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        self._settle()

    def mean_losses(self) -> list[float]:
        """Return total loss, cross-entropy and distillation, averaged over the last tenth of the steps."""
        finite = [losses for losses in self._losses if np.isfinite(losses[0])]
        return np.asarray(finite or [[np.nan] * 3]).mean(axis=0).tolist()

    def state_dict(self) -> dict:
        """Return all but the weights that the next step depends on, to be saved or copied before it is taken.

        The weights are in the bare model then. All processes call this together.
        """
        self._settle()
        return {
            "step": self.step,
            "optimizer": optimizer_state(self.model, self.optimizer),
            "scheduler": self.scheduler.state_dict(),
            "losses": [list(losses) for losses in self._losses],
            "seconds": self.seconds_before + time.perf_counter() - self._start,
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from what `state_dict` returned."""
        load_optimizer_state(self.model, self.optimizer, state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.step, self.seconds_before = state["step"], state["seconds"]
        self._losses = [tuple(losses) for losses in state["losses"]]

    def _settle(self) -> None:
        """Bring the weights into the bare model, where they are not already."""
        if shards(self.accelerator):
            self.bare.load_state_dict(whole_state(self.model))

    def _take_step(self) -> None:
        args, accelerator, step = self.args, self.accelerator, self.step
        torch.manual_seed(seeded_generator(args.seed, self.task, step, accelerator.process_index).initial_seed())
        generator = np.random.default_rng((args.seed, self.task, step))
        indices = self._replayed.positions(args.sleep_batch_size, generator)
        place = (self.task, step)
        pixel_values, labels = _batch(self.memory, indices, self.reader, args, place, accelerator)
        with accelerator.autocast():
            logits = self.model(pixel_values=pixel_values).classifier_logits.float()  # (B, C)
            cross_entropy = F.cross_entropy(logits, labels, label_smoothing=args.label_smoothing_factor)
            distillation = _distillation(logits, pixel_values, labels, self.teacher, args.distillation_temperature)
            loss = cross_entropy + args.distillation_weight * distillation
        share = len(labels) * accelerator.num_processes / args.sleep_batch_size  # 1 where every process has as many
        self.guard.watch(loss)
        if self.guard.accepts(f"step {step + 1} of the sleep after task {self.task + 1}"):
            accelerator.backward(loss * share)
            accelerator.unscale_gradients(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), args.max_grad_norm or float("inf"))
            self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        self.step += 1
        self._losses.append((loss.item(), cross_entropy.item(), distillation.item()))
        self._losses = self._losses[-max(1, args.sleep_steps // 10) :]


@contextmanager
def _memory_advice(name: str, value: int) -> Iterator[None]:
    """Say what to lower when a device has not enough memory for what the block does."""
    try:
        yield
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        raise MemoryError(
            f"Sleep does not fit into the memory of the device with {name} {value}. Lower it, pass "
            "`gradient_checkpointing=True`, `bf16=True` or `sleep_plasticity='head'`, and go on with "
            f"`resume_from_checkpoint=True`; the last stage is intact. ({str(error).splitlines()[0]})"
        ) from error


def _batch(memory, indices, reader, args, place: tuple[int, int], accelerator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return this process's share of some memories, augmented: (B, 3, H, W) and (B,)."""
    images, labels = memory.read(indices[accelerator.process_index :: accelerator.num_processes])
    pixel_values = reader.normalise(images).to(accelerator.device)
    generator = seeded_generator(args.seed, *place, accelerator.process_index)
    return augment(pixel_values, args.augmentation, args.crop_scale, generator), labels.to(accelerator.device)


def _distillation(logits, pixel_values, labels, teacher, temperature: float) -> torch.Tensor:
    """Return T^2 KL(teacher || model) over the classes of the teacher, averaged over the images of those classes.

    Images of other classes are left out: what a teacher says of a class that it does not know is not worth keeping.
    Zero without a teacher, or without an image that it knows.
    """
    if teacher is None:
        return logits.new_zeros(())
    with torch.no_grad():
        target = teacher(pixel_values=pixel_values).classifier_logits.float()  # (B, C_old)
    student = (logits[:, : target.shape[1]] / temperature).log_softmax(dim=-1)
    target = (target / temperature).log_softmax(dim=-1)
    divergence = F.kl_div(student, target, log_target=True, reduction="none").sum(dim=-1)  # (B,)
    known = (labels < target.shape[1]).to(divergence)  # (B,)
    return temperature**2 * (divergence * known).sum() / known.sum().clamp(min=1)


def snapshot(model: WakeSleepForImageClassification) -> WakeSleepForImageClassification:
    """Return a frozen copy of a model, in evaluation mode: a teacher."""
    return copy.deepcopy(model).requires_grad_(False).eval()


def _batches(memory: SemiParametricMemory, size: int) -> list[np.ndarray]:
    return np.split(np.arange(len(memory)), range(size, len(memory), size))
