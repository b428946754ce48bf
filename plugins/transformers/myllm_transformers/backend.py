"""Forward passes: many sequences in one where the model allows it, else one after the other.

Import this module only inside functions: it brings torch in.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch  # noqa: TID253 - this module is imported when a model is loaded

from myllm_core.errors import EngineError
from myllm_core.sampler import Floats
from myllm_transformers.cache import Masks, RowCache, Window
from myllm_transformers.model import LoadedModel, library_errors
from myllm_transformers.positions import Positions
from myllm_transformers.vision import Picture

_CACHES = ("cache", "past_key_values", "cache_params")
"""How models call the cache that goes in and comes out: newer versions of transformers, earlier ones, those' Mamba."""


def _cache_name(names: frozenset[str]) -> str:
    return next((name for name in _CACHES if name in names), "past_key_values")


class Together:
    """All sequences in one cache with a row for each, and one forward pass for all that write."""

    def __init__(self, model: LoadedModel, rows: int, places: int, blocks: bool = False) -> None:
        """Make room for ``rows`` sequences of ``places`` tokens; with ``blocks`` an image's rows see each other."""
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
        self._cache_name = _cache_name(self._names)
        self._positions = Positions(model.module)
        self._blocks = blocks
        self.vocab_size = 0

    def open(self, number: int, room: int) -> int:
        """A row of its own."""
        self._positions.open(number)
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

    def look(self, number: int, tokens: list[int], picture: Picture) -> Floats:
        """A piece of a prompt that an image's rows begin and end."""
        return self._forward([number], [tokens], picture)[0]

    def _forward(self, numbers: list[int], tokens: list[list[int]], picture: Picture | None = None) -> list[Floats]:
        rows = [self._rows[number] for number in numbers]
        new = len(tokens[0])
        window = Window(rows, [self._lengths[number] for number in numbers], new)
        with library_errors("compute"), torch.inference_mode():
            places = self._cache.look(window)
            ids = _ids(tokens, picture, self._model.device)
            blocks = picture.blocks(ids[0]) if self._blocks and picture is not None else None
            more = {"position_ids": self._positions.of(numbers, places, ids, picture), "logits_to_keep": 1}
            output = self._model.module(
                input_ids=ids,
                attention_mask=self._masks.make(places, window.length, blocks),
                use_cache=True,
                **{self._cache_name: self._cache},
                **{name: value for name, value in more.items() if name in self._names},
                **({} if picture is None else picture.inputs),
            )
            logits = as_rows(output.logits[:, -1])
        for number, row in zip(numbers, logits, strict=True):
            self._lengths[number] += new
            if not np.isfinite(row.max()):
                self._cache.clear(self._rows[number])
                self._lengths[number] = 0
        return logits

    def cut(self, number: int, length: int) -> bool:
        """What lies behind isn't looked at any more."""
        self._lengths[number] = min(length, self._lengths[number])
        self._positions.cut(number, length)
        return True

    def close(self, number: int) -> None:
        """The row is free."""
        self._free.append(self._rows.pop(number))
        self._free.sort()
        del self._lengths[number]
        self._positions.close(number)


class OneByOne:
    """A cache of transformers' own for each sequence: what every model that has a cache can do."""

    def __init__(self, model: LoadedModel, pieces: bool) -> None:
        """With ``pieces`` a text may go on by several tokens at once; recurrent models can't do that."""
        self._model = model
        self._pieces = pieces
        self._caches: dict[int, Any] = {}
        self._names = frozenset(inspect.signature(model.module.forward).parameters)
        self._cache_name = _cache_name(self._names)
        self._positions = Positions(model.module)
        self._lengths: dict[int, int] = {}
        self.vocab_size = 0

    def open(self, number: int, room: int) -> int:
        """Nothing is made before the first tokens come."""
        self._caches[number] = None
        self._lengths[number] = 0
        self._positions.open(number)
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

    def look(self, number: int, tokens: list[int], picture: Picture) -> Floats:
        """A piece of a prompt that an image's rows begin and end."""
        return self._forward(number, tokens, picture)

    def _forward(self, number: int, tokens: list[int], picture: Picture | None = None) -> Floats:
        from transformers import DynamicCache

        with library_errors("compute"), torch.inference_mode():
            cache = self._caches[number]
            if cache is None and self._cache_name != "cache_params":
                cache = DynamicCache(config=self._model.module.config)
            ids = _ids([tokens], picture, self._model.device)
            more = {self._cache_name: cache, "logits_to_keep": 1}
            if self._positions.moved:
                places = self._lengths[number] + torch.arange(len(tokens), device=ids.device)[None]
                more["position_ids"] = self._positions.of([number], places, ids, picture)
            output = self._model.module(
                input_ids=ids,
                use_cache=True,
                **{name: value for name, value in more.items() if name in self._names and value is not None},
                **({} if picture is None else picture.inputs | picture.kinds_of(ids)),
            )
            self._caches[number] = output[self._cache_name]
            self._lengths[number] += len(tokens)
            return as_rows(output.logits[:, -1])[0]

    def cut(self, number: int, length: int) -> bool:
        """A cache that grew can't shrink."""
        self.close(number)
        return False

    def close(self, number: int) -> None:
        """The cache is dropped."""
        self._caches.pop(number, None)
        self._lengths.pop(number, None)
        self._positions.close(number)


def _ids(tokens: list[list[int]], picture: Picture | None, device: torch.device) -> torch.Tensor:
    """Token ids ``[rows, new]`` as the model takes them."""
    ids = torch.tensor(tokens, device=device)
    return ids if picture is None else torch.where(ids < 0, picture.token, ids)


def as_rows(logits: torch.Tensor) -> list[Floats]:
    """An array of logits for each row."""
    return list(logits.float().cpu().numpy())
