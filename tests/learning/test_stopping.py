"""StepCheck: losses that are not finite, awake and asleep; and what one does when a device has not enough memory."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from conftest import equal_states
from runs import STEP_ASLEEP, assert_same_end
from transformers import TrainerCallback

from hf_wakesleep import WakeSleepForImageClassification, consolidate
from hf_wakesleep.learning.drift import drift_features
from hf_wakesleep.stages.stage import find_stages

SETTINGS = {"num_train_epochs": 2, "sleep_steps": 10, "save_strategy": "steps", "save_steps": 4}


class _Break(TrainerCallback):
    """Makes the loss of one step of wake NaN: a weight that is used is NaN while the step lasts."""

    def __init__(self, trainer, step):
        self.trainer, self.step, self.weight, self.states = trainer, step, None, []

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if self.trainer.task_number == 1 and state.global_step == self.step:
            self.weight = model.head.classifier.weight.detach().clone()
            model.head.classifier.weight.data[0, 0] = math.nan

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if self.weight is not None:
            model.head.classifier.weight.data.copy_(self.weight)
            self.states.append({name: value.clone() for name, value in model.state_dict().items()})
            self.weight = None

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step + 1 and self.states:
            self.states.append({name: value.clone() for name, value in model.state_dict().items()})


def test_a_loss_awake_that_is_not_finite_stops_with_advice_and_the_run_goes_on(make_trainer, tmp_path):
    whole = make_trainer(output_dir="whole", **SETTINGS)
    whole.train()
    stopped = make_trainer(output_dir="stopped", **SETTINGS)
    stopped.add_callback(_Break(stopped, 6))
    with pytest.raises(FloatingPointError, match=r"step 7 of the wake of task-02 .* lower `learning_rate`"):
        stopped.train()
    (stage,) = find_stages(tmp_path / "stopped")
    WakeSleepForImageClassification.from_pretrained(stage)
    resumed = make_trainer(output_dir="stopped", **SETTINGS)
    resumed.train(resume_from_checkpoint=True)
    assert_same_end(whole, resumed)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_awake_that_is_not_finite_can_be_skipped(make_trainer, accumulation):
    trainer = make_trainer(**SETTINGS, non_finite_loss="skip", gradient_accumulation_steps=accumulation)
    breaking = _Break(trainer, 2)
    trainer.add_callback(breaking)
    trainer.train()
    before, after = breaking.states[:2]
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert len(trainer.history) == 2
    assert all(value.isfinite().all() for value in trainer.model.state_dict().values())


def break_asleep(monkeypatch, step):
    """Make the loss of one step of a sleep NaN, by images that are."""
    calls, augment = iter(range(1, 10**6)), getattr(*STEP_ASLEEP)
    monkeypatch.setattr(*STEP_ASLEEP, lambda *args: augment(*args) * (math.nan if next(calls) == step else 1))


def test_a_loss_asleep_that_is_not_finite_stops(asleep, make_args, monkeypatch):
    model, memory, reader = asleep
    break_asleep(monkeypatch, step=10)
    with pytest.raises(FloatingPointError, match=r"step 10 of sleep .* `non_finite_loss='skip'`"):
        consolidate(model, memory, make_args(sleep_steps=10).sleep_config(2), reader=reader)


def test_a_step_asleep_that_is_not_finite_can_be_skipped(asleep, make_args, monkeypatch):
    model, memory, reader = asleep
    break_asleep(monkeypatch, step=10)
    config, states = make_args(sleep_steps=10, non_finite_loss="skip").sleep_config(), []
    report = consolidate(
        model,
        memory,
        config,
        reader=reader,
        on_step_end=lambda replay: states.append(copy.deepcopy(model.state_dict())),
    )
    eighth, ninth, tenth = states[-3:]
    assert all(torch.equal(ninth[name], value) for name, value in tenth.items())
    assert not all(torch.equal(eighth[name], value) for name, value in ninth.items())
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert math.isnan(report.loss)  # of the last tenth of the steps, which is the one that was skipped


def test_a_sleep_left_and_gone_on_with_ends_the_same_without_a_trainer(asleep, make_args, make_model):
    model, memory, reader = asleep
    args = make_args(sleep_steps=10, augmentation="crop", sleep_average=0.8, rem_share=0.5)
    config, before = args.sleep_config(), drift_features(model, memory, reader, args.sleep_config())
    saved = {}

    def save(replay):
        if replay.step == 4:
            saved.update(
                state=copy.deepcopy(replay.state_dict()), weights={k: v.clone() for k, v in model.state_dict().items()}
            )

    whole = consolidate(model, memory, config, reader=reader, on_step_end=save)
    twin = make_model()
    twin.grow(["0", "1", "2", "3"])
    twin.load_state_dict(saved["weights"])
    with pytest.raises(ValueError, match="Expected `features_before` with `state`"):
        consolidate(twin, memory, config, reader=reader, state=saved["state"])
    report = consolidate(twin, memory, config, reader=reader, state=saved["state"], features_before=before)
    assert equal_states(model, twin)
    assert repr(replace(report, seconds=0)) == repr(replace(whole, seconds=0))


@pytest.mark.parametrize(
    ("is_training", "advice"), [(True, "`sleep_batch_size` 16"), (False, "`per_device_eval_batch_size` 8")]
)
def test_too_little_memory_to_sleep_says_what_to_lower(asleep, make_args, is_training, advice):
    model, memory, reader = asleep

    def demand(backbone, inputs):
        if backbone.training == is_training:
            torch.empty(2**55, dtype=torch.uint8)

    model.backbone.register_forward_pre_hook(demand)
    with pytest.raises(MemoryError, match=f"{advice}.* or lower it"):
        consolidate(
            model, memory, make_args(sleep_steps=10, per_device_eval_batch_size=8).sleep_config(), reader=reader
        )


def test_other_errors_asleep_are_left_as_they_are(asleep, make_args):
    model, memory, reader = asleep

    def fail(*args):
        raise RuntimeError("something else")

    model.backbone.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="^something else$"):
        consolidate(model, memory, make_args().sleep_config(), reader=reader)
