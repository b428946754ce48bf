"""Files of the old formats: the real test model as an early GGUF, and tiny models of formats before that."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np

_KEPT = ("context_length", "embedding_length", "feed_forward_length", "block_count", "attention.head_count")
_KEPT_TOO = ("attention.head_count_kv", "rope.dimension_count", "rope.freq_base", "attention.layer_norm_rms_epsilon")
_NORMAL, _CONTROL, _UNUSED, _BYTE = 1, 3, 5, 6


def early_gguf(source: Path, target: Path) -> None:
    """Write a GGUF file of today with a byte-level vocabulary as one of version 2 with a score-based vocabulary."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for key in _KEPT + _KEPT_TOO:
        field = reader.get_field(f"llama.{key}")
        if field is not None:
            add = writer.add_float32 if key in _KEPT_TOO[2:] else writer.add_uint32
            add(f"llama.{key}", field.contents())
    _vocabulary(reader, writer)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    for name, tensor in tensors.items():
        _add(writer, name, tensor)
    if "output.weight" not in tensors:
        _add(writer, "output.weight", tensors["token_embd.weight"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with target.open("r+b") as file:
        file.seek(4)
        file.write(struct.pack("<I", 2))


def _add(writer: gguf.GGUFWriter, name: str, tensor: gguf.ReaderTensor) -> None:
    values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    if values.ndim == 1:
        writer.add_tensor(name, values.astype(np.float32))
    else:
        writer.add_tensor(name, values.astype(np.float16))


def _vocabulary(reader: gguf.GGUFReader, writer: gguf.GGUFWriter) -> None:
    """Bytes become characters with a score by age, or one of 256 byte tokens; what is no whole character, a spare."""
    texts = reader.get_field("tokenizer.ggml.tokens").contents()
    types = reader.get_field("tokenizer.ggml.token_type").contents()
    bytes_of = _byte_level()
    tokens, kinds = [], []
    spare = []
    for index, (text, kind) in enumerate(zip(texts, types, strict=True)):
        data = b"" if kind == _CONTROL else bytes(bytes_of[char] for char in text)
        if kind == _CONTROL:
            tokens.append(text)
        elif len(data) == 1 and (data < b" " or data > b"~"):
            tokens.append(f"<0x{data[0]:02X}>")
            kind = _BYTE
        else:
            try:
                tokens.append(data.decode().replace(" ", "▁"))
                kind = _NORMAL
            except UnicodeDecodeError:
                tokens.append(f"<spare {index}>")
                spare.append(index)
                kind = _UNUSED
        kinds.append(kind)
    for byte in range(256):
        name = f"<0x{byte:02X}>"
        if name not in tokens:
            place = spare.pop()
            tokens[place], kinds[place] = name, _BYTE
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(index) for index in range(len(tokens))])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(texts.index("<|im_start|>"))
    writer.add_eos_token_id(texts.index("<|im_end|>"))
    writer.add_bool("tokenizer.ggml.add_bos_token", False)
    writer.add_chat_template(reader.get_field("tokenizer.chat_template").contents())


def _byte_level() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(rest)}


def tiny_gpt2(words: int = 300, context: int = 128, width: int = 32, heads: int = 2, layers: int = 2) -> bytes:
    """A whole GGML file of a GPT-2 of random numbers: a word for each byte, some longer ones, and an end."""
    vocabulary = [bytes([byte]) for byte in range(256)]
    longer = [f" w{chr(97 + number // 26)}{chr(97 + number % 26)}".encode() for number in range(words - 257)]
    vocabulary += [*longer, b"<|endoftext|>"]
    chance = np.random.default_rng(1)
    parts = [b"lmgg", struct.pack("<7i", words, context, width, heads, layers, 0, words)]
    parts += [struct.pack("<I", len(word)) + word for word in vocabulary]

    def add(name: str, *shape: int) -> None:
        values = (chance.standard_normal(shape[::-1]) * 0.3).astype("<f4")
        parts.append(struct.pack("<3i", len(shape), len(name), 0) + struct.pack(f"<{len(shape)}i", *shape))
        parts.append(name.encode() + values.tobytes())

    for name in ("model/ln_f/g", "model/ln_f/b"):
        add(name, width)
    add("model/wte", width, words)
    add("model/wpe", width, context)
    for layer in range(layers):
        for name, *shape in (
            ("ln_1/g", width), ("ln_1/b", width), ("ln_2/g", width), ("ln_2/b", width),
            ("attn/c_attn/w", width, 3 * width), ("attn/c_attn/b", 3 * width),
            ("attn/c_proj/w", width, width), ("attn/c_proj/b", width),
            ("mlp/c_fc/w", width, 4 * width), ("mlp/c_fc/b", 4 * width),
            ("mlp/c_proj/w", 4 * width, width), ("mlp/c_proj/b", width),
        ):  # fmt: skip
            add(f"model/h{layer}/{name}", *shape)
    return b"".join(parts)
