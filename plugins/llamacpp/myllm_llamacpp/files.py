"""Which of a model's files are its weights, and what else is loaded with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from myllm_core import Model
from myllm_core.errors import EngineError
from myllm_core.models.gguf import GGUF, read_gguf
from myllm_llamacpp import lora
from myllm_llamacpp.options import LoadSettings


@dataclass(frozen=True, slots=True)
class Files:
    """What is loaded: weights in one file or several, with their headers, and adapters."""

    weights: list[Path]
    headers: list[GGUF]
    adapters: list[lora.Adapter] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of all of them."""
        return sum(path.stat().st_size for path in (*self.weights, *(adapter.path for adapter in self.adapters)))


def files_of(model: Model, settings: LoadSettings) -> Files:
    """The files to load, whole and fit for each other.

    Raises ``EngineError``, ``IntegrityError`` for damaged ones, ``InvalidOption`` for a file that isn't there.
    """
    headers = {path: read_gguf(path) for path in model.paths if path.suffix == ".gguf"}
    weights = [path for path, header in headers.items() if _is_model(header)]
    if not headers:
        raise EngineError(f"{model.name} has no gguf file; pull it again")
    if not weights:
        path, header = next(iter(headers.items()))
        kind = header.metadata.get("general.type") or header.architecture
        raise EngineError(f"{path.name} is of type {kind}, which can't be run by itself; pull a model")
    adapters = lora.adapters(settings.lora, model)
    found = Files(weights, [headers[path] for path in weights], adapters)
    for adapter in adapters:
        lora.check(adapter, found.headers)
    return found


def _is_model(header: GGUF) -> bool:
    """Whether it is weights, not a projector or an adapter that lies beside them."""
    return header.architecture != "clip" and header.metadata.get("general.type", "model") == "model"
