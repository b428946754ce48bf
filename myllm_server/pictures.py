"""Images as the dialects send them: parts beside parts of text, and always the file itself.

Nothing is fetched: who could make the server ask for an address could read what only the server may.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from myllm_core.errors import InvalidRequest
from myllm_core.images import decode_base64
from myllm_core.types import Image, Message
from myllm_server.lenient import invalid, unsupported_field

NOT_FETCHED = "images aren't fetched here; send the file itself, in base64"


@dataclass(frozen=True, slots=True)
class Content:
    """A text, and the addresses of images with the places where they stand in it."""

    text: str = ""
    urls: tuple[tuple[int, str], ...] = ()

    def images(self, param: str) -> tuple[Image, ...]:
        """The images. Raises ``HttpError`` for an address that isn't the file itself."""
        return tuple(Image(from_data_uri(param, url), "", at) for at, url in self.urls)


class Parts:
    """Parts of a message one after another: texts side by side are a line each, images stand between them."""

    def __init__(self) -> None:
        self.text = ""
        self.images: list[Image] = []
        self.urls: list[tuple[int, str]] = []
        self._said = False

    def say(self, text: str) -> None:
        """Add a text."""
        self.text += f"\n{text}" if self._said else text
        self._said = True

    def show(self, image: bytes | str) -> None:
        """Add an image: the file, or its address."""
        if isinstance(image, str):
            self.urls.append((len(self.text), image))
        else:
            self.images.append(Image(image, "", len(self.text)))
        self._said = False

    def content(self) -> Content:
        """The text, and the addresses."""
        return Content(self.text, tuple(self.urls))


def from_data_uri(param: str, url: str) -> bytes:
    """The bytes in a ``data:`` URI (RFC 2397) with base64. Raises ``HttpError`` for any other address."""
    if url[:5].lower() != "data:":
        raise unsupported_field(param, f"{NOT_FETCHED}: data:image/png;base64,…")
    head, comma, data = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise invalid(param, "the data: URI isn't base64; send data:image/png;base64,…")
    return from_base64(param, data)


def from_base64(param: str, text: str) -> bytes:
    """The bytes of an image in base64. Raises ``HttpError``."""
    try:
        return decode_base64(text)
    except InvalidRequest as error:
        raise invalid(param, error.message.removeprefix("images: ")) from None


def one_after_another(first: Message, second: Message) -> tuple[str, tuple[Image, ...]]:
    """The text and images of two messages made one."""
    between = "\n" if first.content and second.content else ""
    shift = len(first.content) + len(between)
    return f"{first.content}{between}{second.content}", (*first.images, *moved(second.images, shift))


def moved(images: Sequence[Image], shift: int) -> list[Image]:
    """Images whose text stands ``shift`` characters further on."""
    return [replace(image, at=image.at + shift) for image in images]
