"""The sdist and the wheel: they hold what is needed, and the main job runs from them, outside the tree."""

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from paths import ROOT

TOOLS = ["build>=1.2", "hatchling>=1.27"]
NEEDED = [  # what is no module
    "codecs/learned/weights/natural-1.safetensors",
    "py.typed",
    "reporting/evaluate_modules/continual_learning/README.md",
    "reporting/evaluate_modules/continual_learning/continual_learning.py",
    "reporting/evaluate_modules/continual_learning/requirements.txt",
    "reporting/templates/model_card.md.jinja",
]
WHERE = "import hf_wakesleep; print(hf_wakesleep.__file__, hf_wakesleep.__version__)"

pytestmark = pytest.mark.slow


def pip(*args: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pip", "install", "-q", *args]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def run(*args: str, cwd: Path, path: Path) -> str:
    """Run Python with one more place to import from, and nothing of this tree; return what it printed."""
    environment = os.environ | {"PYTHONPATH": str(path)}
    done = subprocess.run(
        [sys.executable, *args], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> tuple[Path, Path]:
    """The sdist, and the wheel that was built from it."""
    tools, dist = tmp_path_factory.mktemp("tools"), tmp_path_factory.mktemp("dist")
    done = pip("--target", str(tools), *TOOLS)
    if done.returncode:
        pytest.skip(f"the package index gives no {' and '.join(TOOLS)}: {done.stderr[-300:]}")
    run("-m", "build", "--no-isolation", "--outdir", str(dist), str(ROOT), cwd=tools, path=tools)
    (sdist,), (wheel,) = dist.glob("*.tar.gz"), dist.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def installed(packages, tmp_path_factory) -> Path:
    """The folder that the wheel was installed into, without what it depends on."""
    target = tmp_path_factory.mktemp("installed")
    done = pip("--no-deps", "--target", str(target), str(packages[1]))
    assert done.returncode == 0, done.stderr[-3000:]
    return target


@pytest.fixture(scope="module")
def unpacked(packages, tmp_path_factory) -> Path:
    """The folder that the sdist was unpacked into."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(packages[0]) as archive:
        archive.extractall(folder, filter="data")
    (tree,) = folder.iterdir()
    return tree


def test_the_wheel_holds_the_package_and_nothing_else(packages):
    names = set(zipfile.ZipFile(packages[1]).namelist())
    inside = {name.removeprefix("hf_wakesleep/") for name in names if name.startswith("hf_wakesleep/")}
    modules = {str(path.relative_to(ROOT / "hf_wakesleep")) for path in (ROOT / "hf_wakesleep").rglob("*.py")}
    assert inside >= modules | set(NEEDED)
    assert not [name for name in inside if "__pycache__" in name]
    assert {name.split("/")[0] for name in names} == {"hf_wakesleep", f"{packages[1].name.split('-py3')[0]}.dist-info"}


def test_the_wheel_says_what_it_is(packages):
    wheel = zipfile.ZipFile(packages[1])
    (metadata,) = [name for name in wheel.namelist() if name.endswith("METADATA")]
    lines = wheel.read(metadata).decode().splitlines()
    assert {"License-Expression: Apache-2.0", "Requires-Python: >=3.10"} <= set(lines)
    citation = (ROOT / "CITATION.cff").read_text().splitlines()
    (version,) = [line.split()[1] for line in lines if line.startswith("Version: ")]
    assert f"version: {version}" in citation
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_sdist_holds_examples_tests_and_docs(unpacked):
    names = ["README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "docs/overview.svg"]
    names += ["examples/train_cil.py", "model_cards", "tests/conftest.py", "hf_wakesleep/__init__.py"]
    assert [name for name in names if not (unpacked / name).exists()] == []
    assert [name for name in NEEDED if not (unpacked / "hf_wakesleep" / name).exists()] == []
    assert not list(unpacked.rglob("__pycache__"))
    assert not (unpacked / "out").exists()


def test_the_main_job_runs_from_the_packages(installed, unpacked, tmp_path):
    file, version = run("-c", WHERE, cwd=tmp_path, path=installed).split()
    assert Path(file).parent == installed / "hf_wakesleep"
    assert unpacked.name == f"hf_wakesleep-{version}"
    quick = ["--num_tasks", "2", "--sleep_steps", "3", "--output_dir", "run"]
    run(str(unpacked / "examples" / "train_cil.py"), *quick, cwd=tmp_path, path=installed)
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    assert len(history["accuracy_matrix"]) == 2
    assert (tmp_path / "run" / "task-02" / "README.md").read_text().startswith("---\n")
