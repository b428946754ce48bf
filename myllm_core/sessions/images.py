"""Images of stored messages: each file once, however many messages show it, for as long as one does."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Sequence

from myllm_core.types import Image


def insert(db: sqlite3.Connection, message: int, images: Sequence[Image]) -> None:
    """Keep the images of a message."""
    for place, image in enumerate(images):
        digest = hashlib.sha256(image.data).digest()
        db.execute("INSERT INTO blobs (sha256, data) VALUES (?, ?) ON CONFLICT DO NOTHING", [digest, image.data])
        db.execute(
            "INSERT INTO images (message, place, blob, media_type, at) "
            "SELECT ?, ?, number, ?, ? FROM blobs WHERE sha256 = ?",
            [message, place, image.media_type, image.at, digest],
        )


def select(db: sqlite3.Connection, message: int) -> tuple[Image, ...]:
    """The images of a message."""
    rows = db.execute(
        "SELECT data, media_type, at FROM images JOIN blobs ON blob = number WHERE message = ? ORDER BY place",
        [message],
    )
    return tuple(Image(*row) for row in rows)
