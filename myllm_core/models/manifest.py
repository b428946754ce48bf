"""The manifest of a model: what lies on disk, where it came from, how it wants to be used.

File format: ``manifest.json``, UTF-8 JSON, ``schema`` 1; read and written only here. Keys that this version
doesn't know are ignored, so optional ones can be added without a new ``schema``.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

from myllm_core.errors import IntegrityError, InvalidReference
from myllm_core.models.disk import open_regular, storage_errors, write_atomically
from myllm_core.models.reference import model_name

MANIFEST = "manifest.json"
REVISION = re.compile(r"r-[0-9a-f]{12}")
"""What the folder of one revision of a model's files is called; the manifest's relative paths begin with it."""
BLOCKS_SUFFIX = ".blocks.json"
"""After a revision's name, that of the file beside it with the hashes of its blocks."""
SCHEMA = 1
_MAX_BYTES = 16 * 2**20
_MAX_NUMBER = 2**63
_KINDS = {"str": str, "int": int, "dict[str, Any]": dict}


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
    ``aliases`` are other names that the model answers to. ``pulled_at`` is an ISO 8601 time.
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
    aliases: tuple[str, ...] = ()

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


def read_manifest(path: Path) -> Manifest:
    """Read and check a ``manifest.json``; the weights themselves aren't opened.

    Raises ``IntegrityError`` for one that is missing, damaged, written by a newer myllm, or names a file outside its
    folder by a relative path, and ``StorageError`` when it can't be read.
    """
    with storage_errors(f"read {path}"):
        data = _read(path)
    try:
        raw = json.loads(data.decode(), parse_constant=_no_constant)
        json.dumps(raw, ensure_ascii=False).encode()  # refuses half surrogate pairs, which nothing could print
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{MANIFEST} is no valid JSON ({error})") from None
    return _manifest(raw, path.parent)


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Replace ``manifest.json`` in one step: a crash leaves the old one or the new one, whole.

    Raises ``IntegrityError`` for a manifest that ``read_manifest`` would refuse, ``StorageError`` when the disk is full
    or can't be written.
    """
    text = json.dumps({"schema": SCHEMA, **asdict(manifest)}, indent=2, ensure_ascii=False, allow_nan=False)
    _manifest(json.loads(text), path.parent)
    with storage_errors(f"write {path}"):
        write_atomically(path, text.encode() + b"\n")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _read(path: Path) -> bytes:
    if path.is_symlink():  # it could show another user's file
        raise IntegrityError(f"{MANIFEST} is a symbolic link")
    try:
        with open_regular(path) as file:
            data = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise IntegrityError(f"there is no {MANIFEST}") from None
    if len(data) > _MAX_BYTES:
        raise IntegrityError(f"{MANIFEST} is larger than {_MAX_BYTES // 2**20} MiB")
    return data


def _manifest(raw: object, folder: Path) -> Manifest:
    if not isinstance(raw, dict):
        raise IntegrityError(f"{MANIFEST} holds no object")
    schema = raw.get("schema")
    if type(schema) is not int or schema < 1:
        raise IntegrityError(f"{MANIFEST}: schema must be a whole number, not {_shown(schema)}")
    if schema > SCHEMA:
        raise IntegrityError(
            f"{MANIFEST} has schema {schema}, this myllm knows {SCHEMA}; update myllm: pip install -U myllm"
        )
    values: dict[str, Any] = {
        f.name: _checked(f.name, raw[f.name], _KINDS[str(f.type)])
        for f in fields(Manifest)
        if f.name in raw and f.type in _KINDS
    }
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,31}", values.get("format", "")):
        raise IntegrityError(f"{MANIFEST}: format must be a word such as gguf, not {_shown(raw.get('format'))}")
    values["name"] = _name("name", raw.get("name"))
    values["aliases"] = tuple(_name("aliases", alias) for alias in _checked("aliases", raw.get("aliases", []), list))
    values["files"] = tuple(_file(item, folder) for item in _checked("files", raw.get("files"), list))
    if not values["files"] and values["format"] != "remote":
        raise IntegrityError(f"{MANIFEST}: files is empty")
    return Manifest(**values)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _checked(key: str, value: object, kind: type) -> Any:
    if type(value) is not kind:
        raise IntegrityError(f"{MANIFEST}: {key} must be of type {kind.__name__}, not {_shown(value)}")
    if isinstance(value, int) and not 0 <= value < _MAX_NUMBER:
        raise IntegrityError(f"{MANIFEST}: {key} is out of range: {_shown(value)}")
    if isinstance(value, str) and key != "system" and not value.isprintable():
        raise IntegrityError(f"{MANIFEST}: {key} holds control characters: {_shown(value)}")
    return value


def _name(key: str, value: object) -> str:
    try:
        name = model_name(_checked(key, value, str))
    except InvalidReference as error:
        raise IntegrityError(f"{MANIFEST}: {key}: {error}") from None
    if key == "name" and name != value:
        raise IntegrityError(f"{MANIFEST}: name must be written {name}, not {value}")
    return name


def _file(raw: object, folder: Path) -> ModelFile:
    item = _checked("files", raw, dict)
    path = _checked("path", item.get("path"), str)
    size = _checked("size", item.get("size"), int)
    sha256 = _checked("sha256", item.get("sha256"), str)
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise IntegrityError(f"{MANIFEST}: sha256 must be 64 hex digits, not {_shown(sha256)}")
    if ".." in re.split(r"[/\\]", path) or not (os.path.isabs(path) or _stays_inside(path, folder)):
        raise IntegrityError(f"{MANIFEST}: the path {_shown(path)} leads out of the model's folder")
    return ModelFile(path, size, sha256)


def _stays_inside(path: str, folder: Path) -> bool:
    parts = path.split("/")
    if any(part in ("", ".") or part.endswith((" ", ".")) or re.search(r"[\\:]", part) for part in parts):
        return False
    root = os.path.realpath(folder)
    return os.path.realpath(os.path.join(root, *parts)).startswith(root.rstrip(os.sep) + os.sep)
