"""LangChain's OpenAI integration against the real model."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

from clients.conftest import CAPITAL, WEATHER

pytestmark = pytest.mark.model


@pytest.fixture
def chat(base_url: str) -> ChatOpenAI:
    return ChatOpenAI(base_url=base_url, api_key="none", model="smollm2", temperature=0, max_tokens=80, max_retries=0)


def test_invoking_and_streaming(chat: ChatOpenAI) -> None:
    answer = chat.invoke(CAPITAL)
    assert len(answer.text) > 5 and answer.response_metadata["finish_reason"] in ("stop", "length")
    assert answer.usage_metadata["output_tokens"] > 3
    pieces = list(chat.stream(CAPITAL, stream_usage=True))
    assert "".join(piece.text for piece in pieces) == answer.text
    total: Any = pieces[0]
    for piece in pieces[1:]:
        total += piece
    assert total.usage_metadata["output_tokens"] == answer.usage_metadata["output_tokens"]


def test_tools(chat: ChatOpenAI) -> None:
    tool = {"name": "get_weather", "description": "The weather", "parameters": WEATHER}
    bound = chat.bind_tools([tool], tool_choice="required", parallel_tool_calls=False)
    answer = bound.invoke("How warm is it in Paris?")
    (call,) = answer.tool_calls
    assert call["name"] == "get_weather" and call["args"].keys() == {"city", "unit"}
    assert not answer.invalid_tool_calls
    told = [HumanMessage("How warm is it in Paris?"), answer, ToolMessage("21 degrees", tool_call_id=call["id"])]
    assert chat.bind_tools([tool], tool_choice="none").invoke(told, max_tokens=8).text
    chunks = list(bound.stream("How warm is it in Rome?"))
    total: Any = chunks[0]
    for chunk in chunks[1:]:
        total += chunk
    assert total.tool_calls[0]["args"].keys() == {"city", "unit"}


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(chat: ChatOpenAI, method: Any) -> None:
    schema = {"title": "weather", "description": "The weather", **WEATHER}
    made = chat.with_structured_output(schema, method=method).invoke("How warm is it in Paris?")
    assert made.keys() == {"city", "unit"}


def test_embeddings(base_url: str) -> None:
    made = OpenAIEmbeddings(
        base_url=base_url, api_key="none", model="smollm2", check_embedding_ctx_length=False, max_retries=0
    )
    assert [len(vector) for vector in made.embed_documents(["a cat", "a dog"])] == [576, 576]


def test_errors(base_url: str) -> None:
    with pytest.raises(openai.NotFoundError):
        ChatOpenAI(base_url=base_url, api_key="none", model="nope", max_retries=0).invoke("hi")
