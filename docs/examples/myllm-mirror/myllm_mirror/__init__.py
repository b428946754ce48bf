"""A myllm plugin: models from a web folder with an index."""

from myllm_core import hookimpl

MYLLM_API = 1


@hookimpl
def myllm_downloaders():
    """``mirror:`` references."""
    from myllm_mirror.downloader import MirrorDownloader

    return [MirrorDownloader]
