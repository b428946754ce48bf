"""References: where a model comes from, and the names that models are installed under.

``smollm2:135m`` (a name), ``hf:owner/repo[@revision][:quant or file]``, ``https://…``, ``file:…`` or a path,
``pypi:distribution==version/file``. Nothing here touches the disk or the network.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from myllm_core.errors import InvalidReference

_PART = r"[a-z0-9](?:[a-z0-9._-]{0,94}[a-z0-9])?"
_NAME = re.compile(rf"(?P<base>{_PART})(?::(?P<tag>{_PART}))?", re.ASCII)
_SCHEME = re.compile(r"(?P<scheme>[a-z][a-z0-9+-]{1,30}):(?P<rest>.+)", re.ASCII | re.DOTALL)
RESERVED = {"con", "prn", "aux", "nul", *(f"com{i}" for i in range(10)), *(f"lpt{i}" for i in range(10))}
DEFAULT_TAG = "latest"


@dataclass(frozen=True, slots=True)
class Reference:
    """A parsed reference; ``scheme`` is empty for a name. ``text`` is what was given."""

    scheme: str
    rest: str
    text: str


def parse_reference(text: str, schemes: frozenset[str]) -> Reference:
    """Split a reference into scheme and rest. ``schemes`` are those that the installed downloaders claim.

    ``./x.gguf``, ``../x``, ``~/x`` and absolute paths are ``file`` references. Raises ``InvalidReference``.
    """
    if not text or text != text.strip() or any(not c.isprintable() for c in text):
        raise InvalidReference(f"{text!r} is no model reference; give a name such as smollm2 (see: myllm pull --list)")
    if text.startswith(("./", "../", "~", "/", ".\\", "..\\", "\\")) or re.match(r"[A-Za-z]:[\\/]", text):
        return Reference("file", text, text)
    match = _SCHEME.fullmatch(text)
    if match and match["scheme"] in schemes:
        return Reference(match["scheme"], match["rest"], text)
    if match and (match["rest"].startswith("//") or "/" in match["rest"]):
        known = ", ".join(sorted(schemes))
        raise InvalidReference(
            f"no installed downloader knows {match['scheme']}: references (known: {known}); see: myllm plugins"
        )
    return Reference("", model_name(text), text)


def model_name(text: str) -> str:
    """The canonical installed name ``base:tag`` for what a user typed: lower case, tag ``latest`` when none.

    Raises ``InvalidReference`` for anything that isn't a plain name; every name that comes from outside
    passes through here, so no name can lead out of the models directory.
    """
    match = _NAME.fullmatch(text.lower()) if text.isascii() and len(text) < 200 else None
    if not match or ".." in text or {match["base"].split(".")[0], (match["tag"] or "").split(".")[0]} & RESERVED:
        shown = text if len(text) <= 60 else text[:57] + "..."
        raise InvalidReference(
            f"{shown!r} is no model name; names are letters, digits, dots, dashes and one colon, such as smollm2:135m"
        )
    return f"{match['base']}:{match['tag'] or DEFAULT_TAG}"


def folder_name(name: str) -> str:
    """The name of the folder that a model lies in: ``base@tag``. Raises ``InvalidReference`` as ``model_name`` does."""
    return model_name(name).replace(":", "@")


def name_of_folder(folder: str) -> str | None:
    """The model that a folder of this name is of; None when it's no model's."""
    base, _, tag = folder.partition("@")
    try:
        name = model_name(f"{base}:{tag}")
    except InvalidReference:
        return None
    return name if folder == folder_name(name) else None


def safe_name(text: str) -> str:
    """A valid name made from any text, such as a file or repository name."""
    base, _, tag = text.partition(":")
    parts = [re.sub(r"[^a-z0-9._-]+", "-", part.lower()).strip("._-")[:80].strip("._-") for part in (base, tag)]
    parts = [re.sub(r"\.{2,}", ".", part) for part in parts]
    parts = [f"model-{part}" if part.split(".")[0] in RESERVED else part for part in parts]
    return model_name(f"{parts[0] or 'model'}:{parts[1]}" if parts[1] else parts[0] or "model")
