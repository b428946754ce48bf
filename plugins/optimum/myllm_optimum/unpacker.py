"""The process that unpacks a GGUF file: ``python -m myllm_optimum.unpacker FILE FOLDER``.

It writes a folder in the hub's layout: weights of 16 bits (32 where the file has them), configuration, tokenizer. Its
last line says what failed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from myllm_core.errors import MyllmError, UnsupportedError
from myllm_optimum.gguf_tokenizer import Get, check_kind, tokenizer_files

_LARGEST_F16 = 65504.0


def main() -> None:
    """Unpack one file."""
    source, target = map(Path, sys.argv[1:])
    try:
        unpack(source, target)
    except MyllmError as error:
        sys.exit(error.message)
    except Exception as error:  # noqa: BLE001 - the libraries raise whatever they like
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}")


def unpack(source: Path, target: Path) -> None:
    """Write the folder. Raises ``UnsupportedError`` and ``IntegrityError``."""
    import gguf
    import torch
    import transformers
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    reader = gguf.GGUFReader(source)

    def get(key: str) -> Any:
        field = reader.fields.get(key)
        return None if field is None else field.contents()

    check_kind(get)
    print("Reading the tokenizer", flush=True)
    files = tokenizer_files(get)
    told = load_gguf_checkpoint(str(source), return_tensors=False)["config"]
    config = transformers.AutoConfig.for_model(told.pop("model_type"), **told)
    with torch.device("meta"):
        model: Any = transformers.AutoModelForCausalLM.from_config(config)
    kinds = {tensor.tensor_type for tensor in reader.tensors if len(tensor.shape) > 1}
    print("Unpacking the weights", flush=True)
    weights = load_gguf_checkpoint(str(source), return_tensors=True, model_to_load=model)["tensors"]
    config.tie_word_embeddings = "lm_head.weight" not in weights
    kept = _as(weights, _type(kinds), model, tied=config.tie_word_embeddings)
    config.architectures = [type(model).__name__]
    config.dtype = next(iter(kept.values())).dtype
    _write(target, kept, config, files, _ends(get))


def _type(kinds: set[Any]) -> Any:
    import torch
    from gguf import GGMLQuantizationType as Kind

    if Kind.BF16 in kinds:
        return torch.bfloat16
    return torch.float32 if kinds == {Kind.F32} else torch.float16


def _as(weights: dict[str, Any], dtype: Any, model: Any, *, tied: bool) -> dict[str, Any]:
    """The weights that the model has, each once. Raises ``UnsupportedError`` when some are missing."""
    import torch

    wanted = {name: value.shape for name, value in model.named_parameters()}
    if tied:
        wanted.pop("lm_head.weight", None)
    wrong = [name for name, shape in wanted.items() if name not in weights or weights[name].shape != shape]
    if wrong:
        raise UnsupportedError(f"transformers finds no {wrong[0]} in it, and {len(wrong) - 1} more; pull safetensors")
    if dtype is torch.float16 and any(float(weights[name].abs().max()) > _LARGEST_F16 for name in wanted):
        dtype = torch.bfloat16
    return {name: weights[name].to(dtype).contiguous() for name in wanted}


def _ends(get: Get) -> dict[str, Any]:
    found = {name: get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "eot", "padding")}
    ends = [number for number in dict.fromkeys((found["eos"], found["eot"])) if number is not None]
    named = {"bos_token_id": found["bos"], "eos_token_id": ends[0] if len(ends) == 1 else ends or None}
    named["pad_token_id"] = found["padding"]
    return {name: value for name, value in named.items() if value is not None}


def _write(folder: Path, weights: dict[str, Any], config: Any, files: dict[str, Any], ends: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    print("Writing", flush=True)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    documents = {"config.json": {**config.to_dict(), **ends}, "generation_config.json": ends, **files}
    for name, document in documents.items():
        text = json.dumps(document, ensure_ascii=False, indent=1, default=str)
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
