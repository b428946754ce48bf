"""Checking that an installed model is still what was pulled."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from myllm_core.errors import MyllmError
from myllm_core.models.disk import open_regular, storage_errors
from myllm_core.models.inspect import inspect_files
from myllm_core.models.manifest import Model, ModelFile

_CHUNK = 2**20

VerifyProgress = Callable[[str, int, int], None]
"""Called with a file's path, the bytes of it that were read, and its size; about once a MiB."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a model; ``path`` is the file's as in the manifest, empty when it is about all files."""

    path: str
    message: str


def verify(model: Model, progress: VerifyProgress) -> list[Problem]:
    """Hash all files again and look into them again; an empty list means that all is well."""
    problems = []
    for file in model.manifest.files:
        try:
            found = _sha256(model.folder / file.path, file, progress)
        except MyllmError as error:
            problems.append(Problem(file.path, error.message))
            continue
        if found != file.sha256:
            problems.append(
                Problem(file.path, f"{file.path} has changed: its sha256 is {found}, and was {file.sha256} when pulled")
            )
    if not problems and model.manifest.files:
        names = [file.path for file in model.manifest.files]
        try:
            inspect_files(model.folder, names, format=model.format)
        except MyllmError as error:
            problems.append(Problem("", error.message))
    return problems


def _sha256(path: Path, file: ModelFile, progress: VerifyProgress) -> str:
    digest = hashlib.sha256()
    done = 0
    with storage_errors(f"read {path}"), open_regular(path) as source:
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            progress(file.path, done, file.size)
    return digest.hexdigest()
