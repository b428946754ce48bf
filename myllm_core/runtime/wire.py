"""What the runtime and a worker process say to each other: frames of JSON, never pickle.

A frame is a 4-byte little-endian length and that many bytes of JSON. A worker runs native code on files
from strangers, so nothing that it sends is ever executed. The images of a request follow its frame as they are, for
JSON would make them larger and take time from everybody's tokens.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, BinaryIO

from myllm_core.engine import ModelFacts
from myllm_core.errors import error_from_dict
from myllm_core.models.manifest import Manifest, Model, ModelFile
from myllm_core.types import (
    ChatRequest,
    CompletionRequest,
    ContextReport,
    Embeddings,
    Event,
    Finish,
    Grammar,
    Image,
    Message,
    PositionLogprobs,
    Progress,
    ReasoningDelta,
    Request,
    Sampling,
    TextDelta,
    Timings,
    TokenLogprob,
    Tool,
    ToolCall,
    ToolCallDelta,
    Tools,
    Usage,
)

HEADER = struct.Struct("<I")
MAX_FRAME = 2**30

# json.dumps and json.loads do more around these for each token than these do
_encode = json.JSONEncoder(separators=(",", ":")).encode
_decode = json.JSONDecoder().raw_decode


def frame(value: Any) -> bytes:
    """A value as one frame."""
    body = _encode(value).encode()
    return HEADER.pack(len(body)) + body


def read_frame(stream: BinaryIO) -> Any:
    """The next frame's value. Raises ``EOFError`` at the end of the stream."""
    header = stream.read(HEADER.size)
    if len(header) < HEADER.size:
        raise EOFError
    (size,) = HEADER.unpack(header)
    body = stream.read(size)
    if len(body) < size:
        raise EOFError
    return json.loads(body)


def command_frame(command: list[Any]) -> bytes:
    """A command as a frame, and the images of its request."""
    blobs = _blobs(command)
    if not blobs:
        return frame(command)
    told = [*command[:2], {**command[2], "blobs": [len(blob) for blob in blobs]}, *command[3:]]
    return b"".join([frame(told), *blobs])


def read_command(stream: BinaryIO) -> list[Any]:
    """The next command, as ``command_frame`` wrote it. Raises ``EOFError`` at the end of the stream."""
    command: list[Any] = read_frame(stream)
    blobs = _blobs(command)
    for index, size in enumerate(blobs):
        blobs[index] = stream.read(size)
        if len(blobs[index]) < size:
            raise EOFError
    return command


def _blobs(command: list[Any]) -> list[Any]:
    body = command[2] if len(command) > 2 else None
    return body.get("blobs", []) if isinstance(body, dict) else []


def _value(text: str) -> Any:
    value, end = _decode(text)
    if end != len(text):
        raise ValueError("a frame has more than a value in it")
    return value


class Frames:
    """Frames out of bytes as they come, however they are cut."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """The values of the frames that are whole now. Raises ``ValueError`` for what is no frame."""
        rest = self._rest
        rest += data
        begin = 0
        while len(rest) >= begin + HEADER.size:
            (size,) = HEADER.unpack_from(rest, begin)
            if size > MAX_FRAME:
                raise ValueError("a frame is too long")
            end = begin + HEADER.size + size
            if len(rest) < end:
                break
            yield _value(rest[begin + HEADER.size : end].decode())
            begin = end
        del rest[:begin]


def pack_request(request: Request) -> dict[str, Any]:
    """A request as JSON values; ``blobs`` has the bytes of its images, if it has some."""
    if not isinstance(request, ChatRequest):
        return {"kind": "complete", **asdict(request)}
    body = {"kind": "chat", **asdict(request)}
    blobs: list[bytes] = []
    for image in (image for message in body["messages"] for image in message["images"]):
        blobs.append(image.pop("data"))
    return {**body, "blobs": blobs} if blobs else body


def unpack_request(body: dict[str, Any]) -> Request:
    """The request that ``pack_request`` wrote."""
    fields = dict(body)
    kind = fields.pop("kind")
    bias = tuple((token, value) for token, value in fields["sampling"]["logit_bias"])
    fields["sampling"] = Sampling(**{**fields["sampling"], "logit_bias": bias})
    fields["stop"] = tuple(fields["stop"])
    fields["grammar"] = Grammar(**fields["grammar"]) if fields["grammar"] else None
    if kind == "complete":
        fields["tokens"] = tuple(fields["tokens"])
        return CompletionRequest(**fields)
    blobs = iter(fields.pop("blobs", ()))
    fields["messages"] = tuple(_unpack_message(message, blobs) for message in fields["messages"])
    fields["tools"] = _unpack_tools(fields["tools"]) if fields["tools"] else None
    return ChatRequest(**fields)


def _unpack_message(body: dict[str, Any], blobs: Iterator[bytes]) -> Message:
    calls = tuple(ToolCall(**call) for call in body["tool_calls"])
    images = tuple(Image(next(blobs), **image) for image in body["images"])
    return Message(**{**body, "tool_calls": calls, "images": images})


def _unpack_tools(body: dict[str, Any]) -> Tools:
    return Tools(**{**body, "functions": tuple(Tool(**function) for function in body["functions"])})


def pack_model(model: Model) -> dict[str, Any]:
    """A model as JSON values."""
    return {"folder": str(model.folder), "manifest": asdict(model.manifest)}


def unpack_model(body: dict[str, Any]) -> Model:
    """The model that ``pack_model`` wrote."""
    from pathlib import Path

    fields = dict(body["manifest"])
    fields["files"] = tuple(ModelFile(**file) for file in fields["files"])
    if "aliases" in fields:
        fields["aliases"] = tuple(fields["aliases"])
    return Model(Manifest(**fields), Path(body["folder"]))


def pack_facts(facts: ModelFacts) -> dict[str, Any]:
    """What the parent needs of a model's facts; vocabulary texts stay in the worker."""
    return {
        "context_size": facts.context_size,
        "trained_context": facts.trained_context,
        "vocab_size": facts.vocab_size,
        "capabilities": sorted(facts.capabilities),
    }


def _pack_logprob(item: TokenLogprob) -> list[Any]:
    return [item.token, item.bytes.hex(), item.logprob]


def _unpack_logprob(item: list[Any]) -> TokenLogprob:
    return TokenLogprob(item[0], bytes.fromhex(item[1]), item[2])


def _pack_text(event: TextDelta) -> list[Any]:
    if not event.logprobs:
        return ["t", event.text]
    positions = [[_pack_logprob(p.chosen), [_pack_logprob(t) for t in p.top]] for p in event.logprobs]
    return ["t", event.text, positions]


def _unpack_text(item: list[Any]) -> TextDelta:
    if len(item) == 2:
        return TextDelta(item[1])
    positions = (PositionLogprobs(_unpack_logprob(c), tuple(_unpack_logprob(t) for t in top)) for c, top in item[2])
    return TextDelta(item[1], tuple(positions))


def _pack_finish(event: Finish) -> list[Any]:
    body = {
        "reason": event.reason,
        "usage": asdict(event.usage),
        "timings": asdict(event.timings),
        "context": asdict(event.context) if event.context else None,
        "stop": event.stop,
        "seed": event.seed,
        "engine": event.engine,
        "error": event.error.to_dict() if event.error else None,
    }
    return ["f", body]


def _unpack_finish(item: list[Any]) -> Finish:
    body = dict(item[1])
    body["usage"] = Usage(**body["usage"])
    body["timings"] = Timings(**body["timings"])
    if body["context"]:
        body["context"] = ContextReport(**{**body["context"], "dropped": tuple(body["context"]["dropped"])})
    if body["error"]:
        body["error"] = error_from_dict(body["error"])
    return Finish(**body)


def _pack_progress(event: Progress) -> list[Any]:
    usage = [[event.usage.prompt_tokens, 0, event.usage.cached_tokens]] if event.usage else []
    return ["p", event.stage, event.fraction, event.detail, *usage]


def pack_event(event: Event) -> list[Any]:
    """An event as a short JSON list, its kind first."""
    match event:
        case TextDelta():
            return _pack_text(event)
        case ReasoningDelta():
            return ["r", event.text]
        case ToolCallDelta():
            return ["c", event.index, event.id, event.name, event.arguments]
        case Progress():
            return _pack_progress(event)
        case Finish():
            return _pack_finish(event)


def unpack_event(item: list[Any]) -> Event:
    """The event that ``pack_event`` wrote. Raises ``ValueError`` for an unknown kind."""
    match item[0]:
        case "t":
            return _unpack_text(item)
        case "r":
            return ReasoningDelta(item[1])
        case "c":
            return ToolCallDelta(*item[1:])
        case "p":
            return Progress(*item[1:4], *(Usage(*counts) for counts in item[4:]))
        case "f":
            return _unpack_finish(item)
    raise ValueError(f"a worker sent an event of the unknown kind {item[0]!r}")


def pack_embeddings(embeddings: Embeddings) -> dict[str, Any]:
    """Embeddings as JSON values."""
    return {"vectors": embeddings.vectors, "prompt_tokens": embeddings.prompt_tokens}
