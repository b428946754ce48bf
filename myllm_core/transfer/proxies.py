"""The proxies that the environment, or the system's settings, ask for."""

from __future__ import annotations

import ssl
import urllib.request
from urllib.parse import unquote

from urllib3.connection import HTTPConnection, HTTPSConnection, ProxyConfig
from urllib3.util import Url, make_headers, parse_url

from myllm_core.errors import NetworkError
from myllm_core.transfer.urls import Target, mask_url


def proxy_for(target: Target) -> Url | None:
    """The proxy to reach ``target`` through, if any. Raises ``NetworkError`` for one of a kind that can't be used."""
    proxies = urllib.request.getproxies()
    address = proxies.get(target.scheme) or proxies.get("all")
    if not address or any(urllib.request.proxy_bypass(name) for name in (target.host, target.authority)):
        return None
    proxy = parse_url(address if "://" in address else f"http://{address}")
    if proxy.scheme not in ("http", "https") or not proxy.host:
        raise NetworkError(f"the proxy {mask_url(address)} can't be used: only http and https proxies can")
    return proxy


def proxy_headers(proxy: Url) -> dict[str, str]:
    """What the proxy itself wants to be told: its user and password."""
    return dict(make_headers(proxy_basic_auth=unquote(proxy.auth))) if proxy.auth else {}


def proxied(proxy: Url, target: Target, timeout: float, context: ssl.SSLContext) -> HTTPConnection:
    """A connection to make: a tunnel for https, whose far end is verified, else one that forwards absolute URLs."""
    host, port = str(proxy.host).strip("[]"), proxy.port or (443 if proxy.scheme == "https" else 80)
    config = ProxyConfig(context, False, None, None)
    if target.scheme == "https":
        tunnel = HTTPSConnection(
            host,
            port,
            timeout=timeout,
            proxy=proxy,
            proxy_config=config,
            server_hostname=target.host,
            ssl_context=context,
        )
        tunnel.set_tunnel(target.host, target.port, proxy_headers(proxy), scheme=str(proxy.scheme))
        return tunnel
    if proxy.scheme == "https":
        return HTTPSConnection(host, port, timeout=timeout, proxy=proxy, proxy_config=config)
    return HTTPConnection(host, port, timeout=timeout, proxy=proxy)
