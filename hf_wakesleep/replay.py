"""Replay: the steps of one sleep, which can be left after any of them and gone on with."""

import copy
import time
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import get_scheduler

from .augment import augment, seeded_generator
from .modeling_wakesleep import WakeSleepForImageClassification
from .plasticity import parameter_groups, set_plasticity
from .recall import held_out
from .shards import check_whole, load_optimizer_state, optimizer_state, shards, whole_state
from .synapses import FrozenEntries


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
        frozen ([`FrozenEntries`]): Holds what is frozen; `frozen.restore(model)` puts it into a model that was merged.
    """

    def __init__(self, model, memory, reader, args, *, teacher, task, accelerator, guard):
        self.memory, self.reader, self.args = memory, reader, args
        self.teacher, self.task, self.accelerator, self.guard = teacher, task, accelerator, guard
        self.bare = model
        if memory.synapses is not None:
            check_whole(accelerator)
        self.frozen = FrozenEntries(model, memory.synapses)
        set_plasticity(model, args.sleep_plasticity)
        trained = copy.deepcopy(model) if shards(accelerator) else model
        groups = parameter_groups(
            trained, args.sleep_learning_rate, args.weight_decay, args.backbone_learning_rate_ratio
        )
        optimizer = torch.optim.AdamW(groups, fused=True)
        self.frozen.attach(optimizer)
        self.model, self.optimizer = accelerator.prepare(trained, optimizer)
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
            distilled = distillation(logits, pixel_values, labels, self.teacher, args.distillation_temperature)
            loss = cross_entropy + args.distillation_weight * distilled
        share = len(labels) * accelerator.num_processes / args.sleep_batch_size  # 1 where every process has as many
        self.guard.watch(loss)
        if self.guard.accepts(f"step {step + 1} of the sleep after task {self.task + 1}"):
            accelerator.backward(loss * share)
            accelerator.unscale_gradients(self.optimizer)
            self.frozen.mask_gradients()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), args.max_grad_norm or float("inf"))
            self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        self.step += 1
        self._losses.append((loss.item(), cross_entropy.item(), distilled.item()))
        self._losses = self._losses[-max(1, args.sleep_steps // 10) :]


def _batch(memory, indices, reader, args, place: tuple[int, int], accelerator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return this process's share of some memories, augmented: (B, 3, H, W) and (B,)."""
    images, labels = memory.read(indices[accelerator.process_index :: accelerator.num_processes])
    pixel_values = reader.normalise(images).to(accelerator.device)
    generator = seeded_generator(args.seed, *place, accelerator.process_index)
    return augment(pixel_values, args.augmentation, args.crop_scale, generator), labels.to(accelerator.device)


def distillation(logits, pixel_values, labels, teacher, temperature: float) -> torch.Tensor:
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
