"""Streams of responses: items that open, grow and close, in OpenAI's order, each event with its number."""

from __future__ import annotations

from typing import Any

from myllm_core.types import Event, Finish, Progress, ReasoningDelta, TextDelta, ToolCallDelta
from myllm_server.errors import HttpError, json_bytes
from myllm_server.openai.errors import error_shape
from myllm_server.openai.responses.shapes import Parts, ending, text_part
from myllm_server.openai.shapes import finish_reason
from myllm_server.stream import comment


class ResponseEvents:
    """The events of one response; also what it has come to, for those who don't stream."""

    content_type = b"text/event-stream; charset=utf-8"
    ping = b":\n\n"

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document
        self._parts = Parts(document["id"])
        self._number = 0
        self._output: list[dict[str, Any]] = []
        self._kind = ""
        self._text: list[str] = []
        self._messages = 0
        self._call = -1

    def event(self, event: Event) -> bytes:
        """The frames of an event; of progress a comment."""
        if isinstance(event, Progress):
            return comment(event)
        frames = b"" if self._number else self._open_response()
        match event:
            case ReasoningDelta():
                return frames + self._grow("reasoning", event.text)
            case TextDelta():
                return frames + self._grow("message", event.text)
            case ToolCallDelta():
                return frames + self._grow_call(event)
            case Finish():
                return frames + self._end(event)
        return frames

    def error(self, error: HttpError, request_id: str) -> bytes:
        """The last frames of a response that failed."""
        told = error_shape(error, request_id)[1]["error"]
        frames = b"" if self._number else self._open_response()
        frames += self._close("incomplete")
        frames += self._frame("error", code=told["code"], message=told["message"], param=told["param"])
        failure = {"code": told["code"], "message": told["message"]}
        return frames + self._frame("response.failed", response=self._now(status="failed", error=failure))

    def finished(self, finish: Finish) -> dict[str, Any]:
        """The whole response. Raises the error of one that failed."""
        self._close_last(finish)
        return self._now(**ending(finish))

    def _now(self, **changes: Any) -> dict[str, Any]:
        self._document |= {"output": self._output, **changes}
        return self._document

    def _open_response(self) -> bytes:
        return self._frame("response.created", response=self._document) + self._frame(
            "response.in_progress", response=self._document
        )

    def _end(self, finish: Finish) -> bytes:
        frames = self._close_last(finish)
        document = self._now(**ending(finish))
        return frames + self._frame(f"response.{document['status']}", response=document)

    def _close_last(self, finish: Finish) -> bytes:
        finish_reason(finish)
        frames = b"" if self._output else self._open("message")  # an empty answer is a message too
        return frames + self._close("incomplete" if finish.reason == "length" else "completed")

    def _grow(self, kind: str, text: str) -> bytes:
        frames = b"" if self._kind == kind else self._close() + self._open(kind)
        self._text.append(text)
        if kind == "reasoning":
            return frames + self._of_item("response.reasoning_text.delta", content_index=0, delta=text)
        return frames + self._of_item("response.output_text.delta", content_index=0, delta=text, logprobs=[])

    def _open(self, kind: str) -> bytes:
        self._kind, self._text = kind, []
        if kind == "reasoning":
            item, part = self._parts.reasoning("", "in_progress"), {"type": "reasoning_text", "text": ""}
        else:
            item, part = self._parts.message(None, "in_progress", self._messages), text_part("")
            self._messages += 1
        self._output.append(item)
        added = self._frame("response.output_item.added", output_index=len(self._output) - 1, item=item)
        return added + self._of_item("response.content_part.added", content_index=0, part=part)

    def _grow_call(self, event: ToolCallDelta) -> bytes:
        frames = b""
        if event.index != self._call:
            frames = self._close()
            self._kind, self._call, self._text = "call", event.index, []
            item = self._parts.call(event.index, event.id or "", event.name or "", "", "in_progress")
            self._output.append(item)
            frames += self._frame("response.output_item.added", output_index=len(self._output) - 1, item=item)
        if event.arguments:
            self._text.append(event.arguments)
            frames += self._of_item("response.function_call_arguments.delta", delta=event.arguments)
        return frames

    def _close(self, status: str = "completed") -> bytes:
        """End the item that is open, if there is one."""
        if not self._kind:
            return b""
        kind, text, self._kind = self._kind, "".join(self._text), ""
        item = self._output[-1] = self._output[-1] | {"status": status}
        if kind == "call":
            item["arguments"] = text
            frames = self._of_item("response.function_call_arguments.done", name=item["name"], arguments=text)
        else:
            part = {"type": "reasoning_text", "text": text} if kind == "reasoning" else text_part(text)
            item["content"] = [part]
            name = "reasoning_text" if kind == "reasoning" else "output_text"
            more: dict[str, Any] = {} if kind == "reasoning" else {"logprobs": []}
            frames = self._of_item(f"response.{name}.done", content_index=0, text=text, **more)
            frames += self._of_item("response.content_part.done", content_index=0, part=part)
        return frames + self._frame("response.output_item.done", output_index=len(self._output) - 1, item=item)

    def _of_item(self, kind: str, **fields: Any) -> bytes:
        return self._frame(kind, item_id=self._output[-1]["id"], output_index=len(self._output) - 1, **fields)

    def _frame(self, kind: str, **fields: Any) -> bytes:
        event = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return b"event: " + kind.encode() + b"\ndata: " + json_bytes(event) + b"\n\n"
