"""``pull``: from a name or reference to an installed, verified model."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from myllm_core.catalog import CatalogEntry, Source
from myllm_core.downloader import Downloader, Resolution
from myllm_core.errors import (
    IntegrityError,
    InvalidReference,
    InvalidRequest,
    ModelNotFound,
    MyllmError,
    NetworkError,
    Overloaded,
    PluginError,
    StorageError,
)
from myllm_core.models.disk import storage_errors
from myllm_core.models.manifest import Model
from myllm_core.models.reference import DEFAULT_TAG, Reference, model_name, parse_reference, safe_name
from myllm_core.models.store import ModelStore
from myllm_core.plugins import Plugins
from myllm_core.transfer.client import HttpClient
from myllm_core.transfer.fetch import Fetched, Retry, fetch
from myllm_core.transfer.install import Description, install
from myllm_core.transfer.partial import bytes_kept, partial_key, sweep
from myllm_core.transfer.sink import PullProgress, check_space
from myllm_core.transfer.sources import checked_pin, find_entry, pinned, resolve
from myllm_core.transfer.urls import mask_url

__all__ = ["PullInterrupted", "PullProgress", "find_entry", "pull"]

_PATIENCE = 10.0


class PullInterrupted(KeyboardInterrupt):
    """Ctrl+C while files were fetched; ``kept`` is how many bytes the next try goes on from."""

    def __init__(self, kept: int) -> None:
        super().__init__()
        self.kept = kept


def pull(
    reference: str,
    *,
    plugins: Plugins,
    store: ModelStore,
    progress: PullProgress,
    name: str | None = None,
    force: bool = False,
    sha256: str | None = None,
    client: HttpClient | None = None,
    retry: Retry | None = None,
    patience: float = _PATIENCE,
) -> Model:
    """Install the model that ``reference`` names, and return it; one that is there and whole already is just returned.

    ``name`` is what to install it under, ``force`` fetches it anew, ``sha256`` is the hash that its file must have. A
    catalogue entry's sources are tried in order; one with another after it gets ``patience`` seconds for its first
    sign of life. Ctrl+C and every failure leave what has been fetched for the next try, where the source lets it go on
    from there, and nothing half installed.

    Raises ``InvalidReference``, ``ModelNotFound``, ``NotFound``, ``NetworkError``, ``IntegrityError``,
    ``StorageError``, ``PluginError``, and ``PullInterrupted`` for Ctrl+C while files were fetched.
    """
    downloaders = plugins.downloaders()
    parsed = _parse(reference, frozenset(downloaders))
    entry = None if parsed.scheme else find_entry(plugins.catalog(), parsed.rest)
    wanted = model_name(name) if name else model_name(entry.name) if entry else None
    pin = checked_pin(sha256)
    job = _Job(downloaders, store, progress, entry, wanted, force, pin, client or HttpClient(), retry or Retry())
    there = job.installed_already(parsed)
    if there:
        return there
    if not parsed.scheme and entry is None:
        raise _unknown(parsed, plugins.catalog(), store)
    sources = entry.sources if entry else (Source(reference),)
    return job.from_first(sources, patience)


def _parse(reference: str, schemes: frozenset[str]) -> Reference:
    try:
        return parse_reference(reference, schemes)
    except InvalidReference as error:
        raise _file_hint(reference) or error from None


def _file_hint(text: str) -> InvalidReference | None:
    is_path = text.isprintable() and os.path.exists(text)
    return InvalidReference(f"to pull the file {text}, write ./{text}") if is_path else None


def _unknown(parsed: Reference, catalog: Sequence[CatalogEntry], store: ModelStore) -> MyllmError:
    installed = _installed(store, parsed.rest)
    if installed:
        return InvalidRequest(
            f"{installed.name} is not in the catalogue; to pull it again: "
            f"myllm pull {installed.manifest.source or 'SOURCE'} --name {installed.name} --force"
        )
    hint = _file_hint(parsed.text)
    if hint:
        return hint
    names = [known.removesuffix(f":{DEFAULT_TAG}") for entry in catalog for known in (entry.name, *entry.aliases)]
    close = difflib.get_close_matches(parsed.rest.removesuffix(f":{DEFAULT_TAG}"), names, n=3, cutoff=0.6)
    meant = f"; did you mean {' or '.join(close)}?" if close else ";"
    return ModelNotFound(
        f"there is no model {parsed.text} in the catalogue{meant} see the names with: myllm pull --list, "
        "or give a source such as hf:owner/repo",
        model=parsed.text,
        suggestions=close,
    )


def _installed(store: ModelStore, name: str) -> Model | None:
    """The whole model of exactly this name."""
    try:
        model = store.get(name)
    except (ModelNotFound, IntegrityError, InvalidReference):
        return None
    return model if model.name == name else None


@dataclass(slots=True)
class _Job:
    """What one call of ``pull`` works with. ``wanted`` is the name to install under, None while it isn't known."""

    downloaders: Mapping[str, Downloader]
    store: ModelStore
    progress: PullProgress
    entry: CatalogEntry | None
    wanted: str | None
    force: bool
    pin: str
    client: HttpClient
    retry: Retry

    def installed_already(self, parsed: Reference) -> Model | None:
        """The model, when it can be seen without asking its source that it is there."""
        if self.force:
            return None
        if self.entry or not parsed.scheme:
            there = _installed(self.store, self.wanted if self.entry and self.wanted else parsed.rest)
        else:
            same = [model for model in self.store.list_models() if model.manifest.source == parsed.text]
            there = next((model for model in same if self.wanted in (None, model.name)), None)
        return self._kept(there) if there else None

    def from_first(self, sources: Sequence[Source], patience: float) -> Model:
        """Install from the first source that works. The reasons of those that didn't are told."""
        failed: list[tuple[Source, MyllmError]] = []
        for number, source in enumerate(sources):
            last = number == len(sources) - 1
            try:
                return self._from(source, None if last else patience)
            except (StorageError, Overloaded):
                raise  # no other source can mend that
            except MyllmError as error:
                failed.append((source, error))
                if not last:
                    self.progress.message(f"{mask_url(source.reference)} didn't work: {error.message}")
                    self.progress.message(f"trying {mask_url(sources[number + 1].reference)}")
        raise self._none_worked(failed)

    def _none_worked(self, failed: Sequence[tuple[Source, MyllmError]]) -> MyllmError:
        if not failed:
            return PluginError(f"the catalogue names no source for {self.wanted}; give one, such as hf:owner/repo")
        if len(failed) == 1:
            return failed[0][1]
        errors = [error for _, error in failed]
        worst = next((e for kind in (IntegrityError, NetworkError) for e in errors if isinstance(e, kind)), errors[0])
        reasons = "; ".join(f"{mask_url(source.reference)}: {error.message}" for source, error in failed)
        return type(worst)(f"no source of {self.wanted} worked. {reasons}", **worst.data)

    def _from(self, source: Source, patience: float | None) -> Model:
        parsed = parse_reference(source.reference, frozenset(self.downloaders))
        if not parsed.scheme:
            raise InvalidReference(f"{source.reference} is a name, not a source")
        downloader = self.downloaders[parsed.scheme]
        resolution = pinned(resolve(downloader, parsed, patience), self.pin or source.sha256.lower())
        name = self.wanted or safe_name(resolution.name)
        with _locked(self.store, name, self.progress):
            there = None if self.force else _installed(self.store, name)
            if there:
                return self._same(there, resolution)
            what = Description(name, resolution, self.entry)
            try:
                return self._fetch_all(what, downloader, patience)
            except KeyboardInterrupt:
                raise PullInterrupted(sum(_kept(what, self.store.partials_dir))) from None

    def _same(self, there: Model, resolution: Resolution) -> Model:
        """The model that is installed under this name, when it is from this source; else an error."""
        if not self.entry and there.manifest.source != resolution.source:
            raise InvalidRequest(
                f"{there.name} is installed already, from {there.manifest.source or 'elsewhere'}; "
                "choose another name with --name, or replace it with --force"
            )
        if there.manifest.revision and resolution.revision not in ("", there.manifest.revision):
            self.progress.message(f"{there.name} has changed at its source since; --force fetches what is there now")
        return self._kept(there)

    def _kept(self, there: Model) -> Model:
        if self.pin and self.pin not in {file.sha256 for file in there.manifest.files}:
            raise IntegrityError(
                f"{there.name} is installed, but its sha256 is {there.manifest.files[0].sha256}, and should be "
                f"{self.pin}; replace it with --force",
                sha256=there.manifest.files[0].sha256,
                expected=self.pin,
            )
        self.progress.message(f"{there.name} is installed already")
        return there

    def _fetch_all(self, what: Description, downloader: Downloader, patience: float | None) -> Model:
        resolution, root = what.resolution, self.store.partials_dir
        with storage_errors(f"use the models directory {self.store.models_dir}"):
            root.mkdir(parents=True, exist_ok=True)
        fetched: list[Fetched] = []
        try:
            _check_space(what, root)
            for file in resolution.files:
                fetched.append(
                    fetch(
                        file,
                        downloader,
                        root=root,
                        key=(what.name, resolution.source),
                        revision=resolution.revision,
                        progress=self.progress,
                        client=self.client,
                        retry=self.retry,
                        patience=patience if not fetched else None,
                    )
                )
            model = install(self.store, what, fetched)
        finally:
            for done in fetched:
                done.partial.release()
        sweep(root, what.name)
        return model


def _check_space(what: Description, root: Path) -> None:
    """Before the first byte, for all files whose size is known, less what is here already."""
    files = what.resolution.files
    missing = sum(max(0, (file.size or 0) - kept) for file, kept in zip(files, _kept(what, root), strict=True))
    check_space(root, missing, what.name)


def _kept(what: Description, root: Path) -> list[int]:
    """How many bytes of each file are here from earlier tries."""
    source = what.resolution.source
    return [bytes_kept(root, partial_key(what.name, source, file.path)) for file in what.resolution.files]


@contextmanager
def _locked(store: ModelStore, name: str, progress: PullProgress) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(store.lock(name, timeout=0))
        except Overloaded:
            progress.message(f"another myllm process is working on {name}; waiting for it")
            stack.enter_context(store.lock(name, timeout=float("inf")))
        yield
