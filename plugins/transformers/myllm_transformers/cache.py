"""The KV cache of all sequences, as transformers' models use one: a row for each sequence, at its own length.

Import this module only inside functions: it brings torch in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch  # noqa: TID253 - this module is imported when a model is loaded
from transformers.cache_utils import Cache, DynamicLayer  # noqa: TID253 - as above


@dataclass(slots=True)
class Window:
    """What a forward pass sees: ``rows`` of the cache, how far each is filled, and how many tokens come behind."""

    rows: list[int]
    starts: list[int]
    new: int

    @property
    def length(self) -> int:
        """Places that are looked at."""
        return max(self.starts) + self.new

    @property
    def in_order(self) -> bool:
        """Whether the rows lie one behind the other, so that a view of them will do."""
        return self.rows == list(range(self.rows[0], self.rows[0] + len(self.rows)))


class _Layer(DynamicLayer):  # type: ignore[misc] # transformers isn't seen by mypy
    """Keys and values of a layer: ``[rows, heads, places, width]``, made when the first ones come."""

    def __init__(self, cache: RowCache) -> None:
        super().__init__()
        self._cache = cache

    def lazy_initialization(self, key_states: Any, value_states: Any = None) -> None:
        """Make the arrays."""
        self.keys = self._cache.zeros(key_states)
        self.values = self._cache.zeros(key_states if value_states is None else value_states)
        self.is_initialized = True

    def update(self, key_states: Any, value_states: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Put new keys and values at the end of their rows; what the window shows of all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return self._put(self.keys, key_states), self._put(self.values, value_states)

    def _put(self, store: Any, states: Any) -> Any:
        cache, window = self._cache, self._cache.window
        store[cache.row_index, :, cache.place_index] = states.transpose(1, 2).to(store.dtype)
        if window.in_order:
            return store[window.rows[0] : window.rows[0] + len(window.rows), :, : window.length]
        return store[:, :, : window.length].index_select(0, cache.row_index[:, 0])

    def get_seq_length(self, *_: Any) -> int:
        """Tokens before the new ones."""
        return max(self._cache.window.starts)

    def get_mask_sizes(self, *_: Any) -> tuple[int, int]:
        """Places that are looked at, and the first of them."""
        return self._cache.window.length, 0


class RowCache(Cache):  # type: ignore[misc] # transformers isn't seen by mypy
    """Keys and values of every sequence. ``look`` says which take part before each forward pass."""

    def __init__(self, layers: int, rows: int, places: int, device: torch.device) -> None:
        """Prepare for ``rows`` sequences of ``places`` tokens."""
        super().__init__(layers=[_Layer(self) for _ in range(layers)])
        self._rows = rows
        self._places = places
        self._device = device
        self.window = Window([0], [0], 0)
        self.row_index = self.place_index = torch.zeros((1, 1), dtype=torch.long, device=device)

    def look(self, window: Window) -> torch.Tensor:
        """Set the window; the places that its new tokens get: ``[rows, new]``."""
        self.window = window
        self.row_index = torch.tensor(window.rows, device=self._device)[:, None]
        starts = torch.tensor(window.starts, device=self._device)[:, None]
        self.place_index = starts + torch.arange(window.new, device=self._device)
        return self.place_index

    def zeros(self, like: Any) -> torch.Tensor:
        """Room for all rows. On a processor memory is only taken where something is written."""
        shape = (self._rows, like.shape[1], self._places, like.shape[3])
        if like.device.type != "cpu" or like.dtype.itemsize not in (2, 4):
            return torch.zeros(shape, dtype=like.dtype, device=like.device)
        kind = np.int16 if like.dtype.itemsize == 2 else np.int32
        return torch.from_numpy(np.zeros(shape, kind)).view(like.dtype)

    def clear(self, row: int) -> None:
        """Overwrite a row with zeros: numbers that are none would spoil whatever comes after them."""
        for layer in self.layers:
            if layer.is_initialized:
                layer.keys[row].zero_()
                layer.values[row].zero_()


class Masks:
    """Which places each new token may look at, as the model takes it: one mask, or one for each kind of layer.

    The kinds are those of ``create_masks_for_generate`` in transformers' ``masking_utils``.
    """

    KINDS = frozenset({"full_attention", "sliding_attention", "chunked_attention"})

    def __init__(self, config: Any, additive: torch.dtype | None) -> None:
        """``additive`` is the type of masks that are added to scores; None makes masks of true and false."""
        types = getattr(config, "layer_types", None)
        self._sliding = _size(config, "sliding_window")
        self._chunk = _size(config, "attention_chunk_size")
        self._kinds = sorted(set(types)) if types is not None else None
        self._additive = additive

    @property
    def known(self) -> bool:
        """Whether all kinds of layers are."""
        return set(self._kinds or ()) <= self.KINDS

    def make(self, places: torch.Tensor, length: int, blocks: torch.Tensor | None = None) -> Any:
        """Masks ``[rows, 1, new, length]`` for tokens that get these ``places``.

        New tokens of the same block, a number from 1 on in ``blocks`` ``[new]``, also look at those that come later.
        """
        if self._kinds is not None:
            return {kind: self._mask(kind, places, length, blocks) for kind in self._kinds}
        return self._mask("sliding_attention" if self._sliding else "chunked_attention", places, length, blocks)

    def _mask(self, kind: str, places: torch.Tensor, length: int, blocks: torch.Tensor | None) -> torch.Tensor:
        seen = torch.arange(length, device=places.device)
        mine = places[:, None, :, None]
        mask = seen <= mine
        if kind == "sliding_attention" and self._sliding:
            mask &= seen > mine - self._sliding
        if kind == "chunked_attention" and self._chunk:
            mask &= seen // self._chunk == mine // self._chunk
        if blocks is not None:
            mask[..., length - len(blocks) :] |= (blocks[:, None] == blocks) & (blocks > 0)
        if self._additive is None:
            return mask
        low = torch.finfo(self._additive).min
        return torch.zeros(mask.shape, dtype=self._additive, device=mask.device).masked_fill(~mask, low)


def _size(config: Any, name: str) -> int:
    value = getattr(config, name, None)
    return value if isinstance(value, int) and value > 0 else 0
