"""``repair``: damaged files of an installed model made whole again, from the source and revision that it is of.

Each file is put together beside the damaged one, checked against the manifest, made durable, and only then put in its
place. So whoever has the old file open keeps it, and whatever happens on the way, a file is either as it was or whole.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from myllm_core.downloader import Downloader, RemoteFile, Resolution
from myllm_core.errors import IntegrityError, MyllmError, Overloaded
from myllm_core.models.blocks import read_blocks, write_blocks
from myllm_core.models.disk import storage_errors, sync_folder
from myllm_core.models.manifest import REVISION, Model, ModelFile
from myllm_core.models.reference import Reference, parse_reference
from myllm_core.models.store import ModelStore
from myllm_core.models.verify import Problem
from myllm_core.plugins import Plugins
from myllm_core.transfer.client import HttpClient
from myllm_core.transfer.fetch import Fetched, Retry, collect, fetch
from myllm_core.transfer.ranges import Damage, NoRanges, changed, patch
from myllm_core.transfer.sink import PullProgress
from myllm_core.transfer.sources import resolve
from myllm_core.transfer.urls import mask_url


def repair(
    model: Model,
    problems: Sequence[Problem],
    *,
    plugins: Plugins,
    store: ModelStore,
    progress: PullProgress,
    client: HttpClient | None = None,
    retry: Retry | None = None,
) -> list[str]:
    """Mend the files that ``verify`` found damaged: their bad ranges where these are known, else the whole of them.

    Returns the paths of those that were mended. A failure leaves the others as they are; the error's
    ``data["repaired"]`` names those mended before it. Raises ``IntegrityError`` when the source has
    something else now or isn't known, ``NetworkError``, ``NotFound``, ``StorageError``, ``PluginError``, and
    ``Overloaded`` while another process changes the model.
    """
    by_path = {file.path: file for file in model.manifest.files}
    with store.lock(model.name):
        if store.unchecked(model.name) != model:
            raise Overloaded(f"{model.name} was changed in the meantime; verify it again", retry_after=1)
        source = _Source(model, plugins)
        job = _Job(model, source, store.partials_dir, progress, client or HttpClient(), retry or Retry())
        repaired: list[str] = []
        try:
            for problem in problems:
                if problem.path in by_path:
                    job.mend(by_path[problem.path], problem)
                    repaired.append(problem.path)
        except MyllmError as error:
            error.data["repaired"] = repaired
            raise
        return repaired


def _inner(file: ModelFile) -> str:
    """The file's path as its source has it."""
    revision, _, path = file.path.partition("/")
    return path if REVISION.fullmatch(revision) else file.path


class _Source:
    """What the model was pulled from, asked when it is first needed."""

    def __init__(self, model: Model, plugins: Plugins) -> None:
        self._manifest = model.manifest
        self._plugins = plugins

    @cached_property
    def downloader(self) -> Downloader:
        return self._plugins.downloaders()[self._reference.scheme]

    @cached_property
    def _reference(self) -> Reference:
        manifest, parsed = self._manifest, None
        if manifest.source:
            parsed = parse_reference(manifest.source, frozenset(self._plugins.downloaders()))
        if parsed is None or not parsed.scheme:
            raise IntegrityError(f"it isn't known where {manifest.name} came from; {self._anew}")
        if parsed.scheme in ("http", "https") and "#" in parsed.rest:
            raise IntegrityError(
                f"{manifest.name} came from an address with a query, which isn't kept as it may hold a secret; "
                f"{self._anew}"
            )
        return parsed

    @cached_property
    def _resolution(self) -> Resolution:
        reference = self._reference
        if self._manifest.revision:
            reference = self.downloader.pin(reference, self._manifest.revision)
        return resolve(self.downloader, reference, None)

    @property
    def _anew(self) -> str:
        return f"fetch what there is now with: myllm pull {self._manifest.name} --force"

    def file(self, wanted: ModelFile) -> RemoteFile:
        """Where ``wanted`` can be fetched, with the size and hash that it must have. Raises ``IntegrityError``."""
        path = _inner(wanted)
        there = next((file for file in self._resolution.files if file.path == path), None)
        revisions = {self._manifest.revision, self._resolution.revision} - {""}
        known = there is not None and there.sha256 == wanted.sha256
        if there is None or there.size not in (None, wanted.size) or (len(revisions) > 1 and not known):
            raise changed(mask_url(self._manifest.source))
        return replace(there, size=wanted.size, sha256=wanted.sha256)


class _Job:
    """One call of ``repair``."""

    def __init__(
        self, model: Model, source: _Source, root: Path, progress: PullProgress, client: HttpClient, retry: Retry
    ) -> None:
        self._model = model
        self._source = source
        self._root = root
        self._progress = progress
        self._client = client
        self._retry = retry

    def mend(self, file: ModelFile, problem: Problem) -> None:
        """Put a whole file in the place of a damaged one."""
        if os.path.isabs(file.path):
            raise IntegrityError(f"{file.path} lies outside the models directory, where myllm changes nothing")
        fetched = self._patched(file, problem) or self._whole(file)
        target = self._model.folder / file.path
        try:
            with storage_errors(f"repair {target}"):
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(fetched.partial.data, target)
                sync_folder(target.parent)
        finally:
            fetched.partial.release()
        revision, _, path = file.path.partition("/")
        if path == _inner(file) and read_blocks(self._model.folder, file) is None:
            write_blocks(self._model.folder, revision, {path: (fetched.sha256, fetched.blocks)})

    def _patched(self, file: ModelFile, problem: Problem) -> Fetched | None:
        """The file made of what is good of it; None when it must be fetched as a whole."""
        blocks = read_blocks(self._model.folder, file)
        if blocks is None or problem.ranges is None or problem.ranges == ((0, file.size),):
            return None
        remote = self._source.file(file) if problem.ranges else None
        if remote and not remote.url:
            return None
        damage = Damage(self._model.folder / file.path, file.size, blocks, problem.ranges)
        wanted = remote or RemoteFile(_inner(file), size=file.size, sha256=file.sha256)
        try:
            return collect(
                wanted,
                lambda sink: patch(sink, damage, remote, self._client, self._retry),
                root=self._root,
                key=self._key,
                revision=self._model.manifest.revision,
                progress=self._progress,
            )
        except NoRanges:
            self._progress.message(f"{file.path}: the source sends only whole files; fetching all of it")
            return None

    def _whole(self, file: ModelFile) -> Fetched:
        return fetch(
            self._source.file(file),
            self._source.downloader,
            root=self._root,
            key=self._key,
            revision=self._model.manifest.revision,
            progress=self._progress,
            client=self._client,
            retry=self._retry,
        )

    @property
    def _key(self) -> tuple[str, str]:
        # Not the key of a pull: what waits there may be of a newer revision.
        return self._model.name, f"repair {self._model.manifest.source}"
