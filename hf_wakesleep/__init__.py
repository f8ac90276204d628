"""Continual image classification with wake, sleep and a semi-parametric memory, native to Hugging Face."""

from importlib import import_module
from typing import TYPE_CHECKING

from transformers import AutoConfig, AutoModelForImageClassification

from .model.configuration_wakesleep import WakeSleepConfig
from .model.modeling_wakesleep import WakeSleepForImageClassification

if TYPE_CHECKING:
    from .codecs.base import Codec, CodecError, RawCodec, WebPCodec
    from .codecs.learned.codec import LearnedCodec
    from .codecs.learned.networks import LearnedNetworks
    from .codecs.learned.training import CodecTraining
    from .data.incremental_streams import ClassIncrementalStream, DomainIncrementalStream
    from .data.streams import Task, TaskStream
    from .learning.arguments import ContinualTrainingArguments
    from .learning.callbacks import SleepCallback
    from .learning.drift import drift_features
    from .learning.sleep import SleepReport, consolidate
    from .learning.sleep_config import SleepConfig
    from .learning.trainer import ContinualTrainer
    from .live.learner import Learner
    from .memory.budget import MemoryBytes
    from .memory.memory import SemiParametricMemory
    from .memory.sampling import herding_ranks
    from .memory.synapses import Synapses
    from .model.digests_wakesleep import check_digests
    from .model.head_wakesleep import SemiParametricHead
    from .model.modeling_wakesleep import WakeSleepOutput
    from .reporting.card import CardFacts, collect_facts, render_model_card
    from .reporting.history import History
    from .stages.hub import publish_stage, push_card
    from .stages.outbox import push_pending

__version__ = "0.2.0"

# Imported on first use: a program that only predicts does not pay for the Trainer, datasets and matplotlib.
_MODULES = {
    "memory.budget": ["MemoryBytes"],
    "learning.callbacks": ["SleepCallback"],
    "codecs.base": ["Codec", "CodecError", "RawCodec", "WebPCodec"],
    "codecs.learned.networks": ["LearnedNetworks"],
    "codecs.learned.training": ["CodecTraining"],
    "model.digests_wakesleep": ["check_digests"],
    "model.head_wakesleep": ["SemiParametricHead"],
    "memory.sampling": ["herding_ranks"],
    "reporting.history": ["History"],
    "stages.hub": ["publish_stage", "push_card"],
    "stages.outbox": ["push_pending"],
    "codecs.learned.codec": ["LearnedCodec"],
    "memory.memory": ["SemiParametricMemory"],
    "reporting.card": ["CardFacts", "collect_facts", "render_model_card"],
    "model.modeling_wakesleep": ["WakeSleepOutput"],
    "learning.drift": ["drift_features"],
    "learning.sleep": ["SleepReport", "consolidate"],
    "learning.sleep_config": ["SleepConfig"],
    "memory.synapses": ["Synapses"],
    "data.incremental_streams": ["ClassIncrementalStream", "DomainIncrementalStream"],
    "data.streams": ["Task", "TaskStream"],
    "learning.trainer": ["ContinualTrainer"],
    "live.learner": ["Learner"],
    "learning.arguments": ["ContinualTrainingArguments"],
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
    "Learner",
    "MemoryBytes",
    "RawCodec",
    "SemiParametricHead",
    "SemiParametricMemory",
    "SleepCallback",
    "SleepConfig",
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
    "drift_features",
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
