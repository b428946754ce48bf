"""A tiny model of the test model's kind, with random weights, as the hub has models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}


@pytest.fixture(scope="session")
def tiny(smollm2_safetensors: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 3 million weights; its configuration has the form that transformers 5 writes."""
    from safetensors.numpy import save_file

    folder = tmp_path_factory.mktemp("models") / "tiny"
    shutil.copytree(smollm2_safetensors, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text()) | SIZES
    config["rope_parameters"] = {"rope_theta": config.pop("rope_theta"), "rope_type": "default"}
    (folder / "config.json").write_text(json.dumps(config))
    random = np.random.default_rng(5)
    weights = {name: random.normal(0, 0.2, shape).astype(np.float16) for name, shape in _shapes(config).items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def _shapes(config: dict[str, int]) -> dict[str, tuple[int, ...]]:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    keys = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    parts: dict[str, tuple[int, ...]] = {
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    layers = {
        f"model.layers.{layer}.{name}.weight": shape
        for layer in range(config["num_hidden_layers"])
        for name, shape in parts.items()
    }
    return {"model.embed_tokens.weight": (config["vocab_size"], hidden), "model.norm.weight": (hidden,), **layers}
