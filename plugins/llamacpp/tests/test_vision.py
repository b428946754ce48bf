"""Images in prompts: the rows of projectors of several kinds, batched, cached, interrupted and refused."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from myllm_llamacpp.engine import LlamaCppEngine

from myllm_core.sampler import log_probabilities

from .projectors import gemma, llava, picture, qwen

KINDS = {"llava": "llama", "gemma": "llama", "qwen": "qwen2vl", "window": "window"}
"""Which tiny model each projector is tried with."""


@pytest.fixture(scope="session")
def projectors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("projectors")
    made = {"llava": llava(folder / "llava.gguf"), "gemma": gemma(folder / "gemma.gguf")}
    made |= {"qwen": qwen(folder / "qwen.gguf"), "wide": llava(folder / "wide.gguf", text=96)}
    return made | {"window": made["gemma"], "smollm2": llava(folder / "smollm2.gguf", text=576)}


@pytest.fixture
def seeing(load, tiny, projectors):
    """Load a tiny model that sees; ``kind`` is the projector's."""

    def make(kind: str, **options):
        return load(tiny[KINDS[kind]], **({"n_ctx": 512, "mmproj": str(projectors[kind])} | options))

    return make


def expected(driver, prompt, tokens: int) -> Iterator[tuple[int, float]]:
    """What the model writes greedily and its log probabilities, by llama.cpp's own helper in a new context."""
    from llama_cpp import llama_cpp as api
    from llama_cpp import mtmd_cpp as mtmd

    engine: LlamaCppEngine = driver.engine
    projector = engine._vision._projector
    params = api.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_threads = 512, 512, 512, 1
    with ExitStack() as undo:
        context = api.llama_init_from_model(engine._model.handle, params)
        undo.callback(api.llama_free, context)
        past = 0
        for part in prompt:
            if isinstance(part, str):
                past = _read(api, context, engine.tokenize(part, False), past)
                continue
            from myllm_core.images import decode_rgb

            pieces = projector.pieces(decode_rgb(part))
            for piece in pieces.pieces:
                if piece.rows:
                    end = ctypes.c_int32(past)
                    code = mtmd.mtmd_helper_eval_chunk_single(
                        projector.handle, context, piece.chunk, past, 0, 512, True, ctypes.byref(end)
                    )
                    assert code == 0
                    past = end.value
                else:
                    past = _read(api, context, piece.tokens, past)
        for _ in range(tokens):
            logits = np.ctypeslib.as_array(api.llama_get_logits_ith(context, -1), (engine.facts.vocab_size,))
            token = int(logits.argmax())
            yield token, log_probabilities(logits, token, 1)[0]
            past = _read(api, context, [token], past)


def _read(api, context, tokens: list[int], past: int) -> int:
    ids = (ctypes.c_int32 * len(tokens))(*tokens)
    batch = api.llama_batch_get_one(ids, len(tokens))
    batch.pos = (ctypes.c_int32 * len(tokens))(*range(past, past + len(tokens)))
    assert api.llama_decode(context, batch) == 0
    return past + len(tokens)


PROMPTS = [
    ("look ", picture(1), " what is it"),
    (picture(1), "is what"),
    ("one", picture(1), picture(2), "and", picture(3, 90, 30), "so many"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_with_images_reads_as_with_llama_cpps_own_helper(seeing, kind, prompt):
    driver = seeing(kind, type_k="f16")
    [reply] = driver.run(prompt, tokens=6)
    wanted = list(expected(driver, prompt, 6))
    assert reply.error is None
    assert reply.tokens == [token for token, _ in wanted]
    assert np.allclose([out.logprob for out in reply.outs], [logprob for _, logprob in wanted], atol=0.01)
