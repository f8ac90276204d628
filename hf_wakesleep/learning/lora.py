"""LoRA: low-rank factors that are trained instead of the backbone's weights, and then merged into them.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models"; the layers are those of peft. Factors exist only
within one wake or one sleep. Stages and checkpoints hold the plain weights under their plain names; a checkpoint also
holds the factors, in a file of its own awake, and in the state of the sleep asleep.
"""

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners import lora
from safetensors.torch import load_file, save_file

from ..data.augmentation import seeded_generator
from ..model.digests_wakesleep import write_digests
from ..model.modeling_wakesleep import WakeSleepForImageClassification
from .distributed import shards

WAKE, SLEEP = 0, 1  # last part of the seed of the factors
FACTORS_NAME = "factors.safetensors"
MERGEABLE = {  # options of LoraConfig whose factors can be merged into plain weights
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "fan_in_fan_out",
    "use_rslora",
    "use_dora",
    "init_lora_weights",
}
ABOUT = {"task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"}  # without effect here
INITIAL = (True, False, "gaussian", "orthogonal")  # initial factors that do not change the backbone's weights


def default_lora_config() -> LoraConfig:
    """Return factors of rank 8 of all linear layers of the backbone, scaled by 2."""
    return LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")


def describe(config: LoraConfig) -> str:
    """Return the rank of a configuration, and its options that differ from those of peft, for the card."""
    plain, given = LoraConfig().to_dict(), config.to_dict()
    changed = {name: given[name] for name in sorted(MERGEABLE) if name == "r" or given[name] != plain[name]}
    options = {name: sorted(value) if isinstance(value, set) else value for name, value in changed.items()}
    return ", ".join(f"{name}={value!r}" for name, value in options.items())


def check_lora(model: WakeSleepForImageClassification, config: LoraConfig, accelerator: Accelerator) -> None:
    """Check that factors can be injected into a model, which is not changed.

    Raises:
        TypeError: If `config` is no `LoraConfig`.
        ValueError: If its factors could not be merged or fit no layer, or the model is sharded.
    """
    inject(model, config, accelerator)
    _take_out(model)


def inject(
    model: WakeSleepForImageClassification, config: LoraConfig, accelerator: Accelerator, *rng_key: int
) -> None:
    """Put factors into the backbone; from now on they are trained instead of its weights.

    Args:
        model ([`WakeSleepForImageClassification`]): A bare model.
        config (`peft.LoraConfig`): Its `target_modules` are names in the backbone, all linear layers if missing.
        accelerator (`Accelerator`): Will train the model.
        rng_key (`int`): What the initial factors follow from: seed, task, and `WAKE` or `SLEEP`.

    Raises:
        TypeError: If `config` is no `LoraConfig`.
        ValueError: If its factors could not be merged, fit no layer, or the model is sharded; the model is as before.
    """
    _check_config(config)
    if shards(accelerator):
        raise ValueError(
            "Expected one full model on every process with plasticity 'lora', got FSDP, which shards it. Start "
            "without FSDP, or pass 'full' or 'head'."
        )
    config = copy.deepcopy(config)  # peft changes it
    config.target_modules = config.target_modules or "all-linear"
    with ExitStack() as undo, torch.random.fork_rng(devices=[]):
        undo.callback(_take_out, model)
        torch.random.default_generator.set_state(seeded_generator(*rng_key).get_state())
        try:
            inject_adapter_in_model(config, model.backbone)
        except ValueError as error:
            raise ValueError(
                f"Expected a backbone and a `lora_config` that go together, but peft refuses them ({error}). Change "
                "`target_modules` or other options of it, or pass plasticity 'full' or 'head'."
            ) from error
        for name, layer in _layers(model).items():
            if type(layer) not in (lora.Linear, lora.Conv2d):
                raise ValueError(
                    f"Expected `target_modules` that are linear layers or two-dimensional convolutions, got {name}, "
                    f"a {type(layer.get_base_layer()).__name__}. Leave it out."
                )
        undo.pop_all()


def merge(model: WakeSleepForImageClassification) -> None:
    """Merge the factors into the weights and remove them; all weights of the backbone can be trained again then.

    A model without factors is not changed.
    """
    for layer in _layers(model).values():
        layer.merge()
    _take_out(model)


@contextmanager
def without_factors(model: WakeSleepForImageClassification) -> Iterator[None]:
    """Take the factors out inside the block, so that all weights have their plain names."""
    layers = _layers(model)
    _put(model, {name: layer.get_base_layer() for name, layer in layers.items()})
    try:
        yield
    finally:
        _put(model, layers)


def factors(model: WakeSleepForImageClassification) -> dict[str, torch.Tensor]:
    """Return the factors by their names in the backbone; empty if the model has none."""
    return {name: value for name, value in model.backbone.state_dict().items() if ".lora_" in name}


def load_factors(model: WakeSleepForImageClassification, stored: dict[str, torch.Tensor]) -> None:
    """Load what `factors` returned.

    Raises:
        ValueError: If the model has other factors.
    """
    expected, got = ({name: tuple(value.shape) for name, value in part.items()} for part in (factors(model), stored))
    if expected != got:
        name = min(name for name in {*expected, *got} if expected.get(name) != got.get(name))
        raise ValueError(
            f"Expected {len(expected)} factors of LoRA in the checkpoint, got {len(got)}; {name} has shape "
            f"{got.get(name)} there, {expected.get(name)} here. Go on with the same `wake_plasticity`, "
            "`sleep_plasticity` and `lora_config`."
        )
    model.backbone.load_state_dict(stored, strict=False)


def save_factors(model: WakeSleepForImageClassification, folder: Path) -> None:
    """Write the factors, if there are any, to a checkpoint."""
    if found := factors(model):
        save_file({name: value.contiguous() for name, value in found.items()}, folder / FACTORS_NAME)
        write_digests(folder)


def read_factors(folder: Path) -> dict[str, torch.Tensor]:
    """Return the factors in a checkpoint; empty if it has none."""
    path = folder / FACTORS_NAME
    return load_file(path) if path.is_file() else {}


def _check_config(config: LoraConfig) -> None:
    if not isinstance(config, LoraConfig):
        raise TypeError(f"Expected `lora_config` to be a peft.LoraConfig, got {type(config).__name__}.")
    plain, given = LoraConfig().to_dict(), config.to_dict()
    other = sorted(name for name in given if name not in MERGEABLE | ABOUT and given[name] != plain[name])
    if config.init_lora_weights not in INITIAL:
        other.append("init_lora_weights")
    if other:
        raise ValueError(
            "Expected a `lora_config` whose factors can be merged into plain weights, got "
            f"{', '.join(f'{name}={given[name]!r}' for name in other)}. Leave it out; what can be set is "
            f"{', '.join(sorted(MERGEABLE))}, with `init_lora_weights` one of {INITIAL}."
        )


def _layers(model: WakeSleepForImageClassification) -> dict[str, lora.LoraLayer]:
    return {name: layer for name, layer in model.backbone.named_modules() if isinstance(layer, lora.LoraLayer)}


def _put(model: WakeSleepForImageClassification, layers: dict[str, torch.nn.Module]) -> None:
    for name, layer in layers.items():
        model.backbone.set_submodule(name, layer)


def _take_out(model: WakeSleepForImageClassification) -> None:
    if layers := _layers(model):
        _put(model, {name: layer.get_base_layer() for name, layer in layers.items()})
        model.backbone.requires_grad_(True)
    vars(model.backbone).pop("peft_config", None)
