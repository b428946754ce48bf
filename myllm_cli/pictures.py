"""Image files that are sent to a model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from myllm_core.errors import InvalidRequest
from myllm_core.images import check_image, read_header
from myllm_core.types import Image

if TYPE_CHECKING:
    from myllm_core.settings import Settings


def read_image(name: str, settings: Settings) -> Image:
    """An image file that a model may be given. Raises ``InvalidRequest`` with the file's name."""
    file = Path(name).expanduser()
    try:
        with file.open("rb") as stream:
            data = stream.read(settings.max_image_bytes + 1)
    except OSError as error:
        raise InvalidRequest(f"can't read the image {file}: {error.strerror}; check the path") from None
    if len(data) > settings.max_image_bytes:
        most = settings.max_image_bytes
        raise InvalidRequest(f"{file} is too large; make it smaller, at most {most} bytes (setting max_image_bytes)")
    try:
        return Image(data, check_image(data, settings.max_image_pixels))
    except InvalidRequest as error:
        raise InvalidRequest(f"{file}: {error.message.removeprefix('images: ')}") from None


def size_of(image: Image) -> str:
    """How large an image is, as people say it."""
    header = read_header(image.data)
    return f"{header.width} x {header.height} pixels"


def counted(images: Iterable[Image]) -> str:
    """How many images there are, in words; empty for none."""
    count = len(list(images))
    return {0: "", 1: "1 image"}.get(count, f"{count} images")
