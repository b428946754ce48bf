"""Which of a model's files are its weights, and what else is loaded with them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from myllm_core import Model
from myllm_core.errors import EngineError, InvalidOption, MyllmError
from myllm_core.models.gguf import GGUF, read_gguf
from myllm_core.models.store import ModelStore
from myllm_llamacpp import lora
from myllm_llamacpp.options import LoadSettings


@dataclass(frozen=True, slots=True)
class Files:
    """What is loaded: weights in one file or several, with their headers, adapters, a draft model likewise, and the
    projector for images.
    """

    weights: list[Path]
    headers: list[GGUF]
    adapters: list[lora.Adapter] = field(default_factory=list)
    draft: list[Path] = field(default_factory=list)
    draft_headers: list[GGUF] = field(default_factory=list)
    projector: dict[Path, GGUF] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all of them."""
        adapters = (adapter.path for adapter in self.adapters)
        return sum(path.stat().st_size for path in (*self.weights, *adapters, *self.draft, *self.projector))


def files_of(model: Model, settings: LoadSettings) -> Files:
    """The files to load, whole and fit for each other.

    Raises ``EngineError``, ``IntegrityError`` for damaged ones, ``InvalidOption`` for a file that isn't there.
    """
    weights, projector = _weights(model.name, model.paths), _projector(settings.mmproj, model)
    adapters = lora.adapters(settings.lora, model)
    for adapter in adapters:
        lora.check(adapter, weights.values())
    draft = _weights(settings.draft, _draft_paths(settings.draft, model)) if settings.draft else {}
    return Files([*weights], [*weights.values()], adapters, [*draft], [*draft.values()], projector)


def _weights(name: str, paths: Iterable[Path]) -> dict[Path, GGUF]:
    headers = {path: read_gguf(path) for path in paths if path.suffix == ".gguf"}
    weights = {path: header for path, header in headers.items() if _is_model(header)}
    if not headers:
        raise EngineError(f"{name} has no gguf file; pull it again")
    if not weights:
        path, header = next(iter(headers.items()))
        kind = header.metadata.get("general.type") or header.architecture
        raise EngineError(f"{path.name} is of type {kind}, which can't be run by itself; pull a model")
    return weights


def _projector(text: str, model: Model) -> dict[Path, GGUF]:
    """The projector with its header: the file that ``text`` names, or the one beside the weights; empty for none."""
    if text == "off":
        return {}
    paths = [_named(text, model)] if text else [path for path in model.paths if path.suffix == ".gguf"]
    found = {path: header for path in paths if _is_projector(header := read_gguf(path))}
    if text and not found:
        raise EngineError(f"{paths[0].name} is no projector for images; take the mmproj file of the model")
    return dict([*found.items()][:1])


def _named(text: str, model: Model) -> Path:
    found = lora.find(text, model)
    if found is None:
        raise InvalidOption(f"load option mmproj: there is no file {text}; write the path of a GGUF file, or off")
    return found


def _draft_paths(text: str, model: Model) -> list[Path]:
    """The file, or the files of an installed model of that name."""
    path = Path(text).expanduser()
    if path.is_file():
        return [path]
    try:
        return [*ModelStore(model.folder.parent).get(text).paths]
    except MyllmError as error:
        raise InvalidOption(f"load option draft: {text} is no file and no installed model ({error})") from None


def _is_model(header: GGUF) -> bool:
    """Whether it is weights, not a projector or an adapter that lies beside them."""
    return not _is_projector(header) and header.metadata.get("general.type", "model") == "model"


def _is_projector(header: GGUF) -> bool:
    return header.architecture == "clip"
