"""Tiny models of random weights in transformers, and the same weights in files of the formats before GGUF.

What the files hold, by name and in what shape: the loaders in ctransformers 0.2.27.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

Weights = npt.NDArray[np.float32]
Made = tuple[bytes, Any]
Turn = Callable[[Any], Any]

WIDTH, HEADS, LAYERS, CONTEXT = 64, 4, 3, 256
HEAD = WIDTH // HEADS
F32, F16, Q4_0, Q8_0 = 0, 1, 2, 7
_QUANT_VERSION = 2000
_KINDS = {
    F32: (0, gguf.GGMLQuantizationType.F32), F16: (1, gguf.GGMLQuantizationType.F16),
    Q4_0: (2, gguf.GGMLQuantizationType.Q4_0), Q8_0: (8, gguf.GGMLQuantizationType.Q8_0),
}  # fmt: skip


def words() -> list[bytes]:
    """A word for each byte, some longer ones, and an end."""
    longer = [f" w{chr(97 + number // 26)}{chr(97 + number % 26)}".encode() for number in range(63)]
    return [*(bytes([byte]) for byte in range(256)), *longer, b"<|endoftext|>"]


VOCABULARY = len(words())


class Writer:
    """Writes one file. Matrices are of the file's type, and the model's are made equal to what the file holds."""

    def __init__(self, magic: bytes, *numbers: int | float, ftype: int = F32, aligned: bool = False) -> None:
        self._ftype, self._aligned = ftype, aligned
        packed = [struct.pack("<f" if isinstance(number, float) else "<i", number) for number in numbers]
        self.data = bytearray(magic + b"".join(packed))

    @property
    def ftype(self) -> int:
        """The number for the file's head."""
        return self._ftype + (_QUANT_VERSION if self._ftype > F16 else 0)

    def number(self, *numbers: int) -> None:
        self.data += struct.pack(f"<{len(numbers)}i", *numbers)

    def words(self, texts: Iterable[bytes], scores: Iterable[float] | None = None) -> None:
        given = list(texts)
        for text, score in zip(given, scores or [None] * len(given), strict=True):
            self.data += struct.pack("<I", len(text)) + text + (b"" if score is None else struct.pack("<f", score))

    def tensor(
        self, name: str, weights: Any, *, plain: bool = False, rows: Turn | None = None, flip: bool = False
    ) -> None:
        """Add a tensor of torch: with ``plain`` of 32 bits, its ``rows`` as the file has them, or columns as rows."""
        import torch

        values = weights.detach().numpy()
        values = values.T if flip else values
        kind, type_ = _KINDS[F32 if plain or values.ndim == 1 else self._ftype]
        data = gguf.quants.quantize(values, type_)
        if kind:
            kept = gguf.quants.dequantize(data, type_)
            with torch.no_grad():
                weights.copy_(torch.from_numpy(kept.T if flip else kept))
        shape = (rows(values) if rows else values).shape
        self.number(len(shape), len(name), kind, *shape[::-1])
        self.data += name.encode()
        if self._aligned:
            self.data += bytes(-len(self.data) % 32)
        self.data += np.ascontiguousarray(rows(data) if rows else data).tobytes()


def _random(cls: str, config: Any) -> Any:
    """A model whose every weight matters: transformers' own first ones are too small, and its biases 0."""
    import torch
    import transformers

    torch.manual_seed(11)
    model = getattr(transformers, cls)(config).eval()
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.ndim == 1:
                weights.normal_(1.0 if name.endswith("weight") else 0.0, 0.2)
            else:
                weights.normal_(0.0, 0.15)
    return model


def gptj(ftype: int = F32, rotated: int = HEAD) -> Made:
    """GPT-J; ``rotated`` of a head's numbers have positions."""
    from transformers import GPTJConfig

    config = GPTJConfig(
        vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, rotary_dim=rotated
    )
    model = _random("GPTJForCausalLM", config)
    file = Writer(b"lmgg", VOCABULARY, CONTEXT, WIDTH, HEADS, LAYERS, rotated, ftype=ftype)
    file.number(file.ftype, VOCABULARY)
    file.words(words())
    for name, weights in model.named_parameters():
        file.tensor(name, weights)
    return bytes(file.data), model


def gptneox(ftype: int = F32, rotated: int = HEAD, parallel: bool = True, context: int = CONTEXT) -> Made:
    """GPT-NeoX, attention and the rest in ``parallel`` or not; Dolly's files are the same."""
    from transformers import GPTNeoXConfig

    config = GPTNeoXConfig(
        vocab_size=VOCABULARY, max_position_embeddings=context, hidden_size=WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, intermediate_size=4 * WIDTH, rotary_pct=rotated / HEAD, hidden_act="gelu_new",
        use_parallel_residual=parallel,
    )  # fmt: skip
    model = _random("GPTNeoXForCausalLM", config)
    file = Writer(b"lmgg", VOCABULARY, context, WIDTH, HEADS, LAYERS, rotated, int(parallel), ftype=ftype)
    file.number(file.ftype)
    file.words(words())
    for name, weights in model.named_parameters():
        file.tensor(name.replace("lm_head", "embed_out"), weights)
    return bytes(file.data), model


def mpt(ftype: int = F32, heads: int = HEADS, clip: float = 0.0) -> Made:
    """MPT: its words are characters for bytes, as UTF-8."""
    from transformers import MptConfig

    attention = {"alibi": True, "alibi_bias_max": 8, "clip_qkv": clip or None}
    config = MptConfig(
        d_model=WIDTH, n_heads=heads, n_layers=LAYERS, max_seq_len=CONTEXT, vocab_size=VOCABULARY, attn_config=attention
    )
    model = _random("MptForCausalLM", config)
    file = Writer(b"lmgg", WIDTH, CONTEXT, heads, LAYERS, VOCABULARY, 8.0, float(clip), ftype=ftype)
    file.number(file.ftype)
    file.words(word.decode("latin-1").encode() for word in words())
    for name, weights in model.named_parameters():
        file.tensor(name, weights)
    return bytes(file.data), model


_OPENAI_NAMES = (
    ("transformer.h.", "model/h"), ("transformer.", "model/"), (".weight", "/w"), (".bias", "/b"), (".", "/"),
    ("wte/w", "wte"), ("wpe/w", "wpe"), ("ln_1/w", "ln_1/g"), ("ln_2/w", "ln_2/g"), ("ln_f/w", "ln_f/g"),
)  # fmt: skip


def _openai_name(name: str) -> str:
    for theirs, ours in _OPENAI_NAMES:
        name = name.replace(theirs, ours)
    return name


def _openai_file(model: Any, ftype: int, *, rows: Turn | None = None, flip: bool = False) -> bytes:
    file = Writer(b"lmgg", VOCABULARY, CONTEXT, WIDTH, HEADS, LAYERS, ftype=ftype)
    file.number(file.ftype, VOCABULARY)
    file.words(words())
    for name, weights in model.named_parameters():
        plain, is_matrix = name.endswith("wpe.weight"), ".c_" in name and weights.ndim == 2
        new = rows if "c_attn" in name else None
        file.tensor(_openai_name(name), weights, plain=plain, rows=new, flip=flip and is_matrix)
    return bytes(file.data)


def gpt2(ftype: int = F32) -> Made:
    """GPT-2, whose matrices transformers has the other way round."""
    from transformers import GPT2Config

    model = _random(
        "GPT2LMHeadModel",
        GPT2Config(vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS),
    )
    return _openai_file(model, ftype, flip=True), model


def starcoder(ftype: int = F32, one_key: bool = True) -> Made:
    """StarCoder: with ``one_key`` all heads share keys and values, which the file has once for each."""
    from transformers import GPTBigCodeConfig

    config = GPTBigCodeConfig(
        vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, multi_query=one_key
    )

    def spread(rows: Any) -> Any:
        query, key, value = rows[:WIDTH], rows[WIDTH : WIDTH + HEAD], rows[WIDTH + HEAD :]
        return np.concatenate([query, *[key] * HEADS, *[value] * HEADS])

    def by_kind(rows: Any) -> Any:  # transformers has query, key and value of a head together
        return rows.reshape(HEADS, 3, HEAD, *rows.shape[1:]).swapaxes(0, 1).reshape(rows.shape)

    model = _random("GPTBigCodeForCausalLM", config)
    return _openai_file(model, ftype, rows=spread if one_key else by_kind), model


_LLAMA_NAMES = {
    "self_attn.q_proj": "attention.wq", "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1", "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3", "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output", "model.layers": "layers",
}  # fmt: skip


def llama_words() -> list[tuple[bytes, float]]:
    """Words and scores of a SentencePiece vocabulary: all bytes, and some words with a space before them."""
    whole = [(word.lstrip() and b" " + word.strip(), -1.0 - at) for at, word in enumerate(words()[256:-1])]
    letters = [(bytes([byte]), -500.0 - byte) for byte in range(32, 127)]
    named = [(b"\xe2\x81\x87 ", 0.0), (b"", 0.0), (b"", 0.0), *((bytes([byte]), 0.0) for byte in range(256))]
    return [*named, *whole, *letters]


def llama(ftype: int = F32, magic: bytes = b"tjgg", version: int = 3) -> Made:
    """LLaMA, in any of the versions of its file."""
    from transformers import LlamaConfig

    vocabulary = llama_words()
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=WIDTH, intermediate_size=192, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, max_position_embeddings=2048, rms_norm_eps=5e-6, tie_word_embeddings=False,
    )  # fmt: skip
    model = _random("LlamaForCausalLM", config)
    numbers = [] if magic == b"lmgg" else [version]
    file = Writer(
        magic, *numbers, len(vocabulary), WIDTH, 32, HEADS, LAYERS, HEAD, ftype, ftype=ftype, aligned=magic == b"tjgg"
    )
    file.words((word for word, _ in vocabulary), None if magic == b"lmgg" else [score for _, score in vocabulary])

    def interleaved(rows: Any) -> Any:
        return rows.reshape(HEADS, 2, HEAD // 2, -1).swapaxes(1, 2).reshape(rows.shape)

    for name, weights in model.named_parameters():
        new = name
        for theirs, ours in _LLAMA_NAMES.items():
            new = new.replace(theirs, ours)
        file.tensor(new, weights, rows=interleaved if new.endswith(("wq.weight", "wk.weight")) else None)
    return bytes(file.data), model


_FALCON_NAMES = {
    "transformer.word_embeddings": "token_embd", "transformer.ln_f": "output_norm", "lm_head": "output",
    "transformer.h.": "blk.", "self_attention.query_key_value": "attn_qkv", "self_attention.dense": "attn_output",
    "mlp.dense_h_to_4h": "ffn_up", "mlp.dense_4h_to_h": "ffn_down", "input_layernorm": "attn_norm",
    "ln_attn": "attn_norm_2", "ln_mlp": "attn_norm",
}  # fmt: skip


def falcon(path: Path, *, large: bool = False, readable: bool = True) -> Any:
    """Falcon as an early GGUF file, as the 7B or the ``large`` 40B is built; the model.

    Its words are bytes as they are; not ``readable``, they are as files of later had them.
    """
    from transformers import FalconConfig

    keys = 2 if large else 1
    config = FalconConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_kv_heads=keys, new_decoder_architecture=large, multi_query=not large, parallel_attn=True, bias=False,
        alibi=False, tie_word_embeddings=False, max_position_embeddings=CONTEXT, activation="gelu_pytorch_tanh",
    )  # fmt: skip
    model = _random("FalconForCausalLM", config)
    writer = gguf.GGUFWriter(path, "falcon")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(4 * WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(keys)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_tensor_data_layout("jploski")
    _falcon_words(writer, readable)

    def by_kind(rows: Any) -> Any:
        parts = rows.reshape(keys, HEADS // keys + 2, HEAD, WIDTH)
        return np.concatenate([part.reshape(-1, WIDTH) for part in (parts[:, :-2], parts[:, -2], parts[:, -1])])

    for name, weights in model.named_parameters():
        new = name
        for theirs, ours in _FALCON_NAMES.items():
            new = new.replace(theirs, ours)
        values = weights.detach().numpy()
        writer.add_tensor(new, np.ascontiguousarray(by_kind(values)) if "attn_qkv" in new else values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with path.open("r+b") as file:
        file.seek(4)
        file.write(struct.pack("<I", 2))
    return model


def _falcon_words(writer: gguf.GGUFWriter, readable: bool) -> None:
    texts = words() if readable else [word.decode("latin-1").replace(" ", "Ġ").encode() for word in words()]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(texts)
    writer.add_token_scores([0.0] * len(texts))
    writer.add_token_types([1] * (len(texts) - 1) + [3])
    writer.add_token_merges(["Ġ w", "w a", "Ġw a"])
    writer.add_bos_token_id(len(texts) - 1)
    writer.add_eos_token_id(len(texts) - 1)
