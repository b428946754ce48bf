"""Where tokens stand for models that count an image's rows in three dimensions (M-RoPE: Qwen-VL and its like).

Import this module only inside functions: it brings torch in.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch  # noqa: TID253 - this module is imported when a model is loaded

from myllm_transformers.vision import Picture


class Positions:
    """Positions of each sequence's tokens: an image takes fewer than it has rows, and what follows moves up.

    The model's own ``get_rope_index`` counts the rows of an image; positions before and behind it are their places
    moved, so that a prompt can be read in pieces. In other models a token's position is its place.
    """

    def __init__(self, module: Any) -> None:
        """``module`` is the model."""
        parts = (module, getattr(module, "model", None))
        self._index = next((found for part in parts if (found := getattr(part, "get_rope_index", None))), None)
        self._moves: dict[int, list[tuple[int, int]]] = {}

    @property
    def moved(self) -> bool:
        """Whether positions are other than places."""
        return self._index is not None

    def open(self, number: int) -> None:
        """Begin a sequence."""
        self._moves[number] = [(0, 0)]

    def cut(self, number: int, length: int) -> None:
        """Forget the images behind the first ``length`` tokens."""
        self._moves[number] = [(place, move) for place, move in self._moves[number] if place <= length]

    def close(self, number: int) -> None:
        """Forget a sequence."""
        self._moves.pop(number, None)

    def of(self, numbers: list[int], places: torch.Tensor, ids: torch.Tensor, picture: Picture | None) -> torch.Tensor:
        """Of tokens at ``places`` ``[rows, new]``, behind what their sequences hold: as many, or three times as many.

        With a picture they are one sequence's, and its rows the first and the last.
        """
        if self._index is None:
            return places
        moves = torch.tensor([self._moves[number][-1][1] for number in numbers], device=places.device)
        if picture is None:
            return (places + moves[:, None])[None].expand(3, -1, -1)
        kinds = {"mm_token_type_ids": (ids == picture.token).int(), "attention_mask": torch.ones_like(ids)}
        names = inspect.signature(self._index).parameters
        given = {"input_ids": ids, **kinds, **picture.inputs}
        counted: torch.Tensor = self._index(**{name: value for name, value in given.items() if name in names})[0]
        found = counted + places[0, 0] + moves[0]
        end = int(places[0, -1]) + 1
        self._moves[numbers[0]].append((end, int(found.max()) + 1 - end))
        return found
