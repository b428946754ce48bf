"""What the routes share, from the app's state."""

from __future__ import annotations

from typing import cast

from starlette.requests import HTTPConnection

from myllm_core.runtime.runtime import Runtime
from myllm_core.settings import Settings
from myllm_server.keys import is_named, key_of
from myllm_server.owned import OwnedRuntime


def runtime_of(connection: HTTPConnection) -> Runtime:
    """The runtime that the app was made with; to who can't manage it shows the sessions of their own key only."""
    runtime, key = cast(Runtime, connection.app.state.runtime), key_of(connection)
    return runtime if key.may("manage") else OwnedRuntime(runtime, key.name)


def settings_of(connection: HTTPConnection) -> Settings:
    """The settings that the app was made with."""
    return cast(Settings, connection.app.state.settings)


def engine_header(connection: HTTPConnection, model: str) -> dict[str, str]:
    """The header that names a model's engine, for answers whose shape has no place for it. Raises as ``chat`` does."""
    return {"x-myllm-engine": runtime_of(connection).engine_of(model)}


def client_of(connection: HTTPConnection, within: str | None = None) -> str:
    """Whose turn a request takes when a model is busy: its named key's, or its address's.

    ``within`` tells that one's users apart.
    """
    key = key_of(connection)
    asker = f"key {key.name}" if is_named(key) else connection.client.host if connection.client else ""
    return f"{asker} {within or ''}"
