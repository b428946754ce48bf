"""Bodies of dialects that others define: strict in types, lenient in fields, and nothing is passed over in silence.

Fields that a dialect defines are honoured or refused; those that it doesn't define are ignored and named.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from myllm_server.errors import HttpError

_MAX_NAMED = 20


class Lenient(BaseModel):
    """A body, or a part of one, that may have fields which it doesn't know."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, allow_inf_nan=False)


def check_supported(body: BaseModel, unsupported: Mapping[str, tuple[Any, ...]], where: str = "") -> None:
    """Raise ``HttpError`` for a field that can't be honoured here.

    ``unsupported`` has the dialect's fields of that kind, each with the values that ask for nothing.
    """
    for name, value in (body.model_extra or {}).items():
        if name in unsupported and value not in unsupported[name]:
            raise unsupported_field(where + name)


def ignored(body: BaseModel, known: Container[str]) -> dict[str, str]:
    """The header that names the fields that were given and mean nothing here; none when there are none.

    ``known`` are fields that ``check_supported`` has let through.
    """
    found = {name for name in _extra(body) if name not in known}
    named = sorted({name if re.fullmatch(r"[\w.-]{1,64}", name, re.ASCII) else "?" for name in found})
    return {"x-myllm-ignored": ", ".join(named[:_MAX_NAMED])} if named else {}


def _extra(body: BaseModel, path: str = "") -> Iterator[str]:
    """Names of the fields that a body has and its class hasn't, those of its parts too."""
    yield from (path + name for name, value in (body.model_extra or {}).items() if value is not None)
    for name, value in body:
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, BaseModel):
                yield from _extra(part, f"{path}{name}.")


def invalid(param: str, message: str) -> HttpError:
    """The refusal of a field's value."""
    return HttpError(400, "invalid_request", f"{param}: {message}", param=param)


def unsupported_field(param: str, why: str = "this server can't do that; leave it out") -> HttpError:
    """The refusal of a field that can't be honoured."""
    return HttpError(400, "unsupported", f"{param}: {why}", param=param)
