"""Which way to run a model: the first whose logits are those of a plain pass over the whole text.

Import this module only inside functions: it brings torch in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch  # noqa: TID253 - this module is imported when a model is loaded

from myllm_core.errors import EngineError, MyllmError
from myllm_core.sampler import Floats
from myllm_transformers.backend import OneByOne, Together, as_rows
from myllm_transformers.model import LoadedModel, library_errors
from myllm_transformers.vision import Picture

_TOLERANCE = {torch.float32: 0.02, torch.float16: 0.1, torch.bfloat16: 0.15}
_QUANTIZED_TOLERANCE = 0.2
"""How much logits may differ from those of a plain pass over the whole text, relative to their size.

A wrong mask or position makes them differ by about as much as they are; some quantizations round by what else is read.
"""
_TRIED = 6
"""Tokens of the longer of two texts that a way to run the model is tried with."""

Ways = list[Callable[[], Together | OneByOne]]


def choose_backend(
    model: LoadedModel, rows: int, places: int, picture: Picture | None = None
) -> tuple[Together | OneByOne, bool]:
    """The quickest way to run a model that gives the right logits, and whether prompts may be read in pieces.

    Models differ in how they take masks, positions and caches, so each way is tried on two short texts, and on one with
    a picture if there is one, and compared with a plain pass over them. Raises ``EngineError`` when none is right.
    """
    trial = _Trial(model, rows, picture)
    if picture is not None and trial.length > places:
        raise EngineError(f"an image takes at least {len(picture.rows)} tokens; load the model with a larger n_ctx")
    together: Ways = [lambda: Together(model, rows, places)]
    if picture is not None and picture.kinds is not None:
        together.append(lambda: Together(model, rows, places, blocks=True))
    one = [lambda: OneByOne(model, True)]
    reasons: list[str] = []
    for ways, pieces in ((together, True), (one, True), ([lambda: OneByOne(model, False)], False)):
        difference, backend = min((trial.run(way, reasons) for way in ways), key=lambda tried: tried[0])
        if backend is not None and difference < (_QUANTIZED_TOLERANCE if model.quantized else _TOLERANCE[model.dtype]):
            backend.vocab_size = trial.vocab_size
            return backend, pieces
    raise EngineError(f"the model can't be run with a cache: {reasons[-1]}; take another engine or model")


class _Trial:
    """Two short texts, one perhaps with a picture, and what a plain pass makes of them."""

    def __init__(self, model: LoadedModel, rows: int, picture: Picture | None) -> None:
        config = model.module.config.get_text_config(decoder=True)
        words = [token for token in range(int(config.vocab_size)) if picture is None or token != picture.token]
        texts = [[words[(7919 * place + 13) % len(words)] for place in range(count)] for count in (_TRIED, _TRIED - 2)]
        self._texts = texts[:rows]
        self._picture = picture
        self._expected = [_plain(model, text, None) for text in self._texts]
        if picture is not None:
            self._expected.append(_plain(model, [*texts[0], *picture.span, *texts[1]], picture))
        self._seen = (texts[0], texts[1])
        self.length = 2 * _TRIED + (0 if picture is None else len(picture.span))
        self.vocab_size = self._expected[0].size

    def run(self, make: Callable[[], Any], reasons: list[str]) -> tuple[float, Any]:
        """How far a way is from plain passes, and the backend; infinitely far, and None, when it fails."""
        try:
            backend = make()
            found = self._read_texts(backend)
            if self._picture is not None:
                found.append(self._read_picture(backend, self._picture))
        except MyllmError as error:
            reasons.append(str(error))
            return np.inf, None
        norm = np.linalg.norm
        differences = [norm(one - other) / norm(other) for one, other in zip(found, self._expected, strict=True)]
        difference = float(max(differences))
        reasons.append(f"its logits differ by {difference:.2g}")
        return (difference, backend) if difference == difference else (np.inf, None)

    def _read_texts(self, backend: Together | OneByOne) -> list[Floats]:
        """Read the texts up to their last tokens, in two pieces, and write these together."""
        for number, text in enumerate(self._texts):
            backend.open(number, len(text))
            middle = len(text) // 2
            for piece in (text[:middle], text[middle:-1]):
                backend.read(number, piece)
        found = backend.write({number: text[-1] for number, text in enumerate(self._texts)})
        for number in range(len(self._texts)):
            backend.close(number)
        return found

    def _read_picture(self, backend: Together | OneByOne, picture: Picture) -> Floats:
        before, behind = self._seen
        backend.open(0, self.length)
        backend.read(0, before)
        backend.look(0, picture.span, picture)
        backend.read(0, behind[:-1])
        [found] = backend.write({0: behind[-1]})
        backend.close(0)
        return found


def _plain(model: LoadedModel, tokens: list[int], picture: Picture | None) -> Floats:
    with library_errors("compute"), torch.inference_mode():
        ids = torch.tensor([tokens], device=model.device)
        seen: dict[str, Any] = {}
        if picture is not None:
            ids = torch.where(ids < 0, picture.token, ids)
            seen = picture.inputs | picture.kinds_of(ids)
        output = model.module(input_ids=ids, use_cache=False, **seen)
        return as_rows(output.logits[:, -1])[0]
