"""Streams of the Ollama dialect: one JSON object a line."""

from __future__ import annotations

import time
from typing import Any

from myllm_core.types import Event, Finish, Progress, ReasoningDelta, TextDelta
from myllm_server.errors import HttpError, json_bytes
from myllm_server.ollama import shapes
from myllm_server.ollama.errors import error_shape

NDJSON = "application/x-ndjson"


def line(value: Any) -> bytes:
    """One line."""
    return json_bytes(value) + b"\n"


class _Lines:
    """What chats and generations have in common. ``began`` is when the request came, by ``time.perf_counter``."""

    content_type = NDJSON.encode()

    def __init__(self, model: str, began: float) -> None:
        self._began = began
        self._model = model
        self._head = b'{"model":' + json_bytes(model) + b',"created_at":"'
        self._calls = shapes.Calls()
        self.ping = self._line(self._said(""))  # a line without text: one that is no JSON would break clients

    def event(self, event: Event) -> bytes:
        """The lines of an event; progress isn't told."""
        match event:
            case TextDelta() if event.logprobs:
                return self._line({**self._said(event.text), "logprobs": shapes.logprobs(event.logprobs)})
            case TextDelta():
                return self._text(event.text)
            case ReasoningDelta():
                return self._line(self._thought(event.text))
            case Progress():
                return b""
        called = b"".join(self._line(self._called(call)) for call in self._calls.take(event))
        return called + (self._last(event) if isinstance(event, Finish) else b"")

    def error(self, error: HttpError, request_id: str) -> bytes:
        """The last line of a stream that failed."""
        return line(error_shape(error, request_id)[1])

    def _line(self, said: dict[str, Any]) -> bytes:
        return line({"model": self._model, "created_at": shapes.now(), **said, "done": False})

    def _last(self, finish: Finish) -> bytes:
        ending = shapes.ending(finish, time.perf_counter() - self._began)
        return line({"model": self._model, "created_at": shapes.now(), **self._said(""), **ending})

    def _text(self, text: str) -> bytes:
        raise NotImplementedError

    def _said(self, text: str) -> dict[str, Any]:
        raise NotImplementedError

    def _thought(self, text: str) -> dict[str, Any]:
        raise NotImplementedError

    def _called(self, call: dict[str, Any]) -> dict[str, Any]:
        raise NotImplementedError


class ChatLines(_Lines):
    """A streamed chat."""

    def _text(self, text: str) -> bytes:
        before = b'","message":{"role":"assistant","content":'
        return self._head + shapes.now().encode() + before + json_bytes(text) + b'},"done":false}\n'

    def _said(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text}}

    def _thought(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": "", "thinking": text}}

    def _called(self, call: dict[str, Any]) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": "", "tool_calls": [call]}}


class GenerateLines(_Lines):
    """A streamed generation."""

    def _text(self, text: str) -> bytes:
        return self._head + shapes.now().encode() + b'","response":' + json_bytes(text) + b',"done":false}\n'

    def _said(self, text: str) -> dict[str, Any]:
        return {"response": text}

    def _thought(self, text: str) -> dict[str, Any]:
        return {"response": "", "thinking": text}

    def _called(self, call: dict[str, Any]) -> dict[str, Any]:
        return {"response": "", "tool_calls": [call]}
