"""OpenAI's Python client: tools and responses with the real model. The rest of it is in tests/e2e and tests/server."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from openai import OpenAI

from clients.conftest import CAPITAL, WEATHER

pytestmark = pytest.mark.model

TOOLS: Any = [
    {"type": "function", "function": {"name": "get_weather", "description": "The weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "now"}},
]
ASK: Any = [{"role": "user", "content": "How warm is it in Paris?"}]
HOW: Any = {"model": "smollm2", "messages": ASK, "tools": TOOLS, "max_tokens": 120}


def check(arguments: str) -> None:
    made = json.loads(arguments)
    assert made.keys() == {"city", "unit"} and len(made["city"]) <= 12 and made["unit"] in ("C", "F")


@pytest.mark.parametrize("seed", range(3))
def test_a_required_call_follows_its_schema_at_any_temperature(openai_client: OpenAI, seed: int) -> None:
    answer = openai_client.chat.completions.create(
        **HOW, tool_choice={"type": "function", "function": {"name": "get_weather"}}, temperature=1.5, seed=seed,
        parallel_tool_calls=False,
    )  # fmt: skip
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    (call,) = choice.message.tool_calls
    assert call.function.name == "get_weather"
    check(call.function.arguments)


def test_a_streamed_call_and_the_round_after_it(openai_client: OpenAI) -> None:
    how = HOW | {"tool_choice": "required", "parallel_tool_calls": False, "temperature": 0}
    with openai_client.chat.completions.stream(**how) as stream:
        kinds = {event.type for event in stream}
        message = stream.get_final_completion().choices[0].message
    whole = openai_client.chat.completions.create(**how).choices[0].message
    (call,), (same,) = message.tool_calls, whole.tool_calls
    assert "tool_calls.function.arguments.delta" in kinds
    assert (call.function.name, call.function.arguments) == (same.function.name, same.function.arguments)
    result = {"role": "tool", "tool_call_id": call.id, "content": "21 degrees"}
    after = openai_client.chat.completions.create(**HOW | {"messages": [*ASK, message, result], "max_tokens": 12})
    assert after.choices[0].finish_reason in ("stop", "length", "tool_calls")


def test_tools_that_may_be_called_leave_text_alone(openai_client: OpenAI) -> None:
    how = HOW | {"messages": [{"role": "user", "content": CAPITAL}], "temperature": 0, "max_tokens": 30}
    alone = {name: value for name, value in how.items() if name != "tools"}
    plain = openai_client.chat.completions.create(**alone).choices[0].message.content
    assert openai_client.chat.completions.create(**how, tool_choice="none").choices[0].message.content == plain
    free = openai_client.chat.completions.create(**how)
    assert free.choices[0].message.content or free.choices[0].message.tool_calls


def test_parsing_into_a_schema(openai_client: OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "weather", "strict": True, "schema": WEATHER}}
    how = {"model": "smollm2", "messages": ASK, "max_tokens": 80}
    check(openai_client.chat.completions.create(**how, response_format=form).choices[0].message.content)
    both = openai_client.chat.completions.create(**how, response_format=form, tools=TOOLS[:1]).choices[0].message
    check(both.tool_calls[0].function.arguments if both.tool_calls else both.content)


def test_a_bias_bans_a_token(openai_client: OpenAI, live: Any) -> None:
    how: Any = {
        "model": "smollm2",
        "messages": [{"role": "user", "content": CAPITAL}],
        "temperature": 0,
        "max_tokens": 4,
    }
    plain = openai_client.chat.completions.create(**how, logprobs=True, top_logprobs=0).choices[0]
    word = plain.logprobs.content[0].token
    first = live.post("/api/tokenize", {"model": "smollm2", "text": word}).json["tokens"][0]
    biased = openai_client.chat.completions.create(**how, logprobs=True, logit_bias={str(first): -100}).choices[0]
    assert biased.logprobs.content[0].token != word
    with pytest.raises(openai.BadRequestError, match="no token 99999999"):
        openai_client.chat.completions.create(**how, logit_bias={"99999999": 1})
    with pytest.raises(openai.BadRequestError, match="reasoning_effort"):
        openai_client.chat.completions.create(**how, reasoning_effort="low")


def test_tokens_as_prompt_and_as_input(openai_client: OpenAI) -> None:
    text = "The capital of France is"
    tokens = [504, 3575, 282, 4649, 314]
    how: Any = {"model": "smollm2", "temperature": 0, "max_tokens": 4}
    plain = openai_client.completions.create(**how, prompt=text)
    as_tokens = openai_client.completions.create(**how, prompt=tokens, echo=True)
    assert as_tokens.choices[0].text == text + plain.choices[0].text
    assert as_tokens.usage.prompt_tokens == plain.usage.prompt_tokens
    vectors = [
        openai_client.embeddings.create(model="smollm2", input=given).data[0].embedding for given in (text, tokens)
    ]
    assert vectors[0] == pytest.approx(vectors[1], abs=1e-6)


def test_responses(openai_client: OpenAI) -> None:
    first = openai_client.responses.create(model="smollm2", input=CAPITAL, temperature=0, max_output_tokens=30)
    assert len(first.output_text) > 5
    with openai_client.responses.stream(
        model="smollm2", input="How warm is it there?", previous_response_id=first.id, max_output_tokens=120,
        tools=[{"type": "function", "name": "get_weather", "parameters": WEATHER, "strict": True}],
        tool_choice="required", parallel_tool_calls=False,
    ) as stream:  # fmt: skip
        for _ in stream:
            pass
        second = stream.get_final_response()
    (call,) = second.output
    check(call.arguments)
    assert openai_client.responses.retrieve(second.id).output[0].arguments == call.arguments
    form: Any = {"format": {"type": "json_schema", "name": "weather", "schema": WEATHER, "strict": True}}
    made = openai_client.responses.create(model="smollm2", input=CAPITAL, text=form, max_output_tokens=80, store=False)
    check(made.output_text)


def test_reranking(live: Any) -> None:
    body = {"model": "smollm2", "query": "a cat", "documents": ["the tides of the sea", "a cat"], "top_n": 1}
    (best,) = live.post("/v1/rerank", body).json["results"]
    assert best["index"] == 1 and best["relevance_score"] == pytest.approx(1, abs=1e-3)
