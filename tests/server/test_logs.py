"""Logs: one record a line whatever is in it, the request's id on each, and never what people said."""

from __future__ import annotations

import io
import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from myllm_core.settings import Settings
from myllm_server.records import REQUEST_ID, JsonFormatter, TextFormatter, log_to_stderr
from support.patient import install_patient
from support.serve import served
from support.server import eventually, install_echo, parse_answer, read_until

CANARY = "c4nary"


def record(message: str, *values: object, fields: dict[str, Any] | None = None, error: bool = False) -> Any:
    exc_info: Any = None
    if error:
        try:
            raise ValueError("first\nsecond\x1b[2J\r\n2026-01-01 INFO forged")
        except ValueError:
            exc_info = sys.exc_info()
    made = logging.LogRecord("myllm.test", logging.INFO, __file__, 1, message, values, exc_info)
    if fields is not None:
        made.fields = fields
    return made


@given(st.text(st.characters(exclude_categories=())))
def test_a_record_is_a_line(text: str) -> None:
    for formatter in (TextFormatter(), JsonFormatter()):
        line = formatter.format(record("%s", text, fields={"model": text}))
        assert line.isprintable() and len(line.splitlines()) == 1
        line.encode()
    assert json.loads(line)["message"] == text[:4000] and json.loads(line)["model"] == text


def test_a_traceback_cant_forge_a_record() -> None:
    lines = TextFormatter().format(record("it failed", error=True)).split("\n")
    assert " INFO it failed" in lines[0] and len(lines) > 4
    assert all(line.startswith("    ") and line.isprintable() for line in lines[1:])
    line = json.loads(JsonFormatter().format(record("it failed", error=True)))
    assert "Traceback" in line["exception"] and "forged" in line["exception"]


def test_the_id_of_the_request_is_in_its_records_only() -> None:
    def both() -> tuple[str, dict[str, Any]]:
        return TextFormatter().format(record("x")), json.loads(JsonFormatter().format(record("x")))

    assert both()[0].endswith(" INFO x") and "request_id" not in both()[1]
    token = REQUEST_ID.set("abc")
    try:
        assert both()[0].endswith(" INFO x abc") and both()[1]["request_id"] == "abc"
        own = record("x", fields={"request_id": "of another"})
        assert TextFormatter().format(own).endswith(" INFO x of another")
    finally:
        REQUEST_ID.reset(token)


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_levels(level: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    root, ours = logging.getLogger(), logging.getLogger("myllm")
    before = root.handlers[:], root.level, ours.level
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    root.handlers[:] = []
    ours.setLevel(logging.NOTSET)
    try:
        log_to_stderr(Settings(log_level=level))
        for name in ("debug", "info", "warning", "error"):
            getattr(logging.getLogger("myllm.x"), name)("ours")
            getattr(logging.getLogger("library"), name)("theirs")
    finally:
        root.handlers[:] = before[0]
        root.setLevel(before[1])
        ours.setLevel(before[2])
    said = stderr.getvalue()
    assert said.count("ours") == 4 - ["debug", "info", "warning", "error"].index(level)
    assert said.count("theirs") == min(3, said.count("ours")), "debugging of other libraries stays out"


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    install_patient(tmp_path / "site", monkeypatch)
    install_echo(tmp_path / "models")
    install_echo(tmp_path / "models", "slow:latest", load_options={"delay_ms": 50})
    install_echo(tmp_path / "models", "patient:latest", format="patient")
    return tmp_path


def test_json_lines_of_a_server_at_debug(models: Path, tmp_path: Path) -> None:
    settings = {"MYLLM_LOG_FORMAT": "json", "MYLLM_LOG_LEVEL": "debug", "MYLLM_API_KEY": f"{CANARY}-key"}
    with served(models, tmp_path, MYLLM_ISOLATION="process", **settings) as server:
        key = {"x-api-key": f"{CANARY}-key"}
        ids = []
        for model in ("patient", "patient", "echo"):
            answer = ask(server.port, model, f"{CANARY} bird", **key)
            assert answer.status == 200 and CANARY in answer.body.decode()
            ids.append(answer.headers["x-request-id"])
        assert ask(server.port, "nope", CANARY, **key).status == 404
        assert ask(server.port, "echo", CANARY, authorization=f"Bearer {CANARY}-wrong").status == 401
        assert ask(server.port, "echo", CANARY, **key, **{"x-request-id": "mine-1"}).status == 200
        server.get(f"/api/sessions?search={CANARY}", **key)
        server.get("/%0d%0a%7b%22level%22:1%1b[31m", **key)
        eventually(lambda: "level%22" in server.log or '\\"level\\"' in server.log)
        lines = [json.loads(line) for line in server.log.splitlines()]
    assert CANARY not in server.log
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    access = [line for line in lines if line["logger"] == "myllm.access"]
    assert [line["request_id"] for line in access[:3]] == ids and access[5]["request_id"] == "mine-1"
    assert [line["status"] for line in access] == [200, 200, 200, 404, 401, 200, 200, 404]
    assert access[0]["method"] == "POST" and access[0]["path"] == "/api/chat" and access[0]["ms"] >= 0
    loads = [line for line in lines if "is loaded" in line["message"]]
    assert [(line["model"], line["request_id"]) for line in loads] == [
        ("patient:latest", ids[0]),
        ("echo:latest", ids[2]),
    ]
    (said,) = (line for line in lines if "and said so" in line["message"])
    assert said["model"] == "patient:latest" and said["level"] == "debug" and "request_id" not in said
    assert said["message"] == "patient:latest: loaded\x1b[31m and said so"


def test_text_lines_of_a_server(models: Path, tmp_path: Path) -> None:
    with served(models, tmp_path, MYLLM_ISOLATION="process", MYLLM_LOG_LEVEL="debug") as server:
        identity = ask(server.port, "patient", CANARY).headers["x-request-id"]
        eventually(lambda: "/api/chat" in server.log)
        lines = server.log.splitlines()
    assert CANARY not in server.log and "\x1b" not in server.log
    (loaded,) = (line for line in lines if "is loaded" in line)
    assert loaded.endswith(f" {identity}") and " INFO patient:latest is loaded (patient, " in loaded
    (said,) = (line for line in lines if "said so" in line)
    assert said.endswith(r" DEBUG patient:latest: loaded\x1b[31m and said so")
    assert any(line.endswith(f" ms {identity}") for line in lines)


def ask(port: int, model: str, text: str, **headers: str) -> Any:
    import socket

    body = json.dumps({"model": model, "messages": [{"role": "user", "content": text}], "stream": False}).encode()
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(
            f"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{head}"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        return parse_answer(read_until(connection, rb"(?s)\r\n\r\n.*}"))
