"""The models that are installed: finding, adding and removing them.

Layout: ``<models_dir>/<base>@<tag>/manifest.json``, and the weights in a sub-folder ``r-<12 hex>`` beside it, which
the manifest's relative paths name. A pull fills a new sub-folder and then replaces the manifest, so that one file
replace is the commit point: before it the old model is whole, after it the new one is.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from myllm_core.errors import (
    IntegrityError,
    InvalidReference,
    InvalidRequest,
    ModelNotFound,
    MyllmError,
    Overloaded,
    StorageError,
)
from myllm_core.models.disk import storage_errors, sync_folder
from myllm_core.models.leftovers import collect
from myllm_core.models.manifest import (
    BLOCKS_SUFFIX,
    MANIFEST,
    REVISION,
    Manifest,
    Model,
    ModelFile,
    read_manifest,
    write_manifest,
)
from myllm_core.models.reference import DEFAULT_TAG, folder_name, model_name, name_of_folder


class ModelStore:
    """The folder that installed models lie in. Making one touches no disk; the folder needn't exist yet."""

    def __init__(self, models_dir: Path) -> None:
        self.models_dir = Path(models_dir)

    @property
    def partials_dir(self) -> Path:
        """Where unfinished downloads are kept between tries; it may not exist yet."""
        return self.models_dir / ".partial"

    @property
    def locks_dir(self) -> Path:
        """Where the lock files lie, one for each model; it may not exist yet."""
        return self.models_dir / ".locks"

    def lock_file(self, name: str) -> Path:
        """What ``lock`` locks. Raises ``InvalidReference``."""
        return self.locks_dir / f"{folder_name(name)}.lock"

    def list_models(self) -> list[Model]:
        """All whole models, by name. Damaged and foreign folders are left out; ``broken`` names them."""
        return self._scan()[0]

    def broken(self) -> list[tuple[str, str]]:
        """Folders that hold no usable model: folder name, and what is wrong with it."""
        return self._scan()[1]

    def get(self, name: str, known: Iterable[str] = ()) -> Model:
        """The model that ``name`` means.

        That is ``base:tag``, else ``base:latest``, else the model with that alias, else the only installed tag of the
        base. ``known`` are further names (of the catalogue) to suggest. Raises ``InvalidReference`` for what is no name
        or means several models, ``ModelNotFound``, and ``IntegrityError`` for a model that is damaged.
        """
        installed = self._resolve(name, known)
        try:
            return self._read(self._folder(installed))
        except IntegrityError as error:
            raise IntegrityError(
                f"{installed} can't be used: {error}; mend it with: myllm verify {installed} --repair, "
                f"or delete it with: myllm remove {installed}",
                model=installed,
            ) from None

    def unchecked(self, name: str) -> Model:
        """The model that ``name`` means, though its files may be missing or damaged.

        Raises as ``get`` does; ``IntegrityError`` only when its manifest can't be used.
        """
        return self._read(self._folder(self._resolve(name)), whole=False)

    def folders(self) -> list[tuple[str, Path]]:
        """The name and folder of every model, damaged and unfinished ones too; what isn't myllm's is left out."""
        named = ((name_of_folder(folder.name), folder) for folder in self._folders() if not os.path.islink(folder))
        return [(name, folder) for name, folder in named if name]

    def remove(self, name: str) -> Model:
        """Delete a model, whole or damaged, and say what it was.

        Only what lies in the models directory is deleted: symbolic links are unlinked, and weights that the manifest
        references elsewhere stay. Raises as ``get`` does, ``Overloaded`` while the model is being pulled, and
        ``StorageError`` when the folder can't be changed.
        """
        installed = self._resolve(name, unfinished=True)
        folder = self._folder(installed)
        with self.lock(installed):
            try:
                model = self._read(folder)
            except MyllmError:
                model = Model(Manifest(name=installed, format="", files=()), folder)
            with storage_errors(f"remove {installed}"):
                _delete_model(folder)
            with suppress(OSError):
                self.lock_file(installed).unlink()  # whoever waits for it sees that, and makes a new one
        return model

    def copy(self, name: str, to: str) -> Model:
        """Install a model under a second name, with hard links to its files: the weights are on the disk once.

        Raises as ``get`` does, ``InvalidRequest`` when ``to`` is taken, and ``StorageError`` when the disk has no hard
        links or can't be written; nothing is left then.
        """
        model, target = self.get(name), model_name(to)
        with self.lock(target):
            if os.path.lexists(self._folder(target)):
                raise InvalidRequest(f"there is a model {target} already; remove it first: myllm remove {target}")
            staged = self.staging(target)
            try:
                files = tuple(self._linked(model, file, staged) for file in model.manifest.files)
                return self.commit(replace(model.manifest, name=target, files=files, aliases=()))
            except BaseException:
                self.discard(staged)
                raise

    def _linked(self, model: Model, file: ModelFile, staged: Path) -> ModelFile:
        """A file of ``model`` as one of the revision ``staged``; what lies outside of the folder stays there."""
        if os.path.isabs(file.path):
            return file
        inner = file.path.partition("/")[2] if REVISION.fullmatch(file.path.partition("/")[0]) else file.path
        link = staged / inner
        try:
            link.parent.mkdir(parents=True, exist_ok=True)
            os.link(model.folder / file.path, link)
        except OSError as error:
            raise StorageError(
                f"can't link the files of {model.name} to a second name: {error.strerror or error}; "
                f"pull it under that name: myllm pull {model.manifest.source or 'SOURCE'} --name NAME",
                errno=error.errno,
            ) from error
        return replace(file, path=f"{staged.name}/{inner}")

    @contextmanager
    def lock(self, name: str, timeout: float = 10.0) -> Iterator[None]:
        """Hold the lock between processes on one model, for changes to it; readers need none.

        Waits ``timeout`` seconds (0: not at all). Raises ``Overloaded`` when another process keeps it, ``StorageError``
        when the models directory can't be written.
        """
        from filelock import FileLock, Timeout  # 50 ms, which `list` and `show` don't need

        path = self.lock_file(name)
        lock = FileLock(path)
        with storage_errors(f"use the models directory {self.models_dir}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=timeout)
            except Timeout:
                raise Overloaded(
                    f"another myllm process is working on {model_name(name)}; wait for it to end, then try again",
                    retry_after=10,
                ) from None
        try:
            yield
        finally:
            lock.release()

    def staging(self, name: str) -> Path:
        """A new, empty folder ``r-<12 hex>`` inside the model's folder, for the files of a new revision.

        Call it while holding ``lock(name)``. It may lie unfinished for a day before ``commit`` takes it for abandoned.
        Raises ``StorageError``.
        """
        folder = self._folder(name)
        if os.path.islink(folder):
            raise StorageError(f"{folder} is a symbolic link; remove it first: myllm remove {model_name(name)}")
        staged = folder / f"r-{os.urandom(6).hex()}"
        with storage_errors(f"use the models directory {self.models_dir}"):
            staged.mkdir(parents=True)
        return staged

    def discard(self, staged: Path) -> None:
        """Delete a staged folder and what belongs to it, as far as that can be done; the installed model stays."""
        import shutil

        shutil.rmtree(staged, ignore_errors=True)
        with suppress(OSError):
            staged.with_name(staged.name + BLOCKS_SUFFIX).unlink(missing_ok=True)
            staged.parent.rmdir()  # only when nothing else is in it

    def commit(self, manifest: Manifest) -> Model:
        """Make a staged revision the installed one, then delete the revision before it.

        The manifest's relative paths begin with the name of the staged folder. Call it while holding the lock. Raises
        ``IntegrityError`` when a file of the manifest isn't there in its size, ``StorageError`` when it can't be
        written; the model installed before is whole then.
        """
        folder = self._folder(manifest.name)
        _check_files(manifest, folder)
        before: set[str] = set()
        with suppress(MyllmError):
            before = _revisions(read_manifest(folder / MANIFEST))
        with storage_errors(f"install {manifest.name}"):
            for inner in _folders_of(manifest, folder):
                sync_folder(inner)
            sync_folder(self.models_dir)
        write_manifest(folder / MANIFEST, manifest)
        collect(folder, kept=_revisions(manifest), replaced=before)
        return Model(manifest, folder)

    def prefer_engine(self, name: str, engine: str) -> Model:
        """Keep in a model's manifest that ``engine`` runs it; empty: whichever fits best.

        Raises as ``get`` does, ``Overloaded`` while the model is being pulled, and ``StorageError``.
        """
        installed = self._resolve(name)
        with self.lock(installed):
            model = self.get(installed)
            manifest = replace(model.manifest, engine=engine)
            write_manifest(model.folder / MANIFEST, manifest)
        return Model(manifest, model.folder)

    def _folder(self, name: str) -> Path:
        # Every path to a model is made here, from a checked name: no name leads out of the models directory.
        return self.models_dir / folder_name(name)

    def _folders(self) -> list[Path]:
        with storage_errors(f"read the models directory {self.models_dir}"):
            try:
                with os.scandir(self.models_dir) as entries:
                    found = [e.name for e in entries if not e.name.startswith(".") and (e.is_dir() or e.is_symlink())]
            except (FileNotFoundError, NotADirectoryError):
                return []
        return [self.models_dir / name for name in sorted(found)]

    def _resolve(self, name: str, known: Iterable[str] = (), unfinished: bool = False) -> str:
        wanted = model_name(name)
        if _is_there(self._folder(wanted), unfinished):
            return wanted
        models = self.list_models()
        found = [model.name for model in models if wanted in model.manifest.aliases]
        if not found and ":" not in name:
            there = (name_of_folder(folder.name) for folder in self._folders() if _is_there(folder, unfinished))
            found = [other for other in there if other and other.partition(":")[0] == wanted.partition(":")[0]]
        if len(found) == 1:
            return found[0]
        if found:
            raise InvalidReference(f"{name} means several models; say which one: {', '.join(sorted(found))}")
        raise _not_found(name, [*(m.name for m in models), *(a for m in models for a in m.manifest.aliases), *known])

    def _read(self, folder: Path, whole: bool = True) -> Model:
        name = name_of_folder(folder.name)
        if name is None:
            raise IntegrityError("no folder that myllm made: its name isn't base@tag")
        if os.path.islink(folder):
            raise IntegrityError("it is a symbolic link, which is not followed")
        manifest = read_manifest(folder / MANIFEST)
        if manifest.name != name:
            raise IntegrityError(f"{MANIFEST} is of another model, {manifest.name}")
        if whole:
            _check_files(manifest, folder)
        return Model(manifest, folder)

    def _scan(self) -> tuple[list[Model], list[tuple[str, str]]]:
        models: list[Model] = []
        broken: list[tuple[str, str]] = []
        if os.path.exists(self.models_dir) and not os.path.isdir(self.models_dir):
            broken.append((self.models_dir.name, f"{self.models_dir} is a file, not a folder; choose --models-dir"))
        for folder in self._folders():
            try:
                models.append(self._read(folder))
            except MyllmError as error:
                if not self._being_pulled(folder):
                    broken.append((folder.name, error.message))
        return models, broken

    def _being_pulled(self, folder: Path) -> bool:
        name = name_of_folder(folder.name)
        if name is None or os.path.islink(folder) or os.path.lexists(folder / MANIFEST):
            return False
        try:
            with self.lock(name, timeout=0):
                return False
        except Overloaded:
            return True
        except StorageError:
            return False


def _is_there(folder: Path, unfinished: bool) -> bool:
    """Whether there is a model, damaged or not; one that was never pulled to the end counts when ``unfinished``."""
    return os.path.islink(folder) or os.path.lexists(folder if unfinished else folder / MANIFEST)


def _not_found(name: str, candidates: list[str]) -> ModelNotFound:
    import difflib

    short = [candidate.removesuffix(f":{DEFAULT_TAG}") for candidate in candidates]
    close = difflib.get_close_matches(name.lower(), dict.fromkeys(short), n=3, cutoff=0.6)
    meant = f"did you mean {' or '.join(close)}? " if close else ""
    return ModelNotFound(
        f"the model {name} is not installed; {meant}install it with: myllm pull {name} (names: myllm pull --list)",
        model=name,
        suggestions=close,
    )


def _check_files(manifest: Manifest, folder: Path) -> None:
    for file in manifest.files:
        path = folder / file.path
        try:
            size = path.stat().st_size if path.is_file() else None
        except OSError as error:
            raise IntegrityError(f"{path} can't be read: {error.strerror}") from None
        if size is None:
            raise IntegrityError(f"{path} is missing")
        if size != file.size:
            raise IntegrityError(f"{path} has {size} bytes, but should have {file.size}")


def _revisions(manifest: Manifest) -> set[str]:
    parts = (file.path.partition("/")[0] for file in manifest.files)
    return {part for part in parts if REVISION.fullmatch(part)}


def _folders_of(manifest: Manifest, folder: Path) -> list[Path]:
    """The folders that a new revision's files lie in, inner ones first, and the model's own last."""
    relative = (Path(file.path) for file in manifest.files if not os.path.isabs(file.path))
    inner = {folder / parent for path in relative for parent in path.parents}
    return sorted({*inner, folder}, key=lambda path: -len(path.parts))


def _delete_model(folder: Path) -> None:
    import shutil

    if os.path.islink(folder) or not os.path.isdir(folder):
        folder.unlink()
        return
    with suppress(FileNotFoundError, IsADirectoryError):
        (folder / MANIFEST).unlink()  # first, so that a half-deleted model is never taken for a whole one
        sync_folder(folder)
    shutil.rmtree(folder)
