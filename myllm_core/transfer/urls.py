"""URLs and addresses: taken apart, masked for messages, looked up, told apart as public or private."""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import re
import socket
from dataclasses import dataclass
from urllib.parse import quote, unquote, urljoin, urlsplit, urlunsplit

from myllm_core.transfer.waiting import within

_PORTS = {"http": 80, "https": 443}
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
MAX_URL = 8192


def mask_url(url: str) -> str:
    """The URL for messages and logs: without user, password, query values and fragment, where secrets hide."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "a malformed URL"
    shown = urlunsplit((parts.scheme, host, parts.path, "…" if parts.query else "", ""))
    shown = "".join(c if c.isprintable() else "?" for c in shown)
    return shown if len(shown) <= 200 else shown[:197] + "…"


def public_url(url: str) -> str:
    """The URL to keep in a manifest: masked, and when it has a query, told apart from others by a hash of it."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    mark = hashlib.sha256(parts.query.encode()).hexdigest()[:12] if parts.query else ""
    return urlunsplit((parts.scheme, host, parts.path, "", mark))


@dataclass(frozen=True, slots=True)
class Target:
    """A URL taken apart. ``path`` holds the query; ``authorization`` is made of the URL's user and password."""

    scheme: str
    host: str
    port: int
    path: str
    authorization: str = ""

    @property
    def origin(self) -> tuple[str, str, int]:
        """What must be the same for secrets to go along."""
        return self.scheme, self.host, self.port

    @property
    def authority(self) -> str:
        """The value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The URL without user, password and fragment. It may hold secrets in its query."""
        return f"{self.scheme}://{self.authority}{self.path}"


def parse_url(url: str) -> Target:
    """Take an http(s) URL apart. Raises ``ValueError`` with what is wrong with it, in words for the user."""
    if len(url) > MAX_URL:
        raise ValueError(f"the URL is longer than {MAX_URL} characters")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("the URL can't be read") from None
    if parts.scheme not in _PORTS:
        raise ValueError(f"{parts.scheme or 'no'}: is no scheme to download from; only http and https are")
    if not parts.hostname:
        raise ValueError("the URL names no host")
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~")
    if parts.query:
        path += "?" + quote(parts.query, safe="/?%:@!$&'()*+,;=~[]|")
    return Target(parts.scheme, _ascii_host(parts.hostname), port or _PORTS[parts.scheme], path, _basic(parts.netloc))


def _ascii_host(host: str) -> str:
    if ":" in host:
        return host
    try:
        name = host.encode("idna").decode("ascii") if not host.isascii() else host
    except UnicodeError:
        raise ValueError("the URL's host is no valid name") from None
    if not all(c.isalnum() or c in "-._" for c in name):
        raise ValueError("the URL's host is no valid name")
    return name


def _basic(netloc: str) -> str:
    user, found, _ = netloc.rpartition("@")
    if not found:
        return ""
    return "Basic " + base64.b64encode(unquote(user if ":" in user else user + ":").encode()).decode("ascii")


def follow(target: Target, location: str) -> Target:
    """Where a redirect leads; the user and password of its URL are ignored. Raises ``ValueError`` when it may not."""
    new = parse_url(location if _ABSOLUTE.match(location) else urljoin(target.url, location))
    if target.scheme == "https" and new.scheme == "http":
        raise ValueError("it leads from https to http")
    return Target(new.scheme, new.host, new.port, new.path)


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the open internet: not loopback, private, link-local or reserved."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or _nat64(ip)
        if inner is not None:
            return inner.is_global and not inner.is_multicast
    return ip.is_global and not ip.is_multicast


def _nat64(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if ip in ipaddress.IPv6Network("64:ff9b::/96"):
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return None


def lookup(host: str, port: int, timeout: float) -> list[str]:
    """The addresses of a host, best first. Raises ``OSError``: unknown, or ``TimeoutError``."""
    try:
        found = within(timeout, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    except UnicodeError:
        raise OSError("no valid host name") from None
    return list(dict.fromkeys(str(info[4][0]) for info in found))
