"""Stopping: what ends a run early: a loss that is not finite, or a signal, which ends it after the current step."""

import signal
import threading

import torch
from accelerate import Accelerator
from transformers.utils import logging

logger = logging.get_logger(__name__)

STOPPING = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """Records SIGTERM and SIGINT while its `with` block runs in the main thread; in other threads it does nothing.

    The first signal asks to stop after the current step; the second ends the program at once.

    Attributes:
        received (`int`): Number of the signal that was received; 0 for none.
    """

    def __init__(self):
        self.received = 0
        self._previous = {}

    def __enter__(self) -> "StopSignals":
        self.received = 0
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._receive) for number in STOPPING}
        return self

    def __exit__(self, *error) -> None:
        self._restore()

    def _receive(self, number: int, frame) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}


def exit_by(number: int, message: str) -> None:
    """End the program as a signal would: `KeyboardInterrupt` for SIGINT, else exit status 128 + `number`."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt(message)
    raise SystemExit(128 + number)


class StepCheck:
    """Says whether a step may be taken, and whether a signal asks to stop after it.

    Args:
        accelerator (`Accelerator`): Its processes all get the same answer.
        non_finite_loss (`str`, defaults to `"stop"`): What to do about a loss that is infinite or not a number:
            `"stop"` or `"skip"`.
        signals ([`StopSignals`], *optional*): Records the signals of this process.

    Attributes:
        signal (`int`): Number of the signal that one of the processes received before the last step; 0 for none.
    """

    def __init__(self, accelerator: Accelerator, non_finite_loss: str = "stop", signals: StopSignals | None = None):
        self.accelerator = accelerator
        self.non_finite_loss = non_finite_loss
        self.signals = signals or StopSignals()
        self.signal = 0
        self._is_finite = True

    def watch(self, loss: torch.Tensor) -> None:
        """Note whether a loss of the current step is finite."""
        self._is_finite = self._is_finite and bool(loss.isfinite())

    def accepts(self, step: str) -> bool:
        """Whether the step may be taken: whether all losses watched since the last call are finite, on all processes.

        Args:
            step (`str`): What to call the step in a message, such as `"step 3 of the wake of task-02"`.

        Raises:
            FloatingPointError: If not, and `non_finite_loss` is `"stop"`.
        """
        failed, self.signal = self._agree(int(not self._is_finite), self.signals.received)
        self._is_finite = True
        if failed and self.non_finite_loss == "stop":
            raise FloatingPointError(
                f"Expected a finite loss, but that of {step} is infinite or not a number. Nothing was changed by "
                "this step, and the last stage and checkpoint are intact. Set `max_grad_norm`, use `bf16` instead of "
                "`fp16`, or pass `non_finite_loss='skip'` to leave such steps out, and go on with "
                "`resume_from_checkpoint=True`; or lower `learning_rate`, and start the task "
                "again from the last stage."
            )
        if failed:
            logger.warning(f"{step} is left out: its loss is infinite or not a number.")
        return not failed

    def exit_if_asked(self) -> None:
        """End the program if a signal has asked to, on all processes alike."""
        (self.signal,) = self._agree(self.signals.received)
        self.exit()

    def exit(self) -> None:
        """End the program if `signal` says so."""
        if self.signal:
            message = f"Stopped by signal {self.signal}. Go on with `resume_from_checkpoint=True`."
            logger.warning(message)
            exit_by(self.signal, message)

    def _agree(self, *values: int) -> list[int]:
        """Return the largest of each value over all processes."""
        if self.accelerator.num_processes == 1:
            return list(values)
        mine = torch.tensor([values], device=self.accelerator.device)  # (1, N)
        return self.accelerator.gather(mine).amax(dim=0).tolist()
