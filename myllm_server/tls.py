"""HTTPS: the certificate is tried before the server starts, so that what is wrong with it is one line."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from myllm_core.errors import ConfigError
from myllm_core.settings import Settings

if TYPE_CHECKING:
    from uvicorn import Config


def tls_options(settings: Settings) -> dict[str, Any]:
    """What uvicorn's configuration needs for HTTPS; nothing when no certificate is set. Raises ``ConfigError``."""
    certificate, key = settings.ssl_certfile, settings.ssl_keyfile
    if certificate is None:
        if key is not None:
            raise ConfigError("ssl_keyfile is set, but no ssl_certfile; set both, or none")
        return {}
    tls_context(certificate, key, settings.ssl_keyfile_password)
    return {
        "ssl_certfile": str(certificate),
        "ssl_keyfile": str(key) if key else None,
        "ssl_keyfile_password": settings.ssl_keyfile_password or None,
        "ssl_context_factory": _from_config,
    }


def _from_config(config: Config, default: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
    # no lambda: serve --reload sends the configuration to the process that it starts
    key = Path(config.ssl_keyfile) if config.ssl_keyfile else None
    return tls_context(Path(config.ssl_certfile or ""), key, config.ssl_keyfile_password)


def tls_context(certificate: Path, key: Path | None, password: str | None) -> ssl.SSLContext:
    """A server's context, for TLS 1.2 and later. Raises ``ConfigError`` that says which file is wrong."""
    for setting, path in (("ssl_certfile", certificate), ("ssl_keyfile", key)):
        if path is not None:
            _check_readable(setting, path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key, lambda: password or "")  # without one OpenSSL would ask the terminal
    except ssl.SSLError as error:
        raise ConfigError(_reason(error, certificate, key, password)) from None
    return context


def _check_readable(setting: str, path: Path) -> None:
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise ConfigError(f"{setting}: can't read {path}: {error.strerror}") from None


def _reason(error: ssl.SSLError, certificate: Path, key: Path | None, password: str | None) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"ssl_keyfile: {key or certificate} is not the key of the certificate {certificate}"
    if error.reason in ("BAD_DECRYPT", "BAD_PASSWORD_READ", "PKCS12_CIPHERFINAL_ERROR") or error.reason is None:
        wrong = "ssl_keyfile_password doesn't fit" if password else "it has a password; set ssl_keyfile_password"
        if _is_encrypted(key or certificate):
            return f"ssl_keyfile: {key or certificate}: {wrong}"
    if key is None:
        return f"ssl_certfile: {certificate} must hold a certificate and its key in PEM; else set ssl_keyfile too"
    return f"ssl_certfile, ssl_keyfile: {certificate} and {key} must hold a certificate and its key in PEM"


def _is_encrypted(path: Path) -> bool:
    return b"ENCRYPTED" in path.read_bytes()
