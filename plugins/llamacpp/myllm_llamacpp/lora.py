"""LoRA adapters: small files that change what a model writes, checked before llama.cpp sees them.

llama.cpp ends the process for a file whose tensors don't fit together, so everything that it takes for granted is
looked at here (``llama-adapter.cpp`` of llama.cpp b10488 reads them).
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from myllm_core import Model
from myllm_core.errors import EngineError, InvalidOption
from myllm_core.models.gguf import GGUF, Tensor, read_gguf
from myllm_llamacpp.bindings import logger

_SCALED = re.compile(r"(?P<path>.+)=(?P<scale>[-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)")
_EMBEDDING = "token_embd.weight"
_PAIR = {".lora_a": 0, ".lora_b": 1}
Shape = tuple[int, ...]

_NO_WEIGHTS = {"I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K"}


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter's file, and how much of it is added to the model: 1 is all, 0 is nothing."""

    path: Path
    scale: float = 1.0

    @property
    def digest(self) -> str:
        """The hash of the file's content."""
        return digest_of(self.path)


def digest_of(path: Path) -> str:
    """The hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def adapters(listed: str, model: Model) -> list[Adapter]:
    """The adapters of a comma-separated list of ``PATH`` and ``PATH=SCALE``.

    A name without a folder may also be that of a file that lies beside the model. Raises ``InvalidOption``.
    """
    return [_adapter(item.strip(), model) for item in listed.split(",") if item.strip()]


def _adapter(text: str, model: Model) -> Adapter:
    scaled = _SCALED.fullmatch(text)
    path = find(text, model)
    if path is None and scaled:
        path = find(scaled["path"], model)
        if path is not None:
            return Adapter(path, _scale(scaled["scale"], text))
    if path is None:
        raise InvalidOption(f"load option lora: there is no file {text}; write PATH or PATH=SCALE, with commas between")
    return Adapter(path)


def _scale(text: str, item: str) -> float:
    try:
        scale = float(text)
    except ValueError:
        scale = math.nan
    if not math.isfinite(scale):
        raise InvalidOption(f"load option lora: {item} has no scale that is a number; write PATH=0.5")
    return scale


def find(text: str, model: Model) -> Path | None:
    """The file at a path, or the one of that name beside the model."""
    path = Path(text).expanduser()
    beside = (own for own in model.paths if own.name == text)
    return next((found for found in (path, *beside) if found.is_file()), None)


def check(adapter: Adapter, model: Iterable[GGUF]) -> None:
    """See whether an adapter is one, whole, and made for a model with these headers (one for each of its files).

    Raises ``EngineError``, ``IntegrityError``.
    """
    name, header, headers = adapter.path.name, read_gguf(adapter.path), list(model)
    kind = header.metadata.get("general.type", "model")
    if kind != "adapter" or header.metadata.get("adapter.type") != "lora":
        raise EngineError(f"{name} is no LoRA adapter (its type is {kind}); convert one with convert_lora_to_gguf.py")
    if header.architecture != headers[0].architecture:
        raise EngineError(
            f"the adapter {name} is for {header.architecture} models, not for {headers[0].architecture}; "
            "take one that was made for this model"
        )
    if "adapter.alora.invocation_tokens" in header.metadata:
        raise EngineError(f"the adapter {name} is an activated one (aLoRA), which isn't supported; take a plain LoRA")
    tensors = {tensor.name: tensor for one in headers for tensor in one.tensors}
    for target, (a, b) in _pairs(name, header.tensors).items():
        _check_pair(name, tensors, target, a, b)


def _pairs(name: str, tensors: Sequence[Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """The two factors of each tensor that the adapter changes."""
    found: dict[str, list[Tensor | None]] = {}
    for tensor in tensors:
        target, factor = tensor.name[: -len(".lora_a")], _PAIR.get(tensor.name[-len(".lora_a") :])
        if factor is not None:
            found.setdefault(target, [None, None])[factor] = tensor
        elif tensor.name.endswith("_norm.weight"):
            logger.warning("%s: llama.cpp leaves %s out of adapters; the rest is used", name, tensor.name)
        else:
            raise EngineError(
                f"the adapter {name} has a tensor {tensor.name}, which llama.cpp doesn't know; convert it"
            )
    pairs = {target: (a, b) for target, (a, b) in found.items() if a is not None and b is not None}
    if len(pairs) < len(found) or not pairs:
        lacking = next((target for target in found if target not in pairs), "all tensors")
        raise EngineError(f"the adapter {name} lacks a factor of {lacking}; get the file again")
    return pairs


def _check_pair(name: str, model: dict[str, Tensor], target: str, a: Tensor, b: Tensor) -> None:
    changed = model.get(target)
    if changed is None or len(changed.shape) < 2:
        raise EngineError(
            f"the adapter {name} changes {target}, which this model hasn't; take the model it is made for"
        )
    if target == _EMBEDDING and "output.weight" not in model:
        raise EngineError(f"the adapter {name} changes embeddings that this model also writes with; merge it instead")
    if not _fits(changed.shape, a.shape, b.shape, target == _EMBEDDING) or {a.type, b.type} & _NO_WEIGHTS:
        raise EngineError(
            f"the adapter {name} doesn't fit {target} of {list(changed.shape)} (its factors are {list(a.shape)} "
            f"{a.type} and {list(b.shape)} {b.type}); take the model it is made for"
        )


def _fits(changed: Shape, a: Shape, b: Shape, looked_up: bool) -> bool:
    """Whether two factors make the shape; those of embeddings, looked up by token, lie the other way around."""
    columns, rows, *experts = changed
    if len(a) < 2 or 0 in a:
        return False
    if looked_up:
        return a == (a[0], rows) and b == (a[0], columns)
    return a == (columns, a[1], *experts) and b == (a[1], rows, *experts)
