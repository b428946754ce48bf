"""``hf:owner/repo[@revision][:quant or file]``: the hub's metadata says which files, the core fetches them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from myllm_core.downloader import Downloader, RemoteFile, Resolution
from myllm_core.errors import InvalidReference
from myllm_core.models.reference import Reference, safe_name
from myllm_huggingface.files import RepoFile, Variant, choose

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

_REFERENCE = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^:\s]+))?(?::(?P<wanted>.+))?", re.ASCII)


class HuggingFaceDownloader(Downloader):
    """Resolves ``hf:`` references against the Hugging Face Hub, or the one that ``HF_ENDPOINT`` names."""

    name = "huggingface"
    schemes = frozenset({"hf"})

    def resolve(self, reference: Reference) -> Resolution:
        """The files of one variant, their URLs pinned to the commit that the revision means now.

        Raises ``InvalidReference``, ``NotFound`` (no such repository, revision or file) and ``NetworkError`` (not
        reachable, gated, refused).
        """
        match = _REFERENCE.fullmatch(reference.rest)
        if not match:
            raise InvalidReference(
                f"{reference.text!r} can't be a Hugging Face model; write hf:owner/repo, hf:owner/repo:Q4_K_M, "
                "hf:owner/repo:file.gguf or hf:owner/repo@revision"
            )
        from myllm_huggingface.hub import Hub

        hub = Hub()
        repo, revision, wanted = match["repo"], match["revision"] or "", match["wanted"] or ""
        info = hub.model_info(repo, revision)
        variant = choose(_listing(info), wanted, repo)
        commit = info.sha or revision or "main"
        files = tuple(
            RemoteFile(
                path=file.path.removeprefix(variant.strip),
                url=hub.url(repo, file.path, commit),
                size=file.size,
                sha256=file.sha256,
                headers=hub.headers,
            )
            for file in variant.files
        )
        if info.gated:
            hub.check_access(repo, hub.url(repo, variant.files[0].path, commit))
        place = f"{repo}@{revision}" if revision else repo
        source = f"hf:{place}:{variant.selector}" if variant.selector else f"hf:{place}"
        return Resolution(files, _default_name(repo, variant), source, commit, _licence(info))

    def pin(self, reference: Reference, revision: str) -> Reference:
        """The same files of the commit that ``resolve`` found: the hub keeps them all."""
        match = _REFERENCE.fullmatch(reference.rest)
        if not match:
            return reference
        rest = f"{match['repo']}@{revision}" + (f":{match['wanted']}" if match["wanted"] else "")
        return Reference(reference.scheme, rest, f"{reference.scheme}:{rest}")


def _listing(info: ModelInfo) -> list[RepoFile]:
    return [RepoFile(file.rfilename, file.size, file.lfs.sha256 if file.lfs else None) for file in info.siblings or []]


def _default_name(repo: str, variant: Variant) -> str:
    if variant.selector == variant.label and variant.label.lower().endswith(".gguf"):
        return safe_name(variant.stem)  # one of several models in a repository: its own name says more
    base = re.sub(r"[-._](gguf|onnx)$", "", repo.partition("/")[2], flags=re.I)
    return safe_name(f"{base}:{variant.selector}" if variant.selector else base)


def _licence(info: ModelInfo) -> str:
    card = info.card_data
    licence = card.get("license") if card else None
    if licence == "other" and card:
        licence = card.get("license_name") or licence
    if isinstance(licence, str) and licence:
        return licence
    return next((tag.partition(":")[2] for tag in info.tags or [] if tag.startswith("license:")), "")
