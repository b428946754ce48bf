"""Reading the JSON files that lie beside a model's weights, and refusing those that would make a library run code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from myllm_core.errors import IntegrityError
from myllm_core.models.disk import open_regular, storage_errors

_MAX_CONFIG = 16 * 2**20
_CODE_KEYS = ("auto_map", "custom_pipeline", "custom_pipelines", "custom_ops_library")


def read_config(path: Path) -> dict[str, Any]:
    """The object in a configuration file. An engine calls it before any library sees the file.

    Raises ``IntegrityError`` for a file that is too large, holds no JSON object, or names code that a library would
    fetch or run, and ``StorageError`` when it can't be read.
    """
    config = _read_json(path)
    if not isinstance(config, dict):
        raise IntegrityError(f"{path.name} holds no JSON object")
    _refuse_code(path.name, config)
    return config


def scan_config(path: Path) -> dict[str, Any]:
    """As ``read_config``, but a file that holds a list is scanned too, and gives an empty object."""
    config = _read_json(path)
    if not isinstance(config, dict | list):
        raise IntegrityError(f"{path.name} holds no JSON object")
    _refuse_code(path.name, config)
    return config if isinstance(config, dict) else {}


def read_config_list(path: Path) -> list[dict[str, Any]]:
    """The objects in a file that lists some. Raises as ``read_config`` does."""
    config = _read_json(path)
    if not isinstance(config, list) or not all(isinstance(item, dict) for item in config):
        raise IntegrityError(f"{path.name} holds no list of JSON objects")
    for item in config:
        _refuse_code(path.name, item)
    return config


def _read_json(path: Path) -> Any:
    with storage_errors(f"read {path}"), open_regular(path) as file:
        data = file.read(_MAX_CONFIG + 1)
    if len(data) > _MAX_CONFIG:
        raise IntegrityError(f"{path.name} is larger than {_MAX_CONFIG // 2**20} MiB")
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise IntegrityError(f"{path.name} is no valid JSON") from None


def _refuse_code(file_name: str, config: dict[str, Any] | list[Any]) -> None:
    """Refuse a configuration that makes a library fetch or run code that comes with the model."""
    waiting: list[Any] = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting.extend(value)
        elif isinstance(value, dict):
            waiting.extend(value.values())
            for key, item in value.items():
                foreign = key.endswith("_implementation") and isinstance(item, str) and ("/" in item or ":" in item)
                if foreign or (key in _CODE_KEYS and item):
                    raise IntegrityError(
                        f"{file_name} wants to run code of the model's author ({key}), which myllm doesn't do; "
                        "choose a GGUF version, or a model that needs no code of its own"
                    )
