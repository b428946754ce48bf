"""What log lines look like: text for people, JSON for programs; nothing in them that a terminal obeys."""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from myllm_core.settings import Settings

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request that is answered in this context."""

_MOST = 4000


def printable(text: str, most: int = 200) -> str:
    """``text`` on one line: control, format and other unprintable characters are escaped."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text[:most])
    return shown + "…" if len(text) > most else shown


class TextFormatter(logging.Formatter):
    """``2026-01-01 12:00:00,000 INFO message id``. The lines of a traceback follow it, indented."""

    def format(self, record: logging.LogRecord) -> str:
        """The lines of a record."""
        identity = _request_id(record)
        message = printable(record.getMessage(), _MOST)
        line = f"{self.formatTime(record)} {record.levelname} {message}{identity and ' '}{identity}"
        return "\n    ".join([line, *(printable(part, _MOST) for part in self._traceback(record))])

    def _traceback(self, record: logging.LogRecord) -> list[str]:
        return self.formatException(record.exc_info).split("\n") if record.exc_info else []


class JsonFormatter(logging.Formatter):
    """One JSON object: ``time``, ``level``, ``logger``, ``message``, ``request_id``, and what belongs to the record."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage()[:_MOST],
        }
        if identity := _request_id(record):
            line["request_id"] = identity
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)  # ASCII, so nothing in it is a line end or an escape


def _request_id(record: logging.LogRecord) -> str:
    return str(getattr(record, "fields", {}).get("request_id") or REQUEST_ID.get())


def log_to_stderr(settings: Settings) -> None:
    """Log to standard error as the settings say. Other libraries' debugging stays out: it may hold prompts."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else TextFormatter())
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    ours = logging.getLogger("myllm")
    ours.setLevel(min(level, ours.level or level))  # --verbose has set it before
    logging.basicConfig(level=max(ours.level, logging.INFO), handlers=[handler], force=True)
    for noisy in ("uvicorn", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
