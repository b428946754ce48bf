"""Pictures for tests, made without a package that makes pictures."""

from __future__ import annotations

import struct
import zlib

from myllm_core.types import Image


def png(width: int, height: int, color: tuple[int, int, int]) -> bytes:
    """A PNG file of one color."""
    rows = (b"\0" + bytes(color) * width) * height
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (_chunk(b"IHDR", header), _chunk(b"IDAT", zlib.compress(rows)), _chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def picture(width: int = 48, height: int = 32, color: tuple[int, int, int] = (200, 30, 60), at: int = 0) -> Image:
    """An image of one color, for a message."""
    return Image(png(width, height, color), "image/png", at)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
