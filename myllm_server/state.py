"""What the routes share, from the app's state."""

from __future__ import annotations

from typing import cast

from starlette.requests import HTTPConnection

from myllm_core.runtime.runtime import Runtime
from myllm_core.settings import Settings


def runtime_of(connection: HTTPConnection) -> Runtime:
    """The runtime that the app was made with."""
    return cast(Runtime, connection.app.state.runtime)


def settings_of(connection: HTTPConnection) -> Settings:
    """The settings that the app was made with."""
    return cast(Settings, connection.app.state.settings)


def client_of(connection: HTTPConnection, within: str | None = None) -> str:
    """Whose turn a request takes when a model is busy: its address's; ``within`` tells that one's users apart."""
    return f"{connection.client.host if connection.client else ''} {within or ''}"
