"""Short names that ``pull`` knows, each with the sources that it is tried from, in order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Source:
    """A reference to pull from; ``sha256`` pins the hash of its (single) model file."""

    reference: str
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """A model worth recommending. ``name`` is ``base:tag``; ``aliases`` are other names for it.

    ``size`` in bytes and ``context_size`` in tokens are for the table of ``pull --list``.
    """

    name: str
    sources: tuple[Source, ...]
    description: str = ""
    parameters: str = ""
    size: int = 0
    context_size: int = 0
    licence: str = ""
    aliases: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    system: str = ""
