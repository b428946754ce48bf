"""What comes with the core, through the same hooks as everybody else's."""

from __future__ import annotations

from collections.abc import Iterable

from myllm_core.catalog import CatalogEntry
from myllm_core.downloader import Downloader
from myllm_core.hookspecs import hookimpl
from myllm_core.session_store import SessionStore


@hookimpl
def myllm_downloaders() -> Iterable[type[Downloader]]:
    """``file:`` and ``https:``."""
    from myllm_core.transfer.downloaders import FileDownloader, HttpDownloader

    return [FileDownloader, HttpDownloader]


@hookimpl
def myllm_session_stores() -> Iterable[type[SessionStore]]:
    """SQLite."""
    from myllm_core.sessions.sqlite import SQLiteStore

    return [SQLiteStore]


@hookimpl
def myllm_catalog() -> Iterable[CatalogEntry]:
    """The models that we recommend."""
    from myllm_core.catalog_builtin import CATALOG

    return CATALOG
