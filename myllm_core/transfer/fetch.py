"""Bringing one file here: over HTTP with resume and retries, or by a downloader that writes it itself."""

from __future__ import annotations

import email.utils
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from myllm_core.downloader import Downloader, RemoteFile
from myllm_core.errors import IntegrityError, MyllmError, NetworkError, NotFound, PluginError
from myllm_core.guard import cause
from myllm_core.models.blocks import Blocks
from myllm_core.transfer.client import Broken, HttpClient, Response, Unreachable
from myllm_core.transfer.partial import Partial, partial_key
from myllm_core.transfer.sink import PartSink, PullProgress, size_text

CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and how soon a broken download is tried again.

    ``attempts`` counts failures in a row: ``progress_bytes`` new bytes begin a new row. Waits grow from ``first`` to
    ``longest`` seconds; a server's Retry-After is honoured up to ``cap``.
    """

    attempts: int = 5
    first: float = 1.0
    longest: float = 30.0
    cap: float = 60.0
    progress_bytes: int = 2**16

    def wait(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row, with jitter so that clients don't come back as one."""
        return float(min(self.longest, self.first * 2 ** (failures - 1)) * random.uniform(0.5, 1.0))


@dataclass(slots=True)
class Fetched:
    """A whole file that waits in its partial to be put in place."""

    path: str
    size: int
    sha256: str
    blocks: Blocks
    partial: Partial


class _Busy(Broken):
    """The server asks to be left alone for ``seconds``."""

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


class _Changed(Broken):
    """What the server has isn't what the partial's bytes are of: begin again, at once."""


def fetch(
    file: RemoteFile,
    downloader: Downloader,
    *,
    root: Path,
    key: tuple[str, str],
    revision: str,
    progress: PullProgress,
    client: HttpClient,
    retry: Retry,
    patience: float | None = None,
) -> Fetched:
    """Bring ``file`` into a partial in ``root``, going on from an earlier try, and check its size and hash.

    ``key`` is the model's name and source. With ``patience`` the first byte must come within so many seconds. Raises
    ``NetworkError``, ``NotFound``, ``IntegrityError``, ``StorageError``; the partial is kept but for a wrong hash.
    """
    return collect(
        file,
        lambda sink: _bring(file, downloader, sink, client, retry, patience),
        root=root,
        key=key,
        revision=revision,
        progress=progress,
    )


def collect(
    file: RemoteFile,
    bring: Callable[[PartSink], None],
    *,
    root: Path,
    key: tuple[str, str],
    revision: str,
    progress: PullProgress,
) -> Fetched:
    """Have ``bring`` write ``file`` into a partial in ``root``, going on from an earlier try, and check what it wrote.

    Raises what ``bring`` raises, ``IntegrityError`` for a wrong size or hash, ``StorageError``; the partial is kept
    where a later try can go on from it.
    """
    partial = Partial.claim(root, partial_key(*key, file.path))
    partial.state.model, partial.state.path = key[0], file.path
    try:
        with PartSink(partial, file, revision, progress) as sink:
            digest, blocks = _checked(file, bring, sink)
            return Fetched(file.path, sink.offset, digest, blocks, partial)
    except BaseException:
        partial.release()
        raise


def _checked(file: RemoteFile, bring: Callable[[PartSink], None], sink: PartSink) -> tuple[str, Blocks]:
    while True:
        resumed = sink.resumed
        if not sink.whole:
            bring(sink)
        try:
            return sink.finish()
        except IntegrityError:
            if not resumed:
                raise
            sink.message(f"what was here of {file.path} from an earlier try was damaged; fetching it anew")


def _bring(
    file: RemoteFile, downloader: Downloader, sink: PartSink, client: HttpClient, retry: Retry, patience: float | None
) -> None:
    if file.url:
        Download(file, sink, client, retry, patience).run()
    else:
        _let_write(file, downloader, sink)


def _let_write(file: RemoteFile, downloader: Downloader, sink: PartSink) -> None:
    sink.restart()
    try:
        downloader.fetch(file, sink)
    except (MyllmError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise PluginError(f"the {downloader.name} downloader failed at {file.path}: {cause(error)}") from error


class Download:
    """One file's way over HTTP: requests, retries, and what to believe of the answers."""

    def __init__(
        self, file: RemoteFile, sink: PartSink, client: HttpClient, retry: Retry, patience: float | None
    ) -> None:
        assert file.url is not None
        self._file = file
        self._url: str = file.url
        self._sink = sink
        self._client = client
        self._retry = retry
        self._deadline = time.monotonic() + patience if patience else None
        self._received = False
        self._mark = sink.best

    def run(self) -> None:
        """Write all bytes into the sink. Raises ``NetworkError`` when that can't be done."""
        failures = 0
        while True:
            try:
                return self._attempt()
            except Broken as error:
                failures = self._count(failures)
                self._pause(error, failures)
            except Unreachable as error:
                if not self._received:
                    raise
                failures = self._count(failures)
                self._pause(error, failures)

    def _count(self, failures: int) -> int:
        """Failures in a row; new bytes beyond the most there ever were begin a new row."""
        if self._sink.best - self._mark >= self._retry.progress_bytes:
            self._mark, failures = self._sink.best, 0
        return failures + 1

    def _pause(self, error: NetworkError, failures: int) -> None:
        wait = 0.0 if isinstance(error, _Changed) else self._retry.wait(failures)
        if isinstance(error, _Busy):
            wait = max(wait, min(error.seconds, self._retry.cap))
        too_late = self._deadline is not None and not self._received and time.monotonic() + wait >= self._deadline
        if failures > self._retry.attempts or too_late:
            raise NetworkError(error.message + self._kept()) from None
        when = f"in {wait:.0f} s" if wait >= 1 else "now"
        self._sink.message(f"{error.message}; trying again {when} ({failures} of {self._retry.attempts})")
        time.sleep(wait)

    def _kept(self) -> str:
        if not self._sink.kept:
            return "; try again later"
        return f"; {size_text(self._sink.kept)} are kept: pull again to go on from there"

    def _attempt(self) -> None:
        sink = self._sink
        own = self._range()
        left = None
        if self._deadline is not None and not self._received:
            left = max(0.1, self._deadline - time.monotonic())
        with self._client.get(self._url, self._file.headers, own=own, patience=left) as response:
            self._accept(response)
            for chunk in response.chunks():
                sink.write(chunk)
                self._received = True
        if sink.total is not None and sink.offset < sink.total:
            raise Broken(f"{response.shown}: the answer ended {size_text(sink.total - sink.offset)} too early")

    def _range(self) -> dict[str, str]:
        if not self._sink.offset:
            return {}
        own = {"Range": f"bytes={self._sink.offset}-"}
        if self._sink.state.validator:
            own["If-Range"] = self._sink.state.validator
        elif not self._file.sha256:
            self._sink.restart()
            return {}
        return own

    def _accept(self, response: Response) -> None:
        """Judge the answer's head, and bring the sink to where its body begins."""
        if response.status == 416 and self._sink.offset:
            self._sink.restart()
            raise _Changed(f"{response.shown}: the file is shorter at its source now; beginning again")
        check_status(response, self._retry.cap)
        if response.status == 206:
            total = self._check_part(response)
        else:
            total = length_of(response)
            if self._sink.offset:
                if self._file.size is not None and total not in (None, self._file.size):
                    raise self._wrong_size(total)  # before the bytes here are thrown away for it
                self._sink.message(f"{response.shown}: the server begins again from the start")
                self._sink.restart()
        if total is not None:
            self._sink.expect(total)
        self._sink.describe(_validator(response), total)

    def _check_part(self, response: Response) -> int | None:
        match = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
        state, sink = self._sink.state, self._sink
        total = int(match[3]) if match and match[3] != "*" else None
        fits = match is not None and int(match[1]) == sink.offset
        same = state.validator in ("", _validator(response)) and (state.size in (-1, total) or total is None)
        if sink.offset and fits and same:
            return total if total is not None else (state.size if state.size >= 0 else None)
        if not sink.offset:
            raise NetworkError(f"{response.shown}: the server sends a part that nobody asked for")
        sink.restart()
        raise _Changed(f"{response.shown}: the file changed at its source; beginning again")

    def _wrong_size(self, total: int | None) -> IntegrityError:
        return IntegrityError(f"{self._file.path} should have {self._file.size} bytes, but the source has {total}")


def check_status(response: Response, cap: float = 60.0) -> None:
    """Raise what a status other than 200 or 206, or a web page in place of a file, means."""
    status, shown = response.status, response.shown
    if status in (200, 206):
        if response.headers.get("Content-Type", "").lower().startswith("text/html"):
            raise IntegrityError(f"{shown} is a web page, not a model file; give the address of the file itself")
    elif status in (404, 410):
        raise NotFound(f"{shown}: there is no such file ({status})")
    elif status in (401, 403, 407):
        raise NetworkError(f"{shown}: access refused ({status}); it needs a login or a token, or isn't public")
    elif status == 416:
        raise NetworkError(f"{shown}: the server has no such part of the file ({status})")
    elif status in _BUSY:
        raise _Busy(f"{shown}: the server is busy or in trouble ({status})", _retry_after(response, cap))
    else:
        raise NetworkError(f"{shown}: the server answers {status}, which is no file")


def length_of(response: Response) -> int | None:
    """The bytes that the answer's body says it has; None when it doesn't say."""
    text = response.headers.get("Content-Length", "").strip()
    chunked = "chunked" in response.headers.get("Transfer-Encoding", "").lower()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 and not chunked else None


def _retry_after(response: Response, cap: float) -> float:
    text = response.headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), cap)
    try:
        when = email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError, OSError):
        return 0.0
    return min(max(0.0, when - time.time()), cap)


def _validator(response: Response) -> str:
    """What If-Range may name: a strong ETag, else the date of the last change (RFC 9110, 13.1.5)."""
    etag = response.headers.get("ETag", "").strip()
    if etag.startswith('"') and len(etag) < 500 and etag.isprintable():
        return etag
    modified = response.headers.get("Last-Modified", "").strip()
    return modified if len(modified) < 100 and modified.isprintable() and not etag else ""
