"""A second port with Ollama's API at its root: the same process, models and rules."""

from __future__ import annotations

import http.client
import json
import re
from contextlib import closing
from pathlib import Path

from support.serve import served


def ask(port: int, method: str, path: str, body: object = None, **headers: str) -> tuple[int, bytes]:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    content = json.dumps(body).encode() if body is not None else None
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request(method, path, content, {"content-type": "application/json"} | given)
        response = connection.getresponse()
        return response.status, response.read()


def test_a_port_of_its_own(home: Path, tmp_path: Path) -> None:
    with served(home, tmp_path, "--ollama-port", "0", MYLLM_API_KEY="k3y") as server:
        line = server.process.stdout.readline()  # type: ignore[union-attr]
        found = re.fullmatch(r"Ollama's API at the root: listening on http://127\.0\.0\.1:(\d+)\n", line)
        assert found, line
        port, key = int(found[1]), {"x_api_key": "k3y"}
        assert ask(port, "GET", "/", **key) == (200, b"Ollama is running")
        assert ask(port, "HEAD", "/", **key) == (200, b"")
        body = {"model": "echo", "messages": [{"role": "user", "content": "hi"}], "stream": False}
        status, answer = ask(port, "POST", "/api/chat", body, **key)
        assert status == 200 and json.loads(answer)["message"]["content"] == "hi"
        status, answer = ask(port, "GET", "/api/ps", **key)
        assert [model["name"] for model in json.loads(answer)["models"]] == ["echo:latest"]
        shared = json.loads(server.get("/api/ps", **{"x-api-key": "k3y"})[1])["models"]
        assert [model["name"] for model in shared] == ["echo:latest"], "both ports have one runtime"

        for path in ("/", "/api/tags", "/health"):
            status, answer = ask(port, "GET", path)
            assert status == 401 and json.loads(answer).keys() == {"error"}
        assert ask(port, "GET", "/", host="evil.example", **key)[0] == 403
        assert ask(port, "GET", "/api/tags", origin="http://evil.example", **key)[0] == 403
        for path in ("/v1/models", "/docs", "/api/models", "/ollama/api/tags", "/metrics"):
            status, answer = ask(port, "GET", path, **key)
            assert status == 404 and isinstance(json.loads(answer)["error"], str), path
        assert '"GET /ollama/api/ps' in server.log or "GET /ollama/api/ps" in server.log
