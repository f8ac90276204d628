"""The local Hub endpoint: what the unmodified client needs, and the trouble that tests ask for."""

import hashlib
import http.client
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hub_endpoint import HubEndpoint, client_environment
from hub_repository import check_card, read_metadata
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, constants, file_download
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import _http

pytestmark = pytest.mark.slow

REPO = "local/stages"
CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-classification
tags: [continual-learning, vision]
datasets: [mnist, local/digits]
base_model: local/backbone
model-index:
- name: stages
  results:
  - task: {type: image-classification}
    dataset: {type: digits, name: Digits, config: task-1}
    metrics: [{type: accuracy, value: 0.9}]
---
# Stages
"""


@pytest.fixture
def hub(tmp_path):
    with HubEndpoint(tmp_path / "hub") as endpoint:
        yield endpoint


@pytest.fixture
def api(hub, monkeypatch):
    """A client in this process, online and without the pauses between its retries."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    impatient = SimpleNamespace(**{**vars(time), "sleep": lambda _: None})
    monkeypatch.setattr(_http, "time", impatient)
    monkeypatch.setattr(file_download, "time", impatient)
    return HfApi(endpoint=hub.url, token="hf_local")


@pytest.fixture
def stage(tmp_path) -> Path:
    """A folder with text, weights, a picture and a folder in it."""
    folder = tmp_path / "stage"
    (folder / "memory").mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    (folder / "config.json").write_text('{"model_type": "vit"}\n')
    (folder / "history.png").write_bytes(b"\x89PNG\r\n\x1a\n\0" + os.urandom(500))
    (folder / "model.safetensors").write_bytes(os.urandom(300_000))
    (folder / "memory" / "codes.parquet").write_bytes(os.urandom(2_000))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def git(hub: HubEndpoint, *arguments: str) -> str:
    return subprocess.check_output(["git", *arguments], cwd=hub.git_folder(REPO), text=True, stderr=subprocess.STDOUT)


def send(hub: HubEndpoint, method: str, path: str, body: object = None, **headers: str) -> tuple[int, bytes, dict]:
    """Send what the client refuses to send; return status, body and headers."""
    connection = http.client.HTTPConnection(hub.url.removeprefix("http://"))
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    connection.request(method, path, data, {"Authorization": "Bearer hf_local", **headers})
    answer = connection.getresponse()
    return answer.status, answer.read(), dict(answer.headers)


def commit_lines(*operations: dict) -> bytes:
    header = {"key": "header", "value": {"summary": "by hand"}}
    return b"".join(json.dumps(line).encode() + b"\n" for line in (header, *operations))


def add(path: str, content: bytes = b"x\n") -> CommitOperationAdd:
    return CommitOperationAdd(path, content)


def test_a_stage_goes_up_and_every_way_down_is_bit_identical(hub, api, stage, tmp_path):
    assert api.create_repo(REPO) == f"{hub.url}/{REPO}"
    pushed = api.upload_folder(repo_id=REPO, folder_path=stage, commit_message="task 1", commit_description="so so")
    api.create_tag(REPO, tag="task-01", tag_message="accuracy 0.9", revision=pushed.oid)
    api.upload_file(repo_id=REPO, path_or_fileobj=b"later", path_in_repo="config.json")

    sent = contents(stage)
    assert {name: hub.files(REPO, "task-01")[name] for name in sent} == sent
    down = Path(api.snapshot_download(REPO, revision="task-01", cache_dir=tmp_path / "cache"))
    assert down.name == pushed.oid
    assert {name: contents(down)[name] for name in sent} == sent
    for revision, content in (("task-01", sent["config.json"]), (pushed.oid, sent["config.json"]), ("main", b"later")):
        path = api.hf_hub_download(REPO, "config.json", revision=revision, cache_dir=tmp_path / revision)
        assert Path(path).read_bytes() == content

    subprocess.check_call(["git", "clone", "--quiet", "--branch=task-01", hub.git_folder(REPO), tmp_path / "clone"])
    subprocess.check_call(["git", "clone", "--quiet", f"{hub.url}/{REPO}", tmp_path / "by_http"])
    digest = hashlib.sha256(sent["model.safetensors"]).hexdigest()
    assert f"oid sha256:{digest}\nsize 300000\n" in (tmp_path / "clone" / "model.safetensors").read_text()
    assert (tmp_path / "by_http" / "config.json").read_bytes() == b"later"
    assert "history.png filter=lfs" in (tmp_path / "clone" / ".gitattributes").read_text()
    assert git(hub, "fsck", "--full", "--strict") == ""
    assert git(hub, "cat-file", "-p", "refs/tags/task-01").endswith("\n\naccuracy 0.9\n")
    assert [(row.title, row.message) for row in api.list_repo_commits(REPO, revision="task-01")] == [
        ("task 1", "so so"),
        ("initial commit", ""),
    ]


def test_listings_name_files_folders_sizes_and_refs(hub, api, stage):
    api.create_repo(REPO)
    oid = api.upload_folder(repo_id=REPO, folder_path=stage).oid
    api.create_tag(REPO, tag="v/1")
    api.create_branch(REPO, branch="trial", revision="v/1")
    assert {ref.name: ref.target_commit for ref in api.list_repo_refs(REPO).branches} == {"main": oid, "trial": oid}
    assert [ref.ref for ref in api.list_repo_refs(REPO).tags] == ["refs/tags/v/1"]
    names = {".gitattributes", *contents(stage)}
    assert set(api.list_repo_files(REPO, revision="v/1")) == names
    top = {entry.path: entry for entry in api.list_repo_tree(REPO)}
    assert set(top) == {name.split("/")[0] for name in names}
    assert (top["model.safetensors"].size, top["model.safetensors"].lfs.size) == (300_000, 300_000)
    assert [entry.path for entry in api.list_repo_tree(REPO, "memory", revision=oid)] == ["memory/codes.parquet"]
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(REPO, "nothing"))
    assert [entry.path for entry in api.get_paths_info(REPO, ["memory", "nothing", "README.md"])] == [
        "memory",
        "README.md",
    ]
    assert api.file_exists(REPO, "memory/codes.parquet", revision="trial")
    assert not api.file_exists(REPO, "memory/nothing")
    assert api.revision_exists(REPO, "v/1")
    with pytest.raises(RevisionNotFoundError):
        api.repo_info(REPO, revision="v/2")


def test_information_carries_what_the_card_says(hub, api, stage):
    api.create_repo(REPO, private=True)
    api.upload_folder(repo_id=REPO, folder_path=stage)
    info = api.model_info(REPO, files_metadata=True)
    assert (info.private, info.pipeline_tag, info.library_name) == (True, "image-classification", "transformers")
    assert {"continual-learning", "license:apache-2.0", "dataset:local/digits", "base_model:local/backbone"} <= set(
        info.tags
    )
    assert info.card_data.eval_results[0].metric_value == 0.9
    assert {file.rfilename: file.size for file in info.siblings}["memory/codes.parquet"] == 2_000
    assert api.dataset_info(api.create_repo("digits", repo_type="dataset").repo_id).id == "local/digits"


def test_a_commit_changes_what_differs_and_only_on_the_right_parent(hub, api, stage):
    api.create_repo(REPO)
    first = api.upload_folder(repo_id=REPO, folder_path=stage)
    assert api.upload_folder(repo_id=REPO, folder_path=stage).oid == first.oid
    (stage / "model.safetensors").write_bytes(b"smaller")
    second = api.upload_folder(repo_id=REPO, folder_path=stage, parent_commit=first.oid)
    assert git(hub, "diff", "--name-only", first.oid, second.oid) == "model.safetensors\n"
    assert sum(path.startswith("/lfs/") for _, path, _ in hub.requests) == 4
    with pytest.raises(HfHubHTTPError) as stale:
        api.create_commit(REPO, [add("a.txt")], commit_message="late", parent_commit=first.oid)
    assert stale.value.response.status_code == 412
    deletions = [CommitOperationDelete("memory/"), CommitOperationDelete("config.json")]
    api.create_commit(REPO, [*deletions, add("memory/codes.txt")], commit_message="less")
    assert set(hub.files(REPO)) == {
        *(".gitattributes", "README.md", "history.png", "model.safetensors", "memory/codes.txt")
    }
    with pytest.raises(EntryNotFoundError, match="doesn't exist"):
        api.delete_file("config.json", REPO)


def test_what_exists_is_said_to_exist(hub, api):
    url = api.create_repo(REPO)
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo(REPO)
    assert api.create_repo(REPO, exist_ok=True) == url
    for create, delete in ((api.create_tag, api.delete_tag), (api.create_branch, api.delete_branch)):
        name = {create.__name__.removeprefix("create_"): "one"}
        create(REPO, **name)
        create(REPO, **name, exist_ok=True)
        with pytest.raises(HfHubHTTPError, match="409"):
            create(REPO, **name)
        delete(REPO, **name)
        with pytest.raises(RevisionNotFoundError):
            delete(REPO, **name)
    api.delete_repo(REPO)
    assert not api.repo_exists(REPO)
    api.delete_repo(REPO, missing_ok=True)


def test_tokens_decide_who_reads_and_writes(hub, api):
    hub.tokens |= {"hf_other": "other", "hf_reader": "local"}
    hub.read_only.add("hf_reader")
    hub.organizations["lab"] = {"local"}
    assert api.whoami()["orgs"][0]["name"] == "lab"
    api.create_repo("lab/secret", private=True)
    api.create_repo(REPO)

    def status(action: str, repo_id: str, token: str | bool) -> int:
        try:
            if action == "write":
                api.create_commit(repo_id, [add(f"{token}.txt")], commit_message="try", token=token)
            else:
                api.repo_info(repo_id, token=token)
        except HfHubHTTPError as error:
            return error.response.status_code
        return 200

    tokens = ("hf_local", "hf_other", "hf_unknown", False)
    assert [status("read", REPO, token) for token in tokens] == [200, 200, 401, 200]
    assert [status("write", REPO, token) for token in tokens] == [200, 403, 401, 401]
    assert [status("read", "lab/secret", token) for token in tokens] == [200, 404, 401, 401]
    with pytest.raises(RepositoryNotFoundError):
        api.repo_info("lab/secret", token=False)
    assert [status("write", "lab/secret", token) for token in tokens] == [200, 404, 401, 401]
    assert (status("read", REPO, "hf_reader"), status("write", REPO, "hf_reader")) == (200, 403)
    api.update_repo_settings("lab/secret", private=False)
    assert status("read", "lab/secret", False) == 200
    with pytest.raises(HfHubHTTPError, match="403"):
        api.create_repo("strangers/model")


@pytest.mark.parametrize("name", ["../x", "..", "a/../../b", ".git", "x.git", "a--b", "", "/etc", "x" * 97, "a b"])
def test_repository_names_cannot_leave_the_folder(hub, name):
    assert send(hub, "POST", "/api/repos/create", {"name": name, "organization": None})[0] == 400
    assert send(hub, "POST", "/api/repos/create", {"name": "x", "type": "../model"})[0] == 400
    assert not list(hub.root.rglob("*.git"))


@pytest.mark.parametrize(
    "path", ["../x", "/x", "a/../b", ".git/config", "a/.GIT/hooks/update", "a//b", "a\\b", "a\nb", "./a", "a/.git"]
)
def test_paths_cannot_leave_the_repository_or_enter_git(hub, path):
    send(hub, "POST", "/api/repos/create", {"name": "stages"})
    line = {"key": "file", "value": {"path": path, "content": "eA==", "encoding": "base64"}}
    assert send(hub, "POST", f"/api/models/{REPO}/commit/main", commit_lines(line))[0] == 400
    files = {"files": [{"path": path, "sample": "eA==", "size": 1}]}
    assert send(hub, "POST", f"/api/models/{REPO}/preupload/main", files)[0] == 400
    assert set(hub.files(REPO)) == {".gitattributes"}


def test_a_large_file_is_stored_only_if_it_is_what_was_announced(hub):
    send(hub, "POST", "/api/repos/create", {"name": "stages"})
    content = os.urandom(1000)
    oid = hashlib.sha256(content).hexdigest()
    line = {"key": "lfsFile", "value": {"path": "a.bin", "oid": oid, "size": 1000, "algo": "sha256"}}
    assert send(hub, "PUT", f"/lfs/{oid}", content)[0] == 403
    batch = {"operation": "upload", "objects": [{"oid": oid, "size": 1000}]}
    answer = json.loads(send(hub, "POST", f"/{REPO}.git/info/lfs/objects/batch", batch)[1])
    assert answer["objects"][0]["actions"]["upload"]["href"] == f"{hub.url}/lfs/{oid}"
    for wrong in (content[:-1], content + b"x", b"y" * 1000):
        assert send(hub, "PUT", f"/lfs/{oid}", wrong)[0] == 422
    assert send(hub, "POST", f"/api/models/{REPO}/commit/main", commit_lines(line))[0] == 400

    hub.cut("/lfs/", after_bytes=400)
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        send(hub, "PUT", f"/lfs/{oid}", content)
    assert hub.received[f"/lfs/{oid}"] >= 400
    assert [path for path in (hub.root / "lfs").rglob("*") if path.is_file()] == []
    assert send(hub, "PUT", f"/lfs/{oid}", content)[0] == 200
    assert send(hub, "POST", f"/api/models/{REPO}/commit/main", commit_lines(line))[0] == 200
    assert hub.files(REPO)["a.bin"] == content


def test_a_part_of_a_file_is_sent_when_asked_for(hub, api):
    api.create_repo(REPO)
    content = os.urandom(1000)
    api.create_commit(REPO, [add("a.bin", content), add("a.txt", b"text")], commit_message="two")
    url = f"/{REPO}/resolve/main/a.bin"
    for wanted, part in (
        ("0-9", content[:10]),
        ("990-", content[990:]),
        ("-10", content[-10:]),
        ("5-5000", content[5:]),
    ):
        status, body, headers = send(hub, "GET", url, Range=f"bytes={wanted}")
        assert (status, body) == (206, part)
        assert headers["Content-Range"].endswith("/1000")
    assert send(hub, "GET", url, Range="bytes=1000-")[0] == 416
    head = send(hub, "HEAD", url)[2]
    assert head["X-Linked-Etag"] == head["ETag"] == f'"{hashlib.sha256(content).hexdigest()}"'
    assert (head["X-Linked-Size"], head["Content-Length"]) == ("1000", "1000")
    assert head["X-Repo-Commit"] == api.repo_info(REPO).sha
    assert "X-Linked-Size" not in send(hub, "HEAD", f"/{REPO}/resolve/main/a.txt")[2]
    missing = send(hub, "HEAD", f"/{REPO}/resolve/main/b.txt")[2]
    assert (missing["X-Error-Code"], missing["X-Repo-Commit"]) == ("EntryNotFound", head["X-Repo-Commit"])


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("license: apache-2.0", "license: Apache License 2", '"license" with value'),
        ("tags: [continual-learning, vision]", "tags: [1, 2]", '"tags" must be a string or an array of strings'),
        ("pipeline_tag: image-classification", "pipeline_tag: [a]", '"pipeline_tag" must be a string'),
        ("base_model: local/backbone", "base_model: ./runs/backbone", '"base_model" with value'),
        ("local/digits]", "/home/me/digits]", '"datasets" with value'),
        ("type: digits, ", "", '"model-index[0].results[0].dataset.type" is required'),
        ("value: 0.9", "value: .nan", '"model-index[0].results[0].metrics[0].value" is required'),
        ("  results:", "  outcomes:", '"model-index[0].results" is required'),
        ("model-index:\n- ", "model-index:\n  ", '"model-index[0].name" is required'),
        ("license:", "tags: []\nlicense:", "duplicated mapping key 'tags'"),
        ("license: ", "license: [", "Invalid YAML"),
    ],
)
def test_wrong_cards_are_refused(old, new, error):
    assert check_card(CARD) == ([], [])
    assert old in CARD
    errors, _ = check_card(CARD.replace(old, new))
    assert any(error in line for line in errors), errors


def test_cards_are_validated_when_asked_and_when_pushed(hub, api, monkeypatch):
    assert check_card("# no metadata") == ([], ["empty or missing yaml metadata in repo card"])
    assert read_metadata("---\nlicense: mit\n---") == {"license": "mit"}
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    ModelCard(CARD).validate()
    wrong = CARD.replace("apache-2.0", "Mine!")
    with pytest.raises(ValueError, match="license"):
        ModelCard(wrong).validate()
    api.create_repo(REPO)
    with pytest.raises(ValueError, match="license"):
        api.create_commit(REPO, [add("README.md", wrong.encode())], commit_message="card")
    monkeypatch.setattr(HfApi, "_validate_yaml", lambda *_, **__: None)
    with pytest.raises(BadRequestError, match="license"):
        api.create_commit(REPO, [add("README.md", wrong.encode())], commit_message="card")


def test_failures_are_counted_and_strike_where_they_are_told(hub, api, stage):
    api.create_repo(REPO)
    failure = hub.fail(status=500, times=3, path="preupload", method="POST")
    api.upload_folder(repo_id=REPO, folder_path=stage)
    assert failure.count == 3
    assert [status for _, path, status in hub.requests if "preupload" in path] == [500, 500, 500, 200]
    hub.fail(status=403, path="/tag/")
    with pytest.raises(HfHubHTTPError, match="403"):
        api.create_tag(REPO, tag="task-01")
    assert api.list_repo_refs(REPO).tags == []
    hub.clear()
    api.create_tag(REPO, tag="task-01")
    with pytest.raises(re.error):
        hub.fail(path="(")


def test_a_share_of_the_requests_is_refused_the_same_in_each_run(hub):
    def run(seed: int) -> list[int]:
        failure = hub.fail(status=429, retry_after=7, share=0.3, seed=seed)
        answers = [send(hub, "GET", "/api/whoami-v2") for _ in range(100)]
        hub.clear()
        assert failure.count == sum(status == 429 for status, *_ in answers)
        assert all(headers["Retry-After"] == "7" for status, _, headers in answers if status == 429)
        return [status for status, *_ in answers]

    first = run(0)
    assert 15 <= first.count(429) <= 45
    assert run(0) == first != run(1)


def test_an_upload_cut_in_the_middle_is_sent_again(hub, api, stage):
    api.create_repo(REPO)
    cut = hub.cut("/lfs/", after_bytes=100, times=2)
    api.upload_folder(repo_id=REPO, folder_path=stage)
    assert cut.count == 2
    assert sum(status == 0 for _, _, status in hub.requests) == 2
    assert hub.files(REPO)["model.safetensors"] == (stage / "model.safetensors").read_bytes()


def test_a_commit_can_be_cut_before_it_is_made_or_after(hub, api):
    api.create_repo(REPO)
    for in_response, made in ((False, 1), (True, 2)):
        hub.cut("/commit/", after_bytes=50, in_response=in_response)
        with pytest.raises(_http.httpx2.TransportError):
            api.create_commit(REPO, [add("a.txt")], commit_message="lost")
        assert git(hub, "rev-list", "--count", "main") == f"{made}\n"


def test_a_download_cut_in_the_middle_goes_on_where_it_stopped(hub, api, stage, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 2**16)
    api.create_repo(REPO)
    api.upload_folder(repo_id=REPO, folder_path=stage)
    path = f"/{REPO}/resolve/main/model.safetensors"
    cut = hub.cut(path, after_bytes=200_000, method="GET", in_response=True)
    down = api.hf_hub_download(REPO, "model.safetensors", cache_dir=tmp_path / "cache")
    assert Path(down).read_bytes() == (stage / "model.safetensors").read_bytes()
    assert cut.count == 1
    assert [status for method, seen, status in hub.requests if seen == path and method == "GET"] == [0, 206]
    assert 300_000 <= hub.sent[path] < 500_000


def test_a_slow_hub_is_slow_where_it_is_told(hub, api):
    api.create_repo(REPO)
    delay = hub.delay(0.3, path="/refs")
    api.repo_info(REPO)
    assert delay.count == 0
    start = time.perf_counter()
    api.list_repo_refs(REPO)
    assert time.perf_counter() - start >= 0.3
    assert delay.count == 1


def test_an_outage_refuses_everything_and_ends(hub, api):
    api.create_repo(REPO)
    with hub.outage() as outage:
        assert not api_answers(api)
        hub.clear()
        assert api_answers(api)
    assert outage.count == 1
    assert api_answers(api)


def api_answers(api: HfApi) -> bool:
    try:
        api.repo_info(REPO)
    except (HfHubHTTPError, _http.httpx2.TransportError):
        return False
    return True


def test_a_stopped_hub_is_not_there_and_comes_back_with_all_it_had(hub, api, tmp_path):
    api.create_repo(REPO)
    url = hub.url
    hub.stop()
    assert not api_answers(api)
    with pytest.raises(ConnectionRefusedError):
        send(hub, "GET", f"/api/models/{REPO}")
    hub.start()
    assert hub.url == url
    assert api_answers(api)
    with HubEndpoint(hub.root) as other:
        assert HfApi(endpoint=other.url).repo_info(REPO).sha == api.repo_info(REPO).sha


def test_commits_of_many_threads_are_all_made(hub, api):
    api.create_repo(REPO)

    def push(number: int) -> None:
        operations = [add(f"{number}.txt"), add(f"{number}.bin", f"\0{number}".encode())]
        api.create_commit(REPO, operations, commit_message=f"number {number}")

    threads = [threading.Thread(target=push, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(api.list_repo_commits(REPO)) == 9
    assert len(hub.files(REPO)) == 17
    assert git(hub, "fsck", "--full", "--strict") == ""


CLIENT = """
import hashlib, torch
from datasets import Dataset, load_dataset
from transformers import AutoConfig, AutoModel, ViTConfig

for number in (1, 2):
    torch.manual_seed(number)
    config = ViTConfig(image_size=8, patch_size=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
                       intermediate_size=8)
    model = AutoModel.from_config(config)
    info = model.push_to_hub("stages", commit_message=f"task {number}")
    from huggingface_hub import HfApi
    HfApi().create_tag("local/stages", tag=f"task-0{number}", revision=info.oid)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    if number == 1:
        first = weights
loaded = AutoModel.from_pretrained("local/stages", revision="task-01").state_dict()
assert loaded.keys() == first.keys() and all(torch.equal(loaded[name], first[name]) for name in first)
latest = AutoModel.from_pretrained("local/stages").state_dict()
assert all(torch.equal(latest[name], weights[name]) for name in weights)
Dataset.from_dict({"label": [1, 2, 3]}).push_to_hub("local/digits")
assert load_dataset("local/digits", split="train")["label"][:] == [1, 2, 3]
try:
    AutoConfig.from_pretrained("local/stages", revision="task-03")
except OSError as error:
    assert "task-03" in str(error)
else:
    raise AssertionError("task-03 does not exist")
"""


def test_models_and_datasets_of_another_process_load_by_tag(hub):
    environment = {**client_environment(hub), "OMP_NUM_THREADS": "1"}
    assert "HF_HUB_OFFLINE" not in environment
    done = subprocess.run([sys.executable, "-c", CLIENT], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert {"task-01", "task-02"} == set(git(hub, "tag").split())
    assert [row for row in hub.requests if row.status >= 500 or row.status == 0] == []
    assert any(path.endswith(".parquet") for path in hub.files("local/digits", repo_type="dataset"))
