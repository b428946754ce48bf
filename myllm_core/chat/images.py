"""Images in a conversation: which are accepted, and where in a prompt they stand.

Templates see text only. Before rendering, a message's text gets a mark where each of its images stands: the image's
number between two noncharacters that occur nowhere in the messages (as around what must stay literal, see ``literal``).
After rendering, what an engine says of the image takes the mark's place.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from myllm_core.errors import InvalidRequest, TemplateError
from myllm_core.images import check_image
from myllm_core.types import Image, Message

if TYPE_CHECKING:
    from myllm_core.settings import Settings

Tokens = Callable[[Image], list[int]]

SHOWN = "\ufffc"
"""What stands for an image in a prompt that is shown: OBJECT REPLACEMENT CHARACTER."""
MOST_BYTES = 2**28
"""Bytes of all images of a conversation, with those stored: each request hands them to the worker."""
_REMEMBERED = 64


def check_images(messages: Sequence[Message], settings: Settings) -> list[Message]:
    """The messages, whose images have the types that they are of and stand in order. Raises ``InvalidRequest``."""
    count = sum(len(message.images) for message in messages)
    if count > settings.max_images:
        raise InvalidRequest(f"images: {count} are too many; send at most {settings.max_images} (setting max_images)")
    return [_checked(message, settings) if message.images else message for message in messages]


def _checked(message: Message, settings: Settings) -> Message:
    images = []
    for image in message.images:
        if len(image.data) > settings.max_image_bytes:
            raise InvalidRequest(
                f"images: {len(image.data)} bytes are too many; make it smaller, at most {settings.max_image_bytes} "
                "(setting max_image_bytes)"
            )
        if not 0 <= image.at <= len(message.content):
            raise InvalidRequest(
                f"images: the message has no place {image.at}; its text has {len(message.content)} characters"
            )
        images.append(replace(image, media_type=check_image(image.data, settings.max_image_pixels)))
    return replace(message, images=tuple(sorted(images, key=lambda image: image.at)))


def check_total(messages: Sequence[Message]) -> None:
    """Raise ``InvalidRequest`` when a whole conversation has more bytes of images than are worth handing on."""
    total = sum(len(image.data) for message in messages for image in message.images)
    if total > MOST_BYTES:
        raise InvalidRequest(
            f"the conversation has {total} bytes of images, and at most {MOST_BYTES} are read; start a new session"
        )


def marked(messages: Sequence[Message], mark: str) -> list[Message]:
    """The messages with a mark in their text for each image; the numbers go on from message to message."""
    told, number = [], 0
    for message in messages:
        text, end = [], 0
        for image in sorted(message.images, key=lambda image: image.at):
            text.append(f"{message.content[end : image.at]}{mark}{number}{mark}")
            end, number = image.at, number + 1
        told.append(replace(message, content="".join(text) + message.content[end:]) if text else message)
    return told


def in_order(messages: Sequence[Message]) -> list[Image]:
    """The images that ``marked`` numbers."""
    return [image for message in messages for image in sorted(message.images, key=lambda image: image.at)]


def split(text: str, mark: str, count: int) -> list[str | int]:
    """The text between the marks of a rendered conversation, and the numbers of the images.

    Raises ``TemplateError`` when the template left one of the ``count`` images out.
    """
    parts = [int(part) if index % 2 else part for index, part in enumerate(re.split(f"{mark}(\\d+){mark}", text))]
    if len({part for part in parts if isinstance(part, int)}) < count:
        raise TemplateError("the model's chat template leaves out an image; send images in a user's message")
    return parts


def shown(text: str, mark: str) -> str:
    """A rendered conversation as people read it."""
    return re.sub(f"{mark}\\d+{mark}", SHOWN, text)


class ImageTokens:
    """What an engine says of images; what it said of the last ones is remembered, since each turn brings them again."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._known: OrderedDict[bytes, list[int]] = OrderedDict()

    def of(self, image: Image) -> list[int]:
        """The tokens that stand for an image. Raises what ``TokenEngine.image_tokens`` raises."""
        digest = hashlib.sha256(image.data).digest()
        known = self._known.get(digest)
        if known is None:
            known = self._known[digest] = list(self._tokens(image))
        self._known.move_to_end(digest)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return known
