"""The layout: imports go down one list, `__all__` is complete, what travels imports torch and transformers only."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hf_wakesleep

PACKAGE = Path(hf_wakesleep.__file__).parent

# A module may import those before it only.
ORDER = [
    "configuration_wakesleep",
    "backbone_wakesleep",
    "digests_wakesleep",
    "head_wakesleep",
    "pretrained_wakesleep",
    "modeling_wakesleep",
    "files",
    "signals",
    "lock",
    "stopwatch",
    "augment",
    "codec",
    "exact",
    "transforms",
    "context",
    "entropy",
    "codec_networks",
    "tone",
    "codec_training",
    "learned_codec",
    "codecs",
    "budget",
    "balance",
    "code_table",
    "decoded",
    "herding",
    "synapses",
    "memory_files",
    "memory",
    "labels",
    "images",
    "splits",
    "tasks",
    "eval_datasets",
    "evaluate_modules.continual_learning.accuracy_matrix",
    "metrics",
    "history",
    "eval_sets",
    "plots",
    "training_args",
    "model_card",
    "stage",
    "checkpoint",
    "written",
    "hub",
    "protocol",
    "processes",
    "shards",
    "lora",
    "wake",
    "guard",
    "plasticity",
    "recombination",
    "landmarks",
    "recall",
    "importance",
    "replay",
    "sleep",
    "classifier_trainer",
    "callbacks",
    "task_trainer",
    "trainer",
]


def imports_of(path: Path, at_top: bool = False) -> list[tuple[int, str]]:
    """Return level and module of every import in a file, wherever it stands or only at its top."""
    found, tree = [], ast.parse(path.read_text())
    for node in tree.body if at_top else ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found += [(node.level, name) for name in names]
        elif isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
    return found


def test_every_module_has_its_place_in_the_order():
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert modules == {module for module in ORDER if "." not in module}


@pytest.mark.parametrize("module", ORDER)
def test_imports_go_down_the_order(module):
    allowed, path = set(ORDER[: ORDER.index(module)]), PACKAGE / f"{module.replace('.', '/')}.py"
    relative = [(level, name) for level, name in imports_of(path) if level > 0]
    assert all(level == 1 for level, _ in relative)
    assert {name for _, name in relative} <= allowed
    if module != "modeling_wakesleep":  # it travels, and asks for the package where it may be missing
        assert not [name for level, name in imports_of(path) if level == 0 and "wakesleep" in name]


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*_wakesleep.py")), ids=lambda path: path.stem)
def test_files_that_travel_import_torch_and_transformers_only(path):
    absolute = {name.split(".")[0] for level, name in imports_of(path, at_top=True) if level == 0}
    assert absolute - sys.stdlib_module_names <= {"torch", "transformers", "huggingface_hub", "safetensors"}


def test_all_is_sorted_complete_and_importable():
    assert hf_wakesleep.__all__ == sorted(hf_wakesleep.__all__)
    typed = [
        alias.name
        for node in ast.parse((PACKAGE / "__init__.py").read_text()).body
        if isinstance(node, ast.If)
        for statement in node.body
        for alias in statement.names
    ]
    eager = [name for name in vars(hf_wakesleep) if name.startswith("WakeSleep")]
    assert set(hf_wakesleep.__all__) == {*typed, *eager}
    for name in hf_wakesleep.__all__:
        assert getattr(hf_wakesleep, name).__doc__


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'Buffer'"):
        _ = hf_wakesleep.Buffer


def test_who_only_predicts_imports_neither_the_trainer_nor_datasets():
    code = "import sys, hf_wakesleep; print([m for m in ('datasets', 'matplotlib', 'peft') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
