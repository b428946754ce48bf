"""A tiny model of the test model's kind, with random weights, as the hub has models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.tiny_llama import write_tiny_llama


@pytest.fixture(scope="session")
def tiny(smollm2_safetensors: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 3 million weights; its configuration has the form that transformers 5 writes."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_tiny_llama(folder, smollm2_safetensors)
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {"rope_theta": config.pop("rope_theta"), "rope_type": "default"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
