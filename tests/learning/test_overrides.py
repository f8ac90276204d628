"""The private methods of `Trainer` that are overridden: each has a reason, and exists there."""

import inspect

import pytest
from transformers import Trainer

from hf_wakesleep import ContinualTrainer

# Private methods can change in any version of transformers. There is no public hook for what these do.
REASONS = {
    "_get_output_dir": "checkpoints lie in a folder of their task, and are written to a temporary one first",
    "_load_from_checkpoint": "weights are loaded as `from_pretrained` does, also into shards, and factors of LoRA too",
    "_push_from_checkpoint": "stages are published, checkpoints are not",
    "_run_epoch": "a run that goes on inside a sleep has its wake behind it",
    "_save": "files hold plain weights without factors of LoRA, and no pickle of the arguments",
    "_save_checkpoint": "a checkpoint is there completely or not at all",
}


def overridden() -> set[str]:
    """Return the private methods that the classes between `Trainer` and `ContinualTrainer` override."""
    own = ContinualTrainer.__mro__[: ContinualTrainer.__mro__.index(Trainer)]
    names = {name for kind in own for name in vars(kind) if name.startswith("_") and not name.startswith("__")}
    return {name for name in names if hasattr(Trainer, name)}


def test_only_those_are_overridden_that_have_a_reason():
    assert overridden() == set(REASONS)


@pytest.mark.parametrize("name", sorted(REASONS))
def test_an_override_takes_what_trainer_passes(name):
    theirs = inspect.signature(getattr(Trainer, name)).parameters
    ours = inspect.signature(getattr(ContinualTrainer, name)).parameters
    takes_all = any(parameter.kind is parameter.VAR_POSITIONAL for parameter in ours.values())
    assert takes_all or list(ours) == list(theirs)
