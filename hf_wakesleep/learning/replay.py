"""Replay: the steps of one sleep, which can stop after any step and resume from there."""

import copy
import math
import time
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import get_scheduler

from ..data.augmentation import augment, seeded_generator
from ..memory.sampling import held_out_mask
from ..memory.synapses import FrozenEntries
from .distributed import check_unsharded, full_state, load_optimizer_state, optimizer_state, shards
from .lora import SLEEP, default_lora_config, factors, inject, load_factors, merge
from .plasticity import parameter_groups, set_plasticity
from .rem import is_rem, recombine
from .sleep_config import SleepConfig
from .stopping import StepCheck


class Replay:
    """The steps of one sleep, which can stop after any step and resume from there.

    All randomness of a step is seeded by `rng_key`, the step and the process, so the state holds no random numbers.

    Args:
        model ([`WakeSleepForImageClassification`]): The bare model; its weights change, and are saved by the caller.
        memory ([`SemiParametricMemory`]): Read, never written.
        reader ([`ImageReader`]): Turns decoded images into the model's input.
        config ([`SleepConfig`]): How many steps, what they train, how fast, ...
        accelerator (`Accelerator`): Spreads every batch over its processes.
        check ([`StepCheck`]): Says whether a step is taken or left out, by its loss.

    Attributes:
        step (`int`): Number of steps done.
        accuracy_before (`float`): Accuracy on the held-out memories before the sleep, for the report; NaN if unknown.
        frozen ([`FrozenEntries`]): The frozen weights and their values, which are put back after every step.
    """

    def __init__(self, model, memory, reader, config: SleepConfig, accelerator, check: StepCheck):
        self.memory, self.reader, self.config = memory, reader, config
        self.accelerator, self.check = accelerator, check
        self.bare = model
        if memory.synapses is not None:
            check_unsharded(accelerator)
        self.frozen = FrozenEntries(model, memory.synapses)
        set_plasticity(model, config.plasticity)
        if config.plasticity == "lora":
            inject(model, config.lora_config or default_lora_config(), accelerator, *config.rng_key, SLEEP)
        trained = copy.deepcopy(model) if shards(accelerator) else model
        groups = parameter_groups(
            trained, config.learning_rate, config.weight_decay, config.backbone_learning_rate_ratio
        )
        optimizer = torch.optim.AdamW(groups, betas=config.adam_betas, eps=config.adam_epsilon, fused=True)
        self.frozen.attach(optimizer)
        self.model, self.optimizer = accelerator.prepare(trained, optimizer)
        schedule = "constant_with_warmup" if config.average else "cosine"  # an average needs no falling rate
        self.scheduler = get_scheduler(schedule, self.optimizer, config.steps // 10, config.steps)
        self._average = WeightAverage(trained, config.average) if config.average else None
        self.step, self.seconds_before, self.accuracy_before = 0, 0.0, math.nan
        self._start = time.perf_counter()
        self._losses = {"nrem": [], "rem": []}  # of the last `steps // 10` steps of each phase
        self._unlogged = {"nrem": [], "rem": []}  # since the last log
        self._learning_rate = 0.0  # of the head, at the last step
        is_held_out = held_out_mask(memory.labels, memory.tasks, config.held_out_share)
        self._replayed = memory.balanced_sampler(np.flatnonzero(~is_held_out))

    def run(self, on_step_end: Callable[["Replay"], object] | None = None) -> None:
        """Take the remaining steps, and call `on_step_end` after each."""
        self.model.train()
        steps, shows = self.config.steps, self.config.shows_progress
        bar = tqdm(total=steps, desc="sleep", disable=not shows, leave=False, initial=self.step)
        while self.step < steps and not self._has_learned():
            self._take_step()
            bar.update()
            latest = {phase: f"{losses[-1]:.3f}" for phase, losses in self._losses.items() if losses}
            bar.set_postfix(latest, refresh=False)
            if on_step_end is not None:
                on_step_end(self)
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        self._settle()
        if self._average is not None:
            self._average.apply()
        merge(self.bare)
        self.frozen.restore()
        self._release()

    def _has_learned(self) -> bool:
        """Whether the loss says that there is nothing left to learn, on all processes alike."""
        window = max(1, self.config.steps // 10)
        if self.config.enough_loss is None or self.step % window or len(self._losses["nrem"]) < window:
            return False
        loss = torch.tensor([self.mean_loss()], device=self.accelerator.device)
        least = smallest_loss(self.config.label_smoothing, len(self.memory.classes))
        return self.accelerator.gather(loss).mean().item() - least <= self.config.enough_loss

    def _release(self) -> None:
        """Remove model and optimizer of this sleep from the accelerator, which would keep them until the next task."""
        for held, own in ((self.accelerator._models, self.model), (self.accelerator._optimizers, self.optimizer)):
            held[:] = [item for item in held if item is not own]

    def mean_loss(self, phase: str = "nrem") -> float:
        """Return the mean of the last `steps // 10` losses of a phase, without those that are not finite.

        NaN if there are none.
        """
        finite = [loss for loss in self._losses[phase] if np.isfinite(loss)]
        return float(np.mean(finite)) if finite else math.nan

    def take_logs(self) -> dict[str, float]:
        """Return mean losses since the last call, over all processes, and the learning rate of the head."""
        logs = {}
        for phase, name in (("nrem", "nrem_loss"), ("rem", "rem_loss")):
            losses = torch.tensor(self._unlogged[phase], device=self.accelerator.device)
            if len(losses):
                logs[name] = self.accelerator.gather(losses.mean()[None]).mean().item()
            self._unlogged[phase] = []
        return {**logs, "sleep_learning_rate": self._learning_rate}

    def state_dict(self) -> dict:
        """Return everything that the next step depends on, except the weights.

        The weights are in the bare model afterwards; only LoRA factors are part of what is returned. The tensors are
        not copied: save or copy them before the next step. All processes call this together.
        """
        self._settle()
        return {
            "step": self.step,
            "factors": factors(self.bare),
            "optimizer": optimizer_state(self.model, self.optimizer),
            "scheduler": self.scheduler.state_dict(),
            "average": {} if self._average is None else self._average.weights,
            "losses": {phase: list(losses) for phase, losses in self._losses.items()},
            "unlogged": {phase: list(losses) for phase, losses in self._unlogged.items()},
            "accuracy_before": self.accuracy_before,
            "seconds": self.seconds_before + time.perf_counter() - self._start,
        }

    def load_state_dict(self, state: dict) -> None:
        """Resume from what `state_dict` returned."""
        load_factors(self.bare, state["factors"])
        load_optimizer_state(self.model, self.optimizer, state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.step, self.seconds_before = state["step"], state["seconds"]
        self.accuracy_before = state["accuracy_before"]
        if self._average is not None:
            self._average.weights = {name: value.to(self.bare.device) for name, value in state["average"].items()}
        self._losses = {phase: list(losses) for phase, losses in state["losses"].items()}
        self._unlogged = {phase: list(losses) for phase, losses in state["unlogged"].items()}

    def _settle(self) -> None:
        """Copy the weights into the bare model if the trained one is sharded; else it holds them already."""
        if shards(self.accelerator):
            self.bare.load_state_dict(full_state(self.model))

    def _take_step(self) -> None:
        config, accelerator, step = self.config, self.accelerator, self.step
        torch.manual_seed(seeded_generator(*config.rng_key, step, accelerator.process_index).initial_seed())
        pixel_values, labels = self._batch()
        dreams = is_rem(step, config.steps, config.rem_share)
        targets = labels
        if dreams:
            pixel_values, targets = recombine(pixel_values, labels, len(self.memory.classes))
        with accelerator.autocast():
            logits = self.model(pixel_values=pixel_values).classifier_logits.float()  # (B, C)
            loss = F.cross_entropy(logits, targets, label_smoothing=config.label_smoothing)
        share = len(labels) * accelerator.num_processes / config.batch_size  # 1 if all processes have equally many
        self.check.watch(loss)
        if self.check.accepts(f"step {step + 1} of sleep {config.rng_key[1:]}"):
            accelerator.backward(loss * share)
            accelerator.unscale_gradients(self.optimizer)
            self.frozen.mask_gradients()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.max_grad_norm or float("inf"))
            self.optimizer.step()
            if self._average is not None:
                self._average.update(step)
        self._learning_rate = self.scheduler.get_last_lr()[-1]
        self.scheduler.step()
        self.optimizer.zero_grad()
        self.step += 1
        phase = "rem" if dreams else "nrem"
        losses = self._losses[phase]
        losses.append(loss.item())
        self._unlogged[phase].append(losses[-1])
        del losses[: -max(1, config.steps // 10)]

    def _batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return this process's share of the memories of a step, augmented: (B, 3, H, W) and (B,)."""
        config, accelerator, size = self.config, self.accelerator, self.config.batch_size
        positions = self._replayed.draw(size, config.rng_key, self.step * size)
        images, labels = self.memory.read(positions[accelerator.process_index :: accelerator.num_processes])
        pixel_values = self.reader.normalise(images.to(accelerator.device))
        generator = seeded_generator(*config.rng_key, self.step, accelerator.process_index)
        augmented = augment(pixel_values, config.augmentation, generator)
        return augmented, labels.to(accelerator.device)


def smallest_loss(label_smoothing: float, num_classes: int) -> float:
    """Return the least cross-entropy that smoothed labels allow: their entropy."""
    other = label_smoothing / num_classes
    shares = [1 - label_smoothing + other, *[other] * (num_classes - 1)]
    return -sum(share * math.log(share) for share in shares if share)


class WeightAverage:
    """Exponential moving average of the weights that learn, over the steps of a sleep.

    Early steps weigh less: the decay of step s, from 0, is at most (s + 1) / (s + 10). Weights that stay the same keep
    their value in the average, bit for bit.

    Args:
        model (`torch.nn.Module`): Whose trainable weights are averaged.
        decay (`float`): Weight of the average so far, in (0, 1).

    Attributes:
        weights (`dict[str, torch.Tensor]`): The average, by name; empty before the first step.
    """

    def __init__(self, model: torch.nn.Module, decay: float):
        self.decay, self.weights = decay, {}
        self._parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average with the weights after a step."""
        if not self.weights:
            self.weights = {name: value.clone() for name, value in self._parameters.items()}
        share = 1 - min(self.decay, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(self.weights.values()), list(self._parameters.values()), share)

    @torch.no_grad()
    def apply(self) -> None:
        """Replace the weights of the model by their average."""
        for name, value in self.weights.items():
            self._parameters[name].copy_(value)
