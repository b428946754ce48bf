"""The whole extension surface. Each hook returns values; nothing is registered by side effect.

A plugin is an import-light module named by an entry point of the group ``myllm``::

    from myllm_core import hookimpl

    @hookimpl
    def myllm_engines():
        from myllm_mine.engine import MyEngine
        return [MyEngine]

A command of ``myllm`` comes through the group ``myllm.commands``: the entry's name is the command's, its value a
``typer.Typer`` app or a function.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastapi import APIRouter

    from myllm_core.catalog import CatalogEntry
    from myllm_core.downloader import Downloader
    from myllm_core.engine import Engine
    from myllm_core.session_store import SessionStore

API_VERSION = 1
"""The version of this contract. A plugin may say which it was written for by ``MYLLM_API = 1``."""

GROUP = "myllm"
COMMAND_GROUP = "myllm.commands"

hookspec = pluggy.HookspecMarker("myllm")
hookimpl = pluggy.HookimplMarker("myllm")


@hookspec
def myllm_engines() -> Iterable[type[Engine]]:
    """Engine classes: how models are run."""
    raise AssertionError("a specification is never called")


@hookspec
def myllm_downloaders() -> Iterable[type[Downloader]]:
    """Downloader classes: where models come from."""
    raise AssertionError("a specification is never called")


@hookspec
def myllm_session_stores() -> Iterable[type[SessionStore]]:
    """Session store classes: where conversations are kept."""
    raise AssertionError("a specification is never called")


@hookspec
def myllm_catalog() -> Iterable[CatalogEntry]:
    """Catalogue entries: short names that ``pull`` knows."""
    raise AssertionError("a specification is never called")


@hookspec
def myllm_routes() -> Iterable[APIRouter]:
    """FastAPI routers: extra HTTP routes, loaded by ``serve``."""
    raise AssertionError("a specification is never called")
