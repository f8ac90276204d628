"""Callbacks: when a ContinualTrainer sleeps or naps, skips a step of wake, or stops."""

from collections.abc import Callable

from transformers import TrainerCallback

from .stopping import StepCheck
from .task_run import TaskRun


class SleepCallback(TrainerCallback):
    """Says when a network sleeps: at the end of each task's wake, and for naps in between.

    In [`ContinualTrainer`] it comes before all other callbacks, so that their `on_train_end` sees the network after
    its sleep. Without it (`trainer.remove_callback(SleepCallback)`) there is no sleep and no nap.

    Args:
        sleep (`Callable`): Called at the end of wake.
        nap (`Callable`): Called after every `sleep_every_n_steps` steps of wake, except after the last step.
    """

    def __init__(self, sleep: Callable[[], object], nap: Callable[[], object]):
        self._sleep, self._nap = sleep, nap

    def on_step_end(self, args, state, control, **kwargs):
        """Take a nap when it is due, but not after the last step, which is followed by the sleep."""
        every = args.sleep_every_n_steps
        if every and state.global_step % every == 0 and state.global_step < state.max_steps:
            self._nap()

    def on_train_end(self, args, state, control, **kwargs):
        """Sleep."""
        self._sleep()


class TaskCallback(TrainerCallback):
    """Adds to the wake of a task: the logs of earlier tasks, steps that are left out, and stops by a signal.

    Args:
        check ([`StepCheck`]): Says which steps are left out, and when to stop.
        run_of ([`Callable`]): Returns the run of the task that is trained.
    """

    def __init__(self, check: StepCheck, run_of: Callable[[], TaskRun]):
        self.check, self._run_of = check, run_of

    def on_train_begin(self, args, state, control, **kwargs):
        """Put the logs of earlier tasks before those of this one, whose state starts empty."""
        state.log_history[:0] = self._run_of().earlier_logs

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        """Take away the gradient of a step that may not be taken."""
        if not self.check.accepts(f"step {state.global_step + 1} of the wake of {self._run_of().stage}"):
            optimizer.zero_grad()

    def on_step_end(self, args, state, control, **kwargs):
        """Ask for a checkpoint if a signal has asked to stop."""
        control.should_save = control.should_save or self.check.signal > 0

    def on_save(self, args, state, control, **kwargs):
        """Stop if a signal has asked to, now that there is a checkpoint."""
        self.check.exit()
