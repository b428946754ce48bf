"""The key that goes to a server: from the environment only, so that neither manifests nor settings hold it."""

from __future__ import annotations

import os
import re

from myllm_core.errors import ConfigError
from myllm_core.transfer.urls import Target

PREFIX = "MYLLM_REMOTE_KEY_"


def variables(target: Target) -> tuple[str, str]:
    """The names of the variables that hold a server's key: with its port, and for all ports of its host."""
    host = re.sub(r"[^A-Z0-9]", "_", target.host.upper())
    return f"{PREFIX}{host}_{target.port}", f"{PREFIX}{host}"


def key_for(target: Target, variable: str = "") -> str:
    """The key for a server, empty when there is none; ``variable`` is where it is instead.

    A key goes to the host that its variable names and to no other. Raises ``ConfigError`` for one that can't be sent.
    """
    names = (variable,) if variable else variables(target)
    name = next((name for name in names if os.environ.get(name)), "")
    if variable and not name:
        raise ConfigError(f"the variable {variable} (api_key_env) is empty; set it to the key of {target.authority}")
    key = os.environ.get(name, "").strip()
    if not key.isascii() or not key.isprintable():
        raise ConfigError(f"the variable {name} holds characters that no key has; set it again")
    return key
