"""Errors as Ollama's clients know them: ``{"error": message}``."""

from __future__ import annotations

from typing import Any

from myllm_server.errors import HttpError

PREFIX = "/ollama/"

_STATUSES = {"integrity_error": 500}


def error_shape(error: HttpError, request_id: str) -> tuple[int, dict[str, Any]]:
    """Status and body; the request's id is in the header ``x-request-id`` only."""
    status = _STATUSES.get(error.code, 400 if error.status == 422 else error.status)
    return status, {"error": _message(error)}


def _message(error: HttpError) -> str:
    name = error.data.get("model")
    if error.code != "model_not_found" or not isinstance(name, str):
        return error.message
    advice = error.message.partition("; ")[2]
    return f"model '{name}' not found{advice and '; '}{advice}"  # clients look for these words
