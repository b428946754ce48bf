"""Headers that every answer carries, so that a browser makes of it what it is and nothing else."""

from __future__ import annotations

from collections.abc import Iterable

Headers = list[tuple[bytes, bytes]]

SECURITY: tuple[tuple[bytes, bytes], ...] = (
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
)
"""For documents that aren't pages. A page brings a content security policy of its own."""


def secured(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """``headers``, and those of ``SECURITY`` that aren't among them."""
    given = list(headers)
    names = {name.lower() for name, _ in given}
    return given + [header for header in SECURITY if header[0] not in names]
