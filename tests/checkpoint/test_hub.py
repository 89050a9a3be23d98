"""Models of the hub, against a small hub on loopback: a real HTTP server with real files."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from star_export.checkpoint.checkpoint import open_checkpoint
from star_export.checkpoint.hub import is_hub_id, split_revision

REPO = "someone/llava"
WANTED = {
    "config.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "tokenizer.model": b"pieces",
    "model-00001-of-00002.safetensors": bytes(range(256)) * 4096,  # 1 MiB
    "model-00002-of-00002.safetensors": b"last",
    "model.safetensors.index.json": b'{"weight_map": {}}',
}
OTHERS = {
    "README.md": b"# A model",
    "pytorch_model.bin": b"pickled",
    "consolidated.safetensors": b"again",
    "original/model.safetensors": b"and again",
}


@cache
def blob(data: bytes) -> str:
    """A file's id."""
    return hashlib.sha1(data).hexdigest()


def commit(files: dict[str, bytes]) -> str:
    """A revision's id, as git has them."""
    return blob(repr(sorted((name, blob(data)) for name, data in files.items())).encode())


@dataclass
class Hub:
    """What a hub serves, and what it was asked.

    Attributes:
        revisions: Files by the name of a branch.
        token: Who may read; everybody when None.
        refusals: Status and error code by the model that is asked for.
        broken: A file whose first transfer ends in the middle.
    """

    revisions: dict[str, dict[str, bytes]]
    token: str | None = None
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)
    broken: str | None = None
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    address: str = ""

    def find(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Commit and files of a branch or a commit."""
        for name, files in self.revisions.items():
            if revision in (name, commit(files)):
                return commit(files), files
        return None

    def fetched(self) -> list[str]:
        """Files that were asked for, in order."""
        return [
            path.rpartition("/")[2]
            for method, path, _ in self.requests
            if method == "GET" and "resolve" in path
        ]


class Handler(BaseHTTPRequestHandler):
    """The part of the hub's API that snapshot_download uses."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(
            (self.command, path, {name.lower(): value for name, value in self.headers.items()})
        )
        for repo, refusal in self.hub.refusals.items():
            if f"/{repo}/" in f"{path}/":
                return self.refuse(*refusal)
        if self.hub.token and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self.refuse(401, "GatedRepo")
        if path.startswith(f"/api/models/{REPO}"):
            return self.describe(path.removeprefix(f"/api/models/{REPO}").strip("/").split("/"))
        if path.startswith(f"/{REPO}/resolve/"):
            return self.send_file(*path.removeprefix(f"/{REPO}/resolve/").split("/", 1))
        return self.refuse(404, "RepoNotFound")

    def describe(self, parts: list[str]) -> None:
        found = self.hub.find(parts[1] if len(parts) > 1 else "main")
        if found is None:
            return self.refuse(404, "RevisionNotFound")
        sha, files = found
        answer: Any = {
            "id": REPO,
            "sha": sha,
            "siblings": [{"rfilename": n, "size": len(d), "blobId": blob(d)} for n, d in files.items()],
        }
        if parts[0] == "tree":
            answer = [{"type": "file", "path": n, "size": len(d), "oid": blob(d)} for n, d in files.items()]
        return self.send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def send_file(self, revision: str, name: str) -> None:
        found = self.hub.find(revision)
        if found is None or name not in found[1]:
            return self.refuse(404, "EntryNotFound")
        data = found[1][name]
        headers = {"ETag": f'"{blob(data)}"', "X-Repo-Commit": found[0]}
        headers["Accept-Ranges"] = "bytes"
        begin = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        status = 206 if "Range" in self.headers else 200
        if status == 206:
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        broken = self.command == "GET" and self.hub.broken == name
        if broken:
            self.hub.broken = None
        return self.send(status, data[begin:], headers, stop_at=len(data) // 2 if broken else None)

    def refuse(self, status: int, code: str) -> None:
        self.send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def send(self, status: int, data: bytes, headers: dict[str, str], stop_at: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[:stop_at])
        if stop_at is not None:
            self.close_connection = True


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A running hub with one model."""
    served = Hub({"main": WANTED | OTHERS, "v1": WANTED | {"config.json": b'{"older": true}'}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HandlerOfHub", (Handler,), {"hub": served}))
    served.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield served
    server.shutdown()
    server.server_close()
    thread.join()


SCRIPT = """
import json, sys
from pathlib import Path
from star_export.checkpoint.hub import download, split_revision
class Progress:
    def __init__(self): self.steps, self.bytes = [], 0
    def start(self, step, total_bytes=None): self.steps.append([step, total_bytes])
    def advance(self, done_bytes): self.bytes += done_bytes
for model in sys.argv[1:]:
    progress = Progress()
    try:
        folder = download(*split_revision(model), progress)
        print(json.dumps({"folder": str(folder), "steps": progress.steps, "bytes": progress.bytes}))
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
"""

Get = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """Variables of a process that knows this hub only, patient on a busy machine."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    patience = {"HF_HUB_DOWNLOAD_TIMEOUT": "60", "HF_HUB_ETAG_TIMEOUT": "60"}
    return inherited | patience | {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home")}


@pytest.fixture
def get(environment: dict[str, str]) -> Get:
    """Download models in a fresh interpreter, since the hub client reads its settings once."""

    def call(*models: str, **settings: str) -> list[dict[str, Any]]:
        command = [sys.executable, "-c", SCRIPT, *models]
        done = subprocess.run(command, capture_output=True, text=True, env=environment | settings, check=True)
        return [json.loads(line) for line in done.stdout.splitlines()]

    return call


def test_right_files_then_none_and_without_network(hub: Hub, get: Get) -> None:
    [outcome] = get(REPO)
    folder, size = Path(outcome["folder"]), sum(map(len, WANTED.values()))
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == WANTED
    assert folder.name == commit(hub.revisions["main"])
    assert outcome["steps"] == [[f"download {REPO}", size]]
    assert outcome["bytes"] == size
    hub.requests.clear()
    assert get(REPO)[0]["folder"] == str(folder)
    assert hub.fetched() == []
    hub.requests.clear()
    assert get(REPO, HF_HUB_OFFLINE="1")[0]["folder"] == str(folder)
    assert hub.requests == []
    hub.refusals[REPO] = 503, "Down"
    assert get(REPO)[0]["folder"] == str(folder)


def test_a_broken_transfer_goes_on_where_it_stopped(hub: Hub, get: Get) -> None:
    name, data = (
        "model.safetensors",
        bytes(range(256)) * (24 << 12),
    )  # 24 MiB: more than the client takes at once
    hub.revisions["main"] = {"config.json": b"{}", name: data}
    hub.broken = name
    [outcome] = get(REPO)
    assert (Path(outcome["folder"]) / name).read_bytes() == data
    [begin] = [headers["range"] for _, _, headers in hub.requests if "range" in headers]
    assert 0 < int(begin.removeprefix("bytes=").removesuffix("-")) <= len(data) // 2
    assert outcome["bytes"] == outcome["steps"][0][1] == len(data) + 2


def test_a_revision(hub: Hub, get: Get) -> None:
    sha = commit(hub.revisions["v1"])
    by_name, by_commit, none = get(f"{REPO}@v1", f"{REPO}@{sha}", f"{REPO}@v2")
    assert by_name["folder"] == by_commit["folder"]
    assert (Path(by_name["folder"]) / "config.json").read_bytes() == b'{"older": true}'
    assert Path(by_name["folder"]).name == sha
    assert none["error"].startswith(
        f"CheckpointError: {REPO} has no revision v2; its branches and tags are on"
    )


SOURCE = """
import sys
from star_export.bundle import open_bundle
from star_export.validation.check import _source_checkpoint
checkpoint = _source_checkpoint(open_bundle(sys.argv[1]), None)
print(checkpoint.source, checkpoint.revision, len(checkpoint.tensors))
"""


def test_a_check_opens_the_commit_that_the_bundle_was_made_from(
    hub: Hub,
    environment: dict[str, str],
    checkpoint: Callable[[str], Path],
    bundle: Callable[..., Path],
    tmp_path: Path,
) -> None:
    files = {path.name: path.read_bytes() for path in checkpoint("mha").iterdir() if path.is_file()}
    hub.revisions = {"main": files | {"config.json": b"{}"}, "then": files}
    copy = shutil.copytree(bundle("mha"), tmp_path / "bundle")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["source"] = {"model": REPO, "revision": commit(files)}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    command = [sys.executable, "-c", SOURCE, str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    source, revision, tensors = done.stdout.split()
    assert (source, revision, int(tensors)) == (
        REPO,
        commit(files),
        len(open_checkpoint(str(checkpoint("mha"))).tensors),
    )


SHAPE = """
import sys
from star_export.checkpoint.shape import read_shape
print(read_shape(sys.argv[1]).model.text.num_layers)
"""


def test_a_plan_fetches_the_config_alone(
    hub: Hub, environment: dict[str, str], checkpoint: Callable[[str], Path]
) -> None:
    hub.revisions = {"main": WANTED | {"config.json": (checkpoint("mha") / "config.json").read_bytes()}}
    command = [sys.executable, "-c", SHAPE, REPO]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "6\n"
    assert hub.fetched() == ["config.json"]
    hub.revisions = {"main": {"llava-q4.gguf": b"weights"}}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert f"CheckpointError: {REPO} has no config.json; expected a model of transformers" in done.stderr


def test_a_wrong_option_is_refused_before_weights_are_fetched(
    hub: Hub, environment: dict[str, str], checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    config = (checkpoint("mha") / "config.json").read_bytes()
    hub.revisions = {"main": WANTED | {"config.json": config}, "gguf": {"llava-q4.gguf": b"weights"}}
    command = [
        sys.executable,
        "-m",
        "star_export.cli",
        "build",
        "--schedule",
        "128@99",
        "-o",
        str(tmp_path / "x"),
    ]
    done = subprocess.run([*command, "-m", REPO], capture_output=True, text=True, env=environment)
    assert "error: --schedule 128@99" in done.stderr
    assert hub.fetched() == ["config.json"]
    done = subprocess.run([*command, "-m", f"{REPO}@gguf"], capture_output=True, text=True, env=environment)
    assert "holds GGUF weights (llava-q4.gguf)" in done.stderr


def test_a_token_is_sent(hub: Hub, get: Get, tmp_path: Path) -> None:
    hub.token = "hf_secret"
    assert "folder" in get(REPO, HF_TOKEN="hf_secret")[0]
    sent = {headers.get("authorization") for _, path, headers in hub.requests if REPO in path}
    assert sent == {"Bearer hf_secret"}
    (tmp_path / "token").write_text("hf_stored")
    hub.token = "hf_stored"
    hub.requests.clear()
    assert "folder" in get(REPO, HF_TOKEN_PATH=str(tmp_path / "token"))[0]
    assert {h.get("authorization") for _, path, h in hub.requests if REPO in path} == {"Bearer hf_stored"}


def test_refusals_say_what_to_do(hub: Hub, get: Get) -> None:
    hub.refusals = {
        "a/gated": (401, "GatedRepo"),
        "a/forbidden": (403, ""),
        "a/private": (401, "RepoNotFound"),
        "a/down": (500, ""),
    }
    gated = "PlatformError: {} is gated: accept its licence on https://huggingface.co/{}, then set HF_TOKEN"
    absent = "CheckpointError: the Hugging Face hub has no model {} that may be read without a token: "
    expected = {
        "a/gated": gated.format("a/gated", "a/gated"),
        "a/forbidden": gated.format("a/forbidden", "a/forbidden"),
        "a/private": absent.format("a/private") + "check its name; if it is private or gated, accept its",
        "a/none": absent.format("a/none") + "check its name",
        "llava-hf/llava-1.5-7b": absent.format("llava-hf/llava-1.5-7b")
        + "did you mean llava-hf/llava-1.5-7b-hf?",
        "a/down": "PlatformError: could not get a/down from the Hugging Face hub",
    }
    for outcome, message in zip(get(*expected), expected.values(), strict=True):
        assert outcome["error"].startswith(message)


def test_nothing_is_fetched_of_a_model_without_safetensors(hub: Hub, get: Get) -> None:
    hub.revisions = {
        "main": {"config.json": b"{}", "pytorch_model.bin": b"weights"},
        "gguf": {"llava-q4.gguf": b"weights"},
    }
    pickled, gguf = get(REPO, f"{REPO}@gguf")
    assert pickled["error"].startswith(f"CheckpointError: {REPO} holds pickled weights (pytorch_model.bin)")
    assert gguf["error"].startswith(f"CheckpointError: {REPO} holds GGUF weights (llava-q4.gguf)")
    assert hub.fetched() == []


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        ("a/b", ("a/b", None)),
        ("a/b@v1", ("a/b", "v1")),
        ("a/b@refs/pr/3", ("a/b", "refs/pr/3")),
        ("a/b@", ("a/b", None)),
    ],
)
def test_split_revision(model: str, parts: tuple[str, str | None]) -> None:
    assert split_revision(model) == parts


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a/b-1.5_c", True), ("a", False), ("a/b/c", False), ("./a", False), ("../a", False)],
)
def test_is_hub_id(name: str, expected: bool) -> None:
    assert is_hub_id(name) is expected
