"""Running a stranger's code: what it prints stays off standard output, whatever it raises becomes one error."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator

from myllm_core.errors import MyllmError, PluginError

_MAX_TEXT = 500
_stdout_lock = threading.RLock()  # file descriptor 1 is the whole process's


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Run a stranger's code inside. Raises ``PluginError`` for all that it raises, ``SystemExit`` too."""
    try:
        with stdout_to_stderr():
            yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise PluginError(cause(error)) from error


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send what is printed, by Python or straight to the file descriptor, to standard error for a while."""
    with _stdout_lock, contextlib.redirect_stdout(sys.stderr):
        _flush()
        saved = _divert()
        try:
            yield
        finally:
            _flush()
            if saved is not None:
                os.dup2(saved, 1)
                os.close(saved)


def _divert() -> int | None:
    try:
        saved = os.dup(1)
    except OSError:  # standard output is closed
        return None
    try:
        os.dup2(2, 1)
    except OSError:  # standard error is closed
        os.close(saved)
        return None
    return saved


def _flush() -> None:
    for stream in (sys.__stdout__, sys.stdout):
        with contextlib.suppress(AttributeError, ValueError, OSError):  # None, closed, or a broken pipe
            stream.flush()  # type: ignore[union-attr]


def cause(error: BaseException) -> str:
    """What went wrong as one printable line of bounded length."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - a stranger's __str__ may raise anything
        text = "an error that can't be shown"
    return one_line(text if isinstance(error, MyllmError) else f"{type(error).__name__}: {text}")


def shown(value: object) -> str:
    """A short name for a value of a stranger's: its ``name``, its ``__name__`` or its type."""
    for attribute in ("name", "__name__"):
        try:
            name = getattr(value, attribute, None)
        except Exception:  # noqa: BLE001 - a stranger's property may raise anything
            name = None
        if isinstance(name, str) and name:
            return one_line(name, 100)
    return one_line(f"{type(value).__name__} object", 100)


def one_line(text: str, limit: int = _MAX_TEXT) -> str:
    """``text`` on one line, at most ``limit`` characters, without anything that a terminal would obey."""
    text = " ".join(text[: 4 * limit].split())
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= limit else text[: limit - 1] + "…"
