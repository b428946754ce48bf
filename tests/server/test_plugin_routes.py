"""Routes of plugins: mounted when they can be, guarded like ours, and never the server's end."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from support.server import StartServer

ROUTES = """
    from fastapi import APIRouter, Response
    from pydantic import BaseModel
    from myllm_core import hookimpl

    good = APIRouter()
    no_path, undocumentable, impostor = APIRouter(), APIRouter(), APIRouter()

    class Body(BaseModel):
        number: int

    @good.get("/good")
    def get_good() -> dict[str, str]:
        return {"good": "yes"}

    @good.get("/fails")
    def fails() -> None:
        raise ZeroDivisionError("c4nary")

    @good.post("/body")
    def body(body: Body) -> Body:
        return body

    @no_path.get("")
    def nothing() -> None: ...

    @undocumentable.get("/undocumentable", openapi_extra={"x-thing": object()})
    def hidden() -> None: ...

    @impostor.get("/health")
    def health() -> str:
        return "taken over"

    @hookimpl
    def myllm_routes():
        return [no_path, undocumentable, impostor, good]
"""


@pytest.fixture(autouse=True)
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    info = site / "routes_plugin-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "routes_plugin.py").write_text(textwrap.dedent(ROUTES))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: routes-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[myllm]\nroutes-plugin = routes_plugin\n")
    monkeypatch.syspath_prepend(str(site))


def test_broken_routes_stop_nothing(start: StartServer, caplog: pytest.LogCaptureFixture) -> None:
    with start() as server:
        assert server.get("/good").json == {"good": "yes"}
        assert server.get("/health").json == {"status": "ok"}
        assert server.get("/openapi.json").status == 200 and server.get("/docs").status == 200
        assert server.get("/undocumentable").status == 404
        assert server.get("/good", headers={"host": "evil.example"}).status == 403
        assert caplog.text.count("a plugin's routes can't be used") == 3
        assert "the path /health is taken" in caplog.text


def test_a_route_that_fails_is_a_500_that_tells_nothing(start: StartServer, caplog: pytest.LogCaptureFixture) -> None:
    with start() as server:
        answer = server.get("/fails")
        assert (answer.status, answer.code) == (500, "internal_error")
        assert b"c4nary" not in answer.body and "ZeroDivisionError" in caplog.text
        assert server.get("/good").status == 200


def test_bodies_of_plugins_have_our_error_shape(start: StartServer) -> None:
    with start() as server:
        assert server.post("/body", {"number": 5}).json == {"number": 5}
        for raw in (b'{"number": "x"}', b"{", b"[" * 100_000, b"\xff"):
            answer = server.post("/body", raw=raw)
            assert answer.status in (400, 422) and answer.code, raw[:20]
