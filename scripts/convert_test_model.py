"""The test model in other formats, of the same weights: ``python scripts/convert_test_model.py GGUF TARGET``.

A target that ends in ``.gguf`` becomes a GGUF file of 32-bit floats, any other a folder as the Hugging Face Hub has it:
safetensors with config and tokenizer. Both hold the 4-bit file's weights, rounded to 16-bit floats, so that engines of
both formats compute with the same numbers.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL = 3  # gguf.TokenType.CONTROL


class _Source:
    def __init__(self, path: Path) -> None:
        self.reader = gguf.GGUFReader(path)

    def __getitem__(self, key: str) -> Any:
        return self.reader.fields[key].contents()

    def tensors(self) -> Iterator[tuple[str, npt.NDArray[np.float16]]]:
        for tensor in self.reader.tensors:
            yield tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float16)


def write_gguf(source: _Source, path: Path) -> None:
    """The same file with its tensors as 32-bit floats."""
    writer = gguf.GGUFWriter(path, source["general.architecture"])
    for key, field in source.reader.fields.items():
        if not key.startswith("GGUF.") and key not in ("general.architecture", "general.file_type"):
            sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for name, values in source.tensors():
        writer.add_tensor(name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_folder(source: _Source, folder: Path) -> None:
    """Weights, configuration and tokenizer for transformers."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    heads = {"attn_q": source["llama.attention.head_count"], "attn_k": source["llama.attention.head_count_kv"]}
    weights = {}
    for name, values in source.tensors():
        found = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", name)
        assert found, name
        layer, kind = found.groups()
        if kind in heads:
            values = _unpermuted(values, heads[kind])
        prefix = f"model.layers.{layer}." if layer else ""
        weights[f"{prefix}{_NAMES[kind]}.weight"] = np.ascontiguousarray(values)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    for file_name, value in (
        ("config.json", _config(source)),
        ("generation_config.json", _tokens(source)),
        ("tokenizer.json", _tokenizer(source)),
        ("tokenizer_config.json", _tokenizer_config(source)),
    ):
        (folder / file_name).write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")


def _unpermuted(values: npt.NDArray[np.float16], heads: int) -> npt.NDArray[np.float16]:
    """llama.cpp keeps the two halves of a rotation next to each other, transformers one behind the other."""
    rows, columns = values.shape
    pairs = values.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def _tokens(source: _Source) -> dict[str, int]:
    kinds = {"bos": "bos", "eos": "eos", "pad": "padding"}
    return {f"{name}_token_id": source[f"tokenizer.ggml.{key}_token_id"] for name, key in kinds.items()}


def _config(source: _Source) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float16",
        "hidden_act": "silu",
        "hidden_size": source["llama.embedding_length"],
        "intermediate_size": source["llama.feed_forward_length"],
        "max_position_embeddings": source["llama.context_length"],
        "num_attention_heads": source["llama.attention.head_count"],
        "num_hidden_layers": source["llama.block_count"],
        "num_key_value_heads": source["llama.attention.head_count_kv"],
        "rms_norm_eps": 1e-5,
        "rope_theta": source["llama.rope.freq_base"],
        "tie_word_embeddings": True,
        "vocab_size": source["llama.vocab_size"],
        **_tokens(source),
    }


def _tokenizer(source: _Source) -> dict[str, Any]:
    """Byte-level BPE that takes digits one by one, as the vocabulary's pre-tokenizer ``smollm`` says."""
    tokens, types = source["tokenizer.ggml.tokens"], source["tokenizer.ggml.token_type"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, "content": tokens[number], **flags} for number, kind in enumerate(types) if kind == _CONTROL
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {text: number for number, text in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in source["tokenizer.ggml.merges"]],
        },
    }


def _tokenizer_config(source: _Source) -> dict[str, Any]:
    tokens = source["tokenizer.ggml.tokens"]
    ids = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": source["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": source["tokenizer.chat_template"],
        **{name: tokens[source[f"tokenizer.ggml.{key}_token_id"]] for name, key in ids.items()},
    }


def main() -> None:
    """Write the target, which isn't there before it is whole."""
    source, target = _Source(Path(sys.argv[1])), Path(sys.argv[2])
    partial = target.with_name(f"{target.name}.{os.getpid()}.part")
    (write_gguf if target.suffix == ".gguf" else write_folder)(source, partial)
    try:
        partial.rename(target)
    except OSError:
        if not target.exists():  # another run was quicker
            raise


if __name__ == "__main__":
    main()
