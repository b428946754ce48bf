"""A model of the test model's kind, with its vocabulary and 3 million random weights: right in form, without sense."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}


def write_tiny_llama(folder: Path, source: Path) -> None:
    """Write it in the hub's layout; ``source`` is the real one's folder, whose other files it has."""
    from safetensors.numpy import save_file

    shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text()) | SIZES
    (folder / "config.json").write_text(json.dumps(config))
    random = np.random.default_rng(5)
    weights = {name: random.normal(0, 0.2, shape).astype(np.float16) for name, shape in _shapes(config).items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


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
