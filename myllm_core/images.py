"""Images that people send: what a file is and how large, read from its header; and its pixels, for engines.

A file is from a stranger. Its kind and size are read here, from a few bytes and without decoding anything, before
it goes anywhere: a file of some kilobytes may stand for gigabytes of pixels. Engines that can't do better by
themselves decode it with ``decode_rgb``, in the worker, which needs Pillow.

The headers: PNG (W3C, section 11.2.2), JPEG (ITU T.81, annex B), GIF89a (section 18), WebP (RFC 9649).
"""

from __future__ import annotations

import base64
import io
import struct
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from myllm_core.errors import EngineError, InvalidRequest
from myllm_core.types import Image

if TYPE_CHECKING:
    import PIL.Image

MAX_PIXELS = 50_000_000
"""Pixels of an image, unless the setting ``max_image_pixels`` says otherwise: 150 MB when decoded."""
MOST_PIXELS = 89_478_485
"""The most that may be set, and that is ever decoded: Pillow's own limit."""
_FORMATS = ("PNG", "JPEG", "GIF", "WEBP")
_KINDS = "PNG, JPEG, GIF or WebP"
_BROKEN = "images: the file can't be read: {why}; send another, or save it anew"

_SIZELESS = frozenset({0x01, *range(0xD0, 0xD9)})
"""JPEG markers that no length follows."""
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""JPEG markers whose segment says how large the picture is."""
_SCAN = 0xDA


@dataclass(frozen=True, slots=True)
class Header:
    """What the header of an image file says."""

    media_type: str
    width: int
    height: int


def read_header(data: bytes) -> Header:
    """The kind of an image file and its size in pixels, by its first bytes. Raises ``InvalidRequest``."""
    try:
        header = _read(data)
    except (struct.error, IndexError):
        raise InvalidRequest(_BROKEN.format(why="it ends within its header")) from None
    if header.width < 1 or header.height < 1:
        raise InvalidRequest(_BROKEN.format(why="it says that it has no pixels"))
    return header


def check_image(data: bytes, max_pixels: int = MAX_PIXELS) -> str:
    """The media type of an image file that may be decoded. Raises ``InvalidRequest`` for any other."""
    header = read_header(data)
    if header.width * header.height > max_pixels:
        raise InvalidRequest(
            f"images: {header.width} x {header.height} pixels are too many; make it smaller, "
            f"at most {max_pixels} in all (setting max_image_pixels)"
        )
    return header.media_type


def decode_rgb(image: Image) -> PIL.Image.Image:
    """The pixels of an image, mode RGB and upright: EXIF's orientation is applied, transparency lies on white.

    Of an animation it is the first frame. Needs Pillow, which a plugin that calls this depends on. Raises
    ``InvalidRequest`` for a file that can't be read or has too many pixels.
    """
    try:
        from PIL import Image as pillow
    except ImportError as error:
        raise EngineError("images are read with Pillow, which isn't installed; run: pip install pillow") from error
    check_image(image.data, MOST_PIXELS)
    try:
        with pillow.open(io.BytesIO(image.data), formats=_FORMATS) as opened:
            if opened.width * opened.height > MOST_PIXELS:  # it may see more than the header says
                raise ValueError("it has more pixels than its header says")
            opened.load()
            return _on_white(_eight_bits(_upright(opened)))
    except Exception as error:  # a decoder may raise anything for a stranger's file
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise InvalidRequest(_BROKEN.format(why=why)) from error


def decode_base64(text: str) -> bytes:
    """The bytes of an image in base64 (RFC 4648, also without padding). Raises ``InvalidRequest``."""
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        raise InvalidRequest("images: the data isn't base64; send the bytes of the file in base64") from None


def write_images(images: Iterable[Image]) -> list[dict[str, Any]]:
    """Images as JSON values: ``data`` in base64, ``type`` and ``at``."""
    return [
        {"data": base64.b64encode(image.data).decode(), "type": image.media_type, "at": image.at} for image in images
    ]


def _read(data: bytes) -> Header:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return Header("image/png", *struct.unpack_from(">II", data, 16))
    if data.startswith(b"\xff\xd8\xff"):
        return Header("image/jpeg", *_jpeg_size(data))
    if data.startswith((b"GIF87a", b"GIF89a")):
        return Header("image/gif", *struct.unpack_from("<HH", data, 6))
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return Header("image/webp", *_webp_size(data))
    if not data:
        raise InvalidRequest(f"images: the image is empty; send the bytes of a {_KINDS} file")
    raise InvalidRequest(f"images: this isn't a {_KINDS} file; convert it to one of these")


def _jpeg_size(data: bytes) -> tuple[int, int]:
    at = 2
    while True:
        if data[at] != 0xFF:
            raise InvalidRequest(_BROKEN.format(why="its header is no JPEG header"))
        while data[at] == 0xFF:  # any number of them may fill
            at += 1
        marker = data[at]
        at += 1
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 3)
            return width, height
        if marker == _SCAN:
            raise InvalidRequest(_BROKEN.format(why="it doesn't say how large it is"))
        if marker not in _SIZELESS:
            at += max(2, struct.unpack_from(">H", data, at)[0])


def _webp_size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
        struct.unpack_from("6x", data, 24)
        return width, height
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise InvalidRequest(_BROKEN.format(why="its header is no WebP header"))


def _eight_bits(image: PIL.Image.Image) -> PIL.Image.Image:
    """Sixteen bits of grey scaled to eight, which Pillow would cut off."""
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    return image.convert("I").point(lambda value: value * (1 / 257)).convert("L")


def _upright(image: PIL.Image.Image) -> PIL.Image.Image:
    from PIL import ImageOps

    with suppress(Exception):  # broken EXIF says nothing of the picture, which has been read
        return ImageOps.exif_transpose(image)
    return image


def _on_white(image: PIL.Image.Image) -> PIL.Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    from PIL import Image as pillow

    clear = image.convert("RGBA")
    white = pillow.new("RGB", clear.size, "white")
    white.paste(clear, mask=clear.getchannel("A"))
    return white
