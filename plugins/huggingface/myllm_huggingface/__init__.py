"""The myllm plugin for the Hugging Face Hub: ``hf:`` references. Import-light."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from myllm_core import hookimpl

if TYPE_CHECKING:
    from myllm_core import Downloader

MYLLM_API = 1


@hookimpl
def myllm_downloaders() -> Iterable[type[Downloader]]:
    """The downloader for ``hf:owner/repo[@revision][:quant or file]``."""
    from myllm_huggingface.downloader import HuggingFaceDownloader

    return [HuggingFaceDownloader]
