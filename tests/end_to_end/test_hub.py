"""Stages on the Hub: over HTTP, with the unmodified client, against a local endpoint."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hub_endpoint import HubEndpoint, client_environment
from huggingface_hub import ModelCard
from paths import EXAMPLES, ROOT, TESTS
from sklearn.datasets import load_digits

from hf_wakesleep.stages.outbox import Outbox, Publisher, push_pending

pytestmark = pytest.mark.slow

MODULE = ROOT / "hf_wakesleep" / "reporting" / "evaluate_modules" / "continual_learning"
TRAIN = str(EXAMPLES / "train_cil.py")
CONTINUE = str(EXAMPLES / "continue_from_hub.py")
SHORT = ["--num_train_epochs", "1", "--sleep_steps", "10", "--num_tasks", "3", "--disable_tqdm", "true"]
SHORT += ["--augmentation", "crop"]
REPO = "local/digits"
PUSHING = [TRAIN, *SHORT, "--push_to_hub", "true", "--hub_model_id", REPO]
TAGS = ["task-01", "task-02", "task-03"]


@pytest.fixture
def hub(tmp_path):
    with HubEndpoint(tmp_path / "hub") as endpoint:
        yield endpoint


def environment(hub, **changes) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return {**inherited, **client_environment(hub), **changes}


def run(hub, *command, cwd, succeeds=True, **changes) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env=environment(hub, **changes),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode == 0) == succeeds, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def train(hub, cwd, *args, **changes):
    return run(hub, *PUSHING, *args, cwd=cwd, **changes)


def run_without_package(hub, tmp_path, code, *args) -> str:
    """Run code in a second virtual environment that shares the installed packages, but not this one."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    (packages,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    shared = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "shared.pth").write_text("\n".join(shared))
    settings = environment(hub, HF_UPDATE_DOWNLOAD_COUNTS="0")
    settings["PYTHONPATH"] = str(TESTS / "children")
    done = subprocess.run(
        [str(tmp_path / "venv" / "bin" / "python"), "-c", code, *map(str, args)],
        cwd=tmp_path / "venv",
        env=settings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def wait_for(condition, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def git(hub, *command, repo=REPO) -> str:
    folder = str(hub.git_folder(repo, "model"))
    return subprocess.run(["git", "-C", folder, *command], capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Output folder of a run that was told of no Hub."""
    folder = tmp_path_factory.mktemp("finished")
    subprocess.run([sys.executable, TRAIN, *SHORT], cwd=folder, capture_output=True, check=True)
    return folder / "out" / "digits"


def unsent(finished: Path, tmp_path: Path, outbox: Outbox) -> Path:
    """Return a copy of a finished run, none of whose stages has been sent yet."""
    outbox.save(shutil.copytree(finished, tmp_path / "digits"))
    return tmp_path / "digits"


def assert_all_stages_arrived(hub, output_dir: Path, repo=REPO, branch="main"):
    """One commit and one tag for each stage, in their order, with the history of that stage."""
    log = git(hub, "log", "--format=%H %s", "--reverse", branch, repo=repo)
    commits = [commit for commit in log.splitlines() if "task-" in commit]
    assert [commit.split()[1].rstrip(":") for commit in commits] == TAGS
    for tag, commit in zip(TAGS, commits, strict=True):
        assert git(hub, "rev-parse", f"{tag}^{{commit}}", repo=repo).strip() == commit.split()[0]
        assert git(hub, "show", f"{tag}:history.json", repo=repo) == (output_dir / tag / "history.json").read_text()
    assert list(Outbox.load(output_dir).published) == TAGS
    git(hub, "fsck", "--strict", repo=repo)


def bytes_of_files(sent: Counter, stages: dict[str, dict[str, bytes]]) -> Counter:
    """Return how many bytes of each file of some stages were sent."""
    names = {name for files in stages.values() for name in files}
    bytes_of = Counter()
    for path, size in sent.items():
        name = path.partition("/resolve/")[2].partition("/")[2]
        if f"/{REPO}/" in path and name in names:
            bytes_of[name] += size
    return bytes_of


LOAD = """
import sys, torch
from huggingface_hub import snapshot_download
from hf_wakesleep import SemiParametricMemory, WakeSleepForImageClassification, check_digests
for tag in ("task-01", "task-02", "task-03"):
    there = WakeSleepForImageClassification.from_pretrained("local/digits", revision=tag)
    here = WakeSleepForImageClassification.from_pretrained(f"out/digits/{tag}")
    assert there.config.classes == here.config.classes
    one, two = there.state_dict(), here.state_dict()
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
print("weights are equal", flush=True)
sys.stdin.readline()
memory = WakeSleepForImageClassification.from_pretrained("local/digits", revision="task-02").memory
local = SemiParametricMemory.from_pretrained("out/digits/task-02")
assert memory.num_bytes == local.num_bytes
assert torch.equal(memory.read(range(len(memory)))[0], local.read(range(len(local)))[0])
there.push_to_hub("local/alone")
there.save_pretrained("saved", push_to_hub=True, repo_id="local/saved")
for folder in ("saved", snapshot_download("local/alone"), snapshot_download("local/saved")):
    check_digests(folder)
    WakeSleepForImageClassification.from_pretrained(folder)
"""


def test_every_stage_arrives_as_one_commit_and_tag_and_loads_back(hub, tmp_path):
    done = train(hub, tmp_path)
    assert "commit a data file" not in done.stderr
    out = tmp_path / "out" / "digits"
    assert_all_stages_arrived(hub, out)
    assert "pooled accuracy" in git(hub, "tag", "-n", "-l", "task-02")
    names = set(git(hub, "ls-tree", "-r", "--name-only", "task-03").split()) - {".gitattributes"}
    assert names == {str(path.relative_to(out / "task-03")) for path in (out / "task-03").rglob("*") if path.is_file()}
    for path in ["hub.json", *(f"task-03/{name}" for name in names if name.endswith((".json", ".md", ".py")))]:
        text = (out / path).read_text()
        assert str(tmp_path) not in text
        assert environment(hub)["HF_TOKEN"] not in text

    stages, before = {tag: hub.files(REPO, tag) for tag in TAGS}, hub.sent.copy()
    process = subprocess.Popen(
        [sys.executable, "-c", LOAD], cwd=tmp_path, env=environment(hub), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline().strip() == b"weights are equal"
    needed = ("config.json", "model.safetensors")
    assert bytes_of_files(hub.sent - before, stages) == {
        name: sum(len(files[name]) for files in stages.values()) for name in needed
    }
    before = hub.sent.copy()
    process.communicate(b"\n")
    assert process.returncode == 0
    memory = {name: len(content) for name, content in stages["task-02"].items() if name.startswith("memory/")}
    arrived = bytes_of_files(hub.sent - before, stages)
    assert {name: size for name, size in arrived.items() if name.startswith("memory/")} == memory
    for repo in ("local/alone", "local/saved"):
        files = hub.files(repo)
        assert ModelCard(files["README.md"].decode()).data.library_name == "hf_wakesleep"
        assert files.keys() >= {"config.json", "digests.json", "model.safetensors", "modeling_wakesleep.py"}


def test_nothing_private_is_in_anything_that_arrives(hub, tmp_path):
    """No token, path or name of this machine or its user, and no run of pixels of a training image."""
    user = {name: "secret-user" for name in ("USER", "LOGNAME", "USERNAME")}
    token = environment(hub)["HF_TOKEN"]
    train(hub, tmp_path, "--logging_steps", "1", "--run_name", "secret-run", "--hub_token", token, HF_TOKEN="", **user)
    secrets = [
        str(tmp_path),
        str(ROOT),
        str(Path.home()),
        token,
        "secret-run",
        "secret-user",
    ]
    digits = [np.round(image * (255 / 16)).astype(np.uint8).tobytes() for image in load_digits().images]
    for tag in TAGS:
        files = hub.files(REPO, tag)
        codes = pq.read_table(BytesIO(files["memory/codes.parquet"]))["code"].to_pylist()
        assert len(codes) > 100
        for name, content in [*files.items(), *(("a code", code) for code in codes)]:
            assert [secret for secret in secrets if secret.encode() in content] == [], name
            assert not any(pixels in content for pixels in digits), name
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", "-b", "task-02", str(hub.git_folder(REPO, "model")), str(clone)], check=True)
    assert (clone / "history.json").read_text() == (
        tmp_path / "out" / "digits" / "task-02" / "history.json"
    ).read_text()


WITHOUT_PACKAGE = """
import importlib.util, sys
assert importlib.util.find_spec("hf_wakesleep") is None
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline
classify = pipeline("image-classification", model="local/digits", revision="task-02", trust_remote_code=True)
print(sorted(answer["label"] for answer in classify(Image.new("L", (8, 8)), top_k=4)))
for number in range(1, 6):
    tag = f"task-{number:02d}"
    model = AutoModelForImageClassification.from_pretrained("local/digits", revision=tag, trust_remote_code=True)
    model.save_pretrained(tag)  # under the names that weights have in files, which differ from those in the model
    there, here = (load_file(f"{folder}/{tag}/model.safetensors") for folder in (".", sys.argv[1]))
    assert there.keys() == here.keys() and all(there[name].equal(here[name]) for name in here)
print(model.config.num_labels, AutoImageProcessor.from_pretrained("local/digits").crop_size["height"])
assert "hf_wakesleep" not in sys.modules
"""


def test_five_stages_work_bit_for_bit_where_the_package_is_not_installed(hub, tmp_path):
    train(hub, tmp_path, "--num_tasks", "5")
    out = tmp_path / "out" / "digits"
    printed = run_without_package(hub, tmp_path, WITHOUT_PACKAGE, out)
    history = json.loads((out / "history.json").read_text())
    assert printed.splitlines() == [str(sorted(history["classes"][:4])), "10 8"]


SPACE = """
import importlib.util, sys
assert importlib.util.find_spec("hf_wakesleep") is None
import evaluate
from huggingface_hub import HfApi
space = {"repo_id": "local/continual_learning", "repo_type": "space"}
HfApi().create_repo(**space, space_sdk="gradio")
HfApi().upload_folder(**space, folder_path=sys.argv[1], ignore_patterns="__pycache__/*")
results = evaluate.load("local/continual_learning").compute(accuracy_matrix=[[0.9], [0.7, 0.8], [0.5, 0.6, 0.9]])
print(round(results["forgetting"], 6))
"""


def test_the_metrics_load_from_a_space_where_the_package_is_not_installed(hub, tmp_path):
    assert run_without_package(hub, tmp_path, SPACE, MODULE).splitlines()[-1] == "0.3"
    start = "/spaces/local/continual_learning/resolve/main/"
    fetched = {path.removeprefix(start) for method, path, _ in hub.requests if method == "GET" and start in path}
    assert fetched == {"accuracy_matrix.py", "continual_learning.py"}


def test_a_failing_hub_stops_nothing_and_gets_every_stage_in_its_order(hub, tmp_path):
    with hub.outage():
        train(hub, tmp_path, "--hub_private_repo", "true", "--hub_revision", "dev")
    out = tmp_path / "out" / "digits"
    assert [path.name for path in sorted(out.glob("task-*"))] == TAGS
    assert Outbox.load(out) == Outbox(REPO, "dev", private=True)
    hub.fail(status=500, share=0.3, seed=0)
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-m", "hf_wakesleep", "push", str(out)],
            cwd=tmp_path,
            env=environment(hub),
            check=False,
        )
        if done.returncode == 0:
            break
    hub.clear()
    assert_all_stages_arrived(hub, out, branch="dev")


def test_an_outage_of_a_whole_task_stops_nothing_and_no_stage_is_missing(hub, tmp_path):
    out = tmp_path / "out" / "digits"
    process = subprocess.Popen([sys.executable, *PUSHING], cwd=tmp_path, env=environment(hub))
    wait_for((out / "task-01").is_dir)
    with hub.outage() as outage:
        wait_for((out / "task-02").is_dir)
        wait_for(lambda: outage.count)
    assert process.wait(300) == 0
    assert_all_stages_arrived(hub, out)


def test_an_upload_that_is_killed_is_taken_up_again(hub, finished, tmp_path):
    out = unsent(finished, tmp_path, Outbox(REPO))
    command = [sys.executable, "-m", "hf_wakesleep", "push", str(out)]
    hub.delay(0.15)
    process = subprocess.Popen(command, cwd=tmp_path, env=environment(hub))
    wait_for(lambda: any("/commit/" in path for _, path, _ in hub.requests))
    process.send_signal(signal.SIGKILL)
    process.wait()
    hub.clear()
    assert len(Outbox.load(out).published) < 3
    run(hub, "-m", "hf_wakesleep", "push", str(out), cwd=tmp_path)
    assert_all_stages_arrived(hub, out)
    run(hub, "-m", "hf_wakesleep", "push", str(out), cwd=tmp_path)  # nothing is left to do


def test_another_run_in_the_repository_is_left_alone(hub, tmp_path):
    train(hub, tmp_path)
    before = git(hub, "rev-parse", "main", *TAGS)
    (tmp_path / "other").mkdir()
    done = train(hub, tmp_path / "other", "--seed", "7")
    assert "has a tag 'task-01' of another run" in done.stderr
    assert git(hub, "rev-parse", "main", *TAGS) == before


def test_a_stage_from_the_hub_is_taught_elsewhere_as_if_nothing_had_happened(hub, tmp_path):
    train(hub, tmp_path)
    (tmp_path / "elsewhere").mkdir()
    args = [REPO, "--revision", "task-02", *SHORT, "--output_dir", "next"]
    run(hub, CONTINUE, *args, "--push_to_hub", "true", "--hub_model_id", "local/next", cwd=tmp_path / "elsewhere")
    from safetensors.torch import load_file

    here = load_file(tmp_path / "elsewhere" / "next" / "task-03" / "model.safetensors")
    whole = load_file(tmp_path / "out" / "digits" / "task-03" / "model.safetensors")
    assert here.keys() == whole.keys()
    assert all(here[name].equal(whole[name]) for name in here)
    content = json.loads((tmp_path / "elsewhere" / "next" / "history.json").read_text())
    uninterrupted = json.loads((tmp_path / "out" / "digits" / "history.json").read_text())
    assert content["classes"] == uninterrupted["classes"]
    assert content["accuracy_matrix"][:2] == uninterrupted["accuracy_matrix"][:2]
    assert content["accuracy_matrix"][2] == [None, None, uninterrupted["accuracy_matrix"][2][2]]
    folder = str(hub.git_folder("local/next", "model"))
    assert (
        subprocess.run(["git", "-C", folder, "tag"], capture_output=True, text=True, check=True).stdout == "task-03\n"
    )


def test_a_folder_without_an_outbox_is_one_clear_error(tmp_path):
    with pytest.raises(ValueError, match=r"Expected .*hub\.json, which does not exist"):
        push_pending(tmp_path)
    for content in (b"[1]", b"{", b"\xff", b'{"repo": "me/digits"}'):
        (tmp_path / "hub.json").write_bytes(content)
        with pytest.raises(ValueError, match="Expected an outbox .* does not hold one"):
            push_pending(tmp_path)


def test_stages_that_go_elsewhere_are_not_sent_to_another_repository(tmp_path):
    Outbox("me/digits").save(tmp_path)
    Publisher(tmp_path, "me/digits")
    for wrong in ({"repo_id": "me/other"}, {"repo_id": "me/digits", "revision": "dev"}):
        with pytest.raises(ValueError, match=r"go to me/digits \(main\), got"):
            Publisher(tmp_path, **wrong)


def test_an_outbox_survives_and_holds_no_token(tmp_path):
    outbox = Outbox("me/digits", revision="dev", private=True, published={"task-01": "abc"})
    outbox.save(tmp_path)
    assert Outbox.load(tmp_path) == outbox
    assert json.loads((tmp_path / "hub.json").read_text()).keys() == {"repo_id", "revision", "private", "published"}


INSPECT = """
from huggingface_hub import HfApi
from transformers import AutoModel, TimmWrapperConfig
from hf_wakesleep import WakeSleepForImageClassification
assert HfApi().model_info("lab/digits", revision="dev").private
assert {ref.name for ref in HfApi().list_repo_refs("lab/digits").branches} == {"main", "dev"}
config = TimmWrapperConfig(
    architecture="vit_tiny_patch16_224",
    model_args={"img_size": 32, "embed_dim": 48, "depth": 1, "num_heads": 3},
    pretrained_cfg={"input_size": [3, 32, 32], "mean": [0.4] * 3, "std": [0.25] * 3},
    num_labels=0,
)
AutoModel.from_config(config).push_to_hub("local/backbone")
model = WakeSleepForImageClassification.from_backbone("local/backbone")
assert model.config.image_size == 32
assert model.config.backbone_revision == HfApi().model_info("local/backbone").sha
assert model.config.backbone_config._name_or_path == "local/backbone"
"""


def test_every_refusal_is_tried_again_and_an_organisation_gets_its_private_branch(hub, finished, tmp_path):
    hub.organizations["lab"] = {"local"}
    out = unsent(finished, tmp_path, Outbox("lab/digits", "dev", private=True))
    faults = [
        hub.fail(status=status, path=path, times=1)
        for status, path in [
            (401, "/repos/create"),
            (403, "/preupload/"),
            (412, "/commit/"),
            (429, "/refs"),
            (409, "/tag/"),
            (503, "/branch/"),
        ]
    ]
    faults.append(hub.cut(path="/commit/", in_response=True, times=1))
    run(hub, "-m", "hf_wakesleep", "push", str(out), cwd=tmp_path, succeeds=False)  # more than its patience
    run(hub, "-m", "hf_wakesleep", "push", str(out), cwd=tmp_path)
    assert all(fault.count == 1 for fault in faults)
    assert_all_stages_arrived(hub, out, "lab/digits", "dev")
    run(hub, "-c", INSPECT, cwd=tmp_path)


LIVE = """
import sys

import numpy as np

from hf_wakesleep import Learner

learner = Learner.from_pretrained(sys.argv[1])
learner.teach(list(np.random.default_rng(0).integers(0, 255, (3, 8, 8), dtype=np.uint8)), "noise")
commit = learner.push_to_hub("local/live", tag="taught")
assert learner.push_to_hub("local/live", tag="taught") == commit
again = Learner.from_pretrained("local/live", revision="taught")
assert again.memory.checksum() == learner.memory.checksum()
assert again.history.to_dict() == learner.history.to_dict()
print(again.classes[-1], len(again.classes))
"""


def test_a_learner_is_sent_and_loaded_by_its_tag(hub, finished, tmp_path):
    done = run(hub, "-c", LIVE, str(finished / "task-03"), cwd=tmp_path)
    assert done.stdout.split() == ["noise", "11"]
    assert "taught" in git(hub, "tag", repo="local/live")
    assert "nan" not in git(hub, "log", "--format=%B", repo="local/live")
