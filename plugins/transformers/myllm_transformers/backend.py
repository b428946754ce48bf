"""Forward passes: many sequences in one where the model allows it, else one after the other.

Import this module only inside functions: it brings torch in.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch  # noqa: TID253 - this module is imported when a model is loaded

from myllm_core.decoding import Backend
from myllm_core.errors import EngineError, MyllmError
from myllm_core.sampler import Floats
from myllm_transformers.cache import Masks, RowCache, Window
from myllm_transformers.model import LoadedModel, library_errors

_TOLERANCE = {torch.float32: 0.02, torch.float16: 0.1, torch.bfloat16: 0.15}
_QUANTIZED_TOLERANCE = 0.2
"""How much logits may differ from those of a plain pass over the whole text, relative to their size.

A wrong mask or position makes them differ by about as much as they are; some quantizations round by what else is read.
"""
_TRIED = 6
"""Tokens of the longer of two texts that a way to run the model is tried with."""


class Together:
    """All sequences in one cache with a row for each, and one forward pass for all that write."""

    def __init__(self, model: LoadedModel, rows: int, places: int) -> None:
        """Make room for ``rows`` sequences of ``places`` tokens."""
        config = model.module.config.get_text_config(decoder=True)
        eager = config._attn_implementation == "eager"
        self._model = model
        self._masks = Masks(config, model.dtype if eager else None)
        if not self._masks.known:
            raise EngineError("the model has layers that hold no keys and values")
        self._cache = RowCache(config.num_hidden_layers, rows, places, model.device)
        self._places = places
        self._free = list(range(rows))
        self._rows: dict[int, int] = {}
        self._lengths: dict[int, int] = {}
        self._names = frozenset(inspect.signature(model.module.forward).parameters)
        self.vocab_size = 0

    def open(self, number: int, room: int) -> int:
        """A row of its own."""
        self._rows[number] = self._free.pop(0)
        self._lengths[number] = 0
        return self._places

    def read(self, number: int, tokens: list[int]) -> Floats:
        """A piece of a prompt."""
        return self._forward([number], [tokens])[0]

    def write(self, tokens: Mapping[int, int]) -> list[Floats]:
        """One token for each, all in one pass, in the order of their rows in the cache."""
        numbers = sorted(tokens, key=lambda number: self._rows[number])
        logits = self._forward(numbers, [[tokens[number]] for number in numbers])
        found = dict(zip(numbers, logits, strict=True))
        return [found[number] for number in tokens]

    def _forward(self, numbers: list[int], tokens: list[list[int]]) -> list[Floats]:
        rows = [self._rows[number] for number in numbers]
        new = len(tokens[0])
        window = Window(rows, [self._lengths[number] for number in numbers], new)
        with library_errors("compute"), torch.inference_mode():
            places = self._cache.look(window)
            more = {"position_ids": places, "logits_to_keep": 1}
            output = self._model.module(
                input_ids=torch.tensor(tokens, device=self._model.device),
                attention_mask=self._masks.make(places, window.length),
                past_key_values=self._cache,
                use_cache=True,
                **{name: value for name, value in more.items() if name in self._names},
            )
            logits = _as_rows(output.logits[:, -1])
        for number, row in zip(numbers, logits, strict=True):
            self._lengths[number] += new
            if not np.isfinite(row.max()):
                self._cache.clear(self._rows[number])
                self._lengths[number] = 0
        return logits

    def cut(self, number: int, length: int) -> bool:
        """What lies behind isn't looked at any more."""
        self._lengths[number] = min(length, self._lengths[number])
        return True

    def close(self, number: int) -> None:
        """The row is free."""
        self._free.append(self._rows.pop(number))
        self._free.sort()
        del self._lengths[number]


class OneByOne:
    """A cache of transformers' own for each sequence: what every model that has a cache can do."""

    def __init__(self, model: LoadedModel, pieces: bool) -> None:
        """With ``pieces`` a text may go on by several tokens at once; recurrent models can't do that."""
        self._model = model
        self._pieces = pieces
        self._caches: dict[int, Any] = {}
        self._names = frozenset(inspect.signature(model.module.forward).parameters)
        self._cache_name = "past_key_values" if "past_key_values" in self._names else "cache_params"
        self.vocab_size = 0

    def open(self, number: int, room: int) -> int:
        """Nothing is made before the first tokens come."""
        self._caches[number] = None
        return room

    def read(self, number: int, tokens: list[int]) -> Floats:
        """A piece of a prompt."""
        if self._pieces or self._caches[number] is None:
            return self._forward(number, tokens)
        logits = [self._forward(number, [token]) for token in tokens]
        return logits[-1]

    def write(self, tokens: Mapping[int, int]) -> list[Floats]:
        """One token for each, one after the other."""
        return [self._forward(number, [token]) for number, token in tokens.items()]

    def _forward(self, number: int, tokens: list[int]) -> Floats:
        from transformers import DynamicCache

        with library_errors("compute"), torch.inference_mode():
            cache = self._caches[number]
            if cache is None and self._cache_name == "past_key_values":
                cache = DynamicCache(config=self._model.module.config)
            more = {self._cache_name: cache, "logits_to_keep": 1}
            output = self._model.module(
                input_ids=torch.tensor([tokens], device=self._model.device),
                use_cache=True,
                **{name: value for name, value in more.items() if name in self._names and value is not None},
            )
            self._caches[number] = output[self._cache_name]
            return _as_rows(output.logits[:, -1])[0]

    def cut(self, number: int, length: int) -> bool:
        """A cache that grew can't shrink."""
        del self._caches[number]
        return False

    def close(self, number: int) -> None:
        """The cache is dropped."""
        self._caches.pop(number, None)


def choose_backend(model: LoadedModel, rows: int, places: int) -> tuple[Together | OneByOne, bool]:
    """The quickest way to run a model that gives the right logits, and whether prompts may be read in pieces.

    Models differ in how they take masks, positions and caches, so each way is tried on two short texts, and compared
    with a plain pass over them. Raises ``EngineError`` when none is right.
    """
    size = int(model.module.config.get_text_config(decoder=True).vocab_size)
    texts = [[(7919 * place + 13) % size for place in range(count)] for count in (_TRIED, _TRIED - 2)]
    expected = [_plain(model, text) for text in texts]
    reasons: list[str] = []
    makers = (
        lambda: (Together(model, rows, places), True),
        lambda: (OneByOne(model, True), True),
        lambda: (OneByOne(model, False), False),
    )
    for make in makers:
        try:
            backend, pieces = make()
            difference = max(_differences(backend, texts[:rows], expected))
        except MyllmError as error:
            reasons.append(str(error))
            continue
        if difference < (_QUANTIZED_TOLERANCE if model.quantized else _TOLERANCE[model.dtype]):
            backend.vocab_size = expected[0].size
            return backend, pieces
        reasons.append(f"its logits differ by {difference:.2g}")
    raise EngineError(f"the model can't be run with a cache: {reasons[-1]}; take another engine or model")


def _plain(model: LoadedModel, tokens: list[int]) -> Floats:
    with library_errors("compute"), torch.inference_mode():
        output = model.module(input_ids=torch.tensor([tokens], device=model.device), use_cache=False)
        return _as_rows(output.logits[:, -1])[0]


def _differences(backend: Backend, texts: list[list[int]], expected: list[Floats]) -> list[float]:
    """Read two texts up to their last tokens, one of them in two pieces, and write these together."""
    for number, text in enumerate(texts):
        backend.open(number, len(text))
        middle = len(text) // 2
        for piece in (text[:middle], text[middle:-1]):
            backend.read(number, piece)
    found = backend.write({number: text[-1] for number, text in enumerate(texts)})
    for number in range(len(texts)):
        backend.close(number)
    norm = np.linalg.norm
    return [float(norm(one - other) / norm(other)) for one, other in zip(found, expected, strict=False)]


def _as_rows(logits: torch.Tensor) -> list[Floats]:
    return list(logits.float().cpu().numpy())
