"""Anthropic's own Python client against a live server."""

from __future__ import annotations

import json

import anthropic
import pytest
from anthropic import Anthropic

from support.events import script
from support.server import eventually

LONG = " ".join(f"w{i}" for i in range(400))  # 20 s with the model `slow`
CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER = {
    "name": "get_weather",
    "description": "The weather of a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


def user(text):
    return [{"role": "user", "content": text}]


def client_of(server, **more):
    return Anthropic(**{"base_url": f"http://127.0.0.1:{server.port}", "api_key": "none", "max_retries": 0} | more)


@pytest.fixture(scope="module")
def pretending(pretend):
    with client_of(pretend, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def smollm2(real):
    with client_of(real, timeout=100) as client:
        yield client


def test_a_message(pretending):
    answer = pretending.messages.create(model="echo", max_tokens=9, messages=user("hello you"))
    assert answer.content[0].text == "hello you" and answer.stop_reason == "end_turn"
    assert answer.usage.output_tokens == 2 and answer.id.startswith("msg_") and answer._request_id


def test_a_stream_as_the_client_accumulates_it(pretending):
    said = [
        ("reasoning", "hm"),
        ("text", "I add"),
        ("call", (0, "c1", "add", '{"a":')),
        ("call", (0, None, None, "1}")),
    ]
    said.append(("finish", "tool_calls"))
    with pretending.messages.stream(model="told", max_tokens=9, messages=user(script(*said))) as stream:
        kinds = [event.type for event in stream]
        message = stream.get_final_message()
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop"
    thinking, text, call = message.content
    assert (thinking.thinking, thinking.signature) == ("hm", "myllm") and text.text == "I add"
    assert (call.name, call.input, message.stop_reason) == ("add", {"a": 1}, "tool_use")
    assert (message.usage.input_tokens, message.usage.cache_read_input_tokens) == (3, 2)


def test_models(pretending):
    assert [model.id for model in pretending.models.list(limit=2)] == ["echo:latest", "slow:latest", "told:latest"]
    assert pretending.models.retrieve("echo").type == "model"


def test_errors_are_the_clients_own(pretending):
    with pytest.raises(anthropic.NotFoundError) as error:
        pretending.messages.create(model="claude", max_tokens=9, messages=user("x"))
    assert error.value.type == "not_found_error" and error.value.request_id
    with pytest.raises(anthropic.BadRequestError) as error:
        pretending.messages.create(model="echo", max_tokens=0, messages=user("x"))
    assert error.value.type == "invalid_request_error" and "max_tokens" in str(error.value)
    with pytest.raises(anthropic.InternalServerError, match="melted"):
        pretending.messages.create(model="told", max_tokens=9, messages=user(script(("raise", "melted"))))


def test_closing_a_stream_ends_the_generation(pretend, pretending):
    with pretending.messages.stream(model="slow", max_tokens=400, messages=user(LONG)) as stream:
        for text in stream.text_stream:
            if "w3" in text:
                break
        assert pretend.running() == 1
    eventually(lambda: pretend.running() == 0, 5)


@pytest.mark.model
def test_the_real_models_counts(smollm2):
    counted = smollm2.messages.count_tokens(model="smollm2", messages=CAPITAL).input_tokens
    with smollm2.messages.stream(model="smollm2", max_tokens=12, messages=CAPITAL) as stream:
        start = next(event for event in stream if event.type == "message_start").message.usage
        final = stream.get_final_message().usage
    assert start.input_tokens + start.cache_read_input_tokens == counted, "real from the first event on"
    assert final.input_tokens + final.cache_read_input_tokens == counted and final.output_tokens == 12


@pytest.mark.model
def test_tools_of_the_real_model(smollm2):
    how = {"model": "smollm2", "max_tokens": 80, "tools": [WEATHER], "extra_body": {"temperature": 0}}
    how["tool_choice"] = {"type": "tool", "name": "get_weather"}
    asked = user("What is the weather in Paris?")
    first = smollm2.messages.create(messages=asked, **how)
    call = first.content[-1]
    assert first.stop_reason == "tool_use" and call.name == "get_weather" and isinstance(call.input["city"], str)
    with smollm2.messages.stream(messages=asked, **how) as stream:
        streamed = stream.get_final_message()
    assert streamed.content[-1].input == call.input
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "21 degrees, sunny"}
    talk = [*asked, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    last = smollm2.messages.create(model="smollm2", max_tokens=30, messages=talk, tools=[WEATHER])
    assert last.stop_reason in ("end_turn", "max_tokens", "tool_use")


@pytest.mark.model
def test_a_schema_holds_the_real_model(smollm2):
    schema = {"type": "object", "properties": {"big": {"type": "boolean"}}, "required": ["big"]}
    answer = smollm2.messages.create(
        model="smollm2",
        max_tokens=40,
        messages=CAPITAL,
        output_config={"format": {"type": "json_schema", "schema": {**schema, "additionalProperties": False}}},
    )
    assert isinstance(json.loads(answer.content[0].text)["big"], bool)
