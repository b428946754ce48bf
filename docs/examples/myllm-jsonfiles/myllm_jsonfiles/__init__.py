"""A myllm plugin: sessions in JSON files."""

from myllm_core import hookimpl

MYLLM_API = 1


@hookimpl
def myllm_session_stores():
    """A file for each session."""
    from myllm_jsonfiles.store import JsonFilesStore

    return [JsonFilesStore]
