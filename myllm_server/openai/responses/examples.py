"""Examples of responses for ``/docs``, which work as they stand once ``smollm2`` is installed."""

from __future__ import annotations

from typing import Any

from myllm_core.types import Usage
from myllm_server.examples import answer, bodies
from myllm_server.openai.responses.schemas import ResponseBody
from myllm_server.openai.responses.shapes import Parts, document, usage

_ID = "resp_" + "0" * 47 + "1"
_ASKED: dict[str, Any] = {
    "model": "smollm2",
    "input": "What is the capital of France?",
    "temperature": 0,
    "max_output_tokens": 64,
}
_DOCUMENT = document(
    _ID,
    ResponseBody.model_validate(_ASKED).told(),
    created_at=1767268800,
    status="completed",
    output=[Parts(_ID).message("The capital of France is Paris.")],
    usage=usage(Usage(36, 9)),
)

BODIES = bodies(
    whole=("One JSON document", _ASKED),
    stream=("A stream of events", {"model": "smollm2", "input": "Why is the sky blue?", "stream": True}),
)
RESPONSE = answer(
    "The response: one document, or a stream when `stream` is true",
    _DOCUMENT,
    "event: response.output_text.delta\n"
    'data: {"type":"response.output_text.delta","sequence_number":4,"delta":"The"}\n\n',
)
DELETED = answer("Deleted", {"id": _ID, "object": "response", "deleted": True})
