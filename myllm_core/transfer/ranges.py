"""A whole file made of a damaged one: its good blocks from the disk, the others from where it came from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from myllm_core.downloader import RemoteFile
from myllm_core.errors import IntegrityError
from myllm_core.models.blocks import Blocks
from myllm_core.models.disk import open_regular, storage_errors
from myllm_core.models.verify import Ranges
from myllm_core.transfer.client import Broken, HttpClient, Response
from myllm_core.transfer.fetch import CONTENT_RANGE, Download, Retry, check_status
from myllm_core.transfer.sink import PartSink

_CHUNK = 2**20


class NoRanges(Exception):
    """The server sends files only as a whole."""


@dataclass(frozen=True, slots=True)
class Damage:
    """A damaged file, the blocks of the ``size`` bytes that it should have, and which ``ranges`` of them are bad."""

    path: Path
    size: int
    blocks: Blocks
    ranges: Ranges


def patch(sink: PartSink, damage: Damage, file: RemoteFile | None, client: HttpClient, retry: Retry) -> None:
    """Write the whole file into ``sink``; ``file`` is where the bad ranges come from, not needed when there are none.

    Raises ``NoRanges``, ``IntegrityError`` when the source sends something else than was pulled from it,
    ``NetworkError``, ``NotFound`` and ``StorageError``.
    """
    sink.restart()
    sink.expect(damage.size)
    for start, end in damage.ranges:
        _copy(damage.path, start, sink)
        assert file is not None
        _RangeDownload(file, sink, client, retry, damage.blocks, end).run()
    _copy(damage.path, damage.size, sink)


def _copy(source: Path, end: int, sink: PartSink) -> None:
    """Write the bytes from where the sink is up to ``end``."""
    if sink.offset == end:
        return
    with storage_errors(f"read {source}"), open_regular(source) as file:
        file.seek(sink.offset)
        while sink.offset < end:
            chunk = file.read(min(_CHUNK, end - sink.offset))
            if not chunk:
                raise IntegrityError(f"{source} became shorter while it was read; verify it again")
            sink.write(chunk)


class _RangeDownload(Download):
    """Brings the blocks from where the sink is up to ``end``; each is checked before it is written."""

    def __init__(
        self, file: RemoteFile, sink: PartSink, client: HttpClient, retry: Retry, blocks: Blocks, end: int
    ) -> None:
        super().__init__(file, sink, client, retry, None)
        self._blocks = blocks
        self._end = end
        self._waiting = bytearray()

    def _kept(self) -> str:
        return "; nothing was changed: try again later"

    def _attempt(self) -> None:
        begin = self._sink.offset + len(self._waiting)
        if begin >= self._end:
            return
        own = {"Range": f"bytes={begin}-{self._end - 1}"}
        with self._client.get(self._url, self._file.headers, own=own) as response:
            self._judge(response, begin)
            for chunk in response.chunks():
                self._received = True
                self._waiting += chunk
                if self._write_blocks(response.shown):
                    return
        raise Broken(f"{response.shown}: the answer ended too early")

    def _judge(self, response: Response, begin: int) -> None:
        check_status(response, self._retry.cap)
        if response.status == 200:
            raise NoRanges
        match = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
        if not match or int(match[1]) != begin or int(match[2]) >= self._end:
            raise NoRanges  # it has its own idea of them
        if match[3] not in ("*", str(self._file.size)):
            raise changed(response.shown)

    def _write_blocks(self, shown: str) -> bool:
        """Write the blocks that are whole; True when no more are needed."""
        while self._sink.offset < self._end:
            start = self._sink.offset
            size = min(self._blocks.size, self._end - start)
            if len(self._waiting) < size:
                self._sink.best = max(self._sink.best, start + len(self._waiting))
                return False
            block = bytes(self._waiting[:size])
            del self._waiting[:size]
            if hashlib.sha256(block).hexdigest() != self._blocks.digests[start // self._blocks.size]:
                raise changed(shown)
            self._sink.write(block)
        return True


def changed(shown: str) -> IntegrityError:
    """The error for a source that has something else now than what was pulled from it."""
    return IntegrityError(
        f"{shown} has changed since it was pulled; fetch what is there now with: myllm pull NAME --force"
    )
