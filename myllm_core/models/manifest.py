"""The manifest of a model: what lies on disk, where it came from, how it wants to be used.

File format: ``manifest.json``, UTF-8 JSON, ``schema`` 1; read and written only here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A file of a model: ``path`` relative to the model's folder, or absolute when it lies elsewhere."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is known of an installed model without opening its weights.

    ``format`` is ``gguf``, ``safetensors``, ``onnx``, ``ggml`` or ``remote``. ``source`` is the reference that was
    pulled and ``revision`` what it was pinned to. ``context_size`` is in tokens (0: unknown),
    ``parameters`` a count (0: unknown). ``options`` are default generation options, ``load_options`` the engine's.
    """

    name: str
    format: str
    files: tuple[ModelFile, ...]
    source: str = ""
    revision: str = ""
    licence: str = ""
    family: str = ""
    quantization: str = ""
    context_size: int = 0
    parameters: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    load_options: dict[str, Any] = field(default_factory=dict)
    system: str = ""
    engine: str = ""
    pulled_at: str = ""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(f.size for f in self.files)


@dataclass(frozen=True, slots=True)
class Model:
    """An installed model: its manifest and the folder that it lies in."""

    manifest: Manifest
    folder: Path

    @property
    def name(self) -> str:
        """The model's installed name."""
        return self.manifest.name

    @property
    def format(self) -> str:
        """The weights' file format."""
        return self.manifest.format

    @property
    def paths(self) -> tuple[Path, ...]:
        """Absolute paths of all files, in the manifest's order; the first is the one to load."""
        return tuple(self.folder / f.path for f in self.manifest.files)
