"""Models of other kinds, tiny and random: each written token is that of a plain pass over all tokens before it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SIZES = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 48}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
GPT2 = {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
BLOOM = {"vocab_size": 300, "hidden_size": 32, "n_layer": 2, "n_head": 4}
KINDS: dict[str, tuple[str, dict[str, Any], str]] = {
    "grouped heads": ("LlamaConfig", SIZES | HEADS, "Together"),
    "sliding window": ("MistralConfig", SIZES | HEADS | {"sliding_window": 6}, "Together"),
    "layers of two kinds": ("Gemma3TextConfig", SIZES | HEADS | {"sliding_window": 6, "head_dim": 8}, "Together"),
    "soft caps": ("Gemma2Config", SIZES | HEADS | {"sliding_window": 6, "head_dim": 8}, "Together"),
    "experts": ("MixtralConfig", SIZES | HEADS | {"num_local_experts": 4}, "Together"),
    "learned positions": ("GPT2Config", GPT2, "Together"),
    "biases for distance": (
        "BloomConfig",
        {"vocab_size": 300, "hidden_size": 32, "n_layer": 2, "n_head": 4},
        "OneByOne",
    ),
    "recurrent": ("MambaConfig", {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2}, "OneByOne"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_writes_what_a_plain_pass_does(load: Any, tiny: Callable[..., Path], kind: str):
    import torch
    import transformers

    name, values, backend = KINDS[kind]
    folder = tiny(getattr(transformers, name)(**values))
    driver = load(folder, n_ctx=64, max_sequences=3, n_batch=5)
    assert type(driver.engine._parts.decoding._backend).__name__ == backend
    prompts = [[(7 * place + 3 * number) % 250 for place in range(11 + 4 * number)] for number in range(3)]
    replies = driver.run(*prompts, tokens=12)
    module = driver.engine._parts.decoding._backend._model.module
    for prompt, reply in zip(prompts, replies, strict=True):
        written = list(prompt)
        for out in reply.outs:
            with torch.inference_mode():
                logits = module(input_ids=torch.tensor([written]), use_cache=False).logits[0, -1].log_softmax(0)
            assert out.logprob == pytest.approx(float(logits[out.token]), abs=2e-3)
            assert out.logprob == pytest.approx(float(logits.max()), abs=2e-3)
            written.append(out.token)
    [again] = driver.run([*prompts[0], *replies[0].tokens, 5], tokens=3)
    assert again.cached in (0, len(prompts[0]) + len(replies[0].tokens) - 1)
    [fresh] = load(folder, n_ctx=64).run([*prompts[0], *replies[0].tokens, 5], tokens=3)
    assert again.tokens == fresh.tokens
