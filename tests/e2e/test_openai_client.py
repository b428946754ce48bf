"""OpenAI's own Python client against a live server: what it parses, raises and closes."""

from __future__ import annotations

import json
import time

import openai
import pytest
from openai import OpenAI

from support.server import eventually, install_echo, live_server

LONG = " ".join(f"w{i}" for i in range(400))  # 20 s with the model `slow`
CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]


def user(text):
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """A server with the echo model, and ``slow`` that takes 50 ms for each word."""
    folder = tmp_path_factory.mktemp("openai")
    install_echo(folder / "models")
    install_echo(folder / "models", "slow:latest", load_options={"delay_ms": 50})
    with live_server(folder) as server:
        yield server


@pytest.fixture(scope="module")
def echo(live):
    with OpenAI(base_url=f"http://127.0.0.1:{live.port}/v1", api_key="none", max_retries=0, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def smollm2(server):
    with OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0, timeout=100) as client:
        yield client


def test_a_chat(echo):
    answer = echo.chat.completions.create(model="echo", messages=user("hello you"))
    assert answer.choices[0].message.content == "hello you" and answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == 4 and answer.usage.prompt_tokens_details.cached_tokens == 0
    assert answer._request_id


def test_a_stream_with_its_usage(echo):
    stream = echo.chat.completions.create(
        model="echo", messages=user("one two three"), stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "one two three"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [bool(c.usage) for c in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].usage.completion_tokens == 3 and chunks[-1].choices == []


def test_the_clients_own_accumulation_of_streams(echo):
    with echo.chat.completions.stream(model="echo", messages=user("one two"), n=2) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert [choice.message.content for choice in final.choices] == ["one two", "one two"]
    assert {choice.finish_reason for choice in final.choices} == {"stop"}


def test_completions(echo):
    answer = echo.completions.create(model="echo", prompt=["a b", "c"], echo=True)
    assert [choice.text for choice in answer.choices] == ["a ba b", "cc"]
    stream = echo.completions.create(model="echo", prompt="a b", stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(c.choices[0].text for c in chunks if c.choices) == "a b" and chunks[-1].usage.total_tokens == 4


def test_embeddings_which_the_client_asks_for_packed(echo):
    made = echo.embeddings.create(model="echo", input=["abc", "d"])
    assert [item.embedding for item in made.data] == [[3.0, 1.0], [1.0, 1.0]] and made.usage.prompt_tokens == 2
    plain = echo.embeddings.create(model="echo", input="abc", encoding_format="float")
    assert plain.data[0].embedding == [3.0, 1.0]


def test_models(echo):
    assert [model.id for model in echo.models.list()] == ["echo:latest", "slow:latest"]
    assert echo.models.retrieve("echo").id == "echo:latest"


def test_errors_are_the_clients_own(echo):
    with pytest.raises(openai.NotFoundError) as error:
        echo.chat.completions.create(model="gpt-4o", messages=user("x"))
    assert error.value.code == "model_not_found" and "myllm pull" in error.value.message and error.value.request_id
    with pytest.raises(openai.NotFoundError):
        echo.models.retrieve("gpt-4o")
    with pytest.raises(openai.BadRequestError) as error:
        echo.chat.completions.create(model="echo", messages=user("x"), temperature=3)
    assert error.value.param == "temperature" and error.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError) as error:
        echo.chat.completions.create(model="echo", messages=[])
    assert error.value.param == "messages"


def test_a_busy_server(tmp_path):
    install_echo(tmp_path / "models", load_options={"delay_ms": 50})
    with live_server(tmp_path, max_requests=1) as server:
        url = f"http://127.0.0.1:{server.port}/v1"
        with OpenAI(base_url=url, api_key="none", max_retries=0) as client:
            stream = client.chat.completions.create(model="echo", messages=user(LONG), stream=True)
            next(stream)
            with pytest.raises(openai.InternalServerError) as error:
                client.models.list()
            assert error.value.code == "overloaded" and error.value.status_code == 503
            stream.close()


def test_a_wrong_key(tmp_path):
    with live_server(tmp_path, api_key="k3y") as server:
        url = f"http://127.0.0.1:{server.port}/v1"
        with OpenAI(base_url=url, api_key="wrong", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError) as error:
                client.models.list()
            assert error.value.code == "invalid_api_key"
        with OpenAI(base_url=url, api_key="k3y", max_retries=0) as client:
            assert list(client.models.list()) == []


def test_closing_a_stream_ends_the_generation(live, echo):
    stream = echo.chat.completions.create(model="slow", messages=user(LONG), stream=True)
    for chunk in stream:
        if chunk.choices[0].delta.content == " w3":
            break
    assert live.running() == 1
    stream.close()
    eventually(lambda: live.running() == 0, 1.5)


def test_a_client_that_gives_up_ends_the_generation(live, echo):
    with pytest.raises(openai.APITimeoutError):
        echo.chat.completions.create(model="slow", messages=user(LONG), n=2, timeout=0.5)
    eventually(lambda: live.running() == 0, 1.5)


@pytest.mark.model
def test_chats_with_the_real_model(smollm2):
    answer = smollm2.chat.completions.create(model="smollm2", messages=CAPITAL, temperature=0, max_tokens=30)
    text = answer.choices[0].message.content
    assert "Paris" in text and answer.choices[0].finish_reason == "stop"
    chunks = list(
        smollm2.chat.completions.create(
            model="smollm2",
            messages=CAPITAL,
            temperature=0,
            max_completion_tokens=30,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    assert chunks[-1].usage.completion_tokens == answer.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens > 0
    cut = smollm2.chat.completions.create(model="smollm2", messages=CAPITAL, temperature=0, stop=[" is"])
    assert cut.choices[0].message.content == text.partition(" is")[0]
    short = smollm2.chat.completions.create(model="smollm2", messages=CAPITAL, temperature=0, max_tokens=2)
    assert short.choices[0].finish_reason == "length" and short.usage.completion_tokens == 2


@pytest.mark.model
def test_seeds_and_several_answers_of_the_real_model(smollm2):
    how = {"model": "smollm2", "messages": user("Tell me a story"), "temperature": 1.5, "max_tokens": 16}
    both = smollm2.chat.completions.create(**how, n=2, seed=7)
    first, second = (choice.message.content for choice in both.choices)
    assert first != second and both.usage.completion_tokens == 32
    assert smollm2.chat.completions.create(**how, seed=7).choices[0].message.content == first
    assert smollm2.chat.completions.create(**how, seed=8).choices[0].message.content == second


@pytest.mark.model
def test_log_probabilities_of_the_real_model(smollm2):
    answer = smollm2.chat.completions.create(
        model="smollm2", messages=user("Say café"), temperature=0, max_tokens=12, logprobs=True, top_logprobs=3
    )
    positions = answer.choices[0].logprobs.content
    joined = b"".join(bytes(position.bytes) for position in positions).decode("utf-8", "replace")
    assert joined == answer.choices[0].message.content
    for position in positions:
        best = [other.logprob for other in position.top_logprobs]
        assert len(best) == 3 and best == sorted(best, reverse=True)
        assert position.logprob == pytest.approx(best[0], abs=1e-4) and position.logprob <= 0
    legacy = smollm2.completions.create(
        model="smollm2", prompt="The capital of France is", temperature=0, max_tokens=4, logprobs=2
    ).choices[0]
    assert "".join(legacy.logprobs.tokens) == legacy.text and "Paris" in legacy.text
    assert legacy.logprobs.text_offset[0] == 0 and len(legacy.logprobs.top_logprobs) == 4


@pytest.mark.model
def test_a_schema_holds_the_real_model(smollm2):
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "big": {"type": "boolean"}},
        "required": ["city", "big"],
        "additionalProperties": False,
    }
    answer = smollm2.chat.completions.create(
        model="smollm2",
        messages=CAPITAL,
        max_tokens=60,
        response_format={"type": "json_schema", "json_schema": {"name": "city", "strict": True, "schema": schema}},
    )
    made = json.loads(answer.choices[0].message.content)
    assert made.keys() == {"city", "big"} and isinstance(made["big"], bool)


@pytest.mark.model
def test_ignoring_the_end_makes_equal_work(smollm2):
    for extra, tokens, reason in (({}, range(2, 40), "stop"), ({"ignore_eos": True}, [64], "length")):
        answer = smollm2.chat.completions.create(
            model="smollm2", messages=CAPITAL, temperature=0, max_tokens=64, extra_body=extra
        )
        assert answer.usage.completion_tokens in tokens and answer.choices[0].finish_reason == reason


@pytest.mark.model
def test_a_prompt_too_long_has_both_numbers(smollm2):
    began = time.monotonic()
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as error:
            smollm2.chat.completions.create(model="smollm2", messages=user("word " * 9000), stream=stream)
        assert error.value.code == "context_length_exceeded"
        assert "8192" in error.value.message and "9021" in error.value.message, error.value.message
    assert time.monotonic() - began < 20


@pytest.mark.model
def test_embeddings_of_the_real_model(smollm2):
    packed = smollm2.embeddings.create(model="smollm2", input=["a cat", "a dog"])
    assert [len(item.embedding) for item in packed.data] == [576, 576]
    plain = smollm2.embeddings.create(model="smollm2", input="a cat", encoding_format="float").data[0].embedding
    assert plain == pytest.approx(packed.data[0].embedding, abs=1e-3)
