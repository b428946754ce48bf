"""LoRA adapters: what they change, and files that aren't what they should be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from myllm_llamacpp.engine import LlamaCppEngine

from myllm_core.errors import EngineError, IntegrityError, InvalidOption
from myllm_core.models.gguf import read_gguf

PROMPT = "The capital of France is"
WIDTH, RANK, ALPHA = 64, 4, 8.0
QUERY = "blk.0.attn_q.weight"


def factors(columns: int, rows: int, spread: float = 0.1, rank: int = RANK) -> tuple[Any, Any]:
    random = np.random.default_rng(3)
    made = random.normal(0, spread, (rank, columns)), random.normal(0, spread, (rows, rank))
    return made[0].astype(np.float32), made[1].astype(np.float32)


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write an adapter of pairs of factors, or of any tensors and metadata."""

    def make(
        pairs: dict[str, tuple[Any, Any]], name: str = "adapter.gguf", architecture: str = "llama", **more: Any
    ) -> Path:
        writer = gguf.GGUFWriter(tmp_path / name, architecture)
        writer.add_type(more.get("type", "adapter"))
        writer.add_string("adapter.type", more.get("adapter_type", "lora"))
        if isinstance(more.get("alpha", ALPHA), str):
            writer.add_string("adapter.lora.alpha", more["alpha"])
        else:
            writer.add_float32("adapter.lora.alpha", more.get("alpha", ALPHA))
        if "invocation" in more:
            writer.add_array("adapter.alora.invocation_tokens", more["invocation"])
        for target, (a, b) in pairs.items():
            for factor, data in (("lora_a", a), ("lora_b", b)):
                if data is not None:
                    writer.add_tensor(f"{target}.{factor}", data)
        for tensor, data in more.get("tensors", {}).items():
            writer.add_tensor(tensor, data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / name

    return make


def said(driver, prompt: str | list[int] = PROMPT):
    [reply] = driver.run(prompt, tokens=12)
    return [(out.token, out.logprob) for out in reply.outs]


@pytest.fixture
def smollm2_adapter(write: Write) -> Path:
    return write({f"blk.{layer}.attn_q.weight": factors(576, 576) for layer in range(0, 30, 5)})


def test_an_adapter_changes_what_the_real_model_says_and_scale_0_does_not(load, smollm2_adapter):
    plain = said(load())
    assert said(load(lora=str(smollm2_adapter))) != plain
    assert said(load(lora=f"{smollm2_adapter}=0")) == plain
    assert said(load(lora=f"{smollm2_adapter}=0.5")) not in (plain, said(load(lora=str(smollm2_adapter))))


@pytest.mark.parametrize("scale", [1.0, -0.5])
def test_an_adapter_does_what_its_weights_merged_into_the_model_do(load, tiny, same, write, tmp_path, scale):
    a, b = factors(WIDTH, WIDTH)
    adapter = write({QUERY: (a, b)})
    data = bytearray(tiny["llama"].read_bytes())
    tensor = next(tensor for tensor in read_gguf(tiny["llama"]).tensors if tensor.name == QUERY)
    place = slice(tensor.offset, tensor.offset + tensor.nbytes)
    weights = np.frombuffer(data[place], np.float32).reshape(WIDTH, WIDTH)
    data[place] = (weights + scale * ALPHA / RANK * b @ a).astype(np.float32).tobytes()
    merged = tmp_path / "merged.gguf"
    merged.write_bytes(data)
    prompt = list(range(10, 60))
    adapted = load(tiny["llama"], lora=f"{adapter}={scale}")
    [reply] = adapted.run(prompt, tokens=12)
    same(reply, load(merged).run(prompt, tokens=12)[0], tolerance=2e-3)
    assert said(load(tiny["llama"]), prompt) != [(out.token, out.logprob) for out in reply.outs]
    for one, other in zip(adapted.engine.embed(["hello"]).vectors, load(merged).engine.embed(["hello"]).vectors,
                          strict=True):  # fmt: skip
        assert np.abs(np.array(one) - other).max() < 1e-3


def test_several_adapters_add_up(load, tiny, same, write):
    a, b = factors(WIDTH, WIDTH)
    adapter, other = write({QUERY: (a, b)}), write({"blk.1.attn_v.weight": factors(WIDTH, WIDTH)}, "other.gguf")
    both = load(tiny["llama"], lora=f"{adapter}=0.5, {other}, {adapter}=0.5").run([10, 20, 30], tokens=8)[0]
    same(both, load(tiny["llama"], lora=f"{adapter},{other}").run([10, 20, 30], tokens=8)[0], tolerance=2e-3)
    one = load(tiny["llama"], lora=str(adapter)).run([10, 20, 30], tokens=8)[0]
    assert abs(both.outs[0].logprob - one.outs[0].logprob) > 4e-3


def test_what_was_saved_with_an_adapter_is_not_used_without_it(load, tiny, write, tmp_path):
    adapter = write({QUERY: factors(WIDTH, WIDTH)})
    prompt = [10 + 7 * step % 250 for step in range(400)]
    options = {"n_ctx": 1024, "cache_dir": str(tmp_path / "kv"), "sha256": "ab" * 32}

    def cached(**more: Any) -> int:
        driver = load(tiny["llama"], **options, **more)
        [reply] = driver.run(prompt, tokens=2)
        driver.engine.close()
        return reply.cached

    assert cached(lora=str(adapter)) == 0
    assert cached(lora=str(adapter)) == 399
    assert cached(lora=f"{adapter}=0.5") == 0
    assert cached() == 0
    changed = write({QUERY: factors(WIDTH, WIDTH, spread=0.2)})
    assert changed == adapter
    assert cached(lora=str(adapter)) == 0


def test_a_file_beside_the_model_is_found_by_its_name(load, tiny, write, tmp_path):
    from myllm_core import Manifest, Model, ModelFile

    write({QUERY: factors(WIDTH, WIDTH)}, "style=1.gguf")
    (tmp_path / "model.gguf").write_bytes(tiny["llama"].read_bytes())
    files = tuple(ModelFile(name, (tmp_path / name).stat().st_size, "") for name in ("model.gguf", "style=1.gguf"))
    model = Model(Manifest("both:latest", "gguf", files), tmp_path)
    estimates = []
    for lora in ("", "style=1.gguf", "style=1.gguf=0.5"):
        options = {"n_ctx": 256, "n_threads": 1, "lora": lora}
        LlamaCppEngine.load(model, options, lambda fraction: None).close()
        estimates.append(LlamaCppEngine.estimate(model, options).host)
    assert estimates[0] < estimates[1] == estimates[2]


BAD = {
    "a model": ({}, {"type": "model"}, "is no LoRA adapter .its type is model"),
    "a control vector": ({}, {"adapter_type": "control"}, "is no LoRA adapter"),
    "another architecture": ({QUERY: factors(64, 64)}, {"architecture": "gemma2"}, "for gemma2 models, not for llama"),
    "activated": ({QUERY: factors(64, 64)}, {"invocation": [5, 6]}, "activated one"),
    "another width": ({QUERY: factors(576, 576)}, {}, r"doesn't fit blk.0.attn_q.weight of \[64, 64\]"),
    "two ranks": ({QUERY: (factors(64, 64)[0], factors(64, 64, rank=8)[1])}, {}, "doesn't fit"),
    "no rank": ({QUERY: factors(64, 64, rank=0)}, {}, "doesn't fit|claims"),
    "whole numbers": ({QUERY: tuple(f.astype(np.int32) for f in factors(64, 64))}, {}, "doesn't fit.*I32"),
    "one factor": ({QUERY: (factors(64, 64)[0], None)}, {}, "lacks a factor of blk.0.attn_q.weight"),
    "nothing": ({}, {}, "lacks a factor of all tensors"),
    "an unknown layer": ({"blk.7.attn_q.weight": factors(64, 64)}, {}, "blk.7.attn_q.weight, which this model hasn't"),
    "a norm": ({"output_norm.weight": factors(64, 1)}, {}, "which this model hasn't"),
    "tied embeddings": ({"token_embd.weight": factors(64, 293)}, {}, "embeddings that this model also writes with"),
    "other tensors": ({}, {"tensors": {"blk.0.attn_q.bias": np.zeros(64, np.float32)}}, "tensor blk.0.attn_q.bias"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_an_adapter_that_does_not_fit_is_refused_before_llama_cpp_sees_it(load, tiny, write, kind):
    pairs, more, message = BAD[kind]
    with pytest.raises((EngineError, IntegrityError), match=message):
        load(tiny["llama"], lora=str(write(pairs, **more)))


def test_a_damaged_adapter_is_an_error(load, tiny, write):
    path = write({QUERY: factors(WIDTH, WIDTH)})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(IntegrityError, match="it isn't whole"):
        load(tiny["llama"], lora=str(path))
    with pytest.raises(IntegrityError, match="alpha"):
        load(tiny["llama"], lora=str(write({QUERY: factors(WIDTH, WIDTH)}, alpha="8")))


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ("nowhere.gguf", "no file nowhere.gguf; write PATH or PATH=SCALE"),
        ("nowhere.gguf=0.5", "no file nowhere.gguf=0.5"),
        ("{path}=1e999", "no scale that is a number"),
        ("{path}=0.5.5", "no scale that is a number"),
        ("{path}=much", "no file"),
    ],
)
def test_a_list_that_cannot_be_read_is_named(load, tiny, write, lora, message):
    path = write({QUERY: factors(WIDTH, WIDTH)})
    with pytest.raises(InvalidOption, match=message):
        load(tiny["llama"], lora=lora.format(path=path))
