"""What is read of an image file before anything is decoded, and what engines get of its pixels."""

import io
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as pillow  # noqa: TID253 - these tests are about pictures

from myllm_core.errors import InvalidRequest
from myllm_core.images import MAX_PIXELS, Header, check_image, decode_rgb, read_header
from myllm_core.types import Image

KINDS = {"PNG": "image/png", "JPEG": "image/jpeg", "GIF": "image/gif", "WEBP": "image/webp"}


def saved(picture: pillow.Image, kind: str, **how: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **how)
    return file.getvalue()


def decoded(data: bytes) -> pillow.Image:
    return decode_rgb(Image(data, ""))


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "CMYK"])
def test_header_says_what_the_decoder_sees(kind: str, mode: str) -> None:
    picture = pillow.new("RGB", (37, 21), (200, 10, 30))
    if kind == "GIF" or (mode in ("RGBA", "CMYK") and kind == "JPEG") or (mode == "CMYK" and kind != "JPEG"):
        mode = "RGB"
    data = saved(picture.convert(mode), kind)
    assert read_header(data) == Header(KINDS[kind], 37, 21)
    pixels = decoded(data)
    assert (pixels.size, pixels.mode) == ((37, 21), "RGB")


@pytest.mark.parametrize(
    "how", [{"lossless": True}, {"lossless": False}, {"lossless": False, "exif": b"Exif\0\0II*\0"}]
)
def test_all_three_headers_of_webp_are_read(how: dict[str, object]) -> None:
    assert read_header(saved(pillow.new("RGB", (300, 2)), "WEBP", **how)) == Header("image/webp", 300, 2)


def test_progressive_jpeg_with_large_segments_before_its_size() -> None:
    data = saved(pillow.new("RGB", (64, 48)), "JPEG", progressive=True, comment=b"x" * 60_000)
    assert read_header(data) == Header("image/jpeg", 64, 48)


def test_bomb_is_refused_by_its_header_alone() -> None:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    with pytest.raises(InvalidRequest, match="60000 x 60000 pixels are too many.*max_image_pixels"):
        check_image(data)
    with pytest.raises(InvalidRequest, match="too many"):
        decoded(data)


def test_limit_of_pixels_is_the_callers() -> None:
    data = saved(pillow.new("RGB", (100, 100)), "PNG")
    assert check_image(data, 10_000) == "image/png"
    with pytest.raises(InvalidRequest, match="at most 9999 in all"):
        check_image(data, 9_999)


def test_gif_whose_frame_is_larger_than_its_screen_is_refused() -> None:
    data = bytearray(saved(pillow.new("P", (8, 8)), "GIF"))
    at = data.index(b"\x2c", 13 + 3 * 2 ** ((data[10] & 7) + 1) if data[10] & 0x80 else 13)
    data[at + 5 : at + 9] = struct.pack("<HH", 65_535, 65_535)
    assert read_header(bytes(data)).width == 8
    with pytest.raises(InvalidRequest, match="can't be read"):
        decoded(bytes(data))


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"BM" + bytes(60), b"%PDF-1.7", b"\0" * 100,
     b"RIFF\0\0\0\0WAVEfmt ", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"GIF89a\0\0\0\0\0\0\0",
     b"RIFF\0\0\0\0WEBPVP8X", b"\xff\xd8\xff\xda\0\x04\0\0", b"\xff\xd8\xff\xe0\0\0" * 3],
)  # fmt: skip
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest, match="^images: "):
        check_image(data)
    with pytest.raises(InvalidRequest, match="^images: "):
        decoded(data)


@pytest.mark.parametrize("kind", KINDS)
def test_broken_file_is_refused_when_decoded(kind: str) -> None:
    data = saved(pillow.effect_noise((200, 200), 90).convert("RGB"), kind)
    with pytest.raises(InvalidRequest, match="can't be read"):
        decoded(data[: len(data) // 2])


@given(st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"RIFF\0\0\0\0WEBPVP8 "]), st.binary())
def test_any_bytes_are_an_image_or_refused(start: bytes, rest: bytes) -> None:
    try:
        assert check_image(start + rest, MAX_PIXELS) in KINDS.values()
    except InvalidRequest as error:
        assert "\n" not in str(error)


def test_orientation_is_applied() -> None:
    picture = pillow.new("RGB", (40, 20))
    exif = picture.getexif()
    exif[0x0112] = 6
    assert decoded(saved(picture, "JPEG", exif=exif)).size == (20, 40)


def test_transparency_lies_on_white() -> None:
    assert decoded(saved(pillow.new("RGBA", (4, 4), (0, 0, 0, 0)), "PNG")).getpixel((0, 0)) == (255, 255, 255)
    half = decoded(saved(pillow.new("LA", (4, 4), (0, 128)), "PNG")).getpixel((0, 0))
    assert half == (127, 127, 127)


def test_sixteen_bits_are_scaled() -> None:
    assert decoded(saved(pillow.new("I;16", (4, 4), 32768), "PNG")).getpixel((0, 0)) == (127, 127, 127)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animation_is_its_first_frame(kind: str) -> None:
    frames = [pillow.new("RGB", (9, 9), color) for color in ("red", "blue")]
    how = {"lossless": True} if kind == "WEBP" else {}
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **how)
    assert decoded(data).getpixel((0, 0)) == (255, 0, 0)
