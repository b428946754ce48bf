"""One vector of each text, from those of its tokens, pooled as the model's files say. Needs numpy."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from myllm_core.errors import ContextLengthError, EngineError, InvalidRequest
from myllm_core.models.hub_files import HubFiles
from myllm_core.models.pooling import Recipe, read_recipe
from myllm_core.models.tokenizer_file import TokenizerFile
from myllm_core.sampler import Floats
from myllm_core.types import Embeddings

Ints = npt.NDArray[np.int64]

_ROWS = 32
_BATCH_TOKENS = 8192


Encode = Callable[[Ints, Ints], Floats]
"""From token ids and a mask, ``[rows, tokens]`` each, to ``[rows, tokens, width]``; ``[rows, width]`` when pooled."""


class Embedder:
    """Makes one vector of each text: several texts at once, the shorter ones filled up."""

    def __init__(self, encode: Encode, files: HubFiles, tokenizer: TokenizerFile, longest: int = 512) -> None:
        """``longest`` is the limit where the files name none. Raises ``UnsupportedError`` for an unknown pooling."""
        self._encode = encode
        self._tokenizer = tokenizer
        self._recipe = read_recipe(files)
        limits = [files.trained_context, self._recipe.limit]
        self.limit = min([limit for limit in limits if limit], default=longest)

    def steps(self, inputs: Sequence[str]) -> Generator[None, None, Embeddings]:
        """One vector per input, several in each step.

        Raises ``ContextLengthError``, ``InvalidRequest``, ``EngineError``.
        """
        tokens = [self._tokens(number, text) for number, text in enumerate(inputs)]
        vectors: dict[int, list[float]] = {}
        for group in groups(tokens):
            found = self._finished(self._run([tokens[number] for number in group]))
            vectors |= dict(zip(group, found.tolist(), strict=True))
            yield
        return Embeddings([vectors[number] for number in range(len(tokens))], sum(map(len, tokens)))

    def _tokens(self, number: int, text: str) -> list[int]:
        prompt = self._recipe.prompt + (text.lower() if self._recipe.lower else text)
        tokens = self._tokenizer.tokenize_whole(prompt) if text else []
        if not tokens:
            raise InvalidRequest("an input is empty; send some text", input=number)
        if len(tokens) > self.limit:
            raise ContextLengthError(
                f"an input has {len(tokens)} tokens, the model takes {self.limit}; send it in parts",
                input=number,
                prompt_tokens=len(tokens),
                context_size=self.limit,
            )
        return tokens

    def _run(self, group: list[list[int]]) -> Floats:
        longest = max(map(len, group))
        ids, mask = np.zeros((2, len(group), longest), np.int64)
        for row, tokens in enumerate(group):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        states = self._encode(ids, mask)
        return states if states.ndim == 2 else pool(states, mask, self._recipe)

    def _finished(self, vectors: Floats) -> Floats:
        if not np.isfinite(vectors).all():
            raise EngineError("the model's output isn't a number; its file may be damaged: pull it again")
        if not self._recipe.normalise:
            return vectors
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        scaled: Floats = vectors / np.maximum(lengths, np.float32(1e-12))
        return scaled


def groups(tokens: list[list[int]]) -> Iterator[list[int]]:
    """Numbers of inputs that are computed together: of about the same length, so that little is filled up."""
    group: list[int] = []
    for number in sorted(range(len(tokens)), key=lambda number: len(tokens[number])):
        if group and (len(group) == _ROWS or (len(group) + 1) * len(tokens[number]) > _BATCH_TOKENS):
            yield group
            group = []
        group.append(number)
    if group:
        yield group


def pool(states: Floats, mask: Ints, recipe: Recipe) -> Floats:
    """One vector of each row's token vectors ``[rows, tokens, width]``; ``mask`` has ones where there is a token."""
    inside = mask[:, :, None].astype(np.float32)
    counts = inside.sum(axis=1)
    found: list[Floats] = []
    for mode in recipe.modes:
        match mode:
            case "cls":
                found.append(states[:, 0])
            case "lasttoken":
                found.append(states[np.arange(len(states)), mask.sum(axis=1) - 1])
            case "max":
                found.append(np.where(inside > 0, states, -np.inf).max(axis=1))
            case "weightedmean":
                weights = inside * np.arange(1, states.shape[1] + 1, dtype=np.float32)[None, :, None]
                found.append((states * weights).sum(axis=1) / weights.sum(axis=1))
            case "mean_sqrt_len":
                found.append((states * inside).sum(axis=1) / np.sqrt(counts))
            case _:
                found.append((states * inside).sum(axis=1) / counts)
    return np.concatenate(found, axis=1)
