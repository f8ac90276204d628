"""Continual image classification with wake, sleep and a semi-parametric memory, native to Hugging Face."""

from importlib import import_module
from typing import TYPE_CHECKING

from transformers import AutoConfig, AutoModelForImageClassification

from .configuration_wakesleep import WakeSleepConfig
from .modeling_wakesleep import WakeSleepForImageClassification

if TYPE_CHECKING:
    from .budget import MemoryBytes
    from .callbacks import SleepCallback
    from .codec import Codec, CodecError, RawCodec, WebPCodec
    from .codec_networks import LearnedNetworks
    from .codec_training import CodecTraining
    from .digests_wakesleep import check_digests
    from .head_wakesleep import SemiParametricHead
    from .herding import herding_ranks
    from .history import History
    from .hub import publish_stage, push_card, push_pending
    from .learned_codec import LearnedCodec
    from .memory import SemiParametricMemory
    from .model_card import CardFacts, collect_facts, render_model_card
    from .modeling_wakesleep import WakeSleepOutput
    from .sleep import SleepReport, consolidate
    from .synapses import Synapses
    from .tasks import ClassIncrementalStream, DomainIncrementalStream, Task, TaskStream
    from .trainer import ContinualTrainer
    from .training_args import ContinualTrainingArguments

__version__ = "0.1.0"

# Imported on first use: a program that only predicts does not pay for the Trainer, datasets and matplotlib.
_MODULES = {
    "budget": ["MemoryBytes"],
    "callbacks": ["SleepCallback"],
    "codec": ["Codec", "CodecError", "RawCodec", "WebPCodec"],
    "codec_networks": ["LearnedNetworks"],
    "codec_training": ["CodecTraining"],
    "digests_wakesleep": ["check_digests"],
    "head_wakesleep": ["SemiParametricHead"],
    "herding": ["herding_ranks"],
    "history": ["History"],
    "hub": ["publish_stage", "push_card", "push_pending"],
    "learned_codec": ["LearnedCodec"],
    "memory": ["SemiParametricMemory"],
    "model_card": ["CardFacts", "collect_facts", "render_model_card"],
    "modeling_wakesleep": ["WakeSleepOutput"],
    "sleep": ["SleepReport", "consolidate"],
    "synapses": ["Synapses"],
    "tasks": ["ClassIncrementalStream", "DomainIncrementalStream", "Task", "TaskStream"],
    "trainer": ["ContinualTrainer"],
    "training_args": ["ContinualTrainingArguments"],
}
_LAZY = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "CardFacts",
    "ClassIncrementalStream",
    "Codec",
    "CodecError",
    "CodecTraining",
    "ContinualTrainer",
    "ContinualTrainingArguments",
    "DomainIncrementalStream",
    "History",
    "LearnedCodec",
    "LearnedNetworks",
    "MemoryBytes",
    "RawCodec",
    "SemiParametricHead",
    "SemiParametricMemory",
    "SleepCallback",
    "SleepReport",
    "Synapses",
    "Task",
    "TaskStream",
    "WakeSleepConfig",
    "WakeSleepForImageClassification",
    "WakeSleepOutput",
    "WebPCodec",
    "check_digests",
    "collect_facts",
    "consolidate",
    "herding_ranks",
    "publish_stage",
    "push_card",
    "push_pending",
    "render_model_card",
]

AutoConfig.register("wakesleep", WakeSleepConfig, exist_ok=True)
AutoModelForImageClassification.register(WakeSleepConfig, WakeSleepForImageClassification, exist_ok=True)
WakeSleepConfig.register_for_auto_class()
WakeSleepForImageClassification.register_for_auto_class("AutoModelForImageClassification")


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LAZY[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
