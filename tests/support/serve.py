"""``myllm serve`` as a process of its own."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any


class Served:
    """A server process. Its standard error is in a file, so that it never blocks."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self._log = log
        assert process.stdout is not None
        self.line = process.stdout.readline()
        found = re.fullmatch(r"Listening on https?://(\S+):(\d+)\n", self.line)
        assert found, (self.line, self.log)
        self.host, self.port = found[1], int(found[2])

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)) as connection:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            return response.status, response.read()

    def send_chat(self, text: str, **more: Any) -> socket.socket:
        body = json.dumps({"model": "slow", "messages": [{"role": "user", "content": text}], **more}).encode()
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        head = "POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        return connection

    def wait(self, seconds: float = 15) -> int:
        return self.process.wait(seconds)


def environment(home: Path, data: Path, **settings: str) -> dict[str, str]:
    own = {"MYLLM_MODELS_DIR": str(home / "models"), "MYLLM_DATA_DIR": str(data), "MYLLM_ISOLATION": "thread"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MYLLM_")}
    return kept | own | {"MYLLM_CONFIG": str(data / "none.toml")} | settings


@contextmanager
def served(home: Path, tmp_path: Path, *arguments: str, **settings: str) -> Iterator[Served]:
    log = tmp_path / "stderr.txt"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "myllm_cli", "serve", "--port", "0", *arguments],
            env=environment(home, tmp_path, **settings),
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=tmp_path,
        )
    with process:
        try:
            yield Served(process, log)
        finally:
            if process.poll() is None:
                process.kill()
