"""From a name to sources, from a source to files: what the catalogue and the downloaders say, checked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from myllm_core.catalog import CatalogEntry
from myllm_core.downloader import Downloader, RemoteFile, Resolution
from myllm_core.errors import IntegrityError, InvalidRequest, MyllmError, NetworkError, PluginError
from myllm_core.guard import cause, stdout_to_stderr
from myllm_core.models.reference import DEFAULT_TAG, Reference, model_name
from myllm_core.transfer.paths import checked_paths
from myllm_core.transfer.urls import mask_url
from myllm_core.transfer.waiting import OutOfTime, within

_SHA256 = re.compile(r"[0-9a-f]{64}")


def find_entry(catalog: Sequence[CatalogEntry], name: str) -> CatalogEntry | None:
    """The entry of this name or alias, else the only one of this base."""
    wanted = model_name(name)
    for entry in catalog:
        if wanted in {model_name(known) for known in (entry.name, *entry.aliases)}:
            return entry
    base, _, tag = wanted.partition(":")
    same_base = [entry for entry in catalog if entry.name.partition(":")[0] == base]
    return same_base[0] if len(same_base) == 1 and tag == DEFAULT_TAG else None


def checked_pin(sha256: str | None) -> str:
    """The hash in lower case, empty for none. Raises ``InvalidRequest`` for what is none."""
    pin = (sha256 or "").strip().lower().removeprefix("sha256:")
    if pin and not _SHA256.fullmatch(pin):
        raise InvalidRequest(f"{pin[:80]!r} is no sha256; give its 64 hexadecimal digits")
    return pin


def resolve(downloader: Downloader, reference: Reference, patience: float | None) -> Resolution:
    """What the downloader says the reference means, checked; None waits as long as it takes.

    Raises what the downloader raises, ``NetworkError`` when time is up, ``PluginError`` for what is no answer, and
    ``IntegrityError`` for file names that aren't safe.
    """
    try:
        with stdout_to_stderr():
            answer = within(patience, lambda: downloader.resolve(reference))
    except (MyllmError, KeyboardInterrupt):
        raise
    except OutOfTime as error:
        raise NetworkError(f"{mask_url(reference.text)}: {error}; try again later") from None
    except BaseException as error:
        raise PluginError(f"the {downloader.name} downloader failed: {cause(error)}") from error
    files = answer.files if isinstance(answer, Resolution) else ()
    if not files or not all(isinstance(file, RemoteFile) for file in files):
        raise PluginError(f"the {downloader.name} downloader gave no files for {mask_url(reference.text)}; update it")
    checked_paths(file.path for file in files)
    return replace(answer, files=tuple(replace(f, sha256=f.sha256.lower() if f.sha256 else None) for f in files))


def pinned(resolution: Resolution, sha256: str) -> Resolution:
    """The resolution with the hash that its one model file must have, if any.

    Raises ``InvalidRequest`` when there are several, ``IntegrityError`` when the source itself says another hash.
    """
    if not sha256:
        return resolution
    files = resolution.files
    weights = [file for file in files if _is_gguf_model(file.path)] if len(files) > 1 else list(files)
    if len(weights) != 1:
        raise InvalidRequest(f"a sha256 needs a model in one file; {resolution.source} has {len(files)} files")
    (file,) = weights
    if file.sha256 and file.sha256.lower() != sha256:
        raise IntegrityError(
            f"{file.path} is not the expected file: its source says that its sha256 is {file.sha256}, and it should be "
            f"{sha256}",
            sha256=file.sha256,
            expected=sha256,
        )
    return replace(resolution, files=tuple(replace(f, sha256=sha256) if f is file else f for f in files))


def _is_gguf_model(path: str) -> bool:
    """Whether a file is a model by its name, not the projector for images that comes with one."""
    name = path.lower().rpartition("/")[2]
    return name.endswith(".gguf") and "mmproj" not in name
