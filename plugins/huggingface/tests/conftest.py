"""A small hub on a real socket: the API routes and download URLs that the plugin uses, and nothing else."""

from __future__ import annotations

import hashlib
import json
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def tiny_gguf(shard: int = 0, shards: int = 1, architecture: str = "llama") -> bytes:
    """A whole GGUF file (version 3) with one tensor of 32 float32 zeros, or one of ``shards`` such files."""

    def string(text: str) -> bytes:
        return struct.pack("<Q", len(text)) + text.encode()

    keys = [string("general.architecture") + struct.pack("<I", 8) + string(architecture)]
    keys.append(string(f"{architecture}.context_length") + struct.pack("<II", 4, 2048))
    if shards > 1:
        keys += [string(key) + struct.pack("<IH", 2, n) for key, n in (("split.no", shard), ("split.count", shards))]
    tensor = string(f"blk.{shard}.attn_q.weight") + struct.pack("<IQIQ", 1, 32, 0, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(keys)) + b"".join(keys) + tensor
    return head + bytes(-len(head) % 32) + bytes(128)


@dataclass
class Repo:
    """A repository of the fake hub. ``lfs`` files have a sha256 in the listing."""

    files: dict[str, bytes]
    card: dict[str, Any] | None = None
    tags: list[str] = field(default_factory=list)
    gated: str | bool = False
    private: bool = False
    revisions: tuple[str, ...] = ("main", COMMIT)


class FakeHub:
    """The hub's state, and what it was asked."""

    commit = COMMIT
    gguf = tiny_gguf()
    shard = staticmethod(tiny_gguf)

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.tokens: set[str] = set()
        self.failures: list[int] = []
        self.html = False
        self.breaks_at = ""
        self.lies: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, str]] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.cdn = f"http://localhost:{self._server.server_address[1]}"

    def add(self, name: str, files: dict[str, bytes], **more: Any) -> None:
        self.repos[name] = Repo(files, **more)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def asked(self, prefix: str) -> list[tuple[str, str, str]]:
        return [request for request in self.requests if request[1].startswith(prefix)]

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        self.requests.append((request.command, path, token))
        if path == "/api/agent-harnesses":
            return self._json(request, {"harnesses": {}})
        if self.breaks_at and path.startswith(self.breaks_at):
            return self._error(request, 503, "")
        if self.failures:
            return self._error(request, self.failures.pop(0), "")
        if self.html:
            return self._send(request, 200, b"<html>Welcome to Hotel Wifi</html>", {"content-type": "text/html"})
        if token and token not in self.tokens:
            return self._error(request, 401, "", "Invalid credentials in Authorization header")
        if path.startswith("/cdn/"):
            owner, name, file = path.removeprefix("/cdn/").split("/", 2)
            repo = f"{owner}/{name}"
            return self._file(request, self.lies.get(repo, self.repos[repo].files[file]))
        if path.startswith("/api/models/"):
            return self._listing(request, path.removeprefix("/api/models/"), token)
        return self._resolve(request, path, token)

    def _find(self, request: BaseHTTPRequestHandler, name: str, token: str) -> Repo | None:
        repo = self.repos.get(name)
        if repo is None or (repo.private and not token):
            self._error(request, 404 if token else 401, "RepoNotFound", "Repository not found")
            return None
        return repo

    def _listing(self, request: BaseHTTPRequestHandler, rest: str, token: str) -> None:
        name, _, revision = rest.partition("/revision/")
        repo = self._find(request, name, token)
        if repo is None:
            return None
        if (revision or "main") not in repo.revisions:
            return self._error(request, 404, "RevisionNotFound", f"Invalid rev id: {revision}")
        siblings = []
        for path, data in repo.files.items():
            entry: dict[str, Any] = {"rfilename": path, "size": len(data), "blobId": "0" * 40}
            if path.endswith((".gguf", ".safetensors", ".onnx", ".bin")):
                sha = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"sha256": sha, "size": len(data), "pointerSize": 130}
            siblings.append(entry)
        body = {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "tags": repo.tags}
        self._json(request, body | {"gated": repo.gated, "private": repo.private, "cardData": repo.card})

    def _resolve(self, request: BaseHTTPRequestHandler, path: str, token: str) -> None:
        name, _, rest = path.lstrip("/").partition("/resolve/")
        repo = self._find(request, name, token)
        if repo is None:
            return None
        if repo.gated and token != "granted":
            return self._error(request, 403 if token else 401, "GatedRepo", f"Access to model {name} is restricted.")
        revision, _, file = rest.partition("/")
        if revision not in repo.revisions or file not in repo.files:
            return self._error(request, 404, "EntryNotFound", "Entry not found")
        if file.endswith(".gguf"):  # large files lie on another host, as the real hub's do
            return self._send(request, 302, b"", {"location": f"{self.cdn}/cdn/{name}/{file}"})
        return self._file(request, repo.files[file])

    def _file(self, request: BaseHTTPRequestHandler, data: bytes) -> None:
        headers = {"etag": f'"{hashlib.sha256(data).hexdigest()}"', "accept-ranges": "bytes"}
        start = request.headers.get("range", "").removeprefix("bytes=").rstrip("-")
        if start.isdigit():
            headers["content-range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            return self._send(request, 206, data[int(start) :], headers)
        return self._send(request, 200, data, headers)

    def _json(self, request: BaseHTTPRequestHandler, body: object) -> None:
        self._send(request, 200, json.dumps(body).encode(), {"content-type": "application/json"})

    def _error(self, request: BaseHTTPRequestHandler, status: int, code: str, message: str = "") -> None:
        headers = {"x-error-code": code} if code else {}
        self._send(request, status, b"", headers | ({"x-error-message": message} if message else {}))

    def _send(self, request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str]) -> None:
        request.send_response(status)
        for name, value in (headers | {"content-length": str(len(body))}).items():
            request.send_header(name, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[FakeHub]:
    """A running fake hub that huggingface_hub is pointed at, with no token and no login."""
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    fake = FakeHub()
    monkeypatch.setattr(constants, "ENDPOINT", fake.url)
    template = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", fake.url + template)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(tmp_path / "harnesses.json"), raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    yield fake
    close_session()
    fake.close()
