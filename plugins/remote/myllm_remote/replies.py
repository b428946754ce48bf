"""A streamed answer, read: Server-Sent Events to the events of myllm."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

from myllm_core import Event, Finish, Progress, ReasoningDelta, TextDelta, Timings, ToolCallDelta, Usage
from myllm_core.errors import EngineError, MyllmError, NetworkError
from myllm_core.types import FinishReason, PositionLogprobs, TokenLogprob
from myllm_remote.failures import mid_stream
from myllm_remote.http import Exchange

_MAX_LINE = 8 * 2**20
_REASONS: dict[str, FinishReason] = {
    "stop": "stop", "length": "length", "tool_calls": "tool_calls", "function_call": "tool_calls", "eos": "stop",
}  # fmt: skip


class Reply:
    """Reads one answer; ``where`` names the server, ``key`` must not get into a message."""

    def __init__(self, where: str, key: str, stop: tuple[str, ...], seed: int) -> None:
        self._where, self._key = where, key
        self._stop, self._seed = stop, seed
        self._usage = Usage()
        self._reason: FinishReason | None = None
        self._stopped_by: str | None = None
        self._calls: set[int] = set()
        self._began = time.perf_counter()
        self._first = 0.0

    def events(self, exchange: Exchange) -> Iterator[Event]:
        """Everything up to the ``Finish``. What goes wrong once something was said is in that."""
        said = False
        try:
            for event in self._read(exchange):
                said = said or not isinstance(event, Progress)
                self._first = self._first or (time.perf_counter() if said else 0.0)
                yield event
        except MyllmError as error:
            if not said:
                raise
            yield self._finish("error", error)
            return
        yield self._finish(self._reason or ("tool_calls" if self._calls else "stop"))

    def _finish(self, reason: FinishReason, error: MyllmError | None = None) -> Finish:
        now = time.perf_counter()
        first = self._first or now
        timings = Timings(0.0, first - self._began, now - first)
        stop = self._stopped_by if reason == "stop" else None
        return Finish(reason, self._usage, timings, stop=stop, seed=self._seed, error=error)

    def _read(self, exchange: Exchange) -> Iterator[Event]:
        ended = False
        try:
            for data in _data_lines(exchange):
                if data is None:
                    yield Progress("prompt")
                elif data == b"[DONE]":
                    ended = True
                    return
                else:
                    yield from self._chunk(self._parsed(data))
        except NetworkError:
            if self._reason is None:  # all was said, only the connection's end is rude
                raise
        if not ended and self._reason is None:
            raise NetworkError(f"{self._where} ended its answer without saying why; send the request again")

    def _parsed(self, data: bytes) -> dict[str, Any]:
        try:
            chunk = json.loads(data)
        except (ValueError, RecursionError):
            chunk = None
        if not isinstance(chunk, dict):
            raise EngineError(f"{self._where} sent something that is no chunk of an answer; is it OpenAI-compatible?")
        if chunk.get("error"):
            raise mid_stream(self._where, chunk["error"], self._key)
        return chunk

    def _chunk(self, chunk: dict[str, Any]) -> Iterator[Event]:
        try:
            if isinstance(chunk.get("usage"), dict):
                self._usage = _usage(chunk["usage"])
            for choice in chunk.get("choices") or ():
                yield from self._choice(choice)
        except (TypeError, KeyError, AttributeError, ValueError):
            raise EngineError(f"{self._where} sent a chunk that isn't as OpenAI's are; is it compatible?") from None

    def _choice(self, choice: dict[str, Any]) -> Iterator[Event]:
        delta = choice.get("delta") or {}
        reasoning = delta.get("reasoning_content") or delta.get("reasoning")
        if reasoning:
            yield ReasoningDelta(_text(reasoning))
        text = _text(delta.get("content") or choice.get("text") or "")
        logprobs = _logprobs(choice.get("logprobs"))
        if text or logprobs:
            yield TextDelta(text, logprobs)
        for call in delta.get("tool_calls") or ():
            yield self._call(call)
        reason = choice.get("finish_reason")
        if reason == "content_filter":
            raise EngineError(f"{self._where} ended the reply: its content filter refuses to go on")
        if reason:
            self._reason = _REASONS.get(reason, "stop")
            theirs = choice.get("stop_reason")
            self._stopped_by = theirs if theirs in self._stop else None

    def _call(self, call: dict[str, Any]) -> ToolCallDelta:
        index = call.get("index")
        index = index if type(index) is int and 0 <= index < 1024 else len(self._calls)
        function = call.get("function") or {}
        arguments = function.get("arguments") or ""
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments)
        if index in self._calls:
            return ToolCallDelta(index, arguments=arguments)
        self._calls.add(index)
        return ToolCallDelta(index, str(call.get("id") or f"call_{index}"), _text(function["name"]), arguments)


def _data_lines(exchange: Exchange) -> Iterator[bytes | None]:
    """The data of each event, None at each tick of silence. Raises ``NetworkError`` for a line without an end."""
    rest = bytearray()
    for piece in exchange.body():
        if piece is None:
            yield None
            continue
        rest += piece
        *lines, last = rest.split(b"\n")
        rest = bytearray(last)
        if len(rest) > _MAX_LINE:
            raise NetworkError(f"the answer has a line of more than {_MAX_LINE // 2**20} MiB; this is no such stream")
        for line in lines:
            if line.startswith(b"data:"):
                yield bytes(line[5:].strip())


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("no text")
    return value


def _usage(counts: dict[str, Any]) -> Usage:
    details = counts.get("prompt_tokens_details") or {}
    cached = _count(details.get("cached_tokens"))
    return Usage(_count(counts.get("prompt_tokens")), _count(counts.get("completion_tokens")), cached)


def _count(value: object) -> int:
    return value if type(value) is int and 0 <= value < 2**53 else 0


def _logprobs(given: Any) -> tuple[PositionLogprobs, ...]:
    if not given:
        return ()
    if "content" in given:
        content = given["content"] or ()
        return tuple(
            PositionLogprobs(_logprob(one), tuple(_logprob(top) for top in one.get("top_logprobs") or ()))
            for one in content
        )
    tops = given.get("top_logprobs") or [{}] * len(given["tokens"])
    return tuple(
        PositionLogprobs(_of(token, value), _best(top))
        for token, value, top in zip(given["tokens"], given["token_logprobs"], tops, strict=True)
    )


def _logprob(one: dict[str, Any]) -> TokenLogprob:
    raw = one.get("bytes")
    token = _text(one["token"])
    data = bytes(raw) if raw is not None else token.encode("utf-8", "replace")
    return TokenLogprob(token, data, float(one["logprob"]))


def _of(token: str, value: float | None) -> TokenLogprob:
    return TokenLogprob(token, _text(token).encode("utf-8", "replace"), float(value or 0.0))


def _best(top: dict[str, float] | None) -> tuple[TokenLogprob, ...]:
    best = sorted((top or {}).items(), key=lambda item: -item[1])
    return tuple(_of(token, value) for token, value in best)
