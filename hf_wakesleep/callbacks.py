"""SleepCallback: says when the network sleeps."""

from transformers import TrainerCallback


class SleepCallback(TrainerCallback):
    """Sends a [`ContinualTrainer`] to sleep at the end of each task's wake.

    `trainer.remove_callback(SleepCallback)` keeps it awake for good.

    Args:
        trainer ([`ContinualTrainer`]): Whose network sleeps.
    """

    def __init__(self, trainer):
        self.trainer = trainer

    def on_train_end(self, args, state, control, **kwargs):
        """Sleep."""
        self.trainer.sleep()
