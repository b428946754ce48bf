"""Images in prompts: the tokens that stand for them, and where their rows come from."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from myllm_core import Image
from myllm_core.errors import InvalidRequest
from myllm_core.images import decode_rgb
from myllm_llamacpp.context import Floats, Ints
from myllm_llamacpp.encoder import Encoder
from myllm_llamacpp.projector import Piece, Pieces, Projector

_KEPT = 256 * 2**20
"""Bytes of rows and pixels that are kept for further prompts with the same images."""
_ROW_PIXELS = 1024  # that a row stands for, about
_PIXEL = 12  # bytes: three floats
_SIGN = np.int32(-(2**31))


@dataclass(slots=True, eq=False)
class Picture:
    """An image that was seen lately. ``rows`` are those that were made, by the number of their piece."""

    digest: bytes
    pieces: list[Piece]
    source: Pieces | None
    rows: dict[int, Floats] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes that it takes, about."""
        pixels = _ROW_PIXELS * _PIXEL * self.source.rows if self.source else 0
        return pixels + sum(rows.nbytes for rows in self.rows.values())

    @property
    def tokens(self) -> Ints:
        """What stands for its rows: numbers below 0, made from the file and the row's number."""
        count = sum(piece.rows for piece in self.pieces)
        return np.frombuffer(hashlib.shake_128(self.digest).digest(4 * count), np.int32) | _SIGN


@dataclass(frozen=True, slots=True)
class Span:
    """The rows of a piece of an image: ``rows`` tokens of a prompt from ``start`` on, over so many ``positions``."""

    start: int
    piece: Piece
    number: int
    image: Image
    digest: bytes

    @property
    def rows(self) -> int:
        """How many tokens they are."""
        return self.piece.rows

    @property
    def end(self) -> int:
        """The first token after them."""
        return self.start + self.piece.rows

    def places(self, position: int) -> Ints:
        """The positions of all rows when the first is at ``position``; shape (4, rows), or (rows,) where one is all."""
        if self.piece.places is None:
            return np.arange(position, position + self.rows, dtype=np.int32)
        first, slope = self.piece.places
        return np.asarray(first + position * slope, np.int32)


class Vision:
    """The images of a model's prompts. Rows are made when a step needs them, and kept for a while."""

    def __init__(self, projector: Projector, kept: int = _KEPT) -> None:
        """Read images with a projector, and keep about so many bytes of them."""
        self._projector = projector
        self._encoder = Encoder()
        projector.watch = self._encoder.watch
        self._pictures: OrderedDict[bytes, Picture] = OrderedDict()
        self._kept = kept
        self.non_causal = projector.non_causal
        self.atomic = projector.non_causal or projector.spatial
        """Whether an image that was read in part can't be gone on with."""

    def tokens(self, image: Image) -> list[int]:
        """What stands for an image in a prompt (see ``TokenEngine.image_tokens``)."""
        picture = self._picture(image, _digest(image))
        rows, tokens = iter(picture.tokens.tolist()), list[int]()
        for piece in picture.pieces:
            tokens += piece.tokens or [next(rows) for _ in range(piece.rows)]
        return tokens

    def spans(self, tokens: Ints, images: Sequence[Image]) -> tuple[Span, ...]:
        """Where the rows of ``images`` are in a prompt. Raises ``InvalidRequest`` when they aren't those in it."""
        (places,) = (tokens < 0).nonzero()
        pictures = [self._picture(image, _digest(image)) for image in images]
        standing = np.concatenate([np.empty(0, np.int32), *(picture.tokens for picture in pictures)])
        if not np.array_equal(tokens[places], standing):
            raise InvalidRequest("the prompt's image tokens aren't those of its images")
        return tuple(self._spans(pictures, images, places.tolist()))

    def _spans(self, pictures: list[Picture], images: Sequence[Image], places: list[int]) -> Iterator[Span]:
        at = 0
        for picture, image in zip(pictures, images, strict=True):
            for number, piece in enumerate(picture.pieces):
                if piece.rows:
                    if places[at + piece.rows - 1] != places[at] + piece.rows - 1:
                        raise InvalidRequest("an image's tokens aren't one after the other in the prompt")
                    yield Span(places[at], piece, number, image, picture.digest)
                    at += piece.rows

    def rows(self, span: Span, seconds: float) -> Floats | None:
        """The rows of a span, shape (rows, width); None when they aren't made after so many seconds of work.

        Raises ``EngineError``.
        """
        picture = self._picture(span.image, span.digest)
        made = picture.rows.get(span.number)
        if made is None:
            source = picture.source
            assert source is not None, "a picture without pixels has all rows"
            piece = source.pieces[span.number]
            made = self._encoder.work((source, span.number), lambda: self._projector.encode(piece), seconds)
            if made is not None:
                self._keep(picture, span.number, made)
        return made

    def _keep(self, picture: Picture, number: int, rows: Floats) -> None:
        picture.rows[number] = rows
        if len(picture.rows) == sum(piece.rows > 0 for piece in picture.pieces):
            picture.source = None
        self._make_room()

    def _picture(self, image: Image, digest: bytes) -> Picture:
        picture = self._pictures.get(digest)
        if picture is None:
            source = self._projector.pieces(decode_rgb(image))
            picture = self._pictures[digest] = Picture(digest, source.pieces, source)
        self._pictures.move_to_end(digest)
        self._make_room()
        return picture

    def _make_room(self) -> None:
        while len(self._pictures) > 1 and sum(picture.size for picture in self._pictures.values()) > self._kept:
            self._pictures.popitem(last=False)

    def close(self) -> None:
        """Free the projector."""
        self._encoder.drop()
        self._pictures.clear()
        self._projector.close()


def _digest(image: Image) -> bytes:
    return hashlib.sha256(image.data).digest()
