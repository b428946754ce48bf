"""What a downloader is: a class that finds out which files a reference means.

The core moves the bytes: resume, hash, free space, retries and progress are the same for all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol

from myllm_core.errors import UnsupportedError
from myllm_core.models.reference import Reference


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file to fetch: ``path`` relative to the model's folder, ``/`` between its parts.

    With a ``url`` (http or https) the core fetches it; without one it calls ``Downloader.fetch``. ``size`` in bytes and
    ``sha256`` in hex are checked when known. ``headers`` go to the URL's own host only.
    """

    path: str
    url: str | None = None
    size: int | None = None
    sha256: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Resolution:
    """What a reference means: the files, and what else the source says about the model.

    ``name`` is the name to install it under when the user gives none. ``source`` is the reference in full,
    ``revision`` what pins it (a commit, a version, an ETag). ``format`` is needed only where the files don't tell
    (the core knows ``gguf``, ``safetensors`` and ``onnx``).
    """

    files: tuple[RemoteFile, ...]
    name: str
    source: str
    revision: str = ""
    licence: str = ""
    format: str = ""


class Sink(Protocol):
    """Where ``Downloader.fetch`` writes a file's bytes, in order; the core hashes and counts them."""

    def write(self, data: bytes) -> None:
        """Append bytes. Raises ``StorageError`` when the disk is full, ``KeyboardInterrupt`` when the user stops."""

    def expect(self, size: int) -> None:
        """Say how many bytes the file will have, for progress and the free-space check."""

    def message(self, text: str) -> None:
        """Tell the user in a few words what goes on while no bytes flow."""

    def folder(self) -> Path:
        """An empty folder on the models' disk for temporary files; the core removes it, at the latest next time."""


class Downloader(ABC):
    """Finds the files behind references of its ``schemes`` (``hf``, ``https``, …). Made without arguments."""

    name: ClassVar[str]
    schemes: ClassVar[frozenset[str]]

    @abstractmethod
    def resolve(self, reference: Reference) -> Resolution:
        """Find out which files ``reference`` means. Fetches metadata only.

        Raises ``InvalidReference`` for one that can't be, ``NotFound`` when the source has no such
        thing, ``NetworkError`` when it can't be reached.
        """

    def pin(self, reference: Reference, revision: str) -> Reference:
        """The reference of exactly the ``revision`` that ``resolve`` gave for ``reference`` once, to repair a model.

        As it is, for sources that keep no old revisions, and where the reference names one.
        """
        return reference

    def fetch(self, file: RemoteFile, sink: Sink) -> None:
        """Write the bytes of a file that has no URL into ``sink``."""
        raise UnsupportedError(f"the {self.name} downloader gave no URL for {file.path}")
