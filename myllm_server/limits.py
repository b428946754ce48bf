"""How many requests a client may send: a token bucket for each address."""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict

from starlette.types import ASGIApp, Receive, Scope, Send

from myllm_server.body import refuse
from myllm_server.errors import HttpError

UNLIMITED = frozenset({"/health", "/metrics"})
"""Paths that are answered however much there is to do: who watches the server must not be sent away."""

_MOST_CLIENTS = 10_000
_SITE_BITS = 64


class Buckets:
    """``per_minute`` requests of each client, at once or spread; what isn't used fills up again.

    Only clients with less than a full bucket need to be known, so the longest idle ones are forgotten.
    """

    def __init__(self, per_minute: int) -> None:
        self.size = float(per_minute)
        self.rate = per_minute / 60
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, client: str, now: float) -> float:
        """In how many seconds a request may come at the time ``now``; 0 when it may."""
        left = self._at(now, *self._left.get(client, (self.size, now)))
        return 0.0 if left >= 1 else (1 - left) / self.rate

    def _at(self, now: float, left: float, when: float) -> float:
        return min(self.size, left + (now - when) * self.rate)

    def take(self, client: str, now: float) -> float:
        """Take one request at the time ``now``: 0 when it may come, else in how many seconds it may."""
        wait = self.wait(client, now)
        left = self._at(now, *self._left.pop(client, (self.size, now)))
        self._left[client] = (left if wait else left - 1, now)
        if len(self._left) > _MOST_CLIENTS:
            self._left.popitem(last=False)
        return wait


class RateLimit:
    """ASGI middleware: 429 with Retry-After for a client that asks more often than it may."""

    def __init__(self, app: ASGIApp, per_minute: int) -> None:
        self.app = app
        self.per_minute = per_minute
        self.buckets = Buckets(per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it."""
        if scope["type"] == "http" and scope["path"] not in UNLIMITED:
            wait = self.buckets.take(client_name(scope), time.monotonic())
            if wait:
                seconds = math.ceil(wait)
                message = f"more than {self.per_minute} requests a minute (rate_limit); try again in {seconds} s"
                error = HttpError(
                    429, "rate_limited", message, headers={"retry-after": str(seconds)}, data={"retry_after": seconds}
                )
                await refuse(error, scope, receive, send)
                return
        await self.app(scope, receive, send)


def client_name(scope: Scope) -> str:
    """Whom a request counts for: its address. One machine has all of an IPv6 /64 network, so that counts as one."""
    host = str(scope["client"][0]) if scope.get("client") else ""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if address.version == 4 or address.is_loopback:
        return host
    mapped = address.ipv4_mapped
    return str(mapped) if mapped else str(ipaddress.ip_network((int(address), _SITE_BITS), strict=False))
