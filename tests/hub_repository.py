"""Repositories as the Hub keeps them: git for what is small, a store by sha256 for what is large, a card on top."""

import base64
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import yaml

KINDS = ("models", "datasets", "spaces")
NAME = re.compile(r"(?!.*(\.\.|--|\.git$))[A-Za-z0-9]([A-Za-z0-9._-]{0,94}[A-Za-z0-9])?")
SHA1 = re.compile(r"[0-9a-f]{7,40}")
SHA256 = re.compile(r"[0-9a-f]{64}")
POINTER = re.compile(rb"version https://git-lfs\.github\.com/spec/v1\noid sha256:([0-9a-f]{64})\nsize (\d+)\n")
LARGE_PATTERNS = [f"*.{end}" for end in ("arrow", "bin", "npy", "npz", "parquet", "pt", "pth", "safetensors", "zip")]
LARGE_SIZE = 10 * 2**20
ENVIRONMENT = {"PATH": os.environ.get("PATH", os.defpath), "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}


class HubError(Exception):
    """An answer that is an error.

    Args:
        status: of HTTP.
        message: for people.
        code: the `X-Error-Code` by which the client chooses its exception.
        headers: further headers of the answer.
    """

    def __init__(self, status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status = status
        line = " ".join(message.encode("ascii", "backslashreplace").decode().split())
        self.headers = {"X-Error-Message": line, **({"X-Error-Code": code} if code else {}), **(headers or {})}


class Entry(NamedTuple):
    """A file or a folder of one commit; `size` is that of the content, not of the pointer to it."""

    path: str
    is_folder: bool
    oid: str
    size: int = 0
    sha256: str | None = None
    pointer_size: int = 0

    @property
    def etag(self) -> str:
        return self.sha256 or self.oid

    @property
    def item(self) -> dict:
        """The entry as the client reads it from a listing."""
        kind = "directory" if self.is_folder else "file"
        lfs = {"lfs": {"oid": self.sha256, "size": self.size, "pointerSize": self.pointer_size}} if self.sha256 else {}
        return {"type": kind, "oid": self.oid, "size": self.size, "path": self.path, **lfs}

    @property
    def sibling(self) -> dict:
        """The file as the client reads it from the information on a repository."""
        lfs = {"lfs": {**self.item["lfs"], "sha256": self.sha256}} if self.sha256 else {}
        return {"rfilename": self.path, "size": self.size, "blobId": self.oid, **lfs}


def check_path(path: str) -> str:
    """Return a path inside a repository, or refuse one that leaves it, enters `.git` or cannot be cloned."""
    bad_part = any(part.lower() in ("", ".", "..", ".git", "git~1") for part in path.split("/"))
    if bad_part or re.search(r"[\x00-\x1f\x7f\\]", path):
        raise HubError(400, f"Invalid path: {path!r}")
    return path


def format_date(seconds: float) -> str:
    """Return a time as the client parses it."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def make_pointer(oid: str, size: int) -> bytes:
    """Return what git holds in the place of a large file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n".encode()


def is_tracked(attributes: str, path: str) -> bool:
    """Whether `.gitattributes` says that a path holds a large file."""
    patterns = [line.split()[0] for line in attributes.splitlines() if "filter=lfs" in line]
    return any(fnmatch(path if "/" in pattern else path.rsplit("/", 1)[-1], pattern) for pattern in patterns)


class LargeFiles:
    """Contents under their sha256; what does not have the promised sha256 and size never gets in."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, oid: str) -> Path:
        if not SHA256.fullmatch(oid):
            raise HubError(422, f"Not a sha256: {oid!r}")
        return self.folder / oid[:2] / oid[2:4] / oid

    def size(self, oid: str) -> int | None:
        path = self.path(oid)
        return path.stat().st_size if path.exists() else None

    def write(self, oid: str, size: int, pieces: Iterable[bytes]) -> None:
        path, digest = self.path(oid), hashlib.sha256()
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix="incoming-", delete=False) as file:
            try:
                for piece in pieces:
                    digest.update(piece)
                    file.write(piece)
                if (got := (digest.hexdigest(), file.tell())) != (oid, size):
                    raise HubError(422, f"Expected sha256 {oid} and {size} bytes, got {got[0]} and {got[1]} bytes")
                file.flush()
                path.parent.mkdir(parents=True, exist_ok=True)
                os.replace(file.name, path)
            finally:
                Path(file.name).unlink(missing_ok=True)


class Repository:
    """A bare git repository, with its large files and whether it is private.

    Args:
        folder: ends with `.git`.
        large_files: shared by all repositories.
    """

    def __init__(self, folder: Path, large_files: LargeFiles):
        self.folder = folder
        self.large_files = large_files
        self.lock = threading.RLock()
        self._trees: dict[str, dict[str, Entry]] = {}

    @classmethod
    def create(cls, folder: Path, large_files: LargeFiles, author: str, private: bool) -> "Repository":
        repository = cls(folder, large_files)
        folder.parent.mkdir(parents=True, exist_ok=True)
        command = ["git", "init", "--quiet", "--bare", "--template=", "--initial-branch=main", str(folder)]
        subprocess.run(command, check=True, env=ENVIRONMENT)
        repository.settings = {"private": private, "created": format_date(time.time())}
        attributes = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LARGE_PATTERNS)
        repository.commit("main", author, "initial commit", {".gitattributes": attributes.encode()})
        return repository

    @property
    def settings(self) -> dict:
        return json.loads((self.folder / "hub.json").read_text())

    @settings.setter
    def settings(self, settings: dict) -> None:
        (self.folder / "hub.json").write_text(json.dumps(settings))

    def git(self, *arguments: str, data: bytes = b"") -> bytes:
        done = subprocess.run(
            ["git", *arguments], cwd=self.folder, env=ENVIRONMENT, input=data, capture_output=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"git {arguments[0]} in {self.folder}: {done.stderr.decode(errors='replace')}")
        return done.stdout

    def refs(self, kind: str) -> dict[str, str]:
        """Return the commit of each branch (`kind` is `heads`) or tag (`tags`)."""
        listing = self.git("for-each-ref", "--format=%(refname)%00%(objectname)%00%(*objectname)", f"refs/{kind}/")
        rows = [line.split("\0") for line in listing.decode().splitlines()]
        return {name.removeprefix(f"refs/{kind}/"): peeled or oid for name, oid, peeled in rows}

    def resolve(self, revision: str) -> str:
        """Return the commit of a branch, a tag or a sha."""
        if SHA1.fullmatch(revision) and revision in self._trees:
            return revision
        for kind in ("heads", "tags"):
            if sha := self.refs(kind).get(revision.removeprefix(f"refs/{kind}/")):
                return sha
        if SHA1.fullmatch(revision):
            found = self.git("cat-file", "--batch-check", data=f"{revision}^{{commit}}\n".encode()).split()
            if found[1] == b"commit":
                return found[0].decode()
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def tree(self, commit: str) -> dict[str, Entry]:
        """Return every file and folder of a commit under its path."""
        if commit not in self._trees:
            rows = []
            for line in self.git("ls-tree", "-r", "-t", "-l", "-z", commit).decode().split("\0")[:-1]:
                fields, path = line.split("\t", 1)
                _, kind, oid, size = fields.split()
                rows.append(Entry(path, kind == "tree", oid, 0 if size == "-" else int(size)))
            pointers = self._pointers([row.oid for row in rows if 120 < row.size < 160])
            self._trees[commit] = {row.path: self._follow(row, pointers) for row in rows}
        return self._trees[commit]

    def _pointers(self, oids: list[str]) -> dict[str, re.Match]:
        pointers = {}
        stream = self.git("cat-file", "--batch", data="".join(f"{oid}\n" for oid in oids).encode())
        for oid in oids:
            head, _, rest = stream.partition(b"\n")
            size = int(head.split()[2])
            if (match := POINTER.fullmatch(rest[:size])) and self.large_files.size(match[1].decode()) == int(match[2]):
                pointers[oid] = match
            stream = rest[size + 1 :]
        return pointers

    @staticmethod
    def _follow(row: Entry, pointers: dict[str, re.Match]) -> Entry:
        match = None if row.is_folder else pointers.get(row.oid)
        return row._replace(sha256=match[1].decode(), size=int(match[2]), pointer_size=row.size) if match else row

    def file(self, commit: str, path: str) -> Entry:
        entry = self.tree(commit).get(path)
        if entry is None or entry.is_folder:
            raise HubError(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": commit})
        return entry

    def read(self, entry: Entry) -> bytes:
        if entry.sha256:
            return self.large_files.path(entry.sha256).read_bytes()
        return self.git("cat-file", "blob", entry.oid)

    def commits(self, commit: str, *limit: str) -> list[dict]:
        fields = "%x1f".join(["%H", "%an", "%ct", "%s", "%b"])
        rows = self.git("log", "-z", f"--format={fields}", *limit, commit).decode().split("\0")
        items = []
        for sha, author, seconds, title, message in (row.split("\x1f", 4) for row in rows if row):
            item = {"id": sha, "authors": [{"user": author}], "date": format_date(int(seconds))}
            items.append({**item, "title": title, "message": message.strip()})
        return items

    def info(self, commit: str) -> dict:
        """Return what the Hub knows of a commit, without the names of the repository."""
        card, settings = self.metadata(commit), self.settings
        return {
            "sha": commit,
            "private": settings["private"],
            "gated": False,
            "disabled": False,
            "createdAt": settings["created"],
            "lastModified": self.commits(commit, "-1")[0]["date"],
            "downloads": 0,
            "likes": 0,
            "tags": card_tags(card),
            "cardData": card,
            "siblings": [entry.sibling for entry in self.tree(commit).values() if not entry.is_folder],
            **{name: card[name] for name in ("pipeline_tag", "library_name", "model-index") if name in card},
        }

    def listing(self, commit: str, path: str, deep: bool) -> list[dict]:
        tree, start = self.tree(commit), f"{path}/" if path else ""
        if path and not (path in tree and tree[path].is_folder):
            raise HubError(404, f"{path} does not exist", "EntryNotFound")
        below = [entry for entry in tree.values() if entry.path.startswith(start)]
        return [entry.item for entry in below if deep or "/" not in entry.path[len(start) :]]

    def upload_modes(self, commit: str, files: list[dict]) -> list[dict]:
        """Return how each file is to be sent, and what is there already."""
        tree, name = self.tree(commit), ".gitattributes"
        attributes = self.read(tree[name]).decode() if name in tree else ""
        answers = []
        for path, size, sample in ((check_path(file["path"]), file["size"], file["sample"]) for file in files):
            large = is_tracked(attributes, path) or size >= LARGE_SIZE or b"\0" in base64.b64decode(sample)
            oid = tree[path].etag if path in tree and not tree[path].is_folder else None
            answers.append(
                {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}
            )
        return answers

    def apply(self, branch: str, author: str, lines: list[dict]) -> str:
        """Make the commit that the client sends line by line and return it."""
        header = next(line["value"] for line in lines if line["key"] == "header")
        message = f"{header['summary']}\n\n{header.get('description') or ''}".strip()
        if not header["summary"] or "\0" in message:
            raise HubError(400, "Expected a summary without zero bytes")
        with self.lock:
            head = self.refs("heads").get(branch)
            if head is None:
                raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
            if header.get("parentCommit") not in (None, head):
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            operations = [(line["key"], line["value"]) for line in lines if line["key"] != "header"]
            changes = dict(self._change(head, key, value) for key, value in operations)
            if errors := check_card((changes.get("README.md") or b"").decode(errors="replace"))[0]:
                raise HubError(400, "Invalid metadata in README.md: " + "; ".join(errors))
            return self.commit(branch, author, message, changes)

    def _change(self, head: str, key: str, value: dict) -> tuple[str, bytes | None]:
        """Return a path and what an operation puts there, None for a deletion."""
        path = check_path(value["path"].rstrip("/"))
        if key == "file":
            return path, base64.b64decode(value["content"])
        if key == "lfsFile":
            size = self.large_files.size(value["oid"])
            if size is None or size != value.get("size", size):
                raise HubError(400, f"The large file of {path} was not uploaded: {value['oid']}")
            return path, make_pointer(value["oid"], size)
        entry = self.tree(head).get(path)
        if entry is None or entry.is_folder != (key == "deletedFolder"):
            raise HubError(404, f"A {key[7:].lower()} with this name doesn't exist: {path}", "EntryNotFound")
        return path, None

    def commit(self, branch: str, author: str, message: str, changes: dict[str, bytes | None]) -> str:
        """Put contents under their paths, in order; `None` removes the file or folder. Returns the new commit."""
        with self.lock:
            head = self.refs("heads").get(branch)
            if head:
                changes = {**changes, **self._attributes(self.tree(head), changes)}
            stream = [f"commit refs/heads/{branch}\ncommitter {_person(author)}\n".encode(), _data(message.encode())]
            stream += [f"from {head}\n".encode()] if head else []
            for path, content in changes.items():
                name = '"' + path.replace('"', '\\"') + '"\n'
                stream += [f"D {name}".encode()] if content is None else [f"M 100644 inline {name}".encode()]
                stream += [] if content is None else [_data(content)]
            self.git("fast-import", "--quiet", "--done", data=b"".join([*stream, b"done\n"]))
            return self.refs("heads")[branch]

    def _attributes(self, files: dict[str, Entry], changes: dict[str, bytes | None]) -> dict[str, bytes]:
        """Return `.gitattributes` with a line for each new large file that no pattern covers, as the Hub does."""
        name = ".gitattributes"
        now = changes[name] if name in changes else self.read(files[name]) if name in files else b""
        text = (now or b"").decode()
        large = [path for path, content in changes.items() if content and POINTER.fullmatch(content)]
        lines = [path.replace(" ", "[[:space:]]") for path in large if not is_tracked(text, path)]
        added = "".join(f"{line} filter=lfs diff=lfs merge=lfs -text\n" for line in lines)
        return {name: (text + added).encode()} if added else {}

    def create_ref(self, kind: str, name: str, commit: str) -> None:
        """Create a branch (`heads`) or tag (`tags`) that must not exist yet; `commit` may be a tag object."""
        with self.lock:
            if name in self.refs(kind):
                raise HubError(409, f"Reference {name!r} exists already")
            command = ["git", "check-ref-format", f"refs/{kind}/{name}"]
            if "\0" in name or subprocess.run(command, check=False, env=ENVIRONMENT).returncode:
                raise HubError(400, f"Invalid reference name: {name!r}")
            self.git("update-ref", f"refs/{kind}/{name}", commit, "0" * 40)

    def create_tag(self, name: str, commit: str, author: str, message: str) -> None:
        with self.lock:
            if message and name not in self.refs("tags"):
                tag = f"object {commit}\ntype commit\ntag {name}\ntagger {_person(author)}\n\n{message}\n"
                commit = self.git("mktag", data=tag.encode()).decode().strip()
            self.create_ref("tags", name, commit)

    def delete_ref(self, kind: str, name: str) -> None:
        with self.lock:
            if name not in self.refs(kind):
                raise HubError(404, f"Invalid rev id: {name}", "RevisionNotFound")
            self.git("update-ref", "-d", f"refs/{kind}/{name}")

    def metadata(self, commit: str) -> dict:
        """Return what the YAML of the README says, nothing if it is missing or broken."""
        readme = self.tree(commit).get("README.md")
        try:
            return read_metadata(self.read(readme).decode()) or {} if readme else {}
        except ValueError:
            return {}


class Storage:
    """Everything under one folder: `models/USER/NAME.git`, the same for other kinds, and `lfs/`."""

    def __init__(self, root: Path):
        self.root = root
        self.large_files = LargeFiles(root / "lfs")
        self._repositories: dict[Path, Repository] = {}
        self._lock = threading.Lock()

    def folder(self, kind: str, repo_id: str) -> Path:
        namespace, _, name = repo_id.partition("/")
        if kind not in KINDS or not (NAME.fullmatch(namespace) and NAME.fullmatch(name)):
            raise HubError(400, f"Invalid repository: {kind} {repo_id!r}")
        return self.root / kind / f"{repo_id}.git"

    def find(self, kind: str, repo_id: str) -> Repository | None:
        try:
            folder = self.folder(kind, repo_id)
        except HubError:
            return None
        with self._lock:
            if folder not in self._repositories and folder.is_dir():
                self._repositories[folder] = Repository(folder, self.large_files)
            return self._repositories.get(folder)

    def create(self, kind: str, repo_id: str, user: str, private: bool) -> bool:
        """Create a repository and return True, or False if it exists."""
        folder = self.folder(kind, repo_id)
        with self._lock:
            if folder.exists():
                return False
            self._repositories[folder] = Repository.create(folder, self.large_files, user, private)
            return True

    def remove(self, kind: str, repo_id: str) -> None:
        folder = self.folder(kind, repo_id)
        with self._lock:
            self._repositories.pop(folder, None)
            shutil.rmtree(folder)


def card_tags(card: dict) -> list[str]:
    """Return the tags that the Hub derives from a card."""

    def values(name: str) -> list[str]:
        value = card.get(name) or []
        return [str(item) for item in (value if isinstance(value, list) else [value])]

    tags = [*values("library_name"), *values("pipeline_tag"), *values("tags"), *values("language")]
    for name, prefix in (("datasets", "dataset"), ("base_model", "base_model"), ("license", "license")):
        tags += [f"{prefix}:{value}" for value in values(name)]
    return list(dict.fromkeys([*tags, *(["model-index"] if "model-index" in card else []), "region:us"]))


def _person(name: str) -> str:
    return f"{name} <{name}@users.noreply.invalid> {int(time.time())} +0000"


def _data(content: bytes) -> bytes:
    return b"data %d\n%b\n" % (len(content), content)


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a key stands once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if repeated := {key for key in keys if keys.count(key) > 1}:
            raise yaml.constructor.ConstructorError(None, None, f"duplicated mapping key {min(repeated)!r}")
        return super().construct_mapping(node, deep)


def read_metadata(card: str) -> dict | None:
    """Return the metadata at the top of a card, None if there is none."""
    match = re.match(r"\s*---[ \t]*\r?\n(.*?)\r?\n?---[ \t]*(\r?\n|$)", card, re.DOTALL)
    try:
        data = yaml.load(match[1], _StrictLoader) if match else None
    except yaml.YAMLError as error:
        raise ValueError(f"Invalid YAML: {error}") from error
    if data is not None and not isinstance(data, dict):
        raise ValueError("The metadata must be a mapping")
    return data


IDENTIFIER = r"[a-z0-9][a-z0-9.+-]*"
REPO_ID = rf"({NAME.pattern}/)?{NAME.pattern}"
TEXT = r"(?s).+"
# Field of a card: what each of its strings must match, and whether a list of them may stand.
FIELDS = {
    "license": (IDENTIFIER, True),
    "language": (TEXT, True),
    "tags": (TEXT, True),
    "datasets": (REPO_ID, True),
    "metrics": (TEXT, True),
    "base_model": (REPO_ID, True),
    "pipeline_tag": (IDENTIFIER, False),
    "library_name": (TEXT, False),
    "license_name": (TEXT, False),
    "license_link": (TEXT, False),
}


def check_card(card: str) -> tuple[list[str], list[str]]:
    """Return the errors and the warnings of a card's metadata."""
    try:
        data = read_metadata(card)
    except ValueError as error:
        return [str(error)], []
    if not data:
        return [], ["empty or missing yaml metadata in repo card"]
    errors = [error for name in data.keys() & FIELDS.keys() for error in _check_field(name, data[name])]
    if "model-index" in data:
        errors += _check_model_index(data["model-index"])
    return sorted(errors), []


def _check_field(name: str, value: object) -> Iterator[str]:
    pattern, may_be_list = FIELDS[name]
    if isinstance(value, list) and not may_be_list:
        yield f'"{name}" must be a string'
    for item in value if isinstance(value, list) else [value]:
        if not isinstance(item, str):
            yield f'"{name}" must be a string{" or an array of strings" if may_be_list else ""}, got {item!r}'
        elif not re.fullmatch(pattern, item):
            yield f'"{name}" with value {item!r} is not valid'


def _check_model_index(index: object) -> list[str]:
    errors: list[str] = []

    def expect(parent: object, field: str, kind: type | tuple[type, ...], where: str) -> object:
        value = parent.get(field) if isinstance(parent, dict) else None
        good = isinstance(value, kind) and value not in ("", []) and not isinstance(value, bool)
        if not good or (isinstance(value, float) and not math.isfinite(value)):
            errors.append(f'"{where}.{field}" is required and must be {kind}, got {value!r}')
            return [] if kind is list else {}
        return value

    for i, model in enumerate(index if isinstance(index, list) and index else [None]):
        expect(model, "name", str, f"model-index[{i}]")
        for j, result in enumerate(expect(model, "results", list, f"model-index[{i}]")):
            where = f"model-index[{i}].results[{j}]"
            expect(expect(result, "task", dict, where), "type", str, f"{where}.task")
            dataset = expect(result, "dataset", dict, where)
            expect(dataset, "type", str, f"{where}.dataset")
            expect(dataset, "name", str, f"{where}.dataset")
            for k, metric in enumerate(expect(result, "metrics", list, where)):
                expect(metric, "type", str, f"{where}.metrics[{k}]")
                expect(metric, "value", (int, float, str, dict), f"{where}.metrics[{k}]")
    return errors
