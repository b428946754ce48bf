"""Request bodies: JSON only, read strictly, and refused in one line that says what would do."""

from __future__ import annotations

import json
import math
import re
import types
import typing
from collections.abc import Callable, Coroutine, Iterator
from typing import Annotated, Any

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from myllm_core.keys import ApiKey
from myllm_server.audit import note_target
from myllm_server.errors import HttpError, refusal
from myllm_server.keys import key_of
from myllm_server.state import settings_of

_LARGE = re.compile(r"[eE]\+?\d{3}|\d{300}")  # what may be larger than a float, wherever it stands
_MOST_NAMES = 10_000  # in one object: each that is unknown or wrong is an error, which takes about 1 kB


def parse_json(body: bytes, max_depth: int) -> Any:
    """JSON values of a body. Raises ``HttpError``: 400 when it is no JSON, 422 when a value can't be used."""
    try:
        text = body.decode("utf-8-sig")
        value = json.loads(text, parse_constant=_infinite, parse_float=_finite if _LARGE.search(text) else None)
    except UnicodeDecodeError:
        raise HttpError(400, "invalid_json", "the body is no UTF-8; send JSON in UTF-8") from None
    except json.JSONDecodeError as error:
        raise HttpError(400, "invalid_json", f"the body is no JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise _too_deep(max_depth) from None
    except ValueError:  # Python refuses integers of thousands of digits
        raise HttpError(422, "invalid_request", "the body holds a number that is too large") from None
    if text.count("[") + text.count("{") > max_depth and _is_deeper(value, max_depth):
        raise _too_deep(max_depth)
    if text.count(":") > _MOST_NAMES and any(len(one) > _MOST_NAMES for one in _objects(value)):
        raise HttpError(422, "invalid_request", f"the body holds an object of more than {_MOST_NAMES} fields")
    if "\\u" in text:
        _refuse_surrogates(value)
    return value


def _infinite(constant: str) -> float:
    raise HttpError(422, "invalid_request", f"the body holds {constant[:12]}, which is no number of JSON or too large")


def _finite(number: str) -> float:
    value = float(number)
    return value if math.isfinite(value) else _infinite(number)


def _too_deep(most: int) -> HttpError:
    return HttpError(400, "invalid_json", f"the body is nested deeper than {most} levels (max_json_depth)")


def _is_deeper(value: Any, most: int) -> bool:
    level = [value]
    for _ in range(most + 1):
        level = [one for one in level if isinstance(one, dict | list)]
        if not level:
            return False
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
    return True


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    left: list[Any] = [value] if isinstance(value, dict | list) else []
    while left:
        one = left.pop()
        if isinstance(one, dict):
            yield one
        left += [inner for inner in (one.values() if isinstance(one, dict) else one) if isinstance(inner, dict | list)]


def check_messages(value: Any, most: int) -> None:
    """Refuse a body with more than ``most`` messages before each is looked at. Raises ``HttpError``.

    Those of a response are its ``input``; that of an embedding is texts or tokens.
    """
    for name in ("messages", "input") if isinstance(value, dict) else ():
        messages = value.get(name)
        if (
            isinstance(messages, list)
            and len(messages) > most
            and (name == "messages" or isinstance(messages[0], dict))
        ):
            message = f"{name}: {len(messages)} are too many, at most {most} are taken (max_messages)"
            raise HttpError(422, "invalid_request", message, data={"max_messages": most}, param=name)


def check_keep_alive(value: Any, key: ApiKey) -> None:
    """Refuse to let who can't manage say how long a model stays loaded. Raises ``HttpError``."""
    if isinstance(value, dict) and value.get("keep_alive") is not None and not key.may("manage"):
        message = "keep_alive: only a key with the scope manage may say how long a model stays loaded; leave it out"
        raise HttpError(403, "scope_missing", message, param="keep_alive")


def _refuse_surrogates(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise HttpError(422, "invalid_request", "the body holds half a surrogate pair, which is no text") from None


class _JsonRequest(Request):
    parsed: Any = None

    async def json(self) -> Any:
        return self.parsed


class StrictRoute(APIRoute):
    """A route whose body is JSON by content type and by content, and whose refusals name the known fields."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's own handler, with our reading of the body before it and our wording after it."""
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            read = _JsonRequest(request.scope, request.receive)
            if self.body_field is not None and (body := await read.body()):
                _require_json(request)
                settings = settings_of(request)
                read.parsed = parse_json(body, settings.max_json_depth)
                check_messages(read.parsed, settings.max_messages)
                check_keep_alive(read.parsed, key_of(request))
                note_target(request.scope, read.parsed)
            try:
                return await handle(read)
            except RequestValidationError as error:
                first = error.errors()[0]
                known = self._known(first["loc"]) if first["type"] == "extra_forbidden" else None
                raise refusal(error, known) from None

        return strict

    def _known(self, where: tuple[int | str, ...]) -> list[str]:
        """The fields that the object at ``where`` (a place in the request) may have."""
        fields = self.dependant.query_params if where[0] == "query" else [self.body_field] if self.body_field else []
        for field in fields:
            model = _model_at(field.field_info.annotation, list(where[1:-1]))
            if model:
                return list(model.model_fields)
        return []


def _model_at(annotation: Any, path: list[int | str]) -> type[BaseModel] | None:
    """The pydantic model that ``path`` (names, and numbers in lists) leads to from ``annotation``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if not path:
            return annotation
        field = annotation.model_fields.get(str(path[0]))
        return _model_at(field.annotation, path[1:]) if field else None
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _model_at(inner[0], path)
    if origin is list:
        return _model_at(inner[0], path[1:])
    if origin in (typing.Union, types.UnionType):
        return next((model for part in inner if (model := _model_at(part, path))), None)
    return None


def _require_json(request: Request) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HttpError(415, "unsupported_media_type", "send the body with the header content-type: application/json")
