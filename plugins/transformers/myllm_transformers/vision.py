"""Images in, what a vision model's forward pass takes out: tokens, pixel values and what else its processor makes.

Import this module only inside functions: it brings torch in.
"""

from __future__ import annotations

import hashlib
import inspect
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch  # noqa: TID253 - this module is imported when a model is loaded

from myllm_core.errors import EngineError, InvalidRequest
from myllm_core.images import decode_rgb
from myllm_core.models.hub_files import HubFiles
from myllm_core.types import Image
from myllm_transformers.model import LoadedModel, library_errors
from myllm_transformers.processor import load_processor, place_of_image

_KINDS = ("mm_token_type_ids", "token_type_ids")
"""How processors and models name what says which tokens are of images."""
_MOST_TOKENS = 256
_MOST_BYTES = 2**28
_TRIAL = (96, 64)


@dataclass(frozen=True, slots=True)
class Picture:
    """An image as the model takes it.

    ``tokens`` are those of its place in a prompt, with a token below 0 for each row. ``inputs`` is what the model's
    forward pass takes beside ``input_ids``, by name; ``kinds`` the name that it has for the kinds of tokens, if it
    takes them. ``token`` is the id that ``input_ids`` has for a row.
    """

    tokens: list[int]
    inputs: dict[str, torch.Tensor]
    kinds: str | None
    token: int

    @property
    def rows(self) -> list[int]:
        """The tokens below 0."""
        return [token for token in self.tokens if token < 0]

    @property
    def span(self) -> list[int]:
        """The tokens from the first row to the last."""
        places = [place for place, token in enumerate(self.tokens) if token < 0]
        return self.tokens[places[0] : places[-1] + 1]

    @property
    def bytes(self) -> int:
        """Bytes that the inputs take."""
        return sum(value.nbytes for value in self.inputs.values())

    def on(self, model: LoadedModel) -> Picture:
        """The same where the model is, in its type."""
        moved = {
            name: value.to(model.device, model.dtype if value.is_floating_point() else None)
            for name, value in self.inputs.items()
        }
        return replace(self, inputs=moved)

    def kinds_of(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Which of ``ids`` are rows, by the name that the model has for it."""
        return {} if self.kinds is None else {self.kinds: (ids == self.token).long()}

    def blocks(self, ids: torch.Tensor) -> torch.Tensor:
        """A number from 1 on for all rows that stand together, 0 for other tokens; ``ids`` and this are ``[new]``."""
        rows = ids == self.token
        begins = rows & ~rows.roll(1)
        begins[0] = rows[0]
        return begins.cumsum(0) * rows


class Vision:
    """A model's processor. What it made last is kept: a prompt is made first, and read later."""

    def __init__(self, model: LoadedModel, files: HubFiles) -> None:
        """Load the processor. Raises ``EngineMissing``, ``EngineError`` and ``IntegrityError``."""
        self._model = model
        self._processor = load_processor(files)
        with library_errors("load the model's processor"):
            self._place = place_of_image(self._processor, files.chat_template())
        config = model.module.config
        named = (getattr(config, name, None) for name in ("image_token_id", "image_token_index"))
        self._token = next((token for token in named if isinstance(token, int)), -1)
        self._names = frozenset(inspect.signature(model.module.forward).parameters)
        self._tokens: OrderedDict[bytes, list[int]] = OrderedDict()
        self._pictures: OrderedDict[bytes, Picture] = OrderedDict()

    def tokens(self, image: Image) -> list[int]:
        """As ``TokenEngine.image_tokens``. Raises ``InvalidRequest`` and ``EngineError``."""
        key = hashlib.sha256(image.data).digest()
        if key not in self._tokens:
            self._tokens[key] = self._picture(image, key).tokens
        self._tokens.move_to_end(key)
        while len(self._tokens) > _MOST_TOKENS:
            self._tokens.popitem(last=False)
        return self._tokens[key]

    def picture(self, image: Image) -> Picture:
        """An image as the model takes it, and where it is. Raises ``InvalidRequest`` and ``EngineError``."""
        return self._picture(image, hashlib.sha256(image.data).digest()).on(self._model)

    def _picture(self, image: Image, key: bytes) -> Picture:
        if key not in self._pictures:
            self._pictures[key] = self._process(decode_rgb(image), key)
        self._pictures.move_to_end(key)
        while len(self._pictures) > 1 and sum(kept.bytes for kept in self._pictures.values()) > _MOST_BYTES:
            self._pictures.popitem(last=False)
        return self._pictures[key]

    def trial(self) -> Picture:
        """A small picture of noise, to try the model with."""
        from PIL import Image as pillow

        noise = np.random.default_rng(7).integers(0, 256, (*reversed(_TRIAL), 3), np.uint8)
        return self._process(pillow.fromarray(noise), b"trial").on(self._model)

    def _process(self, pixels: Any, key: bytes) -> Picture:
        with library_errors("prepare the image"):
            try:
                found = self._processor(
                    text=[self._place], images=[pixels], return_tensors="pt", add_special_tokens=False
                )
            except ValueError as error:
                why = " ".join(str(error).split())[:200]
                raise InvalidRequest(f"images: the model can't take this one: {why}") from error
            ids = found["input_ids"][0].tolist()
            tokens = _with_rows(ids, self._token, key)
            inputs = {
                name: value
                for name, value in found.items()
                if name in self._names - {"input_ids", "attention_mask", *_KINDS} and isinstance(value, torch.Tensor)
            }
        kinds = next((name for name in _KINDS if name in found and name in self._names), None)
        return Picture(tokens, inputs, kinds, self._token)


def _with_rows(ids: list[int], image: int, key: bytes) -> list[int]:
    """The ids of a place, each ``image`` replaced by a number from -2**31 to -1: from ``key``, and how many it is."""
    rows = ids.count(image)
    if not rows:
        raise EngineError("the model's processor and configuration have different tokens for images")
    drawn = np.frombuffer(hashlib.shake_128(key).digest(4 * rows), "<u4") & 0x7FFFFFFF
    numbers = iter((-1 - drawn.astype(np.int64)).tolist())
    return [next(numbers) if token == image else token for token in ids]
