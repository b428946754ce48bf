"""Errors on their way out: a status and ``{"error": {"code", "message", "request_id"}}``, or a dialect's own body."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from myllm_core.errors import MyllmError

_MAX_NAME = 60
_COME_BACK = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
_NO_OBJECT = ("model_type", "model_attributes_type", "dict_type")
_CODES = {400: "invalid_request", 404: "not_found", 405: "method_not_allowed"}


class HttpError(Exception):
    """An answer that isn't what was asked for: status, stable code, message, and what else belongs to it.

    ``param`` is the field of the request that is wrong, for dialects that tell it apart.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        headers: Mapping[str, str] | None = None,
        data: Mapping[str, Any] | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.headers = dict(headers or {})
        if status in _COME_BACK:
            self.headers = {"retry-after": "1"} | {name.lower(): value for name, value in self.headers.items()}
        self.data = dict(data or {})

    def body(self, request_id: str) -> dict[str, Any]:
        """The error as JSON values."""
        error: dict[str, Any] = {"code": self.code, "message": self.message, "request_id": request_id}
        if self.data:
            error["data"] = self.data
        return {"error": error}


class ClientGone(Exception):
    """The client went away before its answer was ready."""


def as_http(error: BaseException) -> HttpError:
    """What a client is told of ``error``; of one that nobody foresaw, only that it happened."""
    if isinstance(error, HttpError):
        return error
    if isinstance(error, MyllmError):
        headers = {}
        if error.http_status in _COME_BACK:
            headers["retry-after"] = str(_seconds(error.data.get("retry_after")))
        return HttpError(error.http_status, error.code, error.message, headers=headers, data=error.data)
    if isinstance(error, RequestValidationError):
        return refusal(error)
    if isinstance(error, HTTPException):
        code = _CODES.get(error.status_code, "http_error")
        return HttpError(error.status_code, code, str(error.detail), headers=error.headers)
    return HttpError(500, "internal_error", "something went wrong here; the server's log says what")


def refusal(error: RequestValidationError, known: Sequence[str] | None = None) -> HttpError:
    """One line for the first thing wrong with a request; ``known`` are the fields that an unknown one could be."""
    problems = error.errors()
    first = _most_telling(problems)
    if first["type"] == "json_invalid":
        return HttpError(400, "invalid_json", "the body is no JSON")
    place = first["loc"][1:] if first["loc"][:1] in (("body",), ("query",), ("path",), ("header",)) else first["loc"]
    path = [part for part in place if not _is_branch(part)]
    where = ".".join(str(part) for part in path)[:_MAX_NAME] or "the body"
    if known is not None:
        message = f"unknown field {where}; known: {', '.join(known) or 'none'}"
        return HttpError(422, "unknown_field", message, param=where)
    said = "should be a JSON object" if first["type"] in _NO_OBJECT else first["msg"].removeprefix("Value error, ")
    message = f"{where}: {said[:1].lower()}{said[1:]}"
    if len(problems) > 1:
        message += f" (and {len(problems) - 1} more)"
    return HttpError(422, "invalid_request", message, param=where if path else None)


def _most_telling(problems: Sequence[Any]) -> Any:
    """The first problem; where several types were tried, what is wrong with the value as the type that it has."""
    first = problems[0]
    if not any(map(_is_branch, first["loc"][-1:])):
        return first
    tried = [problem for problem in problems if problem["loc"][:-1] == first["loc"][:-1]]
    return next((problem for problem in tried if not problem["type"].endswith("_type")), first)


def _is_branch(part: int | str) -> bool:
    """Whether a part of a place names no field, but which of several types was tried: ``literal['auto','none']``."""
    return isinstance(part, str) and (part == "str" or part.startswith(("literal[", "list[", "dict[")))


def _seconds(value: object) -> int:
    return max(1, math.ceil(value)) if isinstance(value, int | float) and math.isfinite(value) else 1


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def json_bytes(value: Any) -> bytes:
    """JSON in UTF-8, always valid: no NaN (``ValueError``), and a stray surrogate becomes ``?``."""
    return _encode(value).encode("utf-8", "replace")


def request_id(scope: Scope) -> str:
    """The id that the log line and the header ``x-request-id`` carry."""
    return str(scope.get("state", {}).get("request_id", ""))


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer of JSON values."""
    return Response(json_bytes(value), status, headers, media_type="application/json")


ERROR_PATH = "error_path"
"""The request's state under this name is the path whose dialect tells its errors, where it isn't the request's own."""

ErrorShape = Callable[[HttpError, str], tuple[int, dict[str, Any]]]
"""How a dialect tells an error, with the request's id: status and body."""


def told(error: HttpError, scope: Scope) -> tuple[int, dict[str, Any]]:
    """Status and body of ``error`` as the API that was called tells it.

    The app's state has the shapes of the dialects by path prefix (``error_shapes``, the longest that fits is taken),
    so what middleware, framework and validation refuse looks as what the routes do.
    """
    shapes: Mapping[str, ErrorShape] = scope["app"].state.error_shapes
    path = scope.get("state", {}).get(ERROR_PATH) or f"{scope['path']}/"
    prefix = max((prefix for prefix in shapes if path.startswith(prefix)), key=len, default=None)
    if prefix is None:
        return error.status, error.body(request_id(scope))
    return shapes[prefix](error, request_id(scope))


def error_response(error: BaseException, scope: Scope) -> Response:
    """The answer that tells of ``error``."""
    shown = as_http(error)
    status, body = told(shown, scope)
    return json_response(body, status, shown.headers)


async def answer_error(request: Request, error: Exception) -> Response:
    """Starlette's exception handler for every error that has a status of its own."""
    if isinstance(error, HTTPException) and error.status_code == HTTPStatus.NOT_FOUND and error.detail == "Not Found":
        error = HttpError(404, "not_found", "there is nothing here; /docs lists what there is")
    if isinstance(error, ClientGone):
        return Response(status_code=499)  # nobody reads it; the log line does
    return error_response(error, request.scope)


HANDLED: tuple[type[Exception], ...] = (HttpError, MyllmError, HTTPException, RequestValidationError, ClientGone)
"""What ``answer_error`` is the handler of."""
