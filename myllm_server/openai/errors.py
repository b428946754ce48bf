"""Errors as OpenAI's clients know them: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

import re
from typing import Any

from myllm_server.errors import HttpError

_CODES = {
    "unauthorized": "invalid_api_key",
    "context_length": "context_length_exceeded",
    "rate_limited": "rate_limit_exceeded",
    "invalid_reference": "model_not_found",  # the only references here are names of models
}
_STATUSES = {"invalid_reference": 404, "integrity_error": 500}


def error_shape(error: HttpError, request_id: str) -> tuple[int, dict[str, Any]]:
    """Status and body; the request's id is in the header ``x-request-id`` only."""
    status = _STATUSES.get(error.code, 400 if error.status == 422 else error.status)
    code = _CODES.get(error.code, error.code)
    param = "model" if code == "model_not_found" else error.param
    return status, {
        "error": {
            "message": error.message,
            "type": _type(status),
            "param": param and re.sub(r"\.(\d+)", r"[\1]", param),
            "code": code,
        }
    }


def _type(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"
