"""A score for each document: what a classifier with one label makes of a query and the document together.

Import this module only inside functions: it brings torch in.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch  # noqa: TID253 - this module is imported when a model is loaded

from myllm_core.embedding import groups
from myllm_core.errors import ContextLengthError, EngineError
from myllm_core.models.hub_files import HubFiles
from myllm_core.models.tokenizer_file import TokenizerFile
from myllm_core.types import Scores
from myllm_transformers.embed import LONGEST
from myllm_transformers.model import LoadedModel, library_errors
from myllm_transformers.scoring import function_of

Pair = tuple[list[int], list[int]]
"""The token ids of a query and a document, and for each token which of both it belongs to."""

_KINDS = "token_type_ids"


class Reranker:
    """Scores documents: several in a pass, of about the same length, the shorter ones filled up."""

    def __init__(self, model: LoadedModel, files: HubFiles, tokenizer: TokenizerFile) -> None:
        """Prepare; the model stays the engine's. Raises ``EngineError`` for one that has other labels than one."""
        config = model.module.config
        if config.num_labels != 1:
            raise EngineError(f"the model has {config.num_labels} labels, a reranker has one; take another model")
        self._model = model
        self._tokenizer = tokenizer
        self._function = {"Sigmoid": torch.sigmoid, "Tanh": torch.tanh}.get(function_of(files), torch.clone)
        self._padding: int | None = config.pad_token_id
        takes = inspect.signature(model.module.forward).parameters
        names = files.config("tokenizer_config.json").get("model_input_names")
        told = _KINDS in names if isinstance(names, list) else True
        self._kinds = told and _KINDS in takes and (getattr(config, "type_vocab_size", None) or 0) > 1
        self._more = {"use_cache": False} if "use_cache" in takes else {}
        self.limit = _limit(model.module, files)

    def scores(self, query: str, documents: Sequence[str]) -> Scores:
        """A score per document. Raises ``ContextLengthError``, ``EngineError``."""
        pairs = [self._pair(number, query, document) for number, document in enumerate(documents)]
        lengths = [ids for ids, _ in pairs]
        # without a token to fill up with, a model can't tell where the shorter texts of several end
        together = groups(lengths) if self._padding is not None else ([number] for number in range(len(pairs)))
        found: dict[int, float] = {}
        for group in together:
            found |= dict(zip(group, self._run([pairs[number] for number in group]), strict=True))
        return Scores([found[number] for number in range(len(pairs))], sum(map(len, lengths)))

    def _pair(self, number: int, query: str, document: str) -> Pair:
        ids, kinds = self._tokenizer.tokenize_pair(query, document)
        if len(ids) > self.limit:
            raise ContextLengthError(
                f"a document and the query have {len(ids)} tokens together, the model takes {self.limit}; "
                "send the document in parts",
                input=number,
                prompt_tokens=len(ids),
                context_size=self.limit,
            )
        return ids, kinds

    def _run(self, pairs: list[Pair]) -> list[float]:
        longest = max(len(ids) for ids, _ in pairs)
        ids = torch.full((len(pairs), longest), self._padding or 0)
        mask, kinds = torch.zeros(2, len(pairs), longest, dtype=torch.long)
        for row, (tokens, belonging) in enumerate(pairs):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            kinds[row, : len(tokens)] = torch.tensor(belonging)
            mask[row, : len(tokens)] = 1
        given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask} | ({_KINDS: kinds} if self._kinds else {})
        with library_errors("score the documents"), torch.inference_mode():
            given = {name: values.to(self._model.device) for name, values in given.items()}
            found = self._function(self._model.module(**given, **self._more).logits.float()[:, 0]).cpu()
        if not torch.isfinite(found).all():
            raise EngineError("the model's output isn't a number; its file may be damaged: pull it again")
        return [float(score) for score in found]


def _limit(module: Any, files: HubFiles) -> int:
    """Tokens of a query and a document together: the least of what the files and the model's positions say."""
    table = getattr(getattr(module.base_model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    before = 0 if padding is None else padding + 1  # RoBERTa's positions begin behind that of padding
    own = files.config("tokenizer_config.json").get("model_max_length")
    other = files.config("sentence_bert_config.json").get("max_seq_length")
    named = [files.trained_context - before, own, other]
    return min([limit for limit in named if type(limit) is int and limit > 0], default=LONGEST)
