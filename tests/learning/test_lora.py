"""LoRA: factors learn in the backbone, are merged into plain weights, and can be gone on with."""

import copy
import os
import signal

import pytest
import torch
from accelerate import Accelerator
from conftest import NAMES, equal_states
from peft import LoraConfig
from runs import STEP_ASLEEP, StopError, assert_same_end, stop_at
from transformers import TimmWrapperConfig, TrainerCallback

from hf_wakesleep import ContinualTrainer, WakeSleepForImageClassification, consolidate
from hf_wakesleep.learning import lora, task_run
from hf_wakesleep.learning.lora import FACTORS_NAME, check_lora, factors, inject, merge, read_factors, without_factors
from hf_wakesleep.learning.plasticity import parameter_groups, set_plasticity
from hf_wakesleep.stages.checkpoint import find_checkpoints, load_sleep

pytestmark = pytest.mark.slow

PIXELS = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TIMM = TimmWrapperConfig(
    architecture="vit_tiny_patch16_224",
    model_args={"img_size": 8, "patch_size": 2, "embed_dim": 48, "depth": 2, "num_heads": 3},
    num_labels=0,
)
CONFIGS = {
    "default": lora.default_lora_config(),
    "all linear layers if none are named": LoraConfig(r=3),
    "some, with a convolution": LoraConfig(target_modules=r".*(projection|fc1|patch_embed\.proj)", lora_dropout=0.5),
    "gaussian, scaled by rank": LoraConfig(r=2, init_lora_weights="gaussian", use_rslora=True),
    "weight-decomposed": LoraConfig(use_dora=True),
}
LORA = {
    "wake_plasticity": "lora",
    "sleep_plasticity": "lora",
    "sleep_steps": 6,
    "save_strategy": "steps",
    "save_steps": 4,
    "augmentation": "crop",
}


@pytest.fixture
def accelerator():
    return Accelerator()


def tree(model) -> list:
    """Return the modules of a model with all of their attributes, and its weights, by name."""
    modules = [(name, type(module), sorted(vars(module))) for name, module in model.named_modules()]
    return [*modules, *((name, value.shape) for name, value in model.state_dict().items())]


def features(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval().extract_features(PIXELS)


def jolt(model) -> None:
    """Change the factors as training would."""
    generator = torch.Generator().manual_seed(1)
    for value in factors(model).values():
        value.add_(0.02 * torch.randn(value.shape, generator=generator))


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("backbone", [{}, {"backbone_config": TIMM}], ids=["transformers", "timm"])
def test_merged_weights_are_plain_and_say_what_the_factors_said(make_model, accelerator, backbone, config):
    model = make_model(**backbone)
    before, plain, at_first = tree(model), copy.deepcopy(model), features(model)
    inject(model, CONFIGS[config], accelerator, 42, 0, lora.WAKE)
    torch.testing.assert_close(features(model), at_first, rtol=1e-5, atol=1e-6)
    jolt(model)
    expected = features(model)
    assert not torch.allclose(expected, at_first, atol=1e-3)
    with without_factors(model):
        assert equal_states(model, plain)
    assert torch.equal(features(model), expected)
    merge(model)
    torch.testing.assert_close(features(model), expected, rtol=1e-5, atol=1e-6)
    assert tree(model) == before
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_initial_factors_follow_from_their_place_alone(make_model, accelerator):
    drawn = []
    for place in ((42, 0, 0), (42, 0, 0), (42, 0, 1), (42, 1, 0), (43, 0, 0)):
        torch.rand(len(drawn))
        state = torch.get_rng_state()
        model = make_model(seed=len(drawn))
        torch.set_rng_state(state)
        inject(model, CONFIGS["default"], accelerator, *place)
        assert torch.equal(torch.get_rng_state(), state)
        drawn.append(next(iter(factors(model).values())))
    assert torch.equal(drawn[0], drawn[1])
    assert all(not torch.equal(drawn[0], other) for other in drawn[2:])


def test_factors_and_head_alone_learn_at_their_rates(make_model, accelerator):
    model = make_model()
    model.grow(NAMES)
    set_plasticity(model, "lora")
    inject(model, CONFIGS["default"], accelerator)
    groups = parameter_groups(model, 1.0, 0.1, 0.25)
    members = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        expected = 1.0 if name.startswith("head.") else 0.25 if ".lora_" in name else None
        assert members.get(id(parameter)) == expected
        assert parameter.requires_grad == (expected is not None)


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (LoraConfig(bias="all"), ValueError, "got bias='all'"),
        (LoraConfig(modules_to_save=["layernorm"]), ValueError, "got modules_to_save="),
        (LoraConfig(init_lora_weights="pissa"), ValueError, "got init_lora_weights='pissa'"),
        (LoraConfig(inference_mode=True), ValueError, "got inference_mode=True"),
        (LoraConfig(target_modules=["fc1", "layernorm_before"]), ValueError, "LayerNorm"),
        (LoraConfig(target_modules=["nowhere"]), ValueError, "nowhere"),
        ({"r": 8}, TypeError, "Expected `lora_config` to be a peft.LoraConfig, got dict"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_factors_that_cannot_be_merged_are_refused_and_leave_the_model_as_it_was(
    make_trainer,
    make_model,
    make_args,
    make_stream,
    config,
    error,
    message,
):
    model = make_model()
    before = tree(model)
    with pytest.raises(error, match=message):
        ContinualTrainer(model, make_args(**LORA), make_stream(), lora_config=config)
    assert tree(model) == before


def test_shards_are_refused(make_model, accelerator, monkeypatch):
    monkeypatch.setattr(lora, "shards", lambda accelerator: True)
    with pytest.raises(ValueError, match="got FSDP"):
        check_lora(make_model(), CONFIGS["default"], accelerator)


def test_a_configuration_without_a_use_is_refused(make_model, make_args, make_stream):
    with pytest.raises(ValueError, match="`lora_config` is for"):
        ContinualTrainer(make_model(), make_args(), make_stream(), lora_config=LoraConfig())


def test_a_sleep_changes_the_chosen_weights_by_the_chosen_rank(asleep, make_args):
    model, memory, reader = asleep
    twin, before = copy.deepcopy(model), copy.deepcopy(model)
    config = LoraConfig(r=2, lora_alpha=16, target_modules=["fc1"])
    for sleeper in (model, twin):
        torch.rand(3)
        consolidate(
            sleeper,
            memory,
            make_args(sleep_plasticity="lora").sleep_config(lora_config=config),
            reader=reader,
        )
    assert equal_states(model, twin)
    assert tree(model.backbone) == tree(before.backbone)
    for (name, old), new in zip(
        before.backbone.state_dict().items(), model.backbone.state_dict().values(), strict=True
    ):
        if name.endswith("fc1.weight"):
            assert torch.linalg.matrix_rank(new - old, rtol=1e-3) == 2
        else:
            assert torch.equal(new, old)
    assert not torch.equal(model.head.classifier.weight, before.head.classifier.weight)


def test_a_description_names_the_rank_and_what_is_not_the_default():
    config = LoraConfig(r=4, target_modules=["fc2", "fc1"])
    assert lora.describe(config) == "r=4, target_modules=['fc1', 'fc2']"
    assert lora.describe(lora.default_lora_config()) == "lora_alpha=16, r=8, target_modules='all-linear'"


def test_lda_follows_a_backbone_that_wake_has_changed(make_trainer, make_model, monkeypatch):
    updated = []
    monkeypatch.setattr(task_run, "update_lda", lambda model, *args, **kwargs: updated.append(tree(model)))
    awake = make_trainer(wake_plasticity="lora", sleep_steps=0)
    awake.train()
    assert updated
    assert not equal_states(awake.model.backbone, make_model().backbone)
    assert not factors(awake.model)
    assert awake.history.settings["lora_config"] == "lora_alpha=16, r=8, target_modules='all-linear'"


@pytest.fixture
def whole(run_once):
    return run_once(LORA)


class _SignalAt(TrainerCallback):
    """Sends SIGTERM to this process when a step of the second wake begins."""

    def __init__(self, trainer, step):
        self.trainer, self.step = trainer, step

    def on_step_begin(self, args, state, control, **kwargs):
        if self.trainer.task_number == 1 and state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("step", [2, 6])  # 6 is the last
def test_a_run_stopped_awake_ends_the_same(make_trainer, whole, tmp_path, step):
    stopped = make_trainer(output_dir="stopped", **LORA)
    stopped.add_callback(_SignalAt(stopped, step))
    with pytest.raises(SystemExit):
        stopped.train()
    checkpoint = find_checkpoints(tmp_path / "stopped" / "checkpoints" / "task-02")[-1]
    assert read_factors(checkpoint).keys() == factors(stopped.model).keys() != set()
    stage = WakeSleepForImageClassification.from_pretrained(tmp_path / "stopped" / "task-01")
    assert equal_states(WakeSleepForImageClassification.from_pretrained(checkpoint).backbone, stage.backbone)
    goes_on_the_same(make_trainer, whole, "wake")


def test_a_run_stopped_asleep_ends_the_same(make_trainer, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(*STEP_ASLEEP, stop_at(11, getattr(*STEP_ASLEEP)))
        with pytest.raises(StopError):
            make_trainer(output_dir="stopped", **LORA).train()
    checkpoint = find_checkpoints(tmp_path / "stopped" / "checkpoints" / "task-02")[-1]
    assert load_sleep(checkpoint)["factors"]
    assert not (checkpoint / FACTORS_NAME).exists()
    WakeSleepForImageClassification.from_pretrained(checkpoint)
    goes_on_the_same(make_trainer, whole, "sleep")


def goes_on_the_same(make_trainer, whole, part):
    """Go on with a stopped run, with other factors in vain, then with the same."""
    for changes in (
        {"lora_config": LoraConfig(r=4)},
        {f"{part}_plasticity": "full"},
    ):
        other = make_trainer(output_dir="stopped", **{**LORA, **changes})
        with pytest.raises(ValueError, match="Expected the arguments that .* was made with"):
            other.train(resume_from_checkpoint=True)
    resumed = make_trainer(output_dir="stopped", **LORA)
    resumed.train(resume_from_checkpoint=True)
    assert_same_end(whole, resumed)
