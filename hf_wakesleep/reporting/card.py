"""Model card: collects the facts of a stage and renders its README from them."""

import math
import re
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PureWindowsPath

import numpy as np
from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from ..memory.memory import SemiParametricMemory
from ..model.modeling_wakesleep import WakeSleepForImageClassification
from .history import History

LONG = 20  # classes in a cell or rows of a table; longer ones are folded

AVERAGES = ("average_accuracy", "pooled_accuracy", "average_incremental_accuracy", "forgetting")  # in `model-index`


@dataclass(frozen=True)
class CardFacts:
    """Everything that a card says, as JSON-able values.

    Args:
        history (`dict`): From the run: what [`History.to_dict`] returns.
        model (`dict`): From the model: `classes`, `backbone` (`owner/name` on the Hub, any other name, or `None`),
            `backbone_type`, `backbone_revision` or `None`, `feature_dim`, `num_parameters`, `image_size` in pixels,
            `image_mean`, `image_std`, `pooling`, `classifier`, `lda_weight`, `lda_shrinkage`.
        memory (`dict`, *optional*): From the run: `codec`, its `settings`, `budget` in bytes or `None`, and
            `codes_per_class` by name of the class. `None` without a memory.
        settings (`dict`): From the run: fields of [`ContinualTrainingArguments`] that differ from their defaults,
            and `lora_config`.
        versions (`dict[str, str]`): From the machine: versions of the packages.
        repo_id (`str`, *optional*): From who publishes: the repository on the Hub.
        dataset (`dict`, *optional*): From the stream or who publishes: `name` on the Hub, `revision` or `None`.
        license (`str`, defaults to `"apache-2.0"`): From who publishes: identifier of the licence on the Hub.
    """

    history: dict
    model: dict
    memory: dict | None
    settings: dict
    versions: dict[str, str]
    repo_id: str | None
    dataset: dict | None
    license: str = "apache-2.0"

    def to_dict(self) -> dict:
        """Return all facts."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict) -> "CardFacts":
        """Build facts from what `to_dict` returned.

        Raises:
            ValueError: If a key is missing or unknown.
        """
        expected = {field.name for field in fields(cls)}
        missing, unknown = sorted(expected - set(content) - {"license"}), sorted(set(content) - expected)
        if missing or unknown:
            raise ValueError(f"Expected `CardFacts.to_dict()`, but {missing} are missing and {unknown} are unknown.")
        return cls(**content)


def collect_facts(
    model: WakeSleepForImageClassification,
    history: History,
    memory: SemiParametricMemory | None = None,
    settings: dict | None = None,
    repo_id: str | None = None,
) -> CardFacts:
    """Gather what a card says of a stage.

    Args:
        model ([`WakeSleepForImageClassification`]): The model.
        history ([`History`]): Everything measured so far; empty for a model on its own.
        memory ([`SemiParametricMemory`], *optional*): The memory, if there is one.
        settings (`dict`, *optional*): Hyper-parameters of the run; `history.settings` if missing.
        repo_id (`str`, *optional*): Repository that the stage is published in.
    """
    dataset = history.protocol.get("stream", {}).get("dataset")
    return CardFacts(
        history=history.to_dict(),
        model=_model_facts(model),
        memory=None if memory is None else _memory_facts(memory),
        settings=history.settings if settings is None else settings,
        versions=_versions(),
        repo_id=repo_id,
        dataset=dataset if dataset and dataset["name"] == _public_name(dataset["name"]) else None,
    )


def render_model_card(facts: CardFacts) -> str:
    """Return the card: metadata in YAML, then Markdown. The same facts give the same bytes."""
    return _fold(_template().render(facts=facts, metadata=_metadata(facts), unknown=_unknown(facts.history)))


def _unknown(history: dict) -> dict[str, int]:
    """Return for how many classes and tasks the accuracy is unknown at this stage."""
    if not history["records"]:
        return {"classes": 0, "tasks": 0}
    records, last = history["records"], history["records"][-1]
    missing = [record for record, value in zip(records, last["accuracy"], strict=True) if _rounded(value) is None]
    counted = last.get("num_unevaluated", -1)  # not in what earlier versions wrote
    classes = sum(len(record["new_classes"]) for record in missing) if counted < 0 else counted
    return {"classes": classes, "tasks": len(missing)}


def _model_facts(model: WakeSleepForImageClassification) -> dict:
    config = model.config
    own = ("classes", "backbone_revision", "image_size", "image_mean", "image_std", "pooling", "classifier")
    return {
        "backbone": _public_name(config.backbone_config._name_or_path),
        "backbone_type": config.backbone_config.model_type,
        "feature_dim": model.head.feature_dim,
        "num_parameters": model.num_parameters(),
        **{name: getattr(config, name) for name in (*own, "lda_weight")},
        "lda_shrinkage": round(model.head.lda.find_shrinkage(), 4),
    }


def _memory_facts(memory: SemiParametricMemory) -> dict:
    counts = np.bincount(memory.labels, minlength=len(memory.classes)).tolist()
    return {
        "codec": memory.codec.name,
        "settings": memory.codec.settings(),
        "budget": memory.budget,
        "codes_per_class": dict(zip(memory.classes, counts, strict=True)),
    }


def _versions() -> dict[str, str]:
    found = {"hf_wakesleep": import_module("hf_wakesleep").__version__}
    for package in ("transformers", "torch", "datasets", "timm", "peft", "huggingface_hub"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _public_name(name: str) -> str | None:
    """Return `owner/name` as it is unless it is a path here, of a path its last part, `None` of nothing."""
    is_hub_name = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) and not Path(name).exists()
    return name if is_hub_name else PureWindowsPath(name).name or None


def _metadata(facts: CardFacts) -> str:
    kind = facts.history["protocol"].get("stream", {}).get("kind")
    tags = ["continual-learning", f"{'domain' if kind == 'domain-incremental' else 'class'}-incremental-learning"]
    backbone, results = facts.model["backbone"], _results(facts)
    return ModelCardData(
        base_model=backbone if backbone and "/" in backbone else None,
        datasets=[facts.dataset["name"]] if facts.dataset else None,
        eval_results=results or None,
        library_name="hf_wakesleep",
        license=facts.license,
        metrics=["accuracy"],
        model_name=(facts.repo_id or "hf_wakesleep").split("/")[-1] if results else None,
        pipeline_tag="image-classification",
        tags=[*tags, "image-classification", "wake-sleep", "vision", "transformers"],
    ).to_yaml()


def _results(facts: CardFacts) -> list[EvalResult]:
    """Return one result per task and the averages; a `dataset_config` of its own keeps each from being merged."""
    history, records = facts.history, facts.history["records"]
    is_whole = len(records) <= len(history["protocol"].get("stream", {}).get("tasks", records))
    dataset = facts.dataset if facts.dataset and is_whole else {"name": "custom", "revision": None}
    rows = [
        (f"task-{number:02d}", {"classes": record["classes"]}, "accuracy", history["accuracy_matrix"][-1][number - 1])
        for number, record in enumerate(records, start=1)
    ]
    matrix, unknown = history["accuracy_matrix"], _unknown(history)
    known = AVERAGES if not any(unknown.values()) else ()  # a mean over some tasks is none over all
    if any(_rounded(value) is None for row in matrix for value in row):
        known = [name for name in known if name in ("average_accuracy", "pooled_accuracy")]
    rows += [("all-tasks", None, name, history[name][-1]) for name in known if rows]
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=dataset["name"],
            dataset_name=f"{dataset['name']}, {config}",
            dataset_config=config,
            dataset_revision=dataset["revision"],
            dataset_args=dataset_args,
            metric_type=name if name == "forgetting" else "accuracy",
            metric_name=name.replace("_", " "),
            metric_value=_rounded(value),
        )
        for config, dataset_args, name, value in rows
        if _rounded(value) is not None
    ]


def _rounded(value: float | None) -> float | None:
    """Return a number with 4 decimals, never -0.0; `None` for what is unknown."""
    return None if value is None or math.isnan(value) else round(float(value), 4) + 0.0


def _number(value: float | None, spec: str = ".1%") -> str:
    return "–" if _rounded(value) is None else format(_rounded(value), spec)


def _text(value) -> str:
    """Return free text on one line, with nothing in it that Markdown or a table would interpret."""
    return re.sub(r"([\\`*_\[\]<>|~$&])", r"\\\1", " ".join(str(value).split()))


def _code(value) -> str:
    text = " ".join(str(value).split())
    return f"`{text}`" if re.fullmatch(r"[^`|\\]+", text) else _text(text)


def _names(names: list[str]) -> str:
    text = ", ".join(map(_code, names))
    return text if len(names) <= LONG else f"<details><summary>{len(names)} classes</summary>{text}</details>"


def _arguments(values: dict) -> str:
    return ", ".join(_code(f"{name}={value!r}") for name, value in sorted(values.items()))


def _parts(shares: dict[str, float]) -> list[tuple[str, float]]:
    """Return the parts of a network in the order of their names, block 2 before block 10."""
    return sorted(shares.items(), key=lambda item: [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", item[0])])


def _fold(card: str) -> str:
    """Fold every table of more than `LONG` rows."""
    folded = "<details><summary>Show the table</summary>\n\n\\g<0>\n</details>\n"
    return re.sub(rf"(?m)(?:^\|.*\n){{{LONG + 3},}}", folded, card)


@cache
def _template() -> Template:
    options = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    environment = Environment(loader=PackageLoader(__package__), undefined=StrictUndefined, **options)
    environment.filters |= {"number": _number, "text": _text, "code": _code, "names": _names}
    environment.filters |= {"arguments": _arguments, "parts": _parts}
    return environment.get_template("model_card.md.jinja")
