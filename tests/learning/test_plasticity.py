"""Plasticity: every weight that may learn is in one optimizer group, and nothing else changes."""

import pytest
import torch
from datasets import DatasetDict
from timm.layers import EvoNorm2dB0
from transformers import LevitConfig, ResNetConfig, TimmWrapperConfig

from hf_wakesleep import ClassIncrementalStream, WakeSleepConfig, WakeSleepForImageClassification
from hf_wakesleep.learning.plasticity import parameter_groups, set_plasticity
from hf_wakesleep.model.backbone_wakesleep import freeze_running_statistics


def test_optimizer_groups_hold_every_trainable_weight_once(make_model):
    model = make_model()
    model.grow(["a", "b"])
    set_plasticity(model, "full")
    groups = parameter_groups(model, 1.0, 0.1, 0.25)
    members = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(members) == sorted(id(parameter) for parameter in model.parameters())
    assert {group["lr"] for group in groups} == {1.0, 0.25}
    assert all(
        (group["weight_decay"] > 0) == (parameter.ndim > 1) for group in groups for parameter in group["params"]
    )
    set_plasticity(model, "head")
    groups = parameter_groups(model, 1.0, 0.1, 0.25)
    assert sum(len(group["params"]) for group in groups) == len(list(model.head.parameters()))


def timm(architecture, **model_args):
    return TimmWrapperConfig(architecture=architecture, model_args=model_args, num_labels=0)


WITH_RUNNING_STATISTICS = {
    "timm levit": timm("levit_128s", img_size=64),
    "timm mobilevit": timm("mobilevit_xxs"),
    "timm resnet": timm("resnet10t"),
    "resnet": ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]),
    "levit": LevitConfig(
        image_size=64, hidden_sizes=[16, 24, 32], num_attention_heads=[2, 2, 2], depths=[1, 1, 1], key_dim=[8, 8, 8]
    ),
}


def model_around(name):
    torch.manual_seed(0)
    config = WakeSleepConfig(backbone_config=WITH_RUNNING_STATISTICS[name], image_size=64)
    return WakeSleepForImageClassification(config)


def running(model):
    return {
        name: value for name, value in model.backbone.state_dict().items() if "running_" in name or "num_b" in name
    }


def step(model):
    model(torch.randn(4, 3, 64, 64), labels=torch.tensor([0, 1, 0, 1])).loss.backward()


@pytest.mark.parametrize("name", WITH_RUNNING_STATISTICS)
def test_running_statistics_move_only_where_the_backbone_is_trained(name):
    model = model_around(name)
    model.grow(["a", "b"])
    for plasticity, moves in (("head", False), ("lora", False), ("full", True)):
        before = {key: value.clone() for key, value in running(model).items()}
        assert before
        model.eval()
        set_plasticity(model, plasticity)
        step(model.train())
        after = running(model)
        assert any(not torch.equal(after[key], before[key]) for key in before) == moves, plasticity


@pytest.mark.parametrize(
    "norm", [torch.nn.BatchNorm2d(4), torch.nn.InstanceNorm2d(4, track_running_stats=True), EvoNorm2dB0(4)]
)
def test_every_kind_of_running_statistics_is_held(norm):
    norm = torch.nn.Sequential(norm)
    for held in (True, False):
        before = {name: value.clone() for name, value in norm.named_buffers()}
        norm.train()
        if held:
            freeze_running_statistics(norm)
        norm(torch.randn(2, 4, 3, 3))
        assert all(torch.equal(value, before[name]) for name, value in norm.named_buffers()) == held


def test_plasticity_counts_at_once_in_a_model_that_is_in_training():
    model = model_around("resnet").train()
    set_plasticity(model, "head")
    norms = [module for module in model.backbone.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms
    assert not any(module.training for module in norms)
    assert model.training
    assert model.backbone.training
    set_plasticity(model, "full")
    assert all(module.training for module in norms)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["timm levit", "timm mobilevit", "timm resnet", "resnet", "levit"])
def test_a_frozen_backbone_is_bit_identical_after_wake_naps_and_sleep(name, make_trainer, digits):
    model = model_around(name)
    few = {split: data.select(range(0, len(data), 10)) for split, data in digits.items()}
    before = {key: value.clone() for key, value in model.backbone.state_dict().items()}
    frozen = {"wake_plasticity": "head", "sleep_plasticity": "head"}
    short = {"per_device_train_batch_size": 8, "sleep_batch_size": 4, "sleep_steps": 2, "memory_budget": "10MB"}
    stream = ClassIncrementalStream(DatasetDict(few), num_tasks=2, seed=3)
    trainer = make_trainer(model, stream, sleep_every_n_steps=2, nap_steps=1, **frozen, **short)
    trainer.train()
    after = trainer.model.backbone.state_dict()
    assert [key for key, value in after.items() if not torch.equal(value.cpu(), before[key])] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["timm levit", "levit"])
def test_running_statistics_stay_while_factors_learn(name, make_trainer, digits):
    model = model_around(name)
    few = {split: data.select(range(0, len(data), 10)) for split, data in digits.items()}
    before = {key: value.clone() for key, value in model.backbone.state_dict().items()}
    factors = {"wake_plasticity": "lora", "sleep_plasticity": "lora"}
    short = {"per_device_train_batch_size": 8, "sleep_batch_size": 4, "sleep_steps": 2, "memory_budget": "10MB"}
    stream = ClassIncrementalStream(DatasetDict(few), num_tasks=2, seed=3)
    trainer = make_trainer(model, stream, **factors, **short)
    trainer.train()
    after = {key: value.cpu() for key, value in trainer.model.backbone.state_dict().items()}
    assert [key for key in running(model) if not torch.equal(after[key], before[key])] == []
    assert any(not torch.equal(after[key], value) for key, value in before.items())
