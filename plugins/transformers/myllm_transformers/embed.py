"""Embeddings: texts in, one vector each, pooled as the model's own files say.

Import this module only inside functions: it brings torch in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch  # noqa: TID253 - this module is imported when a model is loaded

from myllm_core import Embeddings
from myllm_core.errors import ContextLengthError, EngineError, InvalidRequest
from myllm_core.models.hub_files import HubFiles
from myllm_core.models.pooling import read_recipe
from myllm_core.models.tokenizer_file import TokenizerFile
from myllm_transformers.model import LoadedModel, library_errors

_TEXTS = 32
_TOKENS = 8192
"""Most texts, and most tokens with their padding, in one forward pass."""


class Embedder:
    """Makes embeddings. ``limit`` is the most tokens of an input."""

    def __init__(self, model: LoadedModel, tokenizer: TokenizerFile, files: HubFiles) -> None:
        """Prepare; the model stays the engine's."""
        self._model: LoadedModel | None = model
        self._tokenizer = tokenizer
        self._recipe = read_recipe(files)
        limits = [files.trained_context, self._recipe.limit]
        self.limit = min((limit for limit in limits if limit), default=_TOKENS)

    def embed(self, inputs: Sequence[str]) -> Embeddings:
        """One vector per input. Raises ``ContextLengthError``, ``InvalidRequest`` and ``EngineError``."""
        tokens = [self._tokens(number, text) for number, text in enumerate(inputs)]
        vectors: dict[int, list[float]] = {}
        for group in _groups(tokens):
            found = self._vectors([tokens[number] for number in group])
            if not bool(torch.isfinite(found).all()):
                raise EngineError("the model's output isn't a number; its files may be damaged: pull it again")
            vectors |= dict(zip(group, found.tolist(), strict=True))
        return Embeddings([vectors[number] for number in range(len(tokens))], sum(map(len, tokens)))

    def _tokens(self, number: int, text: str) -> list[int]:
        if not text:
            raise InvalidRequest("an input is empty; send some text", input=number)
        text = self._recipe.prompt + (text.lower() if self._recipe.lower else text)
        tokens = self._tokenizer.tokenize_whole(text)
        if not tokens:
            raise InvalidRequest("an input has no tokens; send some text", input=number)
        if len(tokens) > self.limit:
            raise ContextLengthError(
                f"an input has {len(tokens)} tokens, the model takes {self.limit}; send it in parts",
                input=number,
                prompt_tokens=len(tokens),
                context_size=self.limit,
            )
        return tokens

    def _vectors(self, tokens: list[list[int]]) -> torch.Tensor:
        assert self._model is not None, "the engine was closed"
        longest = max(map(len, tokens))
        device = self._model.device
        ids = torch.tensor([[*row, *([row[-1]] * (longest - len(row)))] for row in tokens], device=device)
        lengths = torch.tensor([len(row) for row in tokens], device=device)
        mask = torch.arange(longest, device=device) < lengths[:, None]
        with library_errors("make the embeddings"), torch.inference_mode():
            body: Any = self._model.module.base_model
            states = body(input_ids=ids, attention_mask=mask.long()).last_hidden_state.float()
            pooled = torch.cat([_pool(mode, states, mask, lengths) for mode in self._recipe.modes], dim=1)
            if self._recipe.normalise:
                pooled = torch.nn.functional.normalize(pooled, dim=1)
            return pooled.cpu()

    def close(self) -> None:
        """Let the model go."""
        self._model = None


def _pool(mode: str, states: torch.Tensor, mask: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Token vectors ``[texts, tokens, width]`` to one for each text; ``mask`` says which tokens are theirs."""
    if mode == "cls":
        return states[:, 0]
    if mode == "lasttoken":
        return states[torch.arange(len(states), device=states.device), lengths - 1]
    if mode == "max":
        return states.masked_fill(~mask[:, :, None], -torch.inf).amax(dim=1)
    weights = mask.float()
    if mode == "weightedmean":
        weights = weights * torch.arange(1, mask.shape[1] + 1, device=mask.device)
    total = (states * weights[:, :, None]).sum(dim=1)
    divisor = weights.sum(dim=1, keepdim=True)
    return total / (divisor.sqrt() if mode == "mean_sqrt_len" else divisor)


def _groups(tokens: list[list[int]]) -> Iterator[list[int]]:
    """Numbers of inputs of about the same length, so that little is padded."""
    group: list[int] = []
    for number in sorted(range(len(tokens)), key=lambda number: len(tokens[number])):
        if group and (len(group) == _TEXTS or (len(group) + 1) * len(tokens[number]) > _TOKENS):
            yield group
            group = []
        group.append(number)
    if group:
        yield group
