"""StepGuard: what all processes agree on at every step, awake and asleep, before it changes the weights."""

import torch
from accelerate import Accelerator
from transformers.utils import logging

from .arguments import ContinualTrainingArguments
from .signals import StopSignals, exit_by

logger = logging.get_logger(__name__)


class StepGuard:
    """Says whether a step may be taken, and whether a signal asks to stop after it.

    Args:
        args ([`ContinualTrainingArguments`]): `non_finite_loss`.
        accelerator (`Accelerator`): Its processes must all answer alike.
        signals ([`StopSignals`], *optional*): Notes the signals of this process.

    Attributes:
        signal (`int`): Number of the signal that one of the processes received before the last step; 0 for none.
    """

    def __init__(self, args: ContinualTrainingArguments, accelerator: Accelerator, signals: StopSignals | None = None):
        self.args = args
        self.accelerator = accelerator
        self.signals = signals or StopSignals()
        self.signal = 0
        self._is_finite = True

    def watch(self, loss: torch.Tensor) -> None:
        """Take note of a loss of the step at hand."""
        self._is_finite = self._is_finite and bool(loss.isfinite())

    def accepts(self, step: str) -> bool:
        """Whether the losses that were watched since the last call allow this step, on all processes alike.

        Args:
            step (`str`): What to call the step in a message, such as `"step 3 of the wake of task-02"`.

        Raises:
            FloatingPointError: If not, and `non_finite_loss` is `"stop"`.
        """
        failed, self.signal = self._agree(int(not self._is_finite), self.signals.received)
        self._is_finite = True
        if failed and self.args.non_finite_loss == "stop":
            raise FloatingPointError(
                f"Expected a finite loss, but that of {step} is infinite or not a number. Nothing was changed by "
                "this step, and the last stage and checkpoint are intact. Set `max_grad_norm`, use `bf16` instead of "
                "`fp16`, or pass `non_finite_loss='skip'` to leave such steps out, and go on with "
                "`resume_from_checkpoint=True`; or lower `learning_rate` or `sleep_learning_rate`, and start the task "
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
