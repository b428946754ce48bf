"""Taking a GGUF header apart piece by piece, never more than the file holds and memory allows."""

from __future__ import annotations

import struct
from typing import Any, BinaryIO, NoReturn

from myllm_core.errors import IntegrityError

_U64 = struct.Struct("<Q")
_CHUNK = 256 * 1024
_MAX_HEADER = 512 * 2**20
_MAX_STRING = 16 * 2**20
_MAX_KEPT_TEXT = 32 * 2**20


class ByteReader:
    """Takes little-endian numbers and texts from the front of a file; each method raises ``IntegrityError`` at its end.

    ``kept_elements`` and ``walked`` are for the caller's own account of work done.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.name = name
        self.size = file.seek(0, 2)
        self.kept_text = 0
        self.kept_elements = 0
        self.walked = 0
        self._file = file
        self._buffer = b""
        self._start = 0  # of the buffer, in the file
        self._at = 0  # in the buffer

    @property
    def position(self) -> int:
        """Bytes from the file's begin to the next one to take."""
        return self._start + self._at

    @property
    def left(self) -> int:
        """Bytes that may still be taken."""
        return min(self.size, _MAX_HEADER) - self.position

    def fail(self, reason: str) -> NoReturn:
        """Refuse the file."""
        raise IntegrityError(f"{self.name} is no usable GGUF file: {reason}")

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        end = self._at + count
        if end > len(self._buffer):
            self._fill(count)
            end = count
        data = self._buffer[self._at : end]
        self._at = end
        return data

    def check(self, count: int) -> None:
        """Refuse the file unless ``count`` more bytes may be taken."""
        if count > self.left:
            self.fail("it ends too early" if self.size <= _MAX_HEADER else f"its header exceeds {_MAX_HEADER} bytes")

    def skip(self, count: int) -> None:
        """Pass over ``count`` bytes."""
        self.check(count)
        self._at += count

    def number(self, kind: struct.Struct) -> Any:
        """The next number."""
        return kind.unpack(self.take(kind.size))[0]

    def text(self, limit: int = _MAX_STRING) -> str:
        """The next text, of at most ``limit`` bytes; bytes that are no UTF-8 are replaced."""
        length = self.number(_U64)
        if length > limit:
            self.fail(f"a text of {length} bytes is longer than the {limit} that are allowed")
        self.kept_text += length
        if self.kept_text > _MAX_KEPT_TEXT:
            self.fail(f"its texts are longer than {_MAX_KEPT_TEXT} bytes together")
        return self.take(length).decode(errors="replace")

    def skip_texts(self, count: int) -> None:
        """Pass over ``count`` texts."""
        # The one hot loop: a vocabulary has 10^5 to 10^6 texts, so it works on the buffer itself.
        unpack, buffer, at = _U64.unpack_from, self._buffer, self._at
        for _ in range(count):
            if at + 8 > len(buffer):
                self._at = at
                self._fill(8)
                buffer, at = self._buffer, 0
            length = unpack(buffer, at)[0]
            at += 8 + length
            if length > _MAX_STRING:
                self.fail(f"a text of {length} bytes is longer than the {_MAX_STRING} that are allowed")
        self._at = at
        self.check(0)

    def _fill(self, count: int) -> None:
        self.check(count)
        self._start, self._at = self.position, 0
        self._file.seek(self._start)
        self._buffer = self._file.read(max(count, _CHUNK))
        if len(self._buffer) < count:
            self.fail("it was cut while it was read")
