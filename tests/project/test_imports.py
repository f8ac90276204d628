"""The layout: imports go one way, `__all__` is complete, what travels imports torch and transformers only."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hf_wakesleep

PACKAGE = Path(hf_wakesleep.__file__).parent

# A room may import those before it only, and the modules of a room form no circle.
ROOMS = ["model", "storage", "codecs", "data", "memory", "reporting", "stages", "learning", "live"]


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


def modules_of(room: str) -> list[Path]:
    """Return the modules of a room; modules of evaluate are scripts that stand alone."""
    return [path for path in sorted((PACKAGE / room).rglob("*.py")) if "evaluate_modules" not in path.parts]


def imported_by(path: Path) -> set[str]:
    """Return the modules of the package that a file imports, by their dotted names in it."""
    found, package = set(), path.relative_to(PACKAGE).parent.parts
    for level, name in imports_of(path):
        if level:
            found.add(".".join([*package[: len(package) + 1 - level], *name.split(".")]))
    return found


def test_every_room_is_known_and_nothing_else_stands_beside_them():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {"__pycache__"}
    assert folders == set(ROOMS)
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py"}
    for room in ROOMS:
        assert ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text()))


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_rooms_before_it_only(room):
    allowed = {*ROOMS[: ROOMS.index(room) + 1]}
    for path in modules_of(room):
        assert {name.split(".")[0] for name in imported_by(path)} <= allowed, path
        if path.stem not in ("card", "modeling_wakesleep"):  # they ask for the version, or what may be missing
            assert not [name for level, name in imports_of(path) if level == 0 and "wakesleep" in name]


@pytest.mark.parametrize("room", ROOMS)
def test_the_modules_of_a_room_import_each_other_in_one_direction(room):
    left = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): imported_by(path) for path in modules_of(room)}
    while left:
        free = [name for name, needed in left.items() if not needed & left.keys()]
        assert free, f"a circle among {sorted(left)}"
        left = {name: needed for name, needed in left.items() if name not in free}


@pytest.mark.parametrize("path", sorted((PACKAGE / "model").glob("*_wakesleep.py")), ids=lambda path: path.stem)
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
