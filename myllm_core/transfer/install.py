"""Putting fetched files in place as one model: all of it, or nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from myllm_core.catalog import CatalogEntry
from myllm_core.downloader import Resolution
from myllm_core.errors import IntegrityError, MyllmError
from myllm_core.models.blocks import write_blocks
from myllm_core.models.disk import storage_errors
from myllm_core.models.inspect import Inspection, inspect_files
from myllm_core.models.manifest import Manifest, Model, ModelFile
from myllm_core.models.reference import model_name
from myllm_core.models.store import ModelStore
from myllm_core.transfer.fetch import Fetched


@dataclass(frozen=True, slots=True)
class Description:
    """What is known of a model apart from its files."""

    name: str
    resolution: Resolution
    entry: CatalogEntry | None = None


def install(store: ModelStore, what: Description, fetched: Sequence[Fetched]) -> Model:
    """Make the fetched files the installed model of that name. Call it while holding the model's lock.

    Raises ``IntegrityError`` when they are no model (they are deleted then), ``StorageError`` when the disk refuses
    (they stay in their partials).
    """
    staged = store.staging(what.name)
    try:
        with storage_errors(f"install {what.name}"):
            for file in fetched:
                _put(file.partial.data, staged / file.path)
        inspection = inspect_files(staged, [file.path for file in fetched], what.resolution.format)
        write_blocks(staged.parent, staged.name, {file.path: (file.sha256, file.blocks) for file in fetched})
        return store.commit(_manifest(what, inspection, staged.name, fetched))
    except BaseException as error:
        if not _is_committed(store, what.name, staged):  # Ctrl+C may come after that, while old files are deleted
            if not isinstance(error, IntegrityError):
                _take_back(staged, fetched)
            store.discard(staged)
        raise


def _is_committed(store: ModelStore, name: str, staged: Path) -> bool:
    try:
        return any(staged in path.parents for path in store.get(name).paths)
    except MyllmError:
        return False


def _put(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(source, target)


def _take_back(staged: Path, fetched: Sequence[Fetched]) -> None:
    for file in fetched:
        with suppress(OSError):
            os.replace(staged / file.path, file.partial.data)


def _manifest(what: Description, inspection: Inspection, folder: str, fetched: Sequence[Fetched]) -> Manifest:
    by_path = {file.path: file for file in fetched}
    files = tuple(ModelFile(f"{folder}/{path}", by_path[path].size, by_path[path].sha256) for path in inspection.files)
    entry, resolution = what.entry or CatalogEntry("", ()), what.resolution
    same = bool(entry.name) and model_name(entry.name) == what.name
    return Manifest(
        name=what.name,
        format=inspection.format,
        files=files,
        source=resolution.source,
        revision=resolution.revision,
        licence=resolution.licence or entry.licence or inspection.licence,
        family=inspection.family,
        quantization=inspection.quantization,
        context_size=inspection.context_size or entry.context_size,
        parameters=inspection.parameters,
        options=dict(entry.options),
        system=entry.system,
        pulled_at=datetime.now(UTC).isoformat(timespec="seconds"),
        aliases=tuple(dict.fromkeys(model_name(alias) for alias in entry.aliases)) if same else (),
    )
