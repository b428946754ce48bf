"""A myllm plugin of every kind. Import-light: each hook imports what it returns."""

from myllm_core import hookimpl

MYLLM_API = 1


@hookimpl
def myllm_engines():
    """The engine that repeats."""
    from myllm_echo.engine import EchoEngine

    return [EchoEngine]


@hookimpl
def myllm_downloaders():
    """``echo:`` references."""
    from myllm_echo.downloader import EchoDownloader

    return [EchoDownloader]


@hookimpl
def myllm_session_stores():
    """A store in memory."""
    from myllm_echo.store import MemoryStore

    return [MemoryStore]


@hookimpl
def myllm_catalog():
    """The name ``echo``."""
    from myllm_core import CatalogEntry, Source

    return [CatalogEntry("echo:latest", (Source("echo:latest"),), "repeats what you say", size=5, context_size=4096)]


@hookimpl
def myllm_routes():
    """``GET /echo/ping``."""
    from myllm_echo.routes import router

    return [router]
