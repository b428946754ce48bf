"""Images through every dialect: the same picture has the same answer in each, and each refuses the same."""

from __future__ import annotations

import base64
import random
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from myllm_core.testing.pictures import png
from support.server import Answer, LiveServer, install_echo, live_server

RED, BLUE = png(48, 32, (200, 30, 60)), png(20, 30, (0, 0, 255))
Part = str | bytes
Ask = Callable[..., Answer]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("pictures")
    install_echo(home / "models")
    install_echo(home / "models", "blind:latest", load_options={"sees": False})
    return home


@pytest.fixture(scope="module")
def live(home: Path) -> Iterator[LiveServer]:
    with live_server(home) as server:
        yield server


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def data_uri(data: bytes) -> str:
    return f"data:image/png;base64,{encoded(data)}"


def native(live: LiveServer, *parts: Part, model: str = "echo", **more: Any) -> Answer:
    text, images = "", []
    for part in parts:
        if isinstance(part, str):
            text += part
        else:
            images.append({"data": encoded(part), "at": len(text)})
    messages = [{"role": "user", "content": text, "images": images}]
    return live.post("/api/chat", {"model": model, "messages": messages, "stream": False, **more})


def openai(live: LiveServer, *parts: Part, model: str = "echo") -> Answer:
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image_url", "image_url": {"url": data_uri(part), "detail": "low"}}
        for part in parts
    ]
    return live.post("/v1/chat/completions", {"model": model, "messages": [{"role": "user", "content": content}]})


def responses(live: LiveServer, *parts: Part, model: str = "echo") -> Answer:
    content = [
        {"type": "input_text", "text": part}
        if isinstance(part, str)
        else {"type": "input_image", "image_url": data_uri(part), "detail": "auto"}
        for part in parts
    ]
    return live.post("/v1/responses", {"model": model, "input": [{"role": "user", "content": content}]})


def anthropic(live: LiveServer, *parts: Part, model: str = "echo") -> Answer:
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": encoded(part)}}
        for part in parts
    ]
    body = {"model": model, "max_tokens": 50, "messages": [{"role": "user", "content": content}]}
    return live.post("/v1/messages", body)


def ollama(live: LiveServer, *parts: Part, model: str = "echo") -> Answer:
    """This dialect puts images before the text."""
    images = [encoded(part) for part in parts if isinstance(part, bytes)]
    message = {"role": "user", "content": "".join(part for part in parts if isinstance(part, str)), "images": images}
    return live.post("/ollama/api/chat", {"model": model, "messages": [message], "stream": False})


def ollama_generate(live: LiveServer, *parts: Part, model: str = "echo") -> Answer:
    images = [encoded(part) for part in parts if isinstance(part, bytes)]
    prompt = "".join(part for part in parts if isinstance(part, str))
    return live.post("/ollama/api/generate", {"model": model, "prompt": prompt, "images": images, "stream": False})


DIALECTS = [native, openai, responses, anthropic, ollama, ollama_generate]
ORDERED = [native, openai, responses, anthropic]


def said(answer: Answer) -> tuple[str, int]:
    """The text of an answer, and the tokens of its prompt."""
    assert answer.status == 200, answer.body
    body = answer.json
    if "choices" in body:
        return body["choices"][0]["message"]["content"], body["usage"]["prompt_tokens"]
    if "output" in body:
        return body["output"][0]["content"][0]["text"], body["usage"]["input_tokens"]
    if "stop_reason" in body:
        return body["content"][0]["text"], body["usage"]["input_tokens"]
    if "prompt_eval_count" in body:
        return body["message"]["content"] if "message" in body else body["response"], body["prompt_eval_count"]
    return body["message"]["content"], body["usage"]["prompt_tokens"]


def refusal(answer: Answer) -> str:
    """The message of a 400, in whichever shape."""
    assert answer.status == 400, answer.body
    error = answer.json["error"]
    return str(error if isinstance(error, str) else error["message"])


@pytest.mark.parametrize("ask", DIALECTS)
def test_a_picture_is_seen(live: LiveServer, ask: Ask) -> None:
    assert said(ask(live, RED, BLUE, "what are these?")) == ("[48x32 #c81e3c][20x30 #0000ff]what are these?", 5)
    assert said(ask(live, RED)) == ("[48x32 #c81e3c]", 2)


@pytest.mark.parametrize("ask", ORDERED)
def test_pictures_stand_between_the_texts(live: LiveServer, ask: Ask) -> None:
    assert said(ask(live, "this ", BLUE, " or that ", RED, "?"))[0] == "this [20x30 #0000ff] or that [48x32 #c81e3c]?"


@pytest.mark.parametrize("ask", DIALECTS)
def test_a_model_that_does_not_see_says_so(live: LiveServer, ask: Ask) -> None:
    assert "reads no images" in refusal(ask(live, RED, "what is it?", model="blind"))
    assert said(ask(live, "still here", model="blind"))[0] == "still here"


@pytest.mark.parametrize("ask", DIALECTS)
def test_what_is_no_picture_is_refused(live: LiveServer, ask: Ask) -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    assert "isn't a PNG, JPEG, GIF or WebP file" in refusal(ask(live, b"<svg/>", "x"))
    assert "60000 x 60000 pixels are too many" in refusal(ask(live, bomb, "x"))
    assert "101 are too many; send at most 100 (setting max_images)" in refusal(ask(live, *[RED] * 101, "x"))
    assert "can't be read" in refusal(ask(live, RED[:60], "x"))
    assert said(ask(live, "still here"))[0] == "still here"


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}/x.png", "https://127.0.0.1:{port}/x", "file:///etc/passwd"])
def test_nothing_is_fetched(live: LiveServer, url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.2)
        url = url.format(port=trap.getsockname()[1])
        part = {"type": "image_url", "image_url": {"url": url}}
        told = [
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": [part]}]}),
            ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]}),
            ("/v1/messages", {"max_tokens": 9, "messages": [{"role": "user", "content": [_by_url(url)]}]}),
        ]
        for path, body in told:
            answer = live.post(path, {"model": "echo", **body})
            assert "images aren't fetched here" in refusal(answer), path
        with pytest.raises(TimeoutError):
            trap.accept()


def _by_url(url: str) -> dict[str, Any]:
    return {"type": "image", "source": {"type": "url", "url": url}}


@pytest.mark.parametrize(
    "url", ["data:image/png,x", "data:image/png;base64", "data:image/png;base64,!", "DATA:;base64,é"]
)
def test_a_data_uri_that_is_wrong_is_named(live: LiveServer, url: str) -> None:
    part = {"type": "image_url", "image_url": {"url": url}}
    answer = live.post("/v1/chat/completions", {"model": "echo", "messages": [{"role": "user", "content": [part]}]})
    assert answer.json["error"]["param"] == "messages[0].content" and "base64" in refusal(answer)


@pytest.mark.parametrize("role", ["system", "assistant"])
def test_only_a_users_message_has_pictures(live: LiveServer, role: str) -> None:
    part = {"type": "image_url", "image_url": {"url": data_uri(RED)}}
    talk = [{"role": role, "content": [part]}, {"role": "user", "content": "x"}]
    assert "has no images" in refusal(live.post("/v1/chat/completions", {"model": "echo", "messages": talk}))


def test_a_tools_result_may_have_pictures(live: LiveServer) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": encoded(BLUE)}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image", "source": source}]}
    call = {"type": "tool_use", "id": "t", "name": "look", "input": {}}
    for more in ([], [{"type": "text", "text": "what is it?"}, {"type": "image", "source": source}]):
        talk = [
            {"role": "user", "content": "look"},
            {"role": "assistant", "content": [call]},
            {"role": "user", "content": [result, *more]},
        ]
        answer = live.post("/v1/messages", {"model": "echo", "max_tokens": 9, "messages": talk})
        expected = "what is it?[20x30 #0000ff]" if more else "[20x30 #0000ff]"
        assert said(answer)[0] == expected


def test_messages_made_one_keep_their_pictures(live: LiveServer) -> None:
    source = {"type": "base64", "media_type": "image/jpeg", "data": encoded(RED)}
    talk = [
        {"role": "user", "content": "first"},
        {"role": "user", "content": [{"type": "text", "text": "then"}, {"type": "image", "source": source}]},
    ]
    answer = live.post("/v1/messages", {"model": "echo", "max_tokens": 9, "messages": talk})
    assert said(answer)[0] == "first\nthen[48x32 #c81e3c]"


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ({"data": "!"}, "images: the data isn't base64"),
        ({"data": ""}, "images: the image is empty"),
        ({"data": encoded(RED), "at": 2}, "images: the message has no place 2; its text has 1 characters"),
    ],
)
def test_the_native_api_says_what_is_wrong(live: LiveServer, image: dict[str, Any], message: str) -> None:
    messages = [{"role": "user", "content": "x", "images": [image]}]
    assert message in refusal(live.post("/api/chat", {"model": "echo", "messages": messages}))


def test_a_raw_prompt_has_no_pictures(live: LiveServer) -> None:
    body = {"model": "echo", "prompt": "x", "images": [encoded(RED)], "raw": True, "stream": False}
    assert "a raw prompt has no images" in refusal(live.post("/ollama/api/generate", body))


def test_limits_are_settings(home: Path, tmp_path: Path) -> None:
    limits = {"max_images": 1, "max_image_bytes": 1024, "max_image_pixels": 900, "data_dir": tmp_path}
    with live_server(home, **limits) as live:
        assert "at most 1 (setting max_images)" in refusal(native(live, BLUE, BLUE))
        assert "at most 900 in all (setting max_image_pixels)" in refusal(native(live, RED))
        assert "at most 1024 (setting max_image_bytes)" in refusal(native(live, BLUE + bytes(1024)))
        assert said(native(live, BLUE))[0] == "[20x30 #0000ff]"


def test_a_session_keeps_its_pictures(live: LiveServer) -> None:
    first = native(live, "see ", RED, " and ", BLUE).json
    session = f"/api/sessions/{first['session_id']}"
    told = native(live, "again", session_id=first["session_id"])
    assert told.status == 200, told.body
    user, _, again, _ = live.get(session).json["messages"]
    assert user["images"] == [
        {"data": encoded(RED), "type": "image/png", "at": 4},
        {"data": encoded(BLUE), "type": "image/png", "at": 9},
    ]
    assert "images" not in again
    document = live.get(f"{session}/export").json
    assert document["messages"][0]["images"] == user["images"]
    copy = live.post("/api/sessions/import?session_id=pictured", document)
    assert copy.status == 200, copy.body
    assert live.get("/api/sessions/pictured").json["messages"][0]["images"] == user["images"]
    blind = native(live, "go on", model="blind", session_id="pictured")
    assert "reads no images" in refusal(blind), "a picture that was sent before isn't dropped either"


def test_models_that_see_say_so(live: LiveServer) -> None:
    for model, sees in (("echo", True), ("blind", False)):
        assert live.post(f"/api/models/{model}/load").status == 200
        loaded = {one["name"]: one["capabilities"] for one in live.get("/api/ps").json["models"]}
        assert ("vision" in loaded[f"{model}:latest"]) is sees
        shown = live.post("/ollama/api/show", {"model": model}).json
        assert shown["capabilities"] == (["completion", "vision"] if sees else ["completion"])


def test_a_large_picture_reaches_a_worker(home: Path, tmp_path: Path) -> None:
    width, height = 1200, 800
    noise = random.Random(1)
    rows = b"".join(b"\0" + noise.randbytes(3 * width) for _ in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows, 0)), (b"IEND", b"")]
    large = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    with live_server(home, isolation="process", data_dir=tmp_path) as live:
        text = said(native(live, large, "and ", RED, session_id="s"))[0]
        assert text.startswith("[1200x800 #") and text.endswith("]and [48x32 #c81e3c]")
        assert said(native(live, "more", session_id="s"))[0] == "more"
        assert "can't be read" in refusal(native(live, large[:-2000]))
        assert said(native(live, "alive"))[0] == "alive"
