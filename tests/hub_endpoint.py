"""A Hugging Face Hub on this machine for tests: real storage behind HTTP, with trouble on demand."""

import contextlib
import gzip
import json
import os
import random
import re
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from hub_repository import (
    HubError,
    Repository,
    Storage,
    check_card,
)

PIECE = 2**16
REPO = r"(?P<repo_id>[^/]+(?:/[^/]+?)?)"
API = rf"/api/(?P<kind>models|datasets|spaces)/{REPO}"
PAGE = rf"/(?:(?P<kind>datasets|spaces)/)?{REPO}"


@dataclass(eq=False)
class Fault:
    """Trouble for the requests whose path matches; `count` says how many it struck."""

    path: str = ""
    method: str | None = None
    times: int | None = None
    share: float = 1.0
    seed: int = 0
    count: int = field(default=0, init=False)

    def __post_init__(self):
        self._random = random.Random(self.seed)
        self._path = re.compile(self.path)

    def strikes(self, method: str, path: str) -> bool:
        if self.count == self.times or self.method not in (None, method) or not self._path.search(path):
            return False
        struck = self._random.random() < self.share
        self.count += struck
        return struck


@dataclass(eq=False)
class Failure(Fault):
    status: int = 500
    retry_after: int = 1


@dataclass(eq=False)
class Cut(Fault):
    after_bytes: int = 0
    in_response: bool = False


@dataclass(eq=False)
class Delay(Fault):
    seconds: float = 0.0


class Request(NamedTuple):
    """A request that was seen; status 0 means that the connection broke before the answer was whole."""

    method: str
    path: str
    status: int


@dataclass
class Reply:
    """An answer; `content` is read `size` bytes far and closed."""

    content: BinaryIO = field(default_factory=BytesIO)
    size: int = 0
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, value: object, status: int = 200, headers: dict[str, str] | None = None) -> "Reply":
        body = value if isinstance(value, bytes) else json.dumps(value, default=str).encode()
        kind = "application/octet-stream" if isinstance(value, bytes) else "application/json"
        return cls(BytesIO(body), len(body), status, {"Content-Type": kind, **(headers or {})})


class Body:
    """The body of a request, of known length or chunked, read once piece by piece.

    Args:
        cut: the connection breaks when so many bytes have come, or the body is whole.
    """

    def __init__(self, stream: BinaryIO, headers: Message, cut: int | None):
        self.received = 0
        self._stream, self._headers, self._cut = stream, headers, cut
        self._pieces = self._iterate()

    def __iter__(self) -> Iterator[bytes]:
        return self._pieces

    def read(self) -> bytes:
        return b"".join(self)

    def _iterate(self) -> Iterator[bytes]:
        for length in self._lengths():
            end = self.received + length
            while self.received < end:
                wanted = min(PIECE, end - self.received, PIECE if self._cut is None else self._cut - self.received)
                piece = self._stream.read(wanted) if wanted else b""
                if not piece:
                    raise ConnectionAbortedError("the body ends early")
                self.received += len(piece)
                yield piece
        if self._cut is not None:
            raise ConnectionAbortedError("cut after the body")

    def _lengths(self) -> Iterator[int]:
        if self._headers.get("Transfer-Encoding", "").lower() != "chunked":
            yield int(self._headers.get("Content-Length", 0))
            return
        while True:
            line = self._stream.readline(PIECE)
            if not line:
                raise ConnectionAbortedError("the body ends early")
            length = int(line.split(b";")[0], 16)
            yield length
            self._stream.readline(PIECE)
            if not length:
                return


@dataclass
class Call:
    """A request on its way to the function that answers it."""

    hub: "HubEndpoint"
    headers: Message
    body: Body
    query: dict[str, list[str]]
    kind: str = "models"
    repo_id: str = ""

    @property
    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ").strip()

    def user(self) -> str | None:
        """Return whose token was sent, None without one."""
        if self.token and self.token not in self.hub.tokens:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.hub.tokens.get(self.token)

    def writer(self, namespace: str | None = None) -> str:
        """Return the user if the token may write to a namespace."""
        user = self.user()
        if user is None:
            raise HubError(401, "Invalid username or password.")
        if self.token in self.hub.read_only or not self.hub.is_member(user, namespace or user):
            raise HubError(403, f"You don't have the rights to write under the namespace {namespace or user!r}")
        return user

    def repository(self, write: bool = False) -> Repository:
        """Return the repository if the token may read it or, with `write`, write to it."""
        user, namespace = self.user(), self.repo_id.split("/")[0]
        repository = self.hub.storage.find(self.kind, self.repo_id)
        if repository is None or (repository.settings["private"] and not self.hub.is_member(user, namespace)):
            raise HubError(401 if user is None else 404, "Repository not found", "RepoNotFound")
        if write:
            self.writer(namespace)
        return repository

    def json(self) -> dict:
        try:
            return json.loads(self.body.read())
        except ValueError as error:
            raise HubError(400, f"Invalid JSON: {error}") from error

    def url(self) -> str:
        return self.hub.url + ("" if self.kind == "models" else f"/{self.kind}") + f"/{self.repo_id}"


ROUTES: list[tuple[str, re.Pattern, Callable[..., Reply]]] = []


def route(method: str, pattern: str) -> Callable[[Callable[..., Reply]], Callable[..., Reply]]:
    """Register what answers a method on a path; groups other than the repository become arguments."""

    def register(function: Callable[..., Reply]) -> Callable[..., Reply]:
        ROUTES.append((method, re.compile(pattern), function))
        return function

    return register


def find_route(method: str, path: str) -> tuple[Callable[..., Reply], dict[str, str | None]] | None:
    """Return what answers a request for a quoted path, with its arguments."""
    method = "GET" if method == "HEAD" else method
    for of_route, pattern, function in ROUTES:
        if method == of_route and (match := pattern.fullmatch(path)):
            return function, {name: value and unquote(value) for name, value in match.groupdict().items()}
    return None


@route("GET", "/api/whoami-v2")
def whoami(call: Call) -> Reply:
    user = call.user()
    if user is None:
        raise HubError(401, "Invalid username or password.")
    orgs = [{"name": name, "type": "org"} for name, members in call.hub.organizations.items() if user in members]
    role = "read" if call.token in call.hub.read_only else "write"
    auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
    return Reply.of({"type": "user", "id": user, "name": user, "fullname": user, "orgs": orgs, "auth": auth})


@route("POST", "/api/validate-yaml")
def validate_yaml(call: Call) -> Reply:
    errors, warnings = check_card(call.json()["content"])
    texts = {"errors": errors, "warnings": warnings}
    answer = {name: [{"message": text} for text in found] for name, found in texts.items()}
    return Reply.of(answer, 400 if errors else 200)


@route("POST", "/api/repos/create")
def create_repo(call: Call) -> Reply:
    data = call.json()
    user = call.writer(data.get("organization"))
    call.kind, call.repo_id = f"{data.get('type') or 'model'}s", f"{data.get('organization') or user}/{data['name']}"
    created = call.hub.storage.create(call.kind, call.repo_id, user, data.get("visibility") == "private")
    answer = {"url": call.url(), "name": call.repo_id, "id": call.repo_id}
    return Reply.of(
        answer if created else {**answer, "error": "You already created this repo"}, 200 if created else 409
    )


@route("DELETE", "/api/repos/delete")
def delete_repo(call: Call) -> Reply:
    data = call.json()
    namespace = data.get("organization") or call.writer()
    call.kind, call.repo_id = f"{data.get('type') or 'model'}s", f"{namespace}/{data['name']}"
    call.repository(write=True)
    call.hub.storage.remove(call.kind, call.repo_id)
    return Reply()


@route("PUT", rf"{API}/settings")
def update_settings(call: Call) -> Reply:
    repository, data = call.repository(write=True), call.json()
    private = data.get("private", data.get("visibility") == "private")
    repository.settings = {**repository.settings, "private": private}
    return Reply.of({"private": private})


@route("GET", rf"{API}(?:/revision/(?P<revision>[^/]+))?")
def repo_info(call: Call, revision: str | None) -> Reply:
    repository = call.repository()
    names = {"id": call.repo_id, "modelId": call.repo_id, "author": call.repo_id.split("/")[0]}
    return Reply.of({**names, **repository.info(repository.resolve(revision or "main"))})


@route("GET", rf"{API}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?")
def list_tree(call: Call, revision: str, path: str | None) -> Reply:
    repository = call.repository()
    deep = call.query.get("recursive", ["false"])[0].lower() in ("true", "1")
    return Reply.of(repository.listing(repository.resolve(revision), path or "", deep))


@route("POST", rf"{API}/paths-info/(?P<revision>[^/]+)")
def paths_info(call: Call, revision: str) -> Reply:
    repository = call.repository()
    tree = repository.tree(repository.resolve(revision))
    paths = parse_qs(call.body.read().decode()).get("paths", [])
    return Reply.of([tree[path].item for path in paths if path in tree])


@route("GET", rf"{API}/refs")
def list_refs(call: Call) -> Reply:
    repository = call.repository()
    answer: dict[str, list[dict]] = {"converts": [], "pullRequests": []}
    for name, kind in (("branches", "heads"), ("tags", "tags")):
        refs = repository.refs(kind).items()
        answer[name] = [{"name": ref, "ref": f"refs/{kind}/{ref}", "targetCommit": sha} for ref, sha in refs]
    return Reply.of(answer)


@route("GET", rf"{API}/commits/(?P<revision>[^/]+)")
def list_commits(call: Call, revision: str) -> Reply:
    repository = call.repository()
    return Reply.of(repository.commits(repository.resolve(revision)))


@route("POST", rf"{API}/tag/(?P<revision>[^/]+)")
def create_tag(call: Call, revision: str) -> Reply:
    repository, data = call.repository(write=True), call.json()
    repository.create_tag(data["tag"], repository.resolve(revision), call.user(), data.get("message") or "")
    return Reply()


@route("POST", rf"{API}/branch/(?P<name>[^/]+)")
def create_branch(call: Call, name: str) -> Reply:
    repository, data = call.repository(write=True), call.json()
    repository.create_ref("heads", name, repository.resolve(data.get("startingPoint") or "main"))
    return Reply()


@route("DELETE", rf"{API}/tag/(?P<name>[^/]+)")
def delete_tag(call: Call, name: str) -> Reply:
    call.repository(write=True).delete_ref("tags", name)
    return Reply()


@route("DELETE", rf"{API}/branch/(?P<name>[^/]+)")
def delete_branch(call: Call, name: str) -> Reply:
    repository = call.repository(write=True)
    if name == "main":
        raise HubError(400, "Cannot delete the branch main")
    repository.delete_ref("heads", name)
    return Reply()


@route("POST", rf"{API}/preupload/(?P<revision>[^/]+)")
def preupload(call: Call, revision: str) -> Reply:
    repository, files = call.repository(write=True), call.json()["files"]
    return Reply.of({"files": repository.upload_modes(repository.resolve(revision), files)})


@route("POST", rf"{API}/commit/(?P<revision>[^/]+)")
def create_commit(call: Call, revision: str) -> Reply:
    repository = call.repository(write=True)
    if "create_pr" in call.query:
        raise HubError(400, "Pull requests are not served")
    lines = [json.loads(line) for line in call.body.read().splitlines()]
    sha = repository.apply(revision.removeprefix("refs/heads/"), call.user(), lines)
    return Reply.of({"success": True, "commitOid": sha, "commitUrl": f"{call.url()}/commit/{sha}"})


@route("POST", rf"{PAGE}\.git/info/lfs/objects/batch")
def start_uploads(call: Call) -> Reply:
    call.repository(write=True)
    data = call.json()
    if data["operation"] != "upload":
        raise HubError(422, "Large files are downloaded from /resolve/")
    objects, store = [], call.hub.storage.large_files
    for item in data["objects"]:
        answer = {"oid": item["oid"], "size": item["size"]}
        if store.size(item["oid"]) is None:
            call.hub.awaited[item["oid"]] = item["size"]
            verify = f"{call.url()}.git/info/lfs/objects/verify"
            answer["actions"] = {"upload": {"href": f"{call.hub.url}/lfs/{item['oid']}"}, "verify": {"href": verify}}
        objects.append(answer)
    return Reply.of({"transfer": "basic", "objects": objects})


@route("PUT", "/lfs/(?P<oid>[^/]+)")
def upload(call: Call, oid: str) -> Reply:
    if oid not in call.hub.awaited:
        raise HubError(403, "This upload was not announced")
    call.hub.storage.large_files.write(oid, call.hub.awaited[oid], call.body)
    return Reply()


@route("POST", rf"{PAGE}\.git/info/lfs/objects/verify")
def verify_upload(call: Call) -> Reply:
    call.repository(write=True)
    data = call.json()
    if call.hub.storage.large_files.size(data["oid"]) != data["size"]:
        raise HubError(404, "This large file was not uploaded")
    return Reply()


@route("GET", rf"{PAGE}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
def resolve(call: Call, revision: str, path: str) -> Reply:
    repository = call.repository()
    commit = repository.resolve(revision)
    entry = repository.file(commit, path)
    headers = {"X-Repo-Commit": commit, "ETag": f'"{entry.etag}"', "Accept-Ranges": "bytes"}
    content: BinaryIO
    if entry.sha256:
        headers |= {"X-Linked-Etag": f'"{entry.sha256}"', "X-Linked-Size": str(entry.size)}
        content = call.hub.storage.large_files.path(entry.sha256).open("rb")
    else:
        content = BytesIO(repository.read(entry))
    return _part(Reply(content, entry.size, 200, headers), call.headers.get("Range", ""))


def _part(whole: Reply, wanted: str) -> Reply:
    """Return the range of bytes that the header asks for, everything if it asks for none."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted)
    if match is None:
        return whole
    first, last = match.groups()
    start = int(first) if first else max(0, whole.size - int(last or 0))
    stop = min(int(last) + 1, whole.size) if first and last else whole.size
    if start >= stop:
        whole.content.close()
        raise HubError(416, "Range not satisfiable", headers={"Content-Range": f"bytes */{whole.size}"})
    whole.content.seek(start)
    headers = {**whole.headers, "Content-Range": f"bytes {start}-{stop - 1}/{whole.size}"}
    return Reply(whole.content, stop - start, 206, headers)


@route("GET", rf"{PAGE}(?:\.git)?/info/refs")
def advertise_clone(call: Call) -> Reply:
    repository = call.repository()
    if call.query.get("service") != ["git-upload-pack"]:
        raise HubError(403, "Only cloning is served; push with the client")
    refs = repository.git("upload-pack", "--stateless-rpc", "--http-backend-info-refs", ".")
    headers = {"Content-Type": "application/x-git-upload-pack-advertisement"}
    return Reply.of(b"001e# service=git-upload-pack\n0000" + refs, headers=headers)


@route("POST", rf"{PAGE}(?:\.git)?/git-upload-pack")
def serve_clone(call: Call) -> Reply:
    body = call.body.read()
    wanted = gzip.decompress(body) if call.headers.get("Content-Encoding") == "gzip" else body
    pack = call.repository().git("upload-pack", "--stateless-rpc", ".", data=wanted)
    return Reply.of(pack, headers={"Content-Type": "application/x-git-upload-pack-result"})


class Handler(BaseHTTPRequestHandler):
    """One connection: reads requests, makes the trouble that was asked for, writes answers."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: "Server"

    def answer(self) -> None:
        hub, path = self.server.hub, urlsplit(self.path).path
        cut = next(hub.strikes(Cut, self.command, path), None)
        body = Body(self.rfile, self.headers, cut.after_bytes if cut and not cut.in_response else None)
        try:
            reply = self.reply(path, body)
        except ConnectionError:
            reply = None
        broken = cut is not None or reply is None
        size = 0 if reply is None or self.command == "HEAD" else reply.size
        sent = max(0, min(cut.after_bytes, size - 1)) if cut else size
        hub.record(Request(self.command, unquote(path), 0 if broken else reply.status), body.received, sent)
        self.close_connection |= broken
        if reply is not None:
            with contextlib.suppress(ConnectionError), reply.content:
                if sent or not broken:
                    self.send(reply, sent)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def reply(self, path: str, body: Body) -> Reply:
        hub = self.server.hub
        for delay in hub.strikes(Delay, self.command, path):
            time.sleep(delay.seconds)
        try:
            for failure in hub.strikes(Failure, self.command, path):
                wait = {"Retry-After": str(failure.retry_after)} if failure.status == 429 else {}
                raise HubError(failure.status, "Trouble on demand", headers=wait)
            reply = self.dispatch(body)
        except HubError as error:
            reply = Reply.of({"error": str(error)}, error.status, error.headers)
        for _ in body:
            pass
        return reply

    def dispatch(self, body: Body) -> Reply:
        url = urlsplit(self.path)
        found = find_route(self.command, url.path)
        if found is None:
            raise HubError(404, f"{self.command} {url.path} is not served")
        function, arguments = found
        kind, repo_id = arguments.pop("kind", None) or "models", arguments.pop("repo_id", None) or ""
        return function(Call(self.server.hub, self.headers, body, parse_qs(url.query), kind, repo_id), **arguments)

    def send(self, reply: Reply, size: int) -> None:
        self.send_response(reply.status)
        for name, value in {**reply.headers, "Content-Length": str(reply.size)}.items():
            self.send_header(name, value)
        self.end_headers()
        while size and (piece := reply.content.read(min(PIECE, size))):
            self.wfile.write(piece)
            size -= len(piece)
        self.wfile.flush()

    def log_message(self, *_: object) -> None:
        """Write nothing: `HubEndpoint.requests` is the log."""


class Server(ThreadingHTTPServer):
    """The listening socket and the connections that came of it."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, hub: "HubEndpoint"):
        self.hub = hub
        self.connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), Handler)

    def process_request(self, request: socket.socket, client_address: tuple[str, int]) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: socket.socket) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: socket.socket, client_address: tuple[str, int]) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def server_close(self) -> None:
        super().server_close()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class HubEndpoint:
    """A Hub with models and data sets under a folder, served on a port of this machine.

    Paths of trouble are regular expressions, searched in the unquoted path of a request without its query; large
    files arrive at `/lfs/SHA256`. What is not served (the client tries some paths when it starts) is answered with 404
    and never in trouble.

    Args:
        root: of the repositories (`models/USER/NAME.git`, `datasets/...`) and large files (`lfs/`). One that was
            served before goes on.
        tokens: the user of each token. The first is that of `client_environment`.

    Attributes:
        tokens: may be changed; a token that is not in it is refused (401), no token at all may read what is public.
        read_only: the tokens that may not write (403).
        organizations: the members of each organisation, who may write under its name.
        requests: what was asked, in order of the answers.
        received: bytes of bodies by path, also of requests that were refused or broken off.
        sent: bytes of answers by path.
    """

    def __init__(self, root: str | Path, tokens: dict[str, str] | None = None):
        self.root = Path(root)
        self.tokens = dict(tokens or {"hf_local": "local"})
        self.read_only: set[str] = set()
        self.organizations: dict[str, set[str]] = {}
        self.requests: list[Request] = []
        self.received: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.awaited: dict[str, int] = {}
        self.storage = Storage(self.root)
        self._faults: list[Fault] = []
        self._lock = threading.RLock()
        self._server: Server | None = None
        self._port = 0

    def __enter__(self) -> "HubEndpoint":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listen, after `stop` on the same port again."""
        if self._server is None:
            self._server = Server(self._port, self)
            self._port = self._server.server_port
            threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Close the listening socket and every connection; what is stored stays."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def fail(self, status: int = 500, retry_after: int = 1, **which: object) -> Failure:
        """Answer with an error; a 429 says to wait `retry_after` seconds. See `Fault` for `which`."""
        return self._add(Failure(status=status, retry_after=retry_after, **which))

    def cut(
        self, path: str = "", after_bytes: int = 0, times: int | None = 1, in_response: bool = False, **which: object
    ) -> Cut:
        """Close the connection in the body of the request, or of its answer when all is done.

        Args:
            path: a regular expression.
            after_bytes: how much of the body passes at most; it is never whole.
            times: how many requests are cut, None for all.
            in_response: cut the answer. Without a body (GET, HEAD) the request counts as wholly received: nothing
                is answered.
            which: see `Fault`.
        """
        return self._add(Cut(path=path, after_bytes=after_bytes, times=times, in_response=in_response, **which))

    def delay(self, seconds: float, path: str = "", **which: object) -> Delay:
        """Answer so much later."""
        return self._add(Delay(seconds=seconds, path=path, **which))

    @contextlib.contextmanager
    def outage(self) -> Iterator[Failure]:
        """Answer everything with 503."""
        fault = Failure(status=503)
        with self._lock:
            self._faults.insert(0, fault)
        try:
            yield fault
        finally:
            with self._lock:
                self._faults = [other for other in self._faults if other is not fault]

    def clear(self) -> None:
        """End all trouble."""
        with self._lock:
            self._faults.clear()

    def _add(self, fault: Fault) -> Fault:
        with self._lock:
            self._faults.append(fault)
        return fault

    def strikes(self, kind: type[Fault], method: str, path: str) -> Iterator[Fault]:
        """Yield the trouble of one kind that strikes a request for a quoted path, counting what is taken."""
        with self._lock:
            faults = [fault for fault in self._faults if isinstance(fault, kind)]
        for fault in faults if find_route(method, path) else []:
            with self._lock:
                struck = fault.strikes(method, unquote(path))
            if struck:
                yield fault

    def record(self, request: Request, received: int, sent: int) -> None:
        with self._lock:
            self.requests.append(request)
            self.received[request.path] += received
            self.sent[request.path] += sent

    def is_member(self, user: str | None, namespace: str) -> bool:
        return user is not None and (user == namespace or user in self.organizations.get(namespace, ()))

    def git_folder(self, repo_id: str, repo_type: str = "model") -> Path:
        """Return the bare git repository, which can be cloned and checked."""
        return self.storage.folder(f"{repo_type}s", repo_id)

    def files(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> dict[str, bytes]:
        """Return the content of every file of a revision, large ones too."""
        repository = self.storage.find(f"{repo_type}s", repo_id)
        if repository is None:
            raise KeyError(repo_id)
        entries = repository.tree(repository.resolve(revision)).values()
        return {entry.path: repository.read(entry) for entry in entries if not entry.is_folder}


def client_environment(hub: HubEndpoint, token: str | None = None, home: str | Path | None = None) -> dict[str, str]:
    """Return the environment of a process whose unmodified client talks to this endpoint.

    Args:
        hub: the endpoint.
        token: by default the first of the endpoint; an empty one is not sent.
        home: the cache. By default a new folder: another machine, which has seen nothing yet.
    """
    if home is None:
        (hub.root / "homes").mkdir(exist_ok=True)
        home = tempfile.mkdtemp(dir=hub.root / "homes")
    kept = {name: value for name, value in os.environ.items() if not re.match(r"HF_|HUGGING|TRANSFORMERS_", name)}
    token = next(iter(hub.tokens)) if token is None else token
    return {
        **kept,
        **({"HF_TOKEN": token} if token else {}),
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
