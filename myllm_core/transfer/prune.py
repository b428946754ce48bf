"""``prune``: what downloads, crashes and people have left in the models directory, found and deleted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from myllm_core.errors import MyllmError
from myllm_core.models.leftovers import Leftover, delete_leftover, find_leftovers, is_held, leftover
from myllm_core.models.store import ModelStore
from myllm_core.transfer.partial import State, delete_unowned, unowned
from myllm_core.transfer.sink import size_text


def find(store: ModelStore, older_than: float = 0.0) -> list[Leftover]:
    """Everything that can go: no manifest names it, no process holds it, and it changed ``older_than`` seconds ago.

    Raises ``StorageError`` when the models directory can't be read.
    """
    return [each for each in (*_downloads(store), *find_leftovers(store)) if each.age >= older_than]


def _downloads(store: ModelStore) -> Iterator[Leftover]:
    for folder, state in unowned(store.partials_dir):
        # Another file of a pull that goes on right now may be next.
        if not (state.model and is_held(store, state.model)):
            yield leftover("download", state.model, folder, _what(state))


def _what(state: State) -> str:
    whole = f" of {size_text(state.size)}" if state.size >= 0 else ""
    return f"{state.path or 'a download'}: {size_text(state.synced)}{whole}"


def prune(store: ModelStore, leftovers: Sequence[Leftover]) -> list[tuple[Leftover, MyllmError]]:
    """Delete them, each looked at once more; those that couldn't be deleted are returned with the reason."""
    failed = []
    for each in leftovers:
        try:
            if each.kind == "download":
                delete_unowned(each.path)
            else:
                delete_leftover(store, each)
        except MyllmError as error:
            failed.append((each, error))
    return failed
