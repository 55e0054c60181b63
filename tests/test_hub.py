"""Files from the hub, against a server that answers as the hub does. Each test asks from a process of its own, because
the hub's library reads its settings when it is imported."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from tiny_checkpoint import save_tiny_checkpoint
from training_runs import squad_file

import longformer
from longformer import CheckpointError, LongformerConfig, LongformerModel
from longformer.hub import PRETRAINED, find_files

ASK = f"""
import json, sys, types
package = types.ModuleType("longformer")  # without the rest of it, which imports torch and takes seconds
package.__path__ = {longformer.__path__}
sys.modules["longformer"] = package
from longformer.errors import CheckpointError
from longformer.hub import find_files
for name, wanted, options in json.loads(sys.argv[1]):
    try:
        files = find_files(name, wanted, **options)
        print(json.dumps({{file: path.read_text() for file, path in files.items()}}))
    except CheckpointError as error:
        print(json.dumps(str(error)))
"""
LOAD = """
import sys
from longformer import LongformerError, LongformerModel
try:
    print(sum(parameter.numel() for parameter in LongformerModel.from_pretrained(sys.argv[1]).parameters()))
except LongformerError as error:
    print(error)
"""

TRAIN = """
import json, sys
from longformer.cli import main
main(json.loads(sys.argv[1]))
"""


class Hub(ThreadingHTTPServer):
    """``repositories``: name to revision to file to content. ``closed``: name to the hub's code for no access."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.closed: dict[str, str] = {}
        self.requests: list[str] = []
        self.tokens: set[str | None] = set()

    @property
    def fetched(self) -> list[str]:
        return [request for request in self.requests if request.startswith("GET")]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        name, _, rest = self.path.removeprefix("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        token = self.headers.get("Authorization")
        if file:  # the library asks for things of its own too
            self.server.requests.append(f"{self.command} {name} {revision} {file}")
            self.server.tokens.add(token)
        revisions = self.server.repositories.get(name)
        closed = self.server.closed.get(name)
        if revisions is None or (closed == "RepoNotFound" and token != "Bearer secret"):
            self.reply(401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        elif closed == "GatedRepo" and token != "Bearer secret":
            self.reply(403, {"X-Error-Code": "GatedRepo"})
        elif closed == "Disabled":
            self.reply(403, {"X-Error-Message": "Access to this resource is disabled."})
        elif revision not in revisions:
            self.reply(404, {"X-Error-Code": "RevisionNotFound"})
        else:
            commit = {"X-Repo-Commit": hashlib.sha1(f"{name} {revision}".encode()).hexdigest()}
            content = revisions[revision].get(file)
            if content is None:
                self.reply(404, {**commit, "X-Error-Code": "EntryNotFound"})
            else:
                etag = hashlib.sha1(content).hexdigest()
                self.reply(200, {**commit, "ETag": f'"{etag}"'}, content, with_body)

    def reply(self, status: int, headers: dict[str, str], body: bytes = b"", with_body: bool = False) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def run(code: str, argument: str, home: Path, endpoint: str, **settings: str) -> str:
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("HF_", "HUGGING", "TRANSFORMERS_")) and not key.lower().endswith("_proxy")
    }
    environment = {**kept, "HF_HOME": str(home), "HF_ENDPOINT": endpoint, "OMP_NUM_THREADS": "1", **settings}
    environment["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    done = subprocess.run(
        [sys.executable, "-c", code, argument], cwd=home, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def ask(calls: list[tuple[str, list[str], dict[str, Any]]], home: Path, endpoint: str, **settings: str) -> list[Any]:
    lines = run(ASK, json.dumps(calls), home, endpoint, **settings).splitlines()
    assert len(lines) == len(calls)
    return [json.loads(line) for line in lines]


def closed_port() -> str:
    """An address where nobody listens."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.server_close()
    return f"http://127.0.0.1:{server.server_port}"


def test_files_are_found_by_name_and_revision(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["owner/model"] = {
        "main": {"config.json": b"new", "b.bin": b"b"},
        "v1": {"config.json": b"old"},
    }
    wanted = ["config.json", "absent.json", "b.bin"]
    new, first, old, nothing = ask(
        [
            ("owner/model", wanted, {}),
            ("owner/model", wanted, {"first": True}),
            ("owner/model", wanted, {"revision": "v1"}),
            ("owner/model", ["absent.json"], {}),
        ],
        tmp_path,
        hub.url,
    )
    assert new == {"config.json": "new", "b.bin": "b"}
    assert first == {"config.json": "new"}
    assert old == {"config.json": "old"}
    assert nothing == {}


def test_the_cache_serves_without_network(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["owner/model"] = {"main": {"config.json": b"c", "tokenizer.json": b"t"}}
    calls: list[tuple[str, list[str], dict[str, Any]]] = [("owner/model", ["config.json", "absent.json"], {})]
    (online,) = ask(calls, tmp_path, hub.url)
    assert hub.fetched == ["GET owner/model main config.json"]
    hub.requests.clear()

    ask(calls, tmp_path, hub.url)
    assert hub.fetched == []
    hub.requests.clear()

    local = [(name, wanted, {"local_files_only": True}) for name, wanted, _ in calls]
    known_absent = ("owner/model", ["absent.json"], {"local_files_only": True})
    assert ask([*local, known_absent], tmp_path, hub.url) == [online, {}]
    assert ask(calls, tmp_path, hub.url, HF_HUB_OFFLINE="1") == [online]
    assert hub.requests == []
    assert ask(calls, tmp_path, closed_port()) == [online]


def test_what_neither_hub_nor_cache_has(hub: Hub, tmp_path: Path) -> None:
    calls: list[tuple[str, list[str], dict[str, Any]]] = [("owner/model", ["config.json"], {})]
    (offline,) = ask(calls, tmp_path, hub.url, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE" in offline
    (local,) = ask([("owner/model", ["config.json"], {"local_files_only": True})], tmp_path, hub.url)
    assert "local_files_only" in local
    (no_network,) = ask(calls, tmp_path, closed_port())
    assert "ConnectError" in no_network
    for message in offline, local, no_network:
        assert "no folder 'owner/model' here" in message
        assert str(tmp_path) in message
        assert "config.json" in message
        assert str(PRETRAINED) in message
        assert "\n" not in message


def test_a_misspelt_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, said in (("EVEN-TRAIND", True), ("MIXED", False)):
        (tmp_path / "EVEN-TRAINED").mkdir(exist_ok=True)
        with pytest.raises(CheckpointError) as error:
            find_files(name, ["config.json"], local_files_only=True, cache_dir=tmp_path / "hub")
        assert str(error.value).endswith("; did you mean the folder 'EVEN-TRAINED'?") == said


def test_a_name_in_a_folder_that_may_not_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(CheckpointError, match=r"there is no folder 'EVEN' here"):
        find_files("EVEN", ["config.json"], local_files_only=True, cache_dir=tmp_path / "hub")


def test_the_checkout_s_folder_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples name ``longformer/pretrained``. Typed elsewhere, the error says where it is; no hub is asked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", pytest.fail)
    for name in ("longformer/pretrained", "longformer/pretrained/"):
        with pytest.raises(CheckpointError, match=re.escape(f"the package ships is {PRETRAINED}")):
            find_files(name, ["config.json"])


def test_no_such_model_revision_or_access(hub: Hub, tmp_path: Path) -> None:
    hub.repositories |= {name: {"main": {"config.json": b"c"}} for name in ("me/private", "me/gated", "me/disabled")}
    hub.closed = {"me/private": "RepoNotFound", "me/gated": "GatedRepo", "me/disabled": "Disabled"}
    misspelt, private, gated, disabled = ask(
        [(name, ["config.json"], {}) for name in ("alenai/longformer", "me/private", "me/gated", "me/disabled")],
        tmp_path,
        hub.url,
    )
    assert "no folder 'alenai/longformer' here and no model of that name" in misspelt
    assert "HF_TOKEN" in private
    assert "me/gated is gated" in gated
    assert "HF_TOKEN" in gated
    assert "me/disabled" in disabled
    assert "Access to this resource is disabled" in disabled
    for message in misspelt, private, gated, disabled:
        assert "\n" not in message
    assert hub.tokens == {None}


def test_an_unknown_revision(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["owner/model"] = {"main": {"config.json": b"c"}}
    (message,) = ask([("owner/model", ["config.json"], {"revision": "v7"})], tmp_path, hub.url)
    assert "owner/model has no revision 'v7'" in message


def test_the_token_comes_from_the_environment(hub: Hub, tmp_path: Path) -> None:
    hub.repositories |= {name: {"main": {"config.json": b"c"}} for name in ("me/private", "me/gated")}
    hub.closed = {"me/private": "RepoNotFound", "me/gated": "GatedRepo"}
    calls: list[tuple[str, list[str], dict[str, Any]]] = [(name, ["config.json"], {}) for name in hub.closed]
    assert ask(calls, tmp_path, hub.url, HF_TOKEN="secret") == [{"config.json": "c"}] * 2


@pytest.mark.slow
def test_a_model_is_loaded_by_name(hub: Hub, tmp_path: Path) -> None:
    config = LongformerConfig(
        vocab_size=30,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        attention_window=4,
    )
    model = LongformerModel(config)
    model.save_pretrained(tmp_path / "model")
    files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    hub.repositories["owner/model"] = {"main": files}
    size = sum(parameter.numel() for parameter in model.parameters())
    assert run(LOAD, "owner/model", tmp_path, hub.url) == f"{size}\n"


@pytest.mark.slow
def test_a_revision_is_trained_on(hub: Hub, tmp_path: Path) -> None:
    """Config, weights and tokenizer are all of it; ``main`` has none of them."""
    folder = save_tiny_checkpoint(tmp_path / "model")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.repositories["owner/model"] = {"main": {"README.md": b"moved"}, "v1": files}
    squad = squad_file(tmp_path / "squad.json")
    arguments = ["train", "qa", "owner/model", "out", squad, "--max-length", "48", "--max-steps", "1"]
    run(TRAIN, json.dumps([*arguments, "--revision", "v1"]), tmp_path, hub.url)
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert 'revision = "v1"' in (tmp_path / "out" / "training.toml").read_text()
    assert {request.split()[2] for request in hub.requests} == {"v1"}


@pytest.mark.parametrize("file, framework", [("tf_model.h5", "TensorFlow"), ("flax_model.msgpack", "Flax")])
@pytest.mark.slow
def test_weights_of_another_framework_are_not_fetched(hub: Hub, tmp_path: Path, file: str, framework: str) -> None:
    LongformerConfig(num_hidden_layers=1).save(tmp_path / "config.json")
    hub.repositories["owner/model"] = {"main": {"config.json": (tmp_path / "config.json").read_bytes(), file: b"x"}}
    message = run(LOAD, "owner/model", tmp_path, hub.url)
    assert f"owner/model has weights for {framework} alone ({file})" in message
    assert hub.fetched == ["GET owner/model main config.json"]


@pytest.mark.slow
def test_what_the_cache_has_is_not_written_over(hub: Hub, tmp_path: Path) -> None:
    """The files of a model on the hub are inputs of a command, too, in the cache under both names that they have."""
    hub.repositories["owner/model"] = {"main": {"config.json": b"{}", "model.safetensors": b"x"}}
    ask([("owner/model", ["config.json", "model.safetensors"], {})], tmp_path, hub.url)
    (tmp_path / "q.json").write_text("[]")
    blobs = [path for path in tmp_path.rglob("blobs/*") if path.is_file()]
    cached = [path for path in tmp_path.rglob("snapshots/*/*") if path.is_file()]
    assert len(cached) == 2 and len(blobs) == 2
    predict = ["predict", str(tmp_path / "q.json"), "--model", "owner/model", "-o"]
    code = "import json, sys\nfrom longformer.cli import cli\nfrom longformer import LongformerError\n"
    code += "for path in json.loads(sys.argv[1])[1]:\n    try:\n        cli.main([*json.loads(sys.argv[1])[0], path], "
    code += "standalone_mode=False)\n    except LongformerError as error:\n        print(error)\n"
    outputs = [str(path) for path in (*cached, *blobs)]
    said = run(code, json.dumps([predict, outputs]), tmp_path, hub.url).splitlines()
    assert len(said) == 4 and all("is read by this command, and would be overwritten" in line for line in said), said


def test_a_folder(tmp_path: Path) -> None:
    (tmp_path / "b").write_text("")
    assert find_files(tmp_path, ["a", "b"]) == {"b": tmp_path / "b"}
    assert find_files(str(tmp_path), ["b", "b"], first=True) == {"b": tmp_path / "b"}


@pytest.mark.parametrize(
    "name", ["", "two words", "a/b/c", "./missing", "~/missing-folder", "owner/mo..del", "/missing"]
)
def test_names_that_can_be_neither(name: str) -> None:
    with pytest.raises(CheckpointError, match="folder"):
        find_files(name, ["config.json"])


def test_a_path_that_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no folder at .*absent"):
        find_files(tmp_path / "absent", ["config.json"])
    (tmp_path / "weights.bin").write_text("")
    with pytest.raises(CheckpointError, match="is a file; give the folder"):
        find_files(tmp_path / "weights.bin", ["config.json"])
    with pytest.raises(CheckpointError, match="revision 'v1'"):
        find_files(tmp_path, ["config.json"], revision="v1")
