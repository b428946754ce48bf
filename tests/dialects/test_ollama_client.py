"""Ollama's own Python client against a live server, as ``OLLAMA_HOST`` points it there."""

from __future__ import annotations

import json

import ollama
import pytest

from support.events import script
from support.server import eventually

LONG = " ".join(f"w{i}" for i in range(400))  # 20 s with the model `slow`
CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]


def user(text):
    return [{"role": "user", "content": text}]


def get_weather(city: str) -> str:
    """The weather of a city.

    Args:
        city: Its name
    """
    return f"sunny in {city}"


def client_of(server):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OLLAMA_HOST", f"http://127.0.0.1:{server.port}/ollama")
        return ollama.Client(timeout=100)


@pytest.fixture(scope="module")
def pretending(pretend):
    client = client_of(pretend)
    yield client
    client._client.close()


@pytest.fixture(scope="module")
def smollm2(real):
    client = client_of(real)
    yield client
    client._client.close()


def test_chats_and_generations(pretending):
    assert pretending.chat(model="echo", messages=user("hello you")).message.content == "hello you"
    parts = list(pretending.chat(model="slow", messages=user("one two"), stream=True))
    assert [part.message.content for part in parts] == ["one", " two", ""] and parts[-1].done_reason == "stop"
    assert pretending.generate(model="echo", prompt="one two").response == "one two"
    assert "".join(p.response for p in pretending.generate(model="echo", prompt="one", stream=True)) == "one"


def test_thinking_and_calls(pretending):
    said = [("reasoning", "hm"), ("text", "I add"), ("call", (0, "c1", "add", '{"a":1}')), ("finish", "tool_calls")]
    message = pretending.chat(model="told", messages=user(script(*said))).message
    assert (message.thinking, message.content) == ("hm", "I add")
    assert message.tool_calls[0].function.name == "add" and message.tool_calls[0].function.arguments == {"a": 1}


def test_vectors(pretending):
    assert pretending.embed(model="echo", input=["abc", "d"]).embeddings == [[3.0, 1.0], [1.0, 1.0]]
    assert pretending.embeddings(model="echo", prompt="abc").embedding == [3.0, 1.0]


def test_models_are_listed_copied_and_deleted(pretending):
    pretending.copy("echo", "mine")
    assert "mine:latest" in [model.model for model in pretending.list().models]
    assert pretending.show("mine").capabilities == ["completion"]
    assert pretending.delete("mine").status == "success"
    assert "mine:latest" not in [model.model for model in pretending.list().models]
    pretending.chat(model="echo", messages=user("x"), keep_alive="5m")
    assert "echo:latest" in [model.model for model in pretending.ps().models]
    assert [part.status for part in pretending.pull("echo", stream=True)][-1] == "success"


def test_errors_are_the_clients_own(pretending):
    with pytest.raises(ollama.ResponseError, match="model 'nope' not found") as error:
        pretending.chat(model="nope", messages=user("x"))
    assert error.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="template") as error:
        pretending.generate(model="echo", prompt="x", template="{{ .Prompt }}")
    assert error.value.status_code == 400
    with pytest.raises(ollama.ResponseError, match="model 'nope' not found"):
        list(pretending.pull("nope", stream=True))


def test_closing_a_stream_ends_the_generation(pretend, pretending):
    stream = pretending.chat(model="slow", messages=user(LONG), stream=True)
    for part in stream:
        if "w3" in part.message.content:
            break
    assert pretend.running() == 1
    stream.close()
    eventually(lambda: pretend.running() == 0, 5)


@pytest.mark.model
def test_the_real_model(smollm2):
    answer = smollm2.chat(model="smollm2", messages=CAPITAL, options={"temperature": 0, "num_predict": 30})
    assert answer.message.content and answer.eval_duration > 0 and answer.prompt_eval_count > 10
    shown = smollm2.show("smollm2")
    assert shown.modelinfo["general.architecture"] == "llama" and shown.modelinfo["llama.context_length"] > 0
    assert {"completion", "tools"} <= set(shown.capabilities) and "<|im_start|>" in shown.template
    loaded = smollm2.ps().models[0]
    assert loaded.model == "smollm2:135m" and loaded.size > 10**7


@pytest.mark.model
def test_a_context_of_another_size(smollm2):
    for size in (512, 1024):
        smollm2.chat(model="smollm2", messages=user("Hi"), options={"num_ctx": size, "num_predict": 2})
        assert smollm2.ps().models[0].context_length == size
    with pytest.raises(ollama.ResponseError, match="tokens") as error:
        smollm2.chat(model="smollm2", messages=user("word " * 2000), options={"num_ctx": 1024})
    assert error.value.status_code == 400, "nothing is cut in silence"
    long = {"model": "smollm2", "input": ["a", "word " * 700], "options": {"num_ctx": 512}}
    with pytest.raises(ollama.ResponseError, match="tokens"):
        smollm2.embed(**long)
    assert len(smollm2.embed(**long, truncate=True).embeddings) == 2
    smollm2.chat(model="smollm2", keep_alive=0)
    assert smollm2.ps().models == []


@pytest.mark.model
def test_a_schema_and_tools_of_the_real_model(smollm2):
    schema = {"type": "object", "properties": {"big": {"type": "boolean"}}, "required": ["big"]}
    schema["additionalProperties"] = False
    options = {"temperature": 0, "num_predict": 60}
    answer = smollm2.chat(model="smollm2", messages=CAPITAL, format=schema, options=options)
    assert isinstance(json.loads(answer.message.content)["big"], bool)
    asked = user("What is the weather in Paris?")
    answer = smollm2.chat(model="smollm2", messages=asked, tools=[get_weather], options=options)
    for call in answer.message.tool_calls or ():
        assert call.function.name == "get_weather" and isinstance(call.function.arguments, dict)
    call = {"function": {"name": "get_weather", "arguments": {"city": "Paris"}}}
    told = [{"role": "assistant", "content": "", "tool_calls": [call]}]
    told.append({"role": "tool", "content": "21 degrees, sunny", "tool_name": "get_weather"})
    last = smollm2.chat(model="smollm2", messages=[*asked, *told], tools=[get_weather], options=options)
    assert last.done
