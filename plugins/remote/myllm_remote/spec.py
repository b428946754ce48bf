"""What is installed of a remote model: which servers have it, under which name. ``remote.json``, and references."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from myllm_core import Model, Reference
from myllm_core.errors import IntegrityError, InvalidReference
from myllm_core.models.disk import open_regular, storage_errors
from myllm_core.transfer.urls import mask_url, parse_url
from myllm_remote.dialects import DIALECTS

FILE = "remote.json"
SCHEMA = 1
_MAX_BYTES = 65_536
_MAX_UPSTREAMS = 64


@dataclass(frozen=True, slots=True)
class Spec:
    """A model on other servers.

    ``model`` is its name there, ``upstreams`` the base URLs (as ``http://host:8000/v1``) of servers that have it.
    ``dialect`` says what they take beyond OpenAI's own fields (see ``dialects``), ``context_size`` is in tokens (0:
    they didn't say).
    """

    model: str
    upstreams: tuple[str, ...]
    dialect: str = "other"
    context_size: int = 0

    def to_bytes(self) -> bytes:
        """The content of ``remote.json``."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=2, ensure_ascii=False).encode() + b"\n"


def read_spec(model: Model) -> Spec:
    """The spec of an installed model. Raises ``IntegrityError`` for a file that this plugin didn't write."""
    if not model.paths:
        raise IntegrityError(f"{model.name} has no {FILE}; pull it again")
    path = model.paths[0]
    with storage_errors(f"read {path}"), open_regular(path) as file:
        data = file.read(_MAX_BYTES + 1)
    try:
        raw = json.loads(data) if len(data) <= _MAX_BYTES else None
        return _checked(raw)
    except (ValueError, TypeError, KeyError, RecursionError):
        raise IntegrityError(f"{path.name} of {model.name} isn't what pull wrote; pull it again") from None


def _checked(raw: Any) -> Spec:
    if raw["schema"] != SCHEMA or not isinstance(raw["model"], str) or not raw["model"]:
        raise ValueError("schema")
    upstreams = [base_url(url) for url in raw["upstreams"]]
    size = raw["context_size"]
    if not upstreams or type(size) is not int or size < 0 or raw["dialect"] not in DIALECTS:
        raise ValueError("values")
    return Spec(raw["model"], tuple(upstreams), raw["dialect"], size)


def base_url(text: str) -> str:
    """A server's base URL without a slash at its end. Raises ``ValueError`` with what is wrong with it."""
    target = parse_url(text)
    if target.authorization:
        raise ValueError("a user or password in the URL would be kept; put the key in the environment instead")
    if "?" in target.path or "#" in text:
        raise ValueError("a base URL has no query, such as http://host:8000/v1")
    return target.url.rstrip("/")


def split_reference(reference: Reference) -> tuple[tuple[str, ...], str]:
    """The base URLs and the model's name (may be empty) in ``remote:URL[,URL…][#MODEL]``.

    Raises ``InvalidReference``.
    """
    urls, _, model = reference.rest.partition("#")
    found = []
    for url in urls.split(","):
        try:
            found.append(base_url(url.strip()))
        except ValueError as error:
            raise InvalidReference(
                f"remote: {mask_url(url)}: {error}; write remote:http://host:8000/v1#model"
            ) from None
    if len(found) > _MAX_UPSTREAMS:
        raise InvalidReference(f"remote: {len(found)} servers are too many; give at most {_MAX_UPSTREAMS}")
    if not model.isprintable() or len(model) > 200:
        raise InvalidReference("remote: the model's name after # must be printable, and at most 200 characters")
    return tuple(dict.fromkeys(found)), model.strip()
