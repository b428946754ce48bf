"""Installed models as this dialect describes them."""

from __future__ import annotations

import hashlib
import json
import math
from datetime import UTC, datetime, timedelta
from typing import Any

from myllm_core.errors import MyllmError
from myllm_core.models.config_file import read_config
from myllm_core.models.gguf import LongArray, read_gguf
from myllm_core.models.manifest import Model
from myllm_core.runtime.slot import Loaded
from myllm_server.ollama.shapes import rfc3339

_PROJECTOR = "clip"
_NEVER = timedelta(days=365 * 100)
_UNITS = ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K"))
_PARAMETERS = {"max_tokens": "num_predict"}


def entry(model: Model) -> dict[str, Any]:
    """What the list says of a model."""
    about = {"name": model.name, "model": model.name, "modified_at": modified(model)}
    return {**about, "size": model.manifest.size, "digest": digest(model), "details": details(model)}


def loaded_entry(model: Model, loaded: Loaded) -> dict[str, Any]:
    """What the list of loaded models says of one. Those that aren't unloaded by themselves expire in a century."""
    left = _NEVER if loaded.expires_in is None else timedelta(seconds=loaded.expires_in)
    return {
        "name": model.name,
        "model": model.name,
        "size": loaded.memory,
        "digest": digest(model),
        "details": details(model),
        "expires_at": rfc3339(datetime.now(UTC) + left),
        "size_vram": 0,
        "context_length": loaded.context_size,
    }


def modified(model: Model) -> str:
    """When it was installed."""
    try:
        return rfc3339(datetime.fromisoformat(model.manifest.pulled_at).astimezone(UTC))
    except ValueError:  # a manifest that was written by hand
        return rfc3339(datetime.fromtimestamp(0, UTC))


def digest(model: Model) -> str:
    """64 hex digits that change with the files: the one file's hash, or one over the hashes of several."""
    hashes = [file.sha256 for file in model.manifest.files]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def details(model: Model) -> dict[str, Any]:
    """What a model is."""
    manifest = model.manifest
    return {
        "parent_model": "",
        "format": manifest.format,
        "family": manifest.family,
        "families": [manifest.family] if manifest.family else [],
        "parameter_size": _count(manifest.parameters),
        "quantization_level": manifest.quantization,
    }


def _count(parameters: int) -> str:
    for size, unit in _UNITS:
        if parameters >= size:
            return f"{parameters / size:.4g}{unit}"
    return str(parameters) if parameters else ""


def shown(model: Model, calls_tools: bool, sees: bool | None) -> dict[str, Any]:
    """All that is known of a model. Reads its files' headers: call it on a thread.

    ``sees`` says whether it reads images; None: nobody has loaded it, and its files have to tell.
    """
    manifest, metadata = model.manifest, _metadata(model)
    template = metadata.get("tokenizer.chat_template")
    template = template if isinstance(template, str) else ""
    architecture = str(metadata.get("general.architecture") or manifest.family or manifest.format)
    context = f"{architecture}.context_length"
    info = {
        **{key: value for key, value in metadata.items() if key != "tokenizer.chat_template"},
        "general.architecture": architecture,
        "general.parameter_count": manifest.parameters,
        context: metadata.get(context, manifest.context_size),
    }
    return {
        "modelfile": _modelfile(model),
        "parameters": _parameters(model),
        "template": template,
        "system": manifest.system,
        "license": manifest.licence,
        "details": details(model),
        "model_info": info,
        "capabilities": _capabilities(
            metadata, architecture, template, calls_tools, _sees(model) if sees is None else sees
        ),
        "modified_at": modified(model),
    }


def _metadata(model: Model) -> dict[str, Any]:
    """The metadata of the model's file; long arrays, such as its vocabulary, are null."""
    if model.format != "gguf":
        return {}
    try:
        found = read_gguf(model.paths[0]).metadata
    except MyllmError:
        return {}
    return {key: None if _cant_be_told(value) else value for key, value in found.items()}


def _cant_be_told(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return any(isinstance(one, LongArray) or (isinstance(one, float) and not math.isfinite(one)) for one in values)


def _sees(model: Model) -> bool:
    """Whether the files have what reads images: a projector beside the weights, or a part of the model."""
    try:
        if model.format == "gguf":
            return any(read_gguf(path).architecture == _PROJECTOR for path in model.paths[1:])
        configs = [path for path in model.paths if path.name == "config.json"]
        return any("vision_config" in read_config(path) for path in configs)
    except MyllmError:
        return False


def _capabilities(
    metadata: dict[str, Any], architecture: str, template: str, calls_tools: bool, sees: bool
) -> list[str]:
    if f"{architecture}.pooling_type" in metadata:
        return ["embedding"]
    found = {"vision": sees, "tools": calls_tools, "thinking": "<think>" in template}
    return ["completion", *(name for name, there in found.items() if there)]


def _parameters(model: Model) -> str:
    lines = []
    for name, value in model.manifest.options.items():
        for one in value if isinstance(value, list) else [value]:
            lines.append(f"{_PARAMETERS.get(name, name)} {json.dumps(one, ensure_ascii=False)}")
    return "\n".join(lines)


def _modelfile(model: Model) -> str:
    lines = [f"FROM {model.name}", *(f"PARAMETER {line}" for line in _parameters(model).splitlines())]
    if model.manifest.system:
        lines.append(f"SYSTEM {json.dumps(model.manifest.system, ensure_ascii=False)}")
    return "\n".join(lines) + "\n"
