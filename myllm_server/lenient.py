"""Bodies of dialects that others define: strict in types, lenient in fields, and nothing is passed over in silence.

Fields that a dialect defines are honoured or refused; those that it doesn't define are ignored and named.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from myllm_server.brief import Brief
from myllm_server.errors import HttpError

_MAX_NAMED = 20


Unsupported = Mapping[str, tuple[Any, ...]]
"""Fields of a dialect that can't be honoured, each with the values that ask for nothing."""


class Lenient(Brief):
    """A body, or a part of one, that may have fields which it doesn't know."""

    unsupported: ClassVar[Unsupported] = {}

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, allow_inf_nan=False)


def check_supported(body: BaseModel) -> None:
    """Raise ``HttpError`` for a field of a body, or of a part of it, that can't be honoured here."""
    for path, part in _parts(body):
        unsupported = _unsupported(part)
        for name, value in (part.model_extra or {}).items():
            if name in unsupported and value not in unsupported[name]:
                raise unsupported_field(path + name)


def ignored(body: BaseModel) -> dict[str, str]:
    """The header that names the fields that were given and mean nothing here; none when there are none."""
    found = {re.sub(r"\b\d+\.", "", path) + name for path, part in _parts(body) for name in _unknown(part)}
    named = sorted({name if re.fullmatch(r"[\w.-]{1,64}", name, re.ASCII) else "?" for name in found})
    return {"x-myllm-ignored": ", ".join(named[:_MAX_NAMED])} if named else {}


def _unknown(part: BaseModel) -> list[str]:
    extra, known = part.model_extra or {}, _unsupported(part)
    return [name for name, value in extra.items() if value is not None and name not in known]


def _unsupported(part: BaseModel) -> Unsupported:
    return getattr(part, "unsupported", {})


def _parts(body: BaseModel, path: str = "") -> Iterator[tuple[str, BaseModel]]:
    """A body and its parts, each with where it is, such as ``messages.0.``."""
    yield path, body
    for name, value in body:
        for index, part in enumerate(value) if isinstance(value, list) else [("", value)]:
            if isinstance(part, BaseModel):
                yield from _parts(part, f"{path}{name}.{index}.".replace("..", "."))


def invalid(param: str, message: str) -> HttpError:
    """The refusal of a field's value."""
    return HttpError(400, "invalid_request", f"{param}: {message}", param=param)


def unsupported_field(param: str, why: str = "this server can't do that; leave it out") -> HttpError:
    """The refusal of a field that can't be honoured."""
    return HttpError(400, "unsupported", f"{param}: {why}", param=param)
