"""consolidate: its loss, and what it trains and reports."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import NAMES, equal_states

from hf_wakesleep import RawCodec, SemiParametricMemory, SleepConfig, consolidate
from hf_wakesleep.learning.lda import update_lda
from hf_wakesleep.learning.replay import smallest_loss
from hf_wakesleep.learning.sleep import is_worse
from hf_wakesleep.memory.sampling import held_out_mask


def accuracy(model, memory, reader, part="logits") -> float:
    images, labels = memory.read(np.arange(len(memory)))
    with torch.no_grad():
        logits = getattr(model.eval()(reader.normalise(images).to(model.device)), part).cpu()
    return (logits.argmax(dim=-1) == labels).float().mean().item()


def test_a_network_learns_from_its_memories_alone(asleep, make_args):
    model, memory, reader = asleep
    report = consolidate(model, memory, make_args(sleep_steps=150, sleep_batch_size=32).sleep_config(), reader=reader)
    assert accuracy(model, memory, reader, "classifier_logits") > 0.85
    assert accuracy(model, memory, reader) > 0.85
    assert (report.steps, report.images) == (150, 150 * 32)
    assert report.loss > 0
    assert report.held_out_accuracy > 0.7
    assert report.lda_weight == model.config.lda_weight
    assert report.seconds > 0


def test_the_same_sleep_gives_the_same_weights(asleep, make_args):
    model, memory, reader = asleep
    twin = copy.deepcopy(model)
    for sleeper in (model, twin):
        torch.manual_seed(0)
        consolidate(sleeper, memory, make_args(augmentation="crop-flip").sleep_config(3), reader=reader)
    assert equal_states(model, twin)


def test_the_seed_decides_which_memories_are_replayed_and_what_is_learned(asleep, make_args):
    model, memory, reader = asleep
    drawn, sleepers, read = [], [], memory.read
    for seed in (1, 1, 2):
        drawn.append([])
        memory.read = lambda positions: drawn[-1].append(positions.tolist()) or read(positions)
        sleepers.append(copy.deepcopy(model))
        consolidate(sleepers[-1], memory, make_args(seed=seed, sleep_steps=2).sleep_config(), reader=reader)
    assert drawn[0] == drawn[1] != drawn[2]
    assert equal_states(sleepers[0], sleepers[1])
    assert not equal_states(sleepers[0], sleepers[2])


def test_a_plastic_head_alone_leaves_the_backbone_as_it_was(asleep, make_args):
    model, memory, reader = asleep
    before = copy.deepcopy(model)
    consolidate(model, memory, make_args(sleep_plasticity="head").sleep_config(), reader=reader)
    assert equal_states(model.backbone, before.backbone)
    assert not torch.equal(model.head.classifier.weight, before.head.classifier.weight)


def test_an_empty_memory_is_refused(asleep, make_args):
    model, _, reader = asleep
    with pytest.raises(ValueError, match="the memory is empty"):
        consolidate(model, SemiParametricMemory(RawCodec(), None, NAMES), make_args().sleep_config(), reader=reader)


@pytest.mark.parametrize("share", [0.1, 0.4, 0.0])
def test_held_out_memories_are_never_replayed(asleep, make_args, monkeypatch, share):
    model, memory, reader = asleep
    seen = set()
    monkeypatch.setattr(type(memory), "read", _spy(type(memory).read, seen))
    from hf_wakesleep.learning import sleep

    monkeypatch.setattr(sleep, "update_lda", lambda *args, **kwargs: 0.5)
    monkeypatch.setattr(sleep, "held_out_accuracy", lambda *args: 0.5)
    args = make_args(sleep_steps=40, sleep_batch_size=64, held_out_share=share, lda_weight=0.5)
    consolidate(model, memory, replace(args.sleep_config(), lda_update="keep"), reader=reader)
    assert len(seen) > 0.7 * (1 - share) * len(memory)
    assert len(memory) - len(seen) >= round(share * len(memory)) - len(memory.classes)
    assert not seen & set(np.flatnonzero(held_out_mask(memory.labels, memory.tasks, share)).tolist())


def _spy(read, seen):
    def reading(self, indices):
        seen.update(np.asarray(indices).tolist())
        return read(self, indices)

    return reading


def test_a_sleep_can_end_with_the_average_of_its_weights(asleep, make_args):
    model, memory, reader = asleep
    twin = copy.deepcopy(model)
    seen = []
    args = make_args(sleep_steps=6, sleep_average=0.5)
    consolidate(
        model,
        memory,
        args.sleep_config(),
        reader=reader,
        on_step_end=lambda replay: seen.append(copy.deepcopy(dict(replay.bare.named_parameters()))),
    )
    expected = seen[0]
    for step, weights in enumerate(seen[1:], start=1):
        decay = min(0.5, (step + 1) / (step + 10))
        expected = {name: decay * value + (1 - decay) * weights[name] for name, value in expected.items()}
    for name, value in model.named_parameters():
        torch.testing.assert_close(value, expected[name])
    consolidate(twin, memory, make_args(sleep_steps=6).sleep_config(), reader=reader)
    assert not equal_states(model, twin)


def test_a_sleep_needs_no_trainer_and_no_arguments(asleep):
    model, memory, _ = asleep
    report = consolidate(model, memory, SleepConfig(steps=3, batch_size=8, shows_progress=False))
    assert (report.steps, report.images) == (3, 24)


@pytest.mark.parametrize("changes", [{"steps": 0}, {"plasticity": "head", "steps": 2}])
def test_statistics_stay_as_they_are_where_features_do(asleep, changes):
    model, memory, _ = asleep
    before = copy.deepcopy(model.head.lda.state_dict())
    consolidate(model, memory, SleepConfig(batch_size=8, shows_progress=False, **changes))
    assert all(torch.equal(before[name], value) for name, value in model.head.lda.state_dict().items())


@pytest.mark.parametrize(
    "changes",
    [
        {"lda_weight": 7},
        {"rem_share": 2.0},
        {"learning_rate": float("nan")},
        {"weight_decay": -1.0},
        {"adam_betas": (2.0, 2.0)},
        {"steps": 2.5},
        {"batch_size": "8"},
        {"rng_key": 42},
        {"mixed_precision": "bfloat16"},
        {"plasticity": "some"},
    ],
)
def test_a_value_out_of_range_is_refused_by_its_name(changes):
    with pytest.raises(ValueError, match=f"`{next(iter(changes))}` must be"):
        SleepConfig(**changes)


def test_what_does_not_belong_together_is_refused_before_anything_changes(asleep, make_args, make_model):
    model, memory, reader = asleep
    before = copy.deepcopy(model)
    with pytest.raises(TypeError, match="`config` to be a SleepConfig, got ContinualTrainingArguments"):
        consolidate(model, memory, make_args())
    with pytest.raises(TypeError, match="Expected `model` to be a WakeSleepForImageClassification, got Linear"):
        consolidate(torch.nn.Linear(2, 2), memory)
    with pytest.raises(ValueError, match="a model that knows the 4 classes of the memory first"):
        consolidate(make_model(), memory)
    with pytest.raises(ValueError, match="Expected `features_before` of 400 memories, .* got 3"):
        update_lda(model, memory, reader, make_args().sleep_config(), features_before=torch.zeros(3, 32))
    assert equal_states(model, before)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_sleep_with_nothing_left_to_learn_ends_early(asleep, smoothing):
    model, memory, _ = asleep
    settings = {"steps": 200, "batch_size": 32, "learning_rate": 3e-3, "backbone_learning_rate_ratio": 1.0}
    config = SleepConfig(**settings, label_smoothing=smoothing, enough_loss=0.1, shows_progress=False)
    report = consolidate(model, memory, config)
    assert report.steps in range(20, 200, 20)
    assert report.images == 32 * report.steps
    assert report.loss - smallest_loss(smoothing, 4) <= 0.1


def test_the_least_loss_is_that_of_answers_like_the_smoothed_labels():
    shares = torch.tensor([[0.9 + 0.1 / 5, *[0.1 / 5] * 4]])
    expected = torch.nn.functional.cross_entropy(shares.log(), torch.tensor([0]), label_smoothing=0.1)
    assert smallest_loss(0.1, 5) == pytest.approx(expected.item(), abs=1e-6)
    assert smallest_loss(0.0, 5) == 0


def test_an_accuracy_is_worse_where_chance_does_not_explain_it():
    assert is_worse(0.95, 0.80, 100)
    assert not is_worse(0.95, 0.93, 100)
    assert not is_worse(0.80, 0.95, 100)
    assert not is_worse(0.95, 0.10, 0)
    assert not is_worse(float("nan"), 0.5, 100)


def test_a_sleep_that_does_harm_says_so(make_trainer, caplog):
    make_trainer(
        learning_rate=1.0, wake_plasticity="head", sleep_steps=20, num_train_epochs=4, held_out_share=0.4
    ).train()
    assert "The sleep after task-01 did harm: of" in caplog.text
