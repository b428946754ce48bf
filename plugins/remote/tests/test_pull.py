"""``remote:`` references, and a remote model used as any other: by the command line's runtime, with sessions."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from myllm_core import Finish, Message, Runtime, TextDelta, load_plugins, load_settings
from myllm_core.errors import InvalidReference, InvalidRequest, NetworkError, NotFound, UnsupportedError
from myllm_core.models.store import ModelStore
from myllm_core.options import parse_options
from myllm_core.transfer.pull import pull
from support.server import LiveServer
from support.wild_server import Exchange, WildServer


class Quiet:
    def message(self, text: str) -> None: ...

    def file(self, path: str, done: int, total: int | None) -> None: ...


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


def install(store: ModelStore, reference: str, **more: Any) -> Any:
    return pull(reference, plugins=load_plugins(), store=store, progress=Quiet(), **more)


def test_a_remote_model_is_pulled_and_chats_with_a_session(
    upstream: LiveServer, store: ModelStore, tmp_path: Path
) -> None:
    model = install(store, f"remote:http://127.0.0.1:{upstream.port}/v1#echo", name="far")
    assert (model.format, model.manifest.source) == (
        "remote",
        f"remote:http://127.0.0.1:{upstream.port}/v1#echo:latest",
    )
    spec = json.loads(model.paths[0].read_text())
    assert (spec["model"], spec["dialect"]) == ("echo:latest", "myllm")

    async def main() -> None:
        settings = load_settings(models_dir=store.models_dir, data_dir=tmp_path / "data")
        async with Runtime(settings) as runtime:
            assert runtime.explain("far").engine == "remote"
            for _ in range(2):
                events = [e async for e in runtime.chat("far", "one two", session_id="s")]
                assert "".join(e.text for e in events if isinstance(e, TextDelta)) == "one two"
                assert isinstance(events[-1], Finish) and events[-1].engine == "remote"
                assert events[-1].usage.completion_tokens == 2
            stored = await runtime.sessions(lambda store: store.path("s"))
            assert [item.message.role for item in stored] == ["user", "assistant"] * 2
            assert (await runtime.embed("far", ["abc"])).vectors == [[3.0, 1.0]]
            events = [e async for e in runtime.chat("far", "x", options=parse_options({"top_k": 3}))]
            refused = events[-1].error if isinstance(events[-1], Finish) else None
            assert isinstance(refused, UnsupportedError) and "echo engine has no option top_k" in refused.message
            [loaded] = runtime.loaded()
            assert loaded.engine == "remote" and loaded.running == 0

    asyncio.run(main())


def test_a_reply_that_is_cancelled_in_the_runtime_ends_over_there(
    upstream: LiveServer, store: ModelStore, tmp_path: Path
) -> None:
    install(store, f"remote:http://127.0.0.1:{upstream.port}/v1#slow", name="far")

    async def main() -> None:
        async with Runtime(load_settings(models_dir=store.models_dir, data_dir=tmp_path)) as runtime:
            events = runtime.chat("far", [Message("user", "word " * 400)])
            async for event in events:
                if isinstance(event, TextDelta):
                    break
            assert await asyncio.to_thread(upstream.running) == 1
            await events.aclose()
            for _ in range(100):
                if await asyncio.to_thread(upstream.running) == 0:
                    return
                await asyncio.sleep(0.1)
            pytest.fail("it goes on over there")

    asyncio.run(main())


def lists(*names: str, **more: Any) -> Any:
    def handle(exchange: Exchange) -> None:
        exchange.answer(json.dumps({"data": [{"id": name, **more} for name in names]}).encode())

    return handle


def test_the_only_model_needs_no_name(store: ModelStore) -> None:
    with WildServer(lists("org/Model-7B", owned_by="vllm", max_model_len=8192)) as server:
        model = install(store, f"remote:{server.url('/v1')}")
        assert model.name == "model-7b:latest"
        spec = json.loads(model.paths[0].read_text())
        assert (spec["model"], spec["dialect"], spec["context_size"]) == ("org/Model-7B", "vllm", 8192)


def test_several_servers_of_one_model(store: ModelStore) -> None:
    with WildServer(lists("m", owned_by="vllm", max_model_len=8192)) as one, WildServer(lists("x", "m")) as two:
        reference = f"remote:{one.url('/v1')},{two.url('/v1')}#m"
        spec = json.loads(install(store, reference).paths[0].read_text())
        assert spec["upstreams"] == [one.url("/v1"), two.url("/v1")]
        assert (spec["dialect"], spec["context_size"]) == ("other", 0)
        with pytest.raises(InvalidReference, match="several models"):
            install(store, f"remote:{two.url('/v1')}", name="n")
        with pytest.raises(NotFound, match="it has: m"):
            install(store, f"remote:{one.url('/v1')},{two.url('/v1')}#x", name="n")


def test_a_key_that_is_refused_names_where_it_belongs(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def guarded(exchange: Exchange) -> None:
        if exchange.headers.get("authorization") == "Bearer sk-1":
            lists("m")(exchange)
        else:
            exchange.answer(b'{"error":{"message":"no key"}}', 401)

    with WildServer(guarded) as server:
        with pytest.raises(Exception, match="no key") as caught:
            install(store, f"remote:{server.url('/v1')}")
        assert f"MYLLM_REMOTE_KEY_127_0_0_1_{server.port}" in str(caught.value)
        monkeypatch.setenv("MYLLM_REMOTE_KEY_127_0_0_1", "sk-1")
        model = install(store, f"remote:{server.url('/v1')}")
        assert "sk-1" not in (model.folder / "manifest.json").read_text() + model.paths[0].read_text()


def test_what_is_no_such_server_is_told(store: ModelStore, upstream: LiveServer) -> None:
    page = WildServer(lambda exchange: exchange.answer(b"<html>hello</html>"))
    with page as server, pytest.raises(NetworkError, match="/v1"):
        install(store, f"remote:{server.url('')}")
    with pytest.raises(NetworkError, match="can't be reached"):
        install(store, "remote:http://127.0.0.1:1/v1#m")
    with pytest.raises(InvalidRequest, match="already"):
        url = f"http://127.0.0.1:{upstream.port}/v1"
        install(store, f"remote:{url}#echo", name="far")
        install(store, f"remote:{url}#slow", name="far")
