"""What is measured: each scenario asks one server for the same work as the others, and says what it took.

Every round has words of its own, since a server may have kept what it was asked before. All replies are greedy and of
a length that is fixed where the server can go on past the model's end.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sidebyside.client import Refused, Reply, call, stream
from sidebyside.machine import Watch
from sidebyside.servers import Server

PATH = "/v1/chat/completions"
_SYSTEM = {"role": "system", "content": "You are a helpful assistant."}
_NOUNS = [
    *("apple", "basin", "cedar", "delta", "ember", "fjord", "grove", "hazel", "inlet", "jetty", "knoll", "larch"),
    *("mesa", "north", "orbit", "prism", "quill", "ridge", "spruce", "thorn", "umber", "valley", "willow", "yacht"),
    *("zenith", "acorn", "brook", "copse", "dune", "estuary", "fern", "glade", "heron", "ivory", "juniper", "kelp"),
    *("lichen", "marsh", "nettle", "oasis", "pebble", "quartz", "raven", "saffron", "tundra"),
]

Values = dict[str, float]


class Words:
    """Random words, the same for every server of a round and others in the next one."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)

    def __call__(self, count: int) -> str:
        return " ".join(self._random.choices(_NOUNS, k=count))

    def story(self, count: int = 20) -> list[dict[str, str]]:
        """A conversation that asks for a long reply."""
        return [_SYSTEM, user(f"Write a very long story with many details about: {self(count)}")]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


async def ask(server: Server, messages: Sequence[dict[str, str]], tokens: int, **more: Any) -> Reply:
    """A greedy reply of ``tokens`` tokens. Raises ``Refused`` when it has another length than asked for."""
    body: dict[str, Any] = {
        "model": server.kind.model,
        "messages": list(messages),
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    endless = server.kind.ignores_eos and "response_format" not in more
    if endless:
        body["ignore_eos"] = True
    reply = await stream(server.port, PATH, body | more)
    if endless and reply.tokens != tokens:
        raise Refused(f"{reply.tokens} tokens instead of {tokens}")
    return reply


async def single(server: Server, words: Words) -> Values:
    """One client: the speed of a reply, and how evenly it comes."""
    replies = [await ask(server, words.story(), 96) for _ in range(2)]
    gaps = [gap * 1000 for reply in replies for gap in reply.gaps]
    return {
        "tokens_per_second": statistics.median(reply.rate for reply in replies),
        "whole_tokens_per_second": sum(r.tokens for r in replies) / sum(r.times[-1] - r.sent for r in replies),
        "first_token_ms": 1000 * statistics.median(reply.first for reply in replies),
        "gap_p50_ms": percentile(gaps, 50),
        "gap_p99_ms": percentile(gaps, 99),
        "prompt_tokens": replies[0].prompt_tokens,
    }


def clients(count: int, requests: int, tokens: int) -> Callable[[Server, Words], Awaitable[Values]]:
    """So many clients, each of which sends its next request when its last one has been answered."""

    async def run(server: Server, words: Words) -> Values:
        waiting = [words.story() for _ in range(requests)]
        replies: list[Reply] = []

        async def client() -> None:
            while waiting:
                replies.append(await ask(server, waiting.pop(), tokens))

        with Watch([server.pid]) as watch:
            await asyncio.gather(*(client() for _ in range(count)))
        written = sum(reply.tokens for reply in replies)
        seconds = max(reply.times[-1] for reply in replies) - min(reply.sent for reply in replies)
        gaps = [gap * 1000 for reply in replies for gap in reply.gaps]
        return {
            "tokens_per_second": written / seconds,
            "first_token_ms": 1000 * statistics.median(reply.first for reply in replies),
            "gap_p50_ms": percentile(gaps, 50),
            "gap_p99_ms": percentile(gaps, 99),
            "processor_seconds": 1000 * watch.ours / written,
        }

    return run


async def prompt(server: Server, words: Words) -> Values:
    """Time to the first token: of a prompt never seen, of a question to a text that was just read, of a long text."""
    text = {"role": "system", "content": words(190)}
    cold = await ask(server, [text, user(f"What is this about? {words(4)}")], 4)
    warm = await ask(server, [text, user(f"Which word is the longest? {words(4)}")], 4)
    long = await ask(server, [{"role": "system", "content": words(1350)}, user("What is this about?")], 4)
    return {
        "cold_ms": 1000 * cold.first,
        "warm_ms": 1000 * warm.first,
        "long_ms": 1000 * long.first,
        "prompt_tokens": long.prompt_tokens,
    }


async def chat(server: Server, words: Words) -> Values:
    """A chat of ten turns in which the client sends everything again, as clients do."""
    messages = [_SYSTEM]
    firsts = []
    for _ in range(10):
        messages.append(user(f"Tell me more about: {words(16)}"))
        reply = await ask(server, messages, 24)
        messages.append({"role": "assistant", "content": reply.text})
        firsts.append(1000 * reply.first)
    return {"turn_10_ms": firsts[-1], "turns_2_to_10_ms": statistics.median(firsts[1:])}


_ITEMS = 5
_SCHEMA = {
    "type": "object",
    "properties": {
        "items": {
            "type": "array",
            "minItems": _ITEMS,
            "maxItems": _ITEMS,
            "items": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "maxLength": 16},
                    "colour": {"enum": ["red", "green", "blue"]},
                    "count": {"type": "integer", "minimum": 0, "maximum": 999},
                },
                "required": ["name", "colour", "count"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["items"],
    "additionalProperties": False,
}


async def structured(server: Server, words: Words) -> Values:
    """A reply that a JSON schema forces, and a plain one of the same length right after it."""
    messages = [_SYSTEM, user(f"List {_ITEMS} things with colours and counts as JSON: {words(16)}")]
    how = {"type": "json_schema", "json_schema": {"name": "things", "strict": True, "schema": _SCHEMA}}
    forced = await ask(server, messages, 400, response_format=how)
    if len(json.loads(forced.text)["items"]) != _ITEMS:
        raise Refused("the reply doesn't follow the schema")
    plain = await ask(server, words.story(), forced.tokens)
    return {"tokens_per_second": forced.rate, "share_of_plain": forced.rate / plain.rate, "tokens": forced.tokens}


async def embeddings(server: Server, words: Words) -> Values:
    """32 short texts in one request."""
    texts = [words(12) for _ in range(32)]
    begin = time.perf_counter()
    answer = await call(server.port, "/v1/embeddings", {"model": server.kind.model, "input": texts})
    seconds = time.perf_counter() - begin
    if len(answer["data"]) != len(texts):
        raise Refused(f"{len(answer['data'])} vectors for {len(texts)} texts")
    return {"texts_per_second": len(texts) / seconds}


def percentile(values: Sequence[float], share: int) -> float:
    """The value below which ``share`` percent lie."""
    return statistics.quantiles(values, n=100, method="inclusive")[share - 1] if len(values) > 1 else values[0]


@dataclass(frozen=True)
class Scenario:
    """A name that ``Kind.takes`` holds, and what to do with each server."""

    name: str
    run: Callable[[Server, Words], Awaitable[Values]]


SCENARIOS = [
    Scenario("stream", single),
    Scenario("4 clients", clients(4, 8, 32)),
    Scenario("8 clients", clients(8, 16, 32)),
    Scenario("16 clients", clients(16, 16, 32)),
    Scenario("32 clients", clients(32, 32, 24)),
    Scenario("prompt", prompt),
    Scenario("chat", chat),
    Scenario("json", structured),
    Scenario("embeddings", embeddings),
]
