"""Callbacks: when a ContinualTrainer sleeps, and when it leaves out a step or stops."""

from transformers import TrainerCallback


class SleepCallback(TrainerCallback):
    """Sends a [`ContinualTrainer`] to sleep at the end of each task's wake, and to naps in between.

    It comes before all other callbacks, so that these see, at the end of training, the network that has slept.
    `trainer.remove_callback(SleepCallback)` keeps it awake for good.

    Args:
        trainer ([`ContinualTrainer`]): Whose network sleeps.
    """

    def __init__(self, trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        """Let the logs of earlier tasks come first."""
        self.trainer.prepend_logs(state)

    def on_step_end(self, args, state, control, **kwargs):
        """Take a nap when it is time; the last one is the sleep itself."""
        every = args.sleep_every_n_steps
        if every and state.global_step % every == 0 and state.global_step < state.max_steps:
            self.trainer.nap()

    def on_train_end(self, args, state, control, **kwargs):
        """Sleep."""
        self.trainer.sleep()


class GuardCallback(TrainerCallback):
    """Leaves out steps of wake whose loss is not finite, and stops, with a checkpoint, when a signal asks to.

    Args:
        trainer ([`ContinualTrainer`]): Whose steps are guarded.
    """

    def __init__(self, trainer):
        self.trainer = trainer

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        """Take away the gradient of a step that may not be taken."""
        if not self.trainer.guard.accepts(f"step {state.global_step + 1} of the wake of {self.trainer.task_name}"):
            optimizer.zero_grad()

    def on_step_end(self, args, state, control, **kwargs):
        """Ask for a checkpoint if the program is to stop."""
        control.should_save = control.should_save or self.trainer.guard.signal > 0

    def on_save(self, args, state, control, **kwargs):
        """Stop if asked to, now that there is a checkpoint."""
        self.trainer.guard.exit()
