"""How often an address may try keys that are none, so that nobody finds a short one by guessing."""

from __future__ import annotations

import logging
import math
import time
from collections import OrderedDict

from starlette.types import Scope

from myllm_core.keys import ApiKey
from myllm_server.errors import HttpError
from myllm_server.limits import Buckets, client_name
from myllm_server.records import printable

logger = logging.getLogger("myllm.audit")

_MOST_KNOWN = 10_000


class Guesses:
    """``per_minute`` wrong keys of each address; 0: as many as come.

    While an address has none left, only keys that have opened the server from there before do so: others behind the
    same proxy go on, and an answer doesn't tell a right guess from a wrong one. OWASP describes this as device cookies.
    """

    def __init__(self, per_minute: int) -> None:
        self._buckets = Buckets(per_minute) if per_minute else None
        self._known: OrderedDict[tuple[str, str, str], None] = OrderedDict()

    def refusal(self, scope: Scope, holder: ApiKey | None) -> HttpError | None:
        """Why the key that a request offers, ``holder``'s or nobody's, isn't looked at now, if it isn't."""
        client, now = client_name(scope), time.monotonic()
        visit = (client, holder.name if holder else "", holder.sha256 if holder else "")
        if visit in self._known:
            self._known.move_to_end(visit)
            return None
        wait = self._buckets.wait(client, now) if self._buckets else 0.0
        if wait:
            return _too_many(wait)
        if holder is not None:
            self._known[visit] = None
            if len(self._known) > _MOST_KNOWN:
                self._known.popitem(last=False)
            return None
        if self._buckets:
            self._buckets.take(client, now)
        _log(scope, client, self._buckets.wait(client, now) if self._buckets else 0.0)
        return None


def _too_many(wait: float) -> HttpError:
    seconds = math.ceil(wait)
    return HttpError(
        429,
        "too_many_wrong_keys",
        f"too many wrong keys came from this address (wrong_keys); try again in {seconds} s",
        headers={"retry-after": str(seconds)},
        data={"retry_after": seconds},
    )


def _log(scope: Scope, client: str, wait: float) -> None:
    action = f"{printable(scope['method'])} {printable(scope['path'])}"
    fields = {"action": "wrong key", "client": client, "path": printable(scope["path"])}
    fields["request_id"] = scope.get("state", {}).get("request_id", "")
    more = f"; no unknown key is looked at from there for {math.ceil(wait)} s" if wait else ""
    logger.warning("wrong key at %s: %s%s", client, action, more, extra={"fields": fields})
