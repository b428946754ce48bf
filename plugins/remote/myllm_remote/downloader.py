"""``remote:http://host:8000/v1#model``: asks the servers for their models, and installs the address of one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from myllm_core import Downloader, Reference, RemoteFile, Resolution, Sink
from myllm_core.errors import InvalidReference, NotFound
from myllm_core.models.reference import safe_name
from myllm_core.transfer.urls import parse_url
from myllm_remote.dialects import context_of, dialect_of
from myllm_remote.keys import key_for
from myllm_remote.spec import FILE, Spec, split_reference


@dataclass(frozen=True, slots=True)
class _SpecFile(RemoteFile):
    content: bytes = b""


class RemoteDownloader(Downloader):
    """Finds a model on one or more servers; what is installed is where it lies."""

    name = "remote"
    schemes = frozenset({"remote"})

    def resolve(self, reference: Reference) -> Resolution:
        """Ask every server whether it has the model. Raises ``InvalidReference``, ``NotFound``, ``NetworkError``."""
        from myllm_remote.upstreams import list_models

        urls, wanted = split_reference(reference)
        targets = [parse_url(url) for url in urls]
        lists = [list_models(target, key_for(target)) for target in targets]
        entries = [_entry(url, entries, wanted) for url, entries in zip(urls, lists, strict=True)]
        names = sorted({entry["id"] for entry in entries})
        if len(names) > 1:
            raise InvalidReference(f"remote: the servers have different models: {', '.join(names)}; name one after #")
        dialects = {dialect_of(entry) for entry in entries}
        sizes = [context_of(entry) for entry in entries]
        spec = Spec(names[0], urls, dialects.pop() if len(dialects) == 1 else "other", min(sizes))
        content = spec.to_bytes()
        digest = hashlib.sha256(content).hexdigest()
        file = _SpecFile(FILE, None, len(content), digest, content=content)
        source = f"remote:{','.join(urls)}#{names[0]}"
        return Resolution((file,), _local_name(names[0]), source, digest[:16], format="remote")

    def fetch(self, file: RemoteFile, sink: Sink) -> None:
        """Write what ``resolve`` found out."""
        assert isinstance(file, _SpecFile)
        sink.expect(len(file.content))
        sink.write(file.content)


def _entry(url: str, entries: list[dict[str, Any]], wanted: str) -> dict[str, Any]:
    names = [entry["id"] for entry in entries]
    shown = ", ".join(name for name in names[:20] if name.isprintable()) or "none"
    if not wanted and len(names) == 1:
        wanted = names[0]
    if not wanted:
        raise InvalidReference(f"remote: {url} has several models; name one: remote:{url}#MODEL, with {shown}")
    found = next((entry for entry in entries if entry["id"] == wanted), None)
    found = found or next((entry for entry in entries if entry["id"] == f"{wanted}:latest"), None)
    if found is None:
        raise NotFound(f"{url} has no model {wanted}; it has: {shown}")
    if not found["id"].isprintable() or len(found["id"]) > 200:
        raise NotFound(f"{url} names its model in a way that can't be kept")
    return found


def _local_name(model: str) -> str:
    return safe_name(model.rstrip("/").rpartition("/")[2] or model)
