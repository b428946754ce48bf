"""Streams of the OpenAI dialect: chunks, the usage if it is wanted, ``[DONE]``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from myllm_core.types import Event, Finish, Progress, ReasoningDelta, TextDelta, ToolCallDelta
from myllm_server.errors import HttpError, json_bytes
from myllm_server.openai import shapes
from myllm_server.openai.choices import Item, Of
from myllm_server.openai.errors import error_shape
from myllm_server.stream import comment


class _Chunks(ABC):
    """What chats and completions have in common.

    Every chunk begins with ``_head`` and ends with ``_tail``, made once; ``usage`` is null in all but its own.
    """

    content_type = b"text/event-stream; charset=utf-8"
    ping = b":\n\n"

    def __init__(self, head: dict[str, Any], include_usage: bool) -> None:
        self._include_usage = include_usage
        self._about = head
        self._head = b"data: " + json_bytes(head)[:-1] + b',"choices":['
        self._tail = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"

    def event(self, event: Item) -> bytes:
        """The chunks of an event; of progress a comment."""
        if isinstance(event, Of):
            return self._choice(event.index, event.event)
        return comment(event) if isinstance(event, Progress) else self._end(event)

    def error(self, error: HttpError, request_id: str) -> bytes:
        """The last frame of a stream that failed: an error, and no ``[DONE]``."""
        return b"data: " + json_bytes(error_shape(error, request_id)[1]) + b"\n\n"

    @abstractmethod
    def _choice(self, index: int, event: Event) -> bytes:
        """The chunks of one choice's event."""

    def _chunk(self, index: int, said: dict[str, Any], logprobs: Any = None, finish_reason: str | None = None) -> bytes:
        choice = {"index": index, **said, "logprobs": logprobs, "finish_reason": finish_reason}
        return self._head + json_bytes(choice) + self._tail

    def _end(self, finish: Finish) -> bytes:
        done = b"data: [DONE]\n\n"
        if not self._include_usage:
            return done
        last = {**self._about, "choices": [], "usage": shapes.usage(finish.usage)}
        return b"data: " + json_bytes(last) + b"\n\n" + done


class ChatChunks(_Chunks):
    """A streamed chat. The first chunk of a choice has its role, and no later one has.

    All choices begin together, in their order: OpenAI's own client takes the first chunk to be the first choice's.
    """

    def __init__(self, model: str, engine: str, choices: int, include_usage: bool) -> None:
        super().__init__(shapes.head("chatcmpl", "chat.completion.chunk", model, engine), include_usage)
        roles = {"delta": {"role": "assistant", "content": ""}}
        self._opening = b"".join(self._chunk(index, roles) for index in range(choices))
        self._before = [self._head + b'{"index":%d,"delta":{"content":' % index for index in range(choices)]
        self._after = b'},"logprobs":null,"finish_reason":null}' + self._tail

    def _choice(self, index: int, event: Event) -> bytes:
        chunk = self._text(index, event) if isinstance(event, TextDelta) else self._other(index, event)
        if chunk and self._opening:
            chunk, self._opening = self._opening + chunk, b""
        return chunk

    def _text(self, index: int, event: TextDelta) -> bytes:
        if event.logprobs:
            return self._chunk(index, {"delta": {"content": event.text}}, shapes.chat_logprobs(event.logprobs))
        return self._before[index] + json_bytes(event.text) + self._after

    def _other(self, index: int, event: Event) -> bytes:
        match event:
            case ReasoningDelta():
                return self._chunk(index, {"delta": {"reasoning_content": event.text}})
            case ToolCallDelta():
                return self._chunk(index, {"delta": {"tool_calls": [shapes.tool_call(event)]}})
            case Finish():
                return self._chunk(index, {"delta": {}}, finish_reason=shapes.finish_reason(event))
        return b""


class CompletionChunks(_Chunks):
    """A streamed completion. ``echoed`` has what each choice begins with."""

    def __init__(self, model: str, engine: str, echoed: Sequence[str], include_usage: bool) -> None:
        super().__init__(shapes.head("cmpl", "text_completion", model, engine), include_usage)
        self._echoed = list(echoed)
        self._logprobs = [shapes.LegacyLogprobs(len(text)) for text in echoed]
        self._before = [self._head + b'{"index":%d,"text":' % index for index in range(len(echoed))]
        self._after = b',"logprobs":null,"finish_reason":null}' + self._tail

    def _choice(self, index: int, event: Event) -> bytes:
        match event:
            case TextDelta() if event.logprobs:
                logprobs = self._logprobs[index].shape(event.logprobs)
                return self._echo(index) + self._chunk(index, {"text": event.text}, logprobs)
            case TextDelta():
                return self._echo(index) + self._text(index, event.text)
            case Finish():
                reason = shapes.finish_reason(event)
                return self._echo(index) + self._chunk(index, {"text": ""}, finish_reason=reason)
        return b""

    def _echo(self, index: int) -> bytes:
        echoed, self._echoed[index] = self._echoed[index], ""
        return self._text(index, echoed) if echoed else b""

    def _text(self, index: int, text: str) -> bytes:
        return self._before[index] + json_bytes(text) + self._after
