"""Images through people's own clients: each sees the same picture, and the same tokens stand for it in every prompt."""

from __future__ import annotations

import base64
import hashlib
from contextlib import closing
from pathlib import Path

import anthropic
import ollama
import openai
import pytest

from myllm_core.models.manifest import MANIFEST, Manifest, ModelFile, write_manifest
from myllm_core.testing.pictures import png
from support.server import install_echo, live_server
from support.site import Site

SOUND = Path(__file__).parents[1] / "testing" / "sound_engines.py"
RED, BLUE = png(48, 32, (200, 30, 60)), png(20, 30, (0, 0, 255))
QUESTION = "what are these?"


def encoded(data):
    return base64.b64encode(data).decode()


def ask_native(server, model, *images):
    message = {"role": "user", "content": QUESTION, "images": [{"data": encoded(data)} for data in images]}
    options = {"temperature": 0, "max_tokens": 8}
    answer = server.post("/api/chat", {"model": model, "messages": [message], "stream": False, "options": options})
    if answer.status != 200:
        raise RuntimeError(answer.message)
    return answer.json["message"]["content"], answer.json["usage"]["prompt_tokens"]


def ask_openai(server, model, *images):
    parts = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded(data)}", "detail": "high"}}
        for data in images
    ]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": QUESTION}]}]
    with openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0) as client:
        answer = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=8)
    return answer.choices[0].message.content, answer.usage.prompt_tokens


def ask_responses(server, model, *images):
    parts = [{"type": "input_image", "image_url": f"data:image/png;base64,{encoded(data)}"} for data in images]
    asked = [{"role": "user", "content": [*parts, {"type": "input_text", "text": QUESTION}]}]
    with openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0) as client:
        answer = client.responses.create(model=model, input=asked, temperature=0, max_output_tokens=8, store=False)
    return answer.output_text, answer.usage.input_tokens


def ask_anthropic(server, model, *images):
    blocks = [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": encoded(data)}}
        for data in images
    ]
    messages = [{"role": "user", "content": [*blocks, {"type": "text", "text": QUESTION}]}]
    url = f"http://127.0.0.1:{server.port}"
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as client:
        how = {"max_tokens": 8, "extra_body": {"temperature": 0}}
        answer = client.messages.create(model=model, messages=messages, **how)
        counted = client.messages.count_tokens(model=model, messages=messages).input_tokens if model == "seer" else None
    prompt = answer.usage.input_tokens + answer.usage.cache_read_input_tokens
    assert counted in (None, prompt)
    return answer.content[0].text, prompt


def ask_ollama(server, model, *images):
    client = ollama.Client(host=f"http://127.0.0.1:{server.port}/ollama", timeout=100)
    with closing(client._client):
        message = {"role": "user", "content": QUESTION, "images": list(images)}
        answer = client.chat(model=model, messages=[message], options={"temperature": 0, "num_predict": 8})
        prompt = client.generate(model, QUESTION, images=list(images), options={"temperature": 0, "num_predict": 8})
    assert (prompt.response, prompt.prompt_eval_count) == (answer.message.content, answer.prompt_eval_count)
    return answer.message.content, answer.prompt_eval_count


ASK = [ask_native, ask_openai, ask_responses, ask_anthropic, ask_ollama]
ERRORS = (RuntimeError, openai.BadRequestError, anthropic.BadRequestError, ollama.ResponseError)


@pytest.fixture(scope="module")
def seeing(tmp_path_factory):
    """A server with ``seer``, a TokenEngine whose replies depend on what it sees, and ``blind``, which sees nothing."""
    home = tmp_path_factory.mktemp("seeing")
    (home / "site").mkdir()
    folder = home / "models" / "seer@latest"
    folder.mkdir(parents=True)
    install_echo(home / "models", "blind:latest", load_options={"sees": False})
    (folder / "weights").write_bytes(b"seer")
    weights = ModelFile("weights", 4, hashlib.sha256(b"seer").hexdigest())
    write_manifest(folder / MANIFEST, Manifest("seer:latest", "sound", (weights,)))
    hook = "\n\nfrom myllm_core import hookimpl\n\n\n@hookimpl\ndef myllm_engines():\n    return [SeeingTokens]\n"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(home / "site")
        Site(home / "site").install("seeing", SOUND.read_text(encoding="utf-8") + hook)
        with live_server(home) as server:
            yield server


@pytest.mark.parametrize("ask", ASK)
def test_each_client_is_told_what_is_in_the_picture(pretend, ask):
    text, _ = ask(pretend, "echo", RED, BLUE)
    assert text == f"[48x32 #c81e3c][20x30 #0000ff]{QUESTION}"


@pytest.mark.parametrize("ask", ASK)
def test_each_client_is_told_that_a_model_does_not_see(seeing, ask):
    with pytest.raises(ERRORS, match="reads no images"):
        ask(seeing, "blind", RED)


def test_the_same_pictures_are_the_same_prompt_in_each_dialect(seeing):
    first = ask_native(seeing, "seer", RED, BLUE)
    assert first[0] and first[1] > 2 * 6 + len(QUESTION)
    for ask in ASK:
        assert ask(seeing, "seer", RED, BLUE) == first, ask.__name__
    assert ask_native(seeing, "seer", BLUE, RED)[1] == first[1]
    assert ask_native(seeing, "seer", BLUE, RED)[0] != first[0], "what it sees, and in which order, decides"


def test_a_prompt_with_pictures_is_counted_and_shown(seeing):
    message = {"role": "user", "content": QUESTION, "images": [{"data": encoded(RED), "at": 4}]}
    body = {"model": "seer", "messages": [message]}
    counted = seeing.post("/api/count", body).json["prompt_tokens"]
    shown = seeing.post("/api/apply-template", body).json
    assert "what\ufffc are these?" in shown["prompt"]
    assert len(shown["tokens"]) == counted and sum(token < 0 for token in shown["tokens"]) == 4
    asked = seeing.post("/api/chat", body | {"stream": False, "options": {"max_tokens": 4}})
    assert asked.json["usage"]["prompt_tokens"] == counted


def test_a_conversation_too_long_loses_its_oldest_pictures(seeing):
    """A context of 256 tokens: what is left out is said, and the pictures that stay are those that count."""
    said = {"role": "assistant", "content": "yes " * 35}
    turns = [{"role": "user", "content": "this? " * 10, "images": [{"data": encoded(RED)}]}, said]
    last = {"role": "user", "content": QUESTION, "images": [{"data": encoded(BLUE)}]}
    body = {"model": "seer", "stream": False, "options": {"temperature": 0, "max_tokens": 8}}
    cut = seeing.post("/api/chat", body | {"messages": [*turns, *turns, last]}).json
    alone = seeing.post("/api/chat", body | {"messages": [last]}).json
    assert cut["context"]["dropped"] == [0, 1, 2, 3] and cut["context"]["dropped_tokens"] > 2 * 6
    assert (cut["message"]["content"], cut["usage"]["prompt_tokens"]) == (
        alone["message"]["content"],
        alone["usage"]["prompt_tokens"],
    )
