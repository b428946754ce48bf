"""One vector of each text, pooled on the device as the model's own files say.

Import this module only inside functions: it brings torch in.
"""

from __future__ import annotations

from typing import Any

import torch  # noqa: TID253 - this module is imported when a model is loaded

from myllm_core.embedding import Ints
from myllm_core.models.hub_files import HubFiles
from myllm_core.models.pooling import read_recipe
from myllm_core.sampler import Floats
from myllm_transformers.model import LoadedModel, library_errors

LONGEST = 8192
"""Tokens of an input to a model that names no limit."""


class Encoder:
    """Turns token ids into vectors of whole texts."""

    def __init__(self, model: LoadedModel, files: HubFiles) -> None:
        """Prepare; the model stays the engine's."""
        self._model = model
        self._modes = read_recipe(files).modes

    def run(self, ids: Ints, mask: Ints) -> Floats:
        """``[rows, width]`` for ``[rows, tokens]``. Raises ``EngineError``."""
        device = self._model.device
        with library_errors("make the embeddings"), torch.inference_mode():
            body: Any = self._model.module.base_model
            given = torch.from_numpy(mask).to(device)
            states = body(input_ids=torch.from_numpy(ids).to(device), attention_mask=given).last_hidden_state.float()
            pooled = [_pool(mode, states, given.bool(), given.sum(dim=1)) for mode in self._modes]
            vectors: Floats = torch.cat(pooled, dim=1).cpu().numpy()
        return vectors


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
