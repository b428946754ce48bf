"""Conversations that are too long, and images: as on every other engine, whatever kind of server answers."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from myllm_remote.engine import RemoteEngine

from myllm_core import ChatRequest, ContextReport, Event, Finish, Image, Message, Progress, Sampling, TextDelta
from myllm_core.errors import ContextLengthError, UnsupportedError
from support.server import LiveServer
from support.wild_server import Exchange

from .conftest import OpenEngine, said, sse

SERVER = Path(sys.prefix).parent / ".venvs/bench/bin/llama-server"
WORDS = " ".join(["tide"] * 60)


def talk(turns: int, fit: Literal["drop", "error"] = "drop", max_tokens: int | None = 8) -> ChatRequest:
    """A system message, and turns of about 130 tokens each."""
    pairs = [(Message("user", f"{turn} {WORDS}"), Message("assistant", WORDS)) for turn in range(turns)]
    messages = (Message("system", "Be brief."), *(one for pair in pairs for one in pair), Message("user", "Say hi."))
    return ChatRequest(messages, Sampling(temperature=0), max_tokens=max_tokens, fit=fit)


def ask(engine: RemoteEngine, request: ChatRequest) -> tuple[str, Finish]:
    events: list[Event] = [event for event in engine.chat(request) if not isinstance(event, Progress)]
    last = events[-1]
    assert isinstance(last, Finish)
    return "".join(event.text for event in events if isinstance(event, TextDelta)), last


@pytest.mark.model
def test_another_myllm_is_asked_to_count(smollm2_server: LiveServer, open_engine: OpenEngine) -> None:
    """What is left out, and what is refused, is what the other side itself would."""
    engine = open_engine(f"http://127.0.0.1:{smollm2_server.port}/v1", model="smollm2:latest", load={})
    for turns in (1, 5):
        request = talk(turns)
        body = {
            "model": "smollm2",
            "messages": [{"role": message.role, "content": message.content} for message in request.messages],
            "options": {"temperature": 0, "max_tokens": 8, "seed": 0},
            "stream": False,
        }
        theirs = smollm2_server.post("/api/chat", body).json
        text, last = ask(engine, request)
        assert last.context is not None and text == theirs["message"]["content"]
        assert last.context.context_size == theirs["context"]["context_size"] == 512
        assert list(last.context.dropped) == theirs["context"]["dropped"]
        assert last.context.dropped_tokens == theirs["context"]["dropped_tokens"]
        assert last.usage.prompt_tokens == theirs["usage"]["prompt_tokens"]
        assert bool(last.context.dropped) == (turns == 5)
    with pytest.raises(ContextLengthError) as caught:
        ask(engine, talk(5, "error"))
    assert caught.value.data["prompt_tokens"] > caught.value.data["context_size"] == 512
    with pytest.raises(ContextLengthError):  # the last message alone
        ask(engine, ChatRequest((Message("user", " ".join([WORDS] * 20)),), Sampling(temperature=0)))


class Counting:
    """A server that takes ``size`` tokens, a word each: as vLLM it counts, as others it only refuses."""

    def __init__(self, size: int, refusal: str = "", counts: bool = True) -> None:
        self.size, self.refusal, self.counts = size, refusal, counts
        self.asked: list[dict[str, Any]] = []

    def __call__(self, exchange: Exchange) -> None:
        body = json.loads(exchange.body)
        words = sum(len(str(message["content"]).split()) for message in body["messages"])
        if exchange.target == "/tokenize" and self.counts:
            exchange.answer(json.dumps({"count": words, "max_model_len": self.size}).encode())
        elif exchange.target != "/v1/chat/completions":
            exchange.answer(b"{}", 404)
        else:
            self.asked.append(body)
            limit = body.get("max_tokens") or 0
            if words + limit > self.size:
                said_so = self.refusal.format(words=words, size=self.size, all=words + limit, limit=limit)
                exchange.answer(json.dumps({"error": {"message": said_so, "code": 400}}).encode(), 400)
            else:
                usage = {"choices": [], "usage": {"prompt_tokens": words, "completion_tokens": 1}}
                exchange.answer(sse(said("hi", "stop"), usage), Content_Type="text/event-stream")


def test_vllm_is_asked_to_count(wild_engine: Any) -> None:
    server = Counting(1000)
    engine, _ = wild_engine(server, "vllm")
    text, last = ask(engine, talk(20, max_tokens=100))
    assert text == "hi" and len(server.asked) == 1
    [body] = server.asked
    kept = len(body["messages"])
    assert body["messages"][0]["role"] == "system" and body["messages"][-1]["content"] == "Say hi."
    dropped = tuple(range(1, 42 - kept + 1))
    words = 2 + 20 * 121 + 2
    assert last.context == ContextReport(1000, dropped, words - last.usage.prompt_tokens)
    assert 900 - 121 < last.usage.prompt_tokens <= 900, "it isn't the fewest turns"
    with pytest.raises(ContextLengthError) as caught:
        ask(engine, talk(20, "error"))
    assert caught.value.data == {"prompt_tokens": words, "context_size": 1000} and len(server.asked) == 1
    ask(engine, talk(5, max_tokens=5000))
    assert server.asked[-1]["max_tokens"] == 1000 - (2 + 5 * 121 + 2), "a reply has the room that there is"


REFUSALS = [
    "This model's maximum context length is {size} tokens. However, your messages resulted in {words} tokens.",
    "This model's maximum context length is {size} tokens. However, you requested {all} tokens ({words} in the "
    "messages, {limit} in the completion).",
    "The input ({words} tokens) is longer than the model's context length ({size} tokens).",
    "context length exceeded",
]


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_server_that_only_refuses_is_asked_for_less(wild_engine: Any, refusal: str) -> None:
    server = Counting(1000, refusal, counts=False)
    engine, _ = wild_engine(server, "other")
    text, last = ask(engine, talk(20, max_tokens=100))
    assert text == "hi" and 1 < len(server.asked) < 6
    kept = len(server.asked[-1]["messages"])
    assert last.context is not None and last.context.dropped == tuple(range(1, 42 - kept + 1))
    if refusal != REFUSALS[-1]:
        words = 2 + 20 * 121 + 2
        assert last.context == ContextReport(1000, last.context.dropped, words - last.usage.prompt_tokens)
        assert last.usage.prompt_tokens > 500, "more was left out than needed"
    count = len(server.asked)
    with pytest.raises(ContextLengthError) as caught:
        ask(engine, talk(20, "error"))
    assert len(server.asked) == count + 1
    if refusal != REFUSALS[-1]:
        assert caught.value.data == {"prompt_tokens": 2 + 20 * 121 + 2, "context_size": 1000}
    with pytest.raises(ContextLengthError):  # nothing is left to leave out
        ask(engine, ChatRequest((Message("user", " ".join([WORDS] * 20)),)))


def test_a_reply_that_alone_has_no_room_is_shortened(wild_engine: Any) -> None:
    server = Counting(1000, REFUSALS[1], counts=False)
    engine, _ = wild_engine(server, "other")
    _, last = ask(engine, talk(2, max_tokens=990))
    assert [body["max_tokens"] for body in server.asked] == [990, 1000 - (2 + 2 * 121 + 2)]
    assert last.context == ContextReport(1000)


@pytest.fixture(scope="module")
def llama_server(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """llama.cpp's own server with a context of 512 tokens, where the benchmark has built it."""
    if not SERVER.exists():
        pytest.skip("llama-server isn't built; make bench builds it")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [
        str(SERVER),
        "-m",
        str(smollm2_gguf),
        "--port",
        str(port),
        "--offline",
        "-c",
        "512",
        "-np",
        "1",
        "-t",
        "1",
    ]
    log = tmp_path_factory.mktemp("llama") / "log"
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        try:
            until = time.monotonic() + 100
            while not _is_up(f"http://127.0.0.1:{port}/health"):
                assert process.poll() is None and time.monotonic() < until, log.read_text()[-2000:]
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            os.kill(process.pid, signal.SIGTERM)


def _is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.mark.model
def test_llama_server_counts_and_refuses(llama_server: str, open_engine: OpenEngine, monkeypatch: Any) -> None:
    engine = open_engine(llama_server, model="whatever", dialect="llamacpp", load={"stall_timeout": 100.0})
    assert engine.facts.context_size == 512 and "vision" not in engine.facts.capabilities
    text, last = ask(engine, talk(6))
    assert last.context is not None and last.context.dropped and text
    assert last.context.dropped_tokens > 0 and last.usage.prompt_tokens <= 512 - 8
    with pytest.raises(ContextLengthError) as caught:
        ask(engine, talk(6, "error"))
    assert caught.value.data["prompt_tokens"] > caught.value.data["context_size"] == 512
    monkeypatch.setattr("myllm_remote.measure._COUNTS", {})  # its own refusal says as much
    engine = open_engine(llama_server, model="whatever", dialect="llamacpp", load={"stall_timeout": 100.0})
    with pytest.raises(ContextLengthError) as again:
        ask(engine, talk(6, "error"))
    assert again.value.data == caught.value.data
    _, last = ask(engine, talk(6))
    assert last.context is not None and last.context.dropped and last.context.dropped_tokens > 0


def _picture() -> Image:
    pillow = pytest.importorskip("PIL.Image")
    file = io.BytesIO()
    pillow.new("RGB", (4, 2), (255, 0, 0)).save(file, "PNG")
    return Image(file.getvalue(), "image/png", at=5)


def test_images_go_along_where_the_model_reads_them(wild_engine: Any) -> None:
    server = Counting(1000)
    request = ChatRequest((Message("user", "Look here!", images=(_picture(),)),))
    engine, _ = wild_engine(server, "vllm")
    with pytest.raises(UnsupportedError, match="no images"):
        ask(engine, request)
    engine, _ = wild_engine(server, "vllm", load={"capabilities": "chat,vision"})
    ask(engine, request)
    first, picture, last = server.asked[-1]["messages"][0]["content"]
    assert (first, last) == ({"type": "text", "text": "Look "}, {"type": "text", "text": "here!"})
    assert re.fullmatch(r"data:image/png;base64,[\w+/=]+", picture["image_url"]["url"])


def test_another_myllm_says_whether_it_reads_images(upstream: LiveServer, open_engine: OpenEngine) -> None:
    upstream.chat("hi")  # of the echo engine only its loaded model tells
    engine = open_engine(f"http://127.0.0.1:{upstream.port}/v1")
    assert "vision" in engine.facts.capabilities
    text, _ = ask(engine, ChatRequest((Message("user", "Look here!", images=(_picture(),)),)))
    assert text == "Look [4x2 #ff0000]here!"
