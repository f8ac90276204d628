"""Digests: what they cover, what they find, and that they are never wrong by the library's own doing."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mutations import make_run

import hf_wakesleep
from hf_wakesleep import ContinualTrainer, ContinualTrainingArguments, History, WakeSleepForImageClassification
from hf_wakesleep.model.digests_wakesleep import check_digests, write_digests
from hf_wakesleep.stages.hub import publish_stage

PACKAGE = Path(hf_wakesleep.__file__).parent


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder / "out", make_run(folder / "out", 0, range(3))


@pytest.fixture
def stage(run, tmp_path):
    return Path(shutil.copytree(run[0] / "task-02", tmp_path / "task-02"))


def go_on(stage, stream):
    args = ContinualTrainingArguments(str(stage.parent / "next"), disable_tqdm=True, report_to="none")
    return ContinualTrainer(WakeSleepForImageClassification.from_pretrained(stage), args, stream)


def test_every_file_of_a_stage_is_covered_but_the_card_and_the_picture(stage):
    listed = set(json.loads((stage / "digests.json").read_text())["sha256"])
    files = {path.relative_to(stage).as_posix() for path in stage.rglob("*") if path.is_file()}
    assert files - listed == {"README.md", "history.png", "digests.json"}


def test_the_code_in_a_stage_is_the_packages_own_byte_for_byte(stage):
    travelling = {path.name: path.read_bytes() for path in (PACKAGE / "model").glob("*_wakesleep.py")}
    assert {path.name: path.read_bytes() for path in stage.glob("*.py")} == travelling


def test_an_edited_card_locks_nobody_out(stage, run):
    (stage / "README.md").write_text("My own words.")
    (stage / "notes.txt").write_text("Mine, too.")
    assert len(go_on(stage, run[1]).history) == 2


def test_a_model_saved_over_its_stage_leaves_digests_that_are_right(stage, run):
    model = WakeSleepForImageClassification.from_pretrained(stage)
    with torch.no_grad():
        model.head.classifier.bias += 1
    model.save_pretrained(stage)
    check_digests(stage)
    assert len(go_on(stage, run[1]).history) == 2


def test_a_stage_without_digests_is_gone_on_with(stage, run):
    (stage / "digests.json").unlink()
    assert len(go_on(stage, run[1]).history) == 2


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_damaged_model_is_not_loaded_at_all(stage, name):
    content = bytearray((stage / name).read_bytes())
    content[-3] ^= 1
    (stage / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}.* damaged, missing or of another run"):
        WakeSleepForImageClassification.from_pretrained(stage)


def test_a_damaged_history_is_not_loaded_and_a_damaged_stage_not_published(stage):
    text = (stage / "history.json").read_text()
    (stage / "history.json").write_text(text.replace('"num_codes": ', '"num_codes": 1'))
    with pytest.raises(ValueError, match="history.json"):
        History.load(stage)
    with pytest.raises(ValueError, match="history.json"):
        publish_stage(stage, "me/x", tag="task-02")


def test_a_file_that_was_added_is_found(stage):
    shutil.copy(stage / "model.safetensors", stage / "more.safetensors")
    with pytest.raises(ValueError, match="more.safetensors"):
        check_digests(stage)


def test_names_in_digests_lead_nowhere_else(stage, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    digests = json.loads((stage / "digests.json").read_text())
    digests["sha256"] |= {"../config.json": "0" * 64, "/etc/passwd": "0" * 64}
    (stage / "digests.json").write_text(json.dumps(digests))
    check_digests(stage)
    digests["sha256"] |= {"config.json": "0" * 64}
    (stage / "digests.json").write_text(json.dumps(digests))
    with pytest.raises(ValueError, match="config.json"):
        check_digests(stage)


def test_a_folder_is_checked_once_it_has_digests(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    check_digests(tmp_path)
    write_digests(tmp_path)
    check_digests(tmp_path)
    (tmp_path / "config.json").write_text("{ }")
    with pytest.raises(ValueError, match="config.json"):
        check_digests(tmp_path)


@pytest.mark.slow
def test_a_stage_is_loaded_without_unpickling_anything(stage, run):
    """A child process whose unpicklers raise loads a stage and goes on with it."""
    code = (
        "import pickle, sys\n"
        "from hf_wakesleep import SemiParametricMemory, WakeSleepForImageClassification, History\n"
        "import pyarrow.parquet, datasets\n"
        "def refuse(*args, **kwargs): raise SystemExit('unpickled')\n"
        "pickle.load = pickle.loads = pickle.Unpickler = refuse\n"
        "import torch; torch.load = refuse\n"
        "model = WakeSleepForImageClassification.from_pretrained(sys.argv[1])\n"
        "memory = model.memory; memory.read(range(len(memory))); History.load(sys.argv[1])\n"
        "print('loaded')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(stage)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "loaded", done.stderr[-2000:]


def test_the_library_names_no_unpickler():
    words = ("pickle", "allow_pickle", "eval(", "exec(", "trust_remote_code=True", "yaml.load(")
    found = [(path.name, word) for path in PACKAGE.rglob("*.py") for word in words if word in path.read_text()]
    assert [pair for pair in found if pair[1] not in ("pickle", "eval(")] == []
    code = [line for path in PACKAGE.rglob("*.py") for line in path.read_text().splitlines() if "import" in line]
    assert not [line for line in code if "pickle" in line]
    loads = [line for path in PACKAGE.rglob("*.py") for line in path.read_text().splitlines() if "torch.load" in line]
    assert all("weights_only=True" in line for line in loads)
