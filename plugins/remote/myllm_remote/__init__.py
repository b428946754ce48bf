"""Models of other servers in myllm: whatever speaks OpenAI's API. Import-light: the HTTP client comes in when used."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from myllm_core import hookimpl

if TYPE_CHECKING:
    from myllm_core import Downloader, Engine

MYLLM_API = 1


@hookimpl
def myllm_engines() -> Iterable[type[Engine]]:
    """The engine ``remote``."""
    from myllm_remote.engine import RemoteEngine

    return [RemoteEngine]


@hookimpl
def myllm_downloaders() -> Iterable[type[Downloader]]:
    """``remote:`` references."""
    from myllm_remote.downloader import RemoteDownloader

    return [RemoteDownloader]
