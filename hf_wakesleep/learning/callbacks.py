"""Callbacks: when a ContinualTrainer sleeps, and when it leaves out a step of wake or stops."""

from collections.abc import Callable

from transformers import TrainerCallback

from .stopping import StepCheck
from .task_run import TaskRun


class SleepCallback(TrainerCallback):
    """Says when a network sleeps: at the end of each task's wake, and for naps in between.

    [`ContinualTrainer`] has it before all other callbacks, so that these see, at the end of training, the network that
    has slept. `trainer.remove_callback(SleepCallback)` keeps it awake for good.

    Args:
        sleep (`Callable`): Called at the end of wake.
        nap (`Callable`): Called after every `sleep_every_n_steps` steps of wake, but for the last.
    """

    def __init__(self, sleep: Callable[[], object], nap: Callable[[], object]):
        self._sleep, self._nap = sleep, nap

    def on_step_end(self, args, state, control, **kwargs):
        """Take a nap when it is time; the last one is the sleep itself."""
        every = args.sleep_every_n_steps
        if every and state.global_step % every == 0 and state.global_step < state.max_steps:
            self._nap()

    def on_train_end(self, args, state, control, **kwargs):
        """Sleep."""
        self._sleep()


class TaskCallback(TrainerCallback):
    """Keeps the wake of a task in line with its run: logs of earlier tasks, steps that are left out, signals to stop.

    Args:
        check ([`StepCheck`]): Says which steps are left out, and when to stop.
        run_of ([`Callable`]): Returns the run of the task that is trained.
    """

    def __init__(self, check: StepCheck, run_of: Callable[[], TaskRun]):
        self.check, self._run_of = check, run_of

    def on_train_begin(self, args, state, control, **kwargs):
        """Put what was logged before the task in front of what its own state, which is new, will hold."""
        state.log_history[:0] = self._run_of().earlier_logs

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        """Take away the gradient of a step that may not be taken."""
        if not self.check.accepts(f"step {state.global_step + 1} of the wake of {self._run_of().stage}"):
            optimizer.zero_grad()

    def on_step_end(self, args, state, control, **kwargs):
        """Ask for a checkpoint if the program is to stop."""
        control.should_save = control.should_save or self.check.signal > 0

    def on_save(self, args, state, control, **kwargs):
        """Stop if asked to, now that there is a checkpoint."""
        self.check.exit()
