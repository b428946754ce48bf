"""Streams of the Anthropic dialect: a message begins, its blocks come one after the other, it ends."""

from __future__ import annotations

from typing import Any

from myllm_core.types import Event, Finish, Progress, ReasoningDelta, TextDelta, ToolCallDelta, Usage
from myllm_server.anthropic import shapes
from myllm_server.anthropic.errors import error_shape
from myllm_server.errors import HttpError, json_bytes
from myllm_server.stream import comment


def frame(event: dict[str, Any]) -> bytes:
    """One event: its name is its type."""
    return b"event: " + str(event["type"]).encode() + b"\ndata: " + json_bytes(event) + b"\n\n"


class MessageEvents:
    """A streamed message."""

    content_type = b"text/event-stream; charset=utf-8"
    ping = frame({"type": "ping"})

    def __init__(self, identity: str, model: str, max_tokens: int, show_thinking: bool) -> None:
        self._identity = identity
        self._model = model
        self._max_tokens = max_tokens
        self._show_thinking = show_thinking
        self._started = False
        self._index = -1
        self._block: dict[str, Any] | None = None
        self._before_text = b""

    def event(self, event: Event) -> bytes:
        """The events of an event; of progress a comment."""
        match event:
            case Progress(usage=None):
                return comment(event)
            case Progress(usage=counts):
                return self._start(counts or Usage())
            case TextDelta() if self._before_text:
                return self._before_text + json_bytes(event.text) + b"}}\n\n"
            case Finish():
                return self._end(event)
        return self._start(Usage()) + self._open(event) + self._delta(event)

    def error(self, error: HttpError, request_id: str) -> bytes:
        """The last event of a stream that failed."""
        return frame(error_shape(error, request_id)[1])

    def _start(self, counts: Usage) -> bytes:
        if self._started:
            return b""
        self._started = True
        return frame({"type": "message_start", "message": shapes.message(self._identity, self._model, counts)})

    def _open(self, event: Event) -> bytes:
        if self._block is not None and not shapes.is_new(event, self._block):
            return b""
        closing, self._block = self._close(), shapes.start_of(event)
        self._index += 1
        if isinstance(event, TextDelta):
            self._before_text = (
                b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,'
                b'"delta":{"type":"text_delta","text":' % self._index
            )
        start = {"type": "content_block_start", "index": self._index, "content_block": self._block}
        return closing + frame(start)

    def _delta(self, event: Event) -> bytes:
        match event:
            case TextDelta():
                return self._before_text + json_bytes(event.text) + b"}}\n\n"
            case ReasoningDelta() if self._show_thinking:
                return self._changed({"type": "thinking_delta", "thinking": event.text})
            case ToolCallDelta() if event.arguments:
                return self._changed({"type": "input_json_delta", "partial_json": event.arguments})
        return b""

    def _changed(self, delta: dict[str, Any]) -> bytes:
        return frame({"type": "content_block_delta", "index": self._index, "delta": delta})

    def _close(self) -> bytes:
        block, self._block, self._before_text = self._block, None, b""
        if block is None:
            return b""
        thought = block["type"] == "thinking"
        signed = self._changed({"type": "signature_delta", "signature": shapes.SIGNATURE}) if thought else b""
        return signed + frame({"type": "content_block_stop", "index": self._index})

    def _end(self, finish: Finish) -> bytes:
        delta = {"stop_reason": shapes.stop_reason(finish, self._max_tokens), "stop_sequence": finish.stop}
        ending = frame({"type": "message_delta", "delta": delta, "usage": shapes.usage(finish.usage)})
        return self._start(finish.usage) + self._close() + ending + frame({"type": "message_stop"})
