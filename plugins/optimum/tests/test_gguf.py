"""``myllm convert`` of GGUF files: the tokenizer reads alike, the weights are those of the file, or nothing is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from myllm_optimum.gguf_tokenizer import SAMPLES, check_kind, tokenizer_files

from myllm_core.errors import UnsupportedError

from .test_convert import Home

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.timeout(900)

LAYERS, WIDTH, INNER, HEADS, KEYS = 2, 64, 96, 4, 2


def _write(source: Path, target: Path, pre: str = "smollm") -> None:
    """A tiny llama of random weights, of 4 bits, with the vocabulary of the real test model."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for key, field in reader.fields.items():
        if key.startswith("tokenizer.") and key != "tokenizer.ggml.pre":
            sub = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], sub)
    words = len(reader.fields["tokenizer.ggml.tokens"].contents())
    writer.add_tokenizer_pre(pre)
    writer.add_context_length(2048)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEYS)
    writer.add_rope_freq_base(100000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(words)
    chance = np.random.default_rng(5)

    def add(name: str, *shape: int) -> None:
        values = chance.normal(1.0 if len(shape) == 1 else 0.0, 0.2, shape).astype(np.float32)
        kind = gguf.GGMLQuantizationType.F32 if len(shape) == 1 or shape[-1] % 32 else gguf.GGMLQuantizationType.Q4_0
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    add("token_embd.weight", words, WIDTH)
    add("output_norm.weight", WIDTH)
    keys = WIDTH // HEADS * KEYS
    for layer in range(LAYERS):
        for name, *shape in (
            ("attn_norm", WIDTH), ("ffn_norm", WIDTH), ("attn_q", WIDTH, WIDTH), ("attn_k", keys, WIDTH),
            ("attn_v", keys, WIDTH), ("attn_output", WIDTH, WIDTH), ("ffn_gate", INNER, WIDTH),
            ("ffn_up", INNER, WIDTH), ("ffn_down", WIDTH, INNER),
        ):  # fmt: skip
            add(f"blk.{layer}.{name}.weight", *shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def home(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Home:
    made = Home(tmp_path_factory.mktemp("home"))
    for name, pre in (("packed", "smollm"), ("strange", "someone-elses")):
        path = tmp_path_factory.mktemp("files") / f"{name}.gguf"
        _write(smollm2_gguf, path, pre)
        done = made.run("pull", str(path), "--name", name)
        assert done.returncode == 0, done.stderr
    return made


def test_it_becomes_safetensors_with_the_same_numbers(home: Home, smollm2_safetensors: Path) -> None:
    done = home.run("convert", "packed", "--to", "safetensors")
    assert done.returncode == 0, done.stderr
    assert "Unpacking" in done.stderr and "packed-st" in done.stdout
    made = home.store.get("packed-st")
    assert (made.format, made.manifest.family, made.manifest.context_size) == ("safetensors", "llama", 2048)
    assert home.run("verify", "packed-st").returncode == 0 and home.store.broken() == []
    folder = made.paths[0].parent

    reference = transformers.AutoTokenizer.from_pretrained(smollm2_safetensors)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for sample in (*SAMPLES, "<|im_start|>user\nHi<|im_end|>"):
        assert tokenizer(sample).input_ids == reference(sample).input_ids
    assert (tokenizer.bos_token, tokenizer.eos_token) == (reference.bos_token, reference.eos_token)
    assert tokenizer.chat_template == reference.chat_template

    ids = torch.tensor([list(range(300, 330))])
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    source = home.store.get("packed").paths[0]
    whole = {
        tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in gguf.GGUFReader(source).tensors
    }
    kept = model.state_dict()
    assert np.allclose(kept["model.embed_tokens.weight"].numpy(), whole["token_embd.weight"], atol=1e-3)
    assert np.allclose(kept["model.layers.1.mlp.down_proj.weight"].numpy(), whole["blk.1.ffn_down.weight"], atol=1e-3)
    turned = whole["blk.0.attn_q.weight"].reshape(HEADS, WIDTH // HEADS // 2, 2, WIDTH).swapaxes(1, 2)
    assert np.allclose(kept["model.layers.0.self_attn.q_proj.weight"].numpy(), turned.reshape(WIDTH, WIDTH), atol=1e-3)
    assert model.config.tie_word_embeddings and bool(torch.isfinite(model(ids).logits).all())


def test_it_becomes_onnx_and_runs(home: Home) -> None:
    done = home.run("convert", "packed", "--to", "onnx")
    assert done.returncode == 0, done.stderr
    assert home.store.get("packed-onnx").format == "onnx"
    answer = home.run("run", "packed-onnx", "--max-tokens", "4", "Hello")
    assert answer.returncode == 0 and answer.stdout.strip(), answer.stderr


def test_a_tokenizer_that_isnt_known_is_refused_at_once(home: Home) -> None:
    before = home.files()
    done = home.run("convert", "strange", "--to", "safetensors")
    assert done.returncode == 2 and "someone-elses" in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert home.files() == before


def test_every_known_kind_reads_as_its_rules_say() -> None:
    """Whatever the merges: some that join letters, spaces, digits and line ends."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    chars = [*map(chr, plain), *(chr(256 + at) for at in range(len(rest)))]
    merges = ["Ġ t", "h e", "Ġt he", "1 2", "12 3", "Ċ Ċ", "Ġ Ġ", "' s", "t a", "l l", "' LL", "L L", "o n"]
    texts = [*chars, *(merge.replace(" ", "") for merge in merges), "<|end|>"]
    given: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": [1] * (len(texts) - 1) + [3],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": len(texts) - 1,
    }
    for pre in ("gpt-2", "smollm", "llama-bpe", "qwen2"):
        files = tokenizer_files({**given, "tokenizer.ggml.pre": pre}.get)
        assert files["tokenizer_config.json"]["eos_token"] == "<|end|>"
        assert [one["content"] for one in files["tokenizer.json"]["added_tokens"]] == ["<|end|>"]
    for model, pre in (("llama", None), ("gpt2", "deepseek-llm"), (None, None)):
        with pytest.raises(UnsupportedError, match="safetensors"):
            check_kind({"tokenizer.ggml.model": model, "tokenizer.ggml.pre": pre}.get)
