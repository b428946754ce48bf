"""Who a key belongs to: the one of the settings, and the named ones, which may change while the server runs."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Iterable
from typing import cast

from starlette.requests import HTTPConnection
from starlette.types import Scope

from myllm_core.errors import MyllmError
from myllm_core.keys import SCOPES, ApiKey, KeyFile, hash_key
from myllm_core.settings import Settings

logger = logging.getLogger("myllm.audit")

ANYBODY = ApiKey(name="anybody", scopes=SCOPES)
"""Who asks where no key is needed."""
OWNER = ApiKey(name="api_key", scopes=SCOPES)
"""Who has the key of the settings, or the one that was made at start."""


class KeyRing:
    """The keys that open this server. Raises ``ConfigError`` or ``StorageError`` when the named ones can't be read.

    A server that has had a key asks for one until it ends, also when the last one is revoked. A key file that is
    damaged while the server runs opens nothing.
    """

    def __init__(self, settings: Settings) -> None:
        self._own = hash_key(settings.api_key.encode()).encode() if settings.api_key else b""
        self._off = settings.no_auth
        self._file = KeyFile(settings.data_dir)
        self._stamp = self._file.stamp()
        self._set(() if self._off else self._file.read())
        self._required = bool(self._own or self._named)

    def wanted(self) -> bool:
        """Whether who asks must have a key. Looks whether the named ones have changed."""
        if self._off:
            return False
        self._refresh()
        return self._required

    def find(self, offered: Iterable[bytes]) -> ApiKey | None:
        """Whose key is among those that were ``offered``. Every key is looked at, whichever fits."""
        found = None
        for digest in [hash_key(key).encode() for key in offered]:
            for known, holder in self._known:
                if hmac.compare_digest(digest, known):
                    found = holder
        return found

    def _refresh(self) -> None:
        stamp = self._file.stamp()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            keys = self._file.read()
        except MyllmError as error:
            logger.error("no named key opens this server until this is mended: %s", error)
            keys = ()
        before = {key.name: key for key in self._named}
        self._set(keys)
        self._required = self._required or bool(keys)
        after = {key.name: key for key in keys}
        for name in sorted(before.keys() | after.keys()):
            if before.get(name) != after.get(name):
                action = "revoke key" if name not in after else "change key" if name in before else "create key"
                fields = {"action": action, "key": name}
                logger.info("%s %s", action, name, extra={"fields": fields})

    def _set(self, keys: tuple[ApiKey, ...]) -> None:
        self._named = keys
        self._known = [(key.sha256.encode(), key) for key in keys]
        if self._own:
            self._known.append((self._own, OWNER))


def key_of(connection: HTTPConnection) -> ApiKey:
    """Who asks."""
    return key_in(connection.scope)


def key_in(scope: Scope) -> ApiKey:
    """Who asks; ``ANYBODY`` before the guard has looked."""
    return cast(ApiKey, scope.get("state", {}).get("key", ANYBODY))


def is_named(key: ApiKey) -> bool:
    """Whether this is one of the keys that ``myllm keys`` makes, with limits and sessions of its own."""
    return key not in (ANYBODY, OWNER)
