"""Choosing the next token from its logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from myllm_core.engine import TokenMask
from myllm_core.errors import EngineError
from myllm_core.types import Sampling
from myllm_llamacpp.bindings import library
from myllm_llamacpp.context import Context, Floats

_RANDOM_SEED = 0xFFFFFFFF  # LLAMA_DEFAULT_SEED: llama.cpp takes a random one instead


class Sampler:
    """How one sequence chooses its tokens; it has a random state of its own, so other sequences don't matter.

    Greedy choice without penalties is an argmax in numpy: llama.cpp's chain would first copy the whole vocabulary.
    Everything else is a llama.cpp chain in llama.cpp's order: penalties, top-k, top-p, min-p, temperature, draw.
    """

    def __init__(self, sampling: Sampling, vocab_size: int, context_size: int, prompt: Sequence[int]) -> None:
        self._lib = library()
        self._chain: int | None = None
        window = min(sampling.repeat_last_n, context_size)
        penalties = (sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty)
        penalised = self._penalised = window > 0 and penalties != (1.0, 0.0, 0.0)
        if sampling.temperature <= 0 and not penalised:
            return
        api: Any = self._lib.api
        params = api.llama_sampler_chain_default_params()
        params.no_perf = True
        self._chain = api.llama_sampler_chain_init(params)
        parts = [api.llama_sampler_init_penalties(vocab_size, window, *penalties)] if penalised else []
        parts += [api.llama_sampler_init_greedy()] if sampling.temperature <= 0 else _draw(api, sampling)
        for part in parts:
            api.llama_sampler_chain_add(self._chain, part)
        if penalised:
            accept = self._lib.short.llama_sampler_accept
            for token in prompt[-window:]:
                accept(parts[0], int(token))

    def choose(self, context: Context, row: int, allowed: TokenMask | None = None) -> int:
        """The token after a batch row, one that ``allowed`` allows. Raises ``EngineError`` when there are no numbers.

        The token that would have been chosen anyway is asked about first; only when it isn't allowed the others are
        ruled out and the choice is made again, from the same distribution. Penalties take note of each choice, so with
        them the others are ruled out at once.
        """
        if allowed is None:
            return self._choose(context, row)
        if not self._penalised:
            token = self._choose(context, row)
            if allowed.allows(token):
                return token
        logits = context.logits(row)
        bits = np.unpackbits(np.frombuffer(allowed.mask(), np.uint8), bitorder="little")[: len(logits)]
        kept = logits.copy()
        logits[bits == 0] = -np.inf
        try:
            return self._choose(context, row)
        finally:
            logits[:] = kept  # log probabilities are read after this

    def _choose(self, context: Context, row: int) -> int:
        if self._chain is not None:
            return context.sample(self._chain, row)
        logits = context.logits(row)
        token = int(logits.argmax())
        if np.isnan(logits[token]):  # argmax finds the first NaN, so this sees any
            raise EngineError("the model's output isn't a number; its file may be damaged: pull it again")
        return token

    def close(self) -> None:
        """Free the chain."""
        if self._chain is not None:
            self._lib.api.llama_sampler_free(self._chain)
            self._chain = None


def _draw(api: Any, sampling: Sampling) -> list[int]:
    parts = []
    if sampling.top_k > 0:
        parts.append(api.llama_sampler_init_top_k(sampling.top_k))
    if sampling.top_p < 1:
        parts.append(api.llama_sampler_init_top_p(sampling.top_p, 1))
    if sampling.min_p > 0:
        parts.append(api.llama_sampler_init_min_p(sampling.min_p, 1))
    seed = sampling.seed & 0xFFFFFFFF
    parts.append(api.llama_sampler_init_temp(sampling.temperature))
    parts.append(api.llama_sampler_init_dist(seed - 1 if seed == _RANDOM_SEED else seed))
    return parts


def log_probabilities(logits: Floats, token: int, count: int) -> tuple[float, list[tuple[int, float]]]:
    """Natural-log probability of ``token`` and of the ``count`` likeliest tokens, best first, before any temperature.

    Sorts only the few logits near the highest one, not the vocabulary.
    """
    highest = float(logits.max())
    total = highest + float(np.log(np.exp(logits - highest).sum(dtype=np.float64)))
    chosen = float(logits[token]) - total
    if count <= 0:
        return chosen, []
    count = min(count, len(logits))
    margin = 8.0
    near = np.flatnonzero(logits > highest - margin)
    while len(near) < count:
        margin *= 2
        near = np.flatnonzero(logits > highest - margin) if margin < 1e6 else np.arange(len(logits))
    best = near[np.argsort(-logits[near], kind="stable")[:count]]
    return chosen, [(int(i), float(logits[i]) - total) for i in best]
