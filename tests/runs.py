"""Runs that are stopped, and whether two of them ended the same."""

import os
import signal

import torch
from conftest import equal_states
from transformers import TrainerCallback

from hf_wakesleep import ContinualTrainer, History
from hf_wakesleep.learning import replay

SECONDS = ("wake_seconds", "sleep_seconds")
STEP_ASLEEP = (replay, "augment")  # module and function that every step of a sleep calls once, before its loss


class StopError(RuntimeError):
    """Stands for a kill."""


class StopAt(TrainerCallback):
    """Raises at a step of a task, after the checkpoint of that step."""

    def __init__(self, trainer, task, step):
        self.trainer, self.task, self.step = trainer, task, step

    def on_step_begin(self, args, state, control, **kwargs):
        if self.trainer.task_number == self.task and state.global_step == self.step:
            raise StopError


def outcome(history: History) -> dict:
    """Return everything but the seconds."""
    content = history.to_dict()
    for record in content["records"]:
        for name in SECONDS:
            record.pop(name)
        record["sleep"].pop("seconds", None)
    return {key: value for key, value in content.items() if key not in SECONDS}


def assert_same_end(first: ContinualTrainer, second: ContinualTrainer):
    assert equal_states(first.model, second.model)
    assert outcome(first.history) == outcome(second.history)
    assert first.memory.num_bytes == second.memory.num_bytes
    both = (trainer.memory.read(range(len(trainer.memory))) for trainer in (first, second))
    for one, two in zip(*both, strict=True):
        assert torch.equal(one, two)


def stop_at(call: int, function):
    """Return a function that stops at one of its calls, counted from 1, and else does what it did."""
    calls = iter(range(1, 10**6))

    def stopping(*args, **kwargs):
        if next(calls) == call:
            raise StopError
        return function(*args, **kwargs)

    return stopping


def send_at(call: int, function, times: int = 1):
    """Return a function that sends SIGTERM to its process before one of its calls."""
    calls = iter(range(1, 10**6))

    def sending(*args, **kwargs):
        if next(calls) == call:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGTERM)
        return function(*args, **kwargs)

    return sending
