"""Finding out what the files of a model are: format, family, size, context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from myllm_core.errors import IntegrityError, InvalidRequest
from myllm_core.models.config_file import scan_config
from myllm_core.models.file_kinds import file_kind
from myllm_core.models.gguf import GGUF, read_gguf
from myllm_core.models.safetensors_file import read_safetensors

KNOWN_FORMATS = frozenset({"gguf", "safetensors", "onnx", "ggml"})
"""Formats that the core recognises by content."""

_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx", "context_length")

Configs = Mapping[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Inspection:
    """What the files of a model say of it; what they don't say is empty or 0.

    ``files`` are the names that were given, the one to load first. ``context_size`` is in tokens.
    """

    format: str
    files: tuple[str, ...]
    family: str = ""
    quantization: str = ""
    context_size: int = 0
    parameters: int = 0
    licence: str = ""


def inspect_files(folder: Path, files: Sequence[str], format: str = "") -> Inspection:
    """Look into all files of one model; names are relative to ``folder``.

    ``format`` is what the source says, for formats that the core doesn't know; what it knows, it sees for itself.
    Raises ``IntegrityError`` for a file that is damaged, unsafe or no model, ``InvalidRequest`` for several models at
    once, and ``StorageError`` when a file can't be read.
    """
    foreign = format if format not in KNOWN_FORMATS else ""
    kinds = {name: file_kind(folder / name, strict=not foreign) for name in files}
    configs = {name: scan_config(folder / name) for name in files if name.endswith("config.json")}
    inspection = _inspect_weights(folder, kinds, configs)
    if inspection is None and foreign:
        inspection = Inspection(foreign, tuple(files))
    if inspection is None:
        raise IntegrityError(f"there is no model in {', '.join(files) or 'the download'}; give a GGUF file's name")
    main = inspection.files
    others = (name for name in files if name not in main)
    return replace(inspection, format=foreign or inspection.format, files=(*main, *others))


def _inspect_weights(folder: Path, kinds: Mapping[str, str], configs: Configs) -> Inspection | None:
    def of(kind: str) -> list[str]:
        return [name for name, its_kind in kinds.items() if its_kind == kind]

    if of("gguf"):
        return _inspect_gguf({name: read_gguf(folder / name) for name in of("gguf")})
    if of("onnx"):
        return _inspect_onnx(of("onnx"), configs)
    if of("safetensors"):
        return _inspect_safetensors(folder, of("safetensors"), configs)
    return Inspection("ggml", tuple(of("ggml"))) if of("ggml") else None


def _inspect_gguf(headers: dict[str, GGUF]) -> Inspection:
    """One model, in one file or split into several; projectors and adapters may lie beside it."""
    parts = sorted((name for name in headers if _is_model(headers[name])), key=lambda name: (headers[name].split, name))
    if not parts:
        raise IntegrityError(f"{', '.join(headers)} only adds to a model (a projector or adapter); pull the model too")
    count = headers[parts[0]].split[1]
    if count == 1 and len(parts) > 1:
        raise InvalidRequest(f"these are several models: {', '.join(parts)}; name the one that you want")
    if [headers[name].split for name in parts] != [(number, count) for number in range(count)]:
        raise IntegrityError(f"the model is split into {count} files, and not all are here: {', '.join(parts)}")
    main = headers[parts[0]]
    parameters = sum(headers[name].parameters for name in parts)
    if not main.architecture or not parameters:
        raise IntegrityError(
            f"{parts[0]} holds no model: it has no {'weights' if main.architecture else 'architecture'}"
        )
    quantization = next((headers[name].quantization for name in parts if headers[name].quantization), "")
    licence = str(main.metadata.get("general.license", ""))
    return Inspection(
        "gguf", tuple(parts), main.architecture, quantization, main.context_length, parameters, _printable(licence)
    )


def _is_model(header: GGUF) -> bool:
    return header.architecture != "clip" and header.metadata.get("general.type", "model") == "model"


def _inspect_onnx(names: Sequence[str], configs: Configs) -> Inspection:
    config = _main_config(configs, "genai_config.json").get("model", {})
    if not isinstance(config, dict):
        raise IntegrityError("genai_config.json: model is no object")
    main = sorted(names, key=lambda name: (PurePosixPath(name).name != "model.onnx", name))
    return Inspection("onnx", tuple(main), family=_text(config, "type"), context_size=_number(config, _CONTEXT_KEYS))


def _inspect_safetensors(folder: Path, names: Sequence[str], configs: Configs) -> Inspection:
    config = _main_config(configs, "config.json")
    if not config:
        raise IntegrityError(f"{names[0]} comes without its config.json; pull the whole repository")
    headers = [read_safetensors(folder / name) for name in names]
    text_config = config.get("text_config")
    text_config = text_config if isinstance(text_config, dict) else {}
    quantization = config.get("quantization_config")
    method = _text(quantization, "quant_method") if isinstance(quantization, dict) else ""
    return Inspection(
        "safetensors",
        tuple(sorted(names)),
        family=_text(config, "model_type"),
        quantization=(method or max(headers, key=lambda header: header.parameters).dtype).upper(),
        context_size=_number(config, _CONTEXT_KEYS) or _number(text_config, _CONTEXT_KEYS),
        parameters=sum(header.parameters for header in headers),
    )


def _main_config(configs: Configs, file_name: str) -> dict[str, Any]:
    found = sorted(
        (name for name in configs if PurePosixPath(name).name == file_name), key=lambda name: name.count("/")
    )
    return configs[found[0]] if found else {}


def _text(config: Mapping[str, Any], key: str) -> str:
    value = config.get(key)
    return _printable(value) if isinstance(value, str) else ""


def _number(config: Mapping[str, Any], keys: Sequence[str]) -> int:
    values = (config.get(key) for key in keys)
    return next((value for value in values if type(value) is int and 0 < value < 2**31), 0)


def _printable(text: str) -> str:
    return "".join(c for c in text if c.isprintable())[:100]
