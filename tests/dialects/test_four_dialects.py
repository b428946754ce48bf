"""One generation, four dialects: the same request has the same text, counts and end in each, and a fault is a fault."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import dataclass

import anthropic
import ollama
import openai
import pytest

from support.events import script
from support.server import live_server
from support.smollm2 import install_smollm2

TALK = [{"role": "system", "content": "You tell stories."}, {"role": "user", "content": "Tell me of a fox."}]
REASONS = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length"}


@dataclass
class Told:
    """A reply, whichever dialect told it."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    reason: str


class Native:
    """The native API has no client but HTTP."""

    def __init__(self, server):
        self.server = server

    def close(self):
        pass

    def ask(self, model, messages, stream, seed, max_tokens, stop):
        options = {"temperature": 0.8, "seed": seed, "max_tokens": max_tokens, "stop": stop}
        body = {"model": model, "messages": messages, "stream": stream, "options": options}
        answer = self.server.post("/api/chat", body)
        last = answer.frames[-1] if stream and answer.status == 200 else answer.json
        if "error" in last:
            raise RuntimeError(last["error"]["message"])
        text = "".join(frame.get("token", "") for frame in answer.frames) if stream else last["message"]["content"]
        usage = last["usage"]
        return Told(text, usage["prompt_tokens"], usage["completion_tokens"], last["finish_reason"])


class OpenAI:
    def __init__(self, server):
        url = f"http://127.0.0.1:{server.port}/v1"
        self.client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=100)

    def close(self):
        self.client.close()

    def ask(self, model, messages, stream, seed, max_tokens, stop):
        how = {"temperature": 0.8, "seed": seed, "max_tokens": max_tokens, "stop": stop}
        create = self.client.chat.completions.create
        if not stream:
            answer = create(model=model, messages=messages, **how)
            choice, usage = answer.choices[0], answer.usage
            return Told(choice.message.content, usage.prompt_tokens, usage.completion_tokens, choice.finish_reason)
        chunks = list(
            create(model=model, messages=messages, stream=True, stream_options={"include_usage": True}, **how)
        )
        choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
        text, usage = "".join(choice.delta.content or "" for choice in choices), chunks[-1].usage
        return Told(text, usage.prompt_tokens, usage.completion_tokens, choices[-1].finish_reason)


class Anthropic:
    def __init__(self, server):
        url = f"http://127.0.0.1:{server.port}"
        self.client = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0, timeout=100)

    def close(self):
        self.client.close()

    def ask(self, model, messages, stream, seed, max_tokens, stop):
        system = [message["content"] for message in messages if message["role"] == "system"]
        how = {"max_tokens": max_tokens, "stop_sequences": stop, "extra_body": {"temperature": 0.8, "seed": seed}}
        if system:
            how["system"] = system[0]
        said = [message for message in messages if message["role"] != "system"]
        if stream:
            with self.client.messages.stream(model=model, messages=said, **how) as events:
                text = "".join(events.text_stream)
                message = events.get_final_message()
            assert text == "".join(block.text for block in message.content)
        else:
            message = self.client.messages.create(model=model, messages=said, **how)
            text = "".join(block.text for block in message.content)
        usage = message.usage
        prompt = usage.input_tokens + usage.cache_read_input_tokens
        return Told(text, prompt, usage.output_tokens, REASONS[message.stop_reason])


class Ollama:
    def __init__(self, server):
        self.client = ollama.Client(host=f"http://127.0.0.1:{server.port}/ollama")

    def close(self):
        self.client._client.close()

    def ask(self, model, messages, stream, seed, max_tokens, stop):
        options = {"temperature": 0.8, "seed": seed, "num_predict": max_tokens, "stop": stop}
        answer = self.client.chat(model=model, messages=messages, stream=stream, options=options)
        parts = list(answer) if stream else [answer]
        text = "".join(part.message.content for part in parts)
        last = parts[-1]
        return Told(text, last.prompt_eval_count, last.eval_count, last.done_reason)


DIALECTS = [Native, OpenAI, Anthropic, Ollama]
ERRORS = {
    Native: RuntimeError,
    OpenAI: openai.APIError,
    Anthropic: anthropic.APIError,
    Ollama: ollama.ResponseError,
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory, smollm2_gguf):
    """A server whose model does nothing but answer: no guesses, no neighbours, no sequences brought back."""
    home = tmp_path_factory.mktemp("alone")
    install_smollm2(home / "models", smollm2_gguf)
    options = {"n_parallel": 1, "speculation": "off", "cache_ram": 0, "cache_disk": 0}
    with live_server(home, isolation="process", engine_options={"llamacpp": options}) as server:
        yield server


@pytest.mark.model
@pytest.mark.parametrize(
    ("max_tokens", "stop", "reason"), [(24, ["zebra"], "length"), (200, ["."], "stop")], ids=["length", "stop"]
)
def test_the_same_request_has_the_same_answer(alone, max_tokens, stop, reason):
    first = Native(alone).ask("smollm2", TALK, False, 7, max_tokens, stop)
    assert first.reason == reason and first.text and "zebra" not in first.text and first.prompt_tokens > 10
    for dialect in DIALECTS:
        with closing(dialect(alone)) as client:
            for stream in (False, True):
                assert client.ask("smollm2", TALK, stream, 7, max_tokens, stop) == first, (dialect.__name__, stream)
    assert Native(alone).ask("smollm2", TALK, False, 8, max_tokens, stop).text != first.text


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_fault_in_mid_stream_is_an_error_to_each_client(pretend, dialect):
    messages = [{"role": "user", "content": script(("text", "well"), ("raise", "the wires melted"))}]
    with pytest.raises(ERRORS[dialect], match="the wires melted"):
        stream_plainly(dialect, pretend, messages)
    assert pretend.running() == 0


def stream_plainly(dialect, server, messages):
    """A stream with nothing that the engine ``told`` doesn't have."""
    with closing(dialect(server)) as client:
        return told_by(client, server, messages)


def told_by(client, server, messages):
    dialect = type(client)
    if dialect is Native:
        last = server.post("/api/chat", {"model": "told", "messages": messages}).frames[-1]
        raise RuntimeError(json.dumps(last["error"]))
    if dialect is OpenAI:
        return list(client.client.chat.completions.create(model="told", messages=messages, stream=True))
    if dialect is Ollama:
        return list(client.client.chat(model="told", messages=messages, stream=True))
    with client.client.messages.stream(model="told", messages=messages, max_tokens=9) as events:
        return list(events)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_model_that_isnt_there(pretend, dialect):
    with pytest.raises(ERRORS[dialect], match="nope"), closing(dialect(pretend)) as client:
        client.ask("nope", [{"role": "user", "content": "x"}], False, 7, 9, ["x"])
