"""Is what a plugin offers usable? Each check returns what is wrong with a value, or nothing."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

from myllm_core.catalog import CatalogEntry, Source
from myllm_core.downloader import Downloader
from myllm_core.engine import Engine, LoadOption
from myllm_core.errors import MyllmError
from myllm_core.guard import shown
from myllm_core.models.reference import model_name
from myllm_core.session_store import SessionStore
from myllm_core.types import Sampling

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9_.-]{0,62}[a-z0-9])?", re.ASCII)
_SCHEME = re.compile(r"[a-z][a-z0-9+-]{1,30}", re.ASCII)


def _class_problem(value: Any, base: type[Any]) -> str:
    if not (isinstance(value, type) and issubclass(value, base)):
        return f"{shown(value)} is no subclass of {base.__name__}"
    missing = sorted(getattr(value, "__abstractmethods__", ()))
    if missing:
        return f"{value.__name__} doesn't implement {', '.join(missing)}"
    name = getattr(value, "name", None)
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        return f"{value.__name__}.name must be lower-case letters, digits, dots and dashes"
    return ""


def _texts(value: Any) -> bool:
    """A set of texts: a bare text isn't one, though it holds texts too."""
    return isinstance(value, set | frozenset) and all(isinstance(item, str) for item in value)


def _engine_problem(value: Any) -> str:
    wrong = _class_problem(value, Engine)
    if wrong:
        return wrong
    if not _texts(getattr(value, "formats", None)):
        return f"{value.__name__}.formats must be a set of texts"
    known = set(Sampling.__dataclass_fields__)
    if not _texts(value.sampling) or value.sampling - known:
        return f"{value.__name__}.sampling must be a set of names among {', '.join(sorted(known))}"
    if not (isinstance(value.load_options, tuple) and all(isinstance(o, LoadOption) for o in value.load_options)):
        return f"{value.__name__}.load_options must be a tuple of LoadOption"
    return ""


def _downloader_problem(value: Any) -> str:
    wrong = _class_problem(value, Downloader)
    if wrong:
        return wrong
    schemes = getattr(value, "schemes", None)
    if not (_texts(schemes) and schemes and all(_SCHEME.fullmatch(scheme) for scheme in schemes)):
        return f"{value.__name__}.schemes must be a set of lower-case schemes, such as {{'hf'}}"
    return ""


def _store_problem(value: Any) -> str:
    return _class_problem(value, SessionStore)


def _catalog_problem(value: Any) -> str:
    if not isinstance(value, CatalogEntry):
        return f"{shown(value)} is no CatalogEntry"
    if not (isinstance(value.sources, tuple) and value.sources and all(isinstance(s, Source) for s in value.sources)):
        return f"{shown(value)}: sources must be a tuple of at least one Source"
    try:
        for name in (value.name, *value.aliases):
            model_name(name)
    except (MyllmError, TypeError, AttributeError):
        return f"{shown(value)}: name and aliases must be model names, such as smollm2:135m"
    return ""


def _route_problem(value: Any) -> str:
    fastapi = sys.modules.get("fastapi")  # imported already by whoever made a router
    if fastapi is None or not isinstance(value, fastapi.APIRouter):
        return f"{shown(value)} is no fastapi.APIRouter"
    return ""


CHECKS: dict[str, Callable[[Any], str]] = {
    "engines": _engine_problem,
    "downloaders": _downloader_problem,
    "session_stores": _store_problem,
    "catalog": _catalog_problem,
    "routes": _route_problem,
}
"""The check of each hook's values, by the hook's name without ``myllm_``."""


def claims(hook: str, value: Any) -> tuple[str, ...]:
    """The names that a checked value claims for itself alone; routers claim none."""
    if hook == "catalog":
        return tuple(model_name(name) for name in (value.name, *value.aliases))
    if hook == "downloaders":
        return (value.name, *(f"{scheme}:" for scheme in sorted(value.schemes)))
    return () if hook == "routes" else (value.name,)
