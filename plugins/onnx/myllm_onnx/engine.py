"""The engine ``onnx``: ONNX models on ONNX Runtime and its GenAI. Nothing heavy is imported before ``load``."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from myllm_core import MemoryEstimate, Model, Support
from myllm_core.assembled import WRITES, AssembledEngine, Parts
from myllm_core.engine import LoadProgress
from myllm_core.errors import EngineMissing, IntegrityError, StorageError, UnsupportedError
from myllm_core.machine import free_memory
from myllm_core.models.onnx_file import checked_graph
from myllm_onnx import memory
from myllm_onnx.layout import Layout, find_layout
from myllm_onnx.options import LoadSettings

if TYPE_CHECKING:
    from myllm_core.models.onnx_file import Graph
    from myllm_core.models.tokenizer_file import TokenizerFile
    from myllm_onnx.decoder import DecoderBackend
    from myllm_onnx.genai import GenaiBackend

_INSTALL = 'pip install "myllm[onnx]"'
_PACKAGES = ("onnxruntime", "onnxruntime_genai", "tokenizers")
_SCORES = {
    "genai": (100, "made for ONNX Runtime GenAI"),
    "decoder": (90, "a plain decoder, for ONNX Runtime"),
    "embedding": (100, "a text encoder, for ONNX Runtime"),
}
_TOKENIZER = 0.1
"""The share of loading that comes before reading the weights."""


class OnnxEngine(AssembledEngine):
    """An ONNX model: one made for GenAI, a plain decoder with past keys and values, or a text encoder."""

    name = "onnx"
    formats = frozenset({"onnx"})
    tokenizes_anywhere = True
    load_options = LoadSettings.load_options()

    @classmethod
    def probe(cls, model: Model) -> Support:
        """What GenAI was made for, else a graph with the inputs and outputs of a plain decoder or encoder."""
        if model.format not in cls.formats:
            return Support(0, f"ONNX Runtime loads onnx files, not {model.format}")
        try:
            layout = find_layout(model)
        except (UnsupportedError, IntegrityError, StorageError) as error:
            return Support(0, str(error))
        score, reason = _SCORES[layout.kind]
        missing = [name.replace("_", "-") for name in _PACKAGES if importlib.util.find_spec(name) is None]
        if missing:
            return Support(score, reason, missing=", ".join(missing), install=_INSTALL)
        return Support(score, reason)

    @classmethod
    def estimate(cls, model: Model, options: Mapping[str, Any]) -> MemoryEstimate:
        """Weights and cache, from the files. Raises ``IntegrityError`` for damaged ones, ``UnsupportedError``."""
        settings = LoadSettings.parse(options)
        layout = find_layout(model, settings.file_name)
        _, weights = checked_graph(model, layout.graph)
        return memory.estimate(layout, settings, weights, free_memory())

    @classmethod
    def load(cls, model: Model, options: Mapping[str, Any], progress: LoadProgress) -> Self:
        """Check the files, then let the library load them.

        Raises ``InvalidOption``, ``UnsupportedError``, ``IntegrityError`` for files that are damaged or name others,
        and ``EngineError`` (``EngineMissing``, ``OutOfMemory``).
        """
        settings = LoadSettings.parse(options)
        layout = find_layout(model, settings.file_name)
        graph, weights = checked_graph(model, layout.graph)
        memory.check_room(layout, settings, weights, free_memory())
        try:
            from myllm_core.models.tokenizer_file import TokenizerFile

            tokenizer = TokenizerFile(layout.files.need("tokenizer.json"), layout.files.special_texts())
            progress(_TOKENIZER)
            parts = _load_model(layout, graph, settings, weights, tokenizer)
        except ImportError as error:
            raise EngineMissing(f"ONNX Runtime can't be used here: {error}; try: {_INSTALL}") from error
        progress(1.0)
        return cls(parts)


def _load_model(layout: Layout, graph: Graph, settings: LoadSettings, weights: int, tokenizer: TokenizerFile) -> Parts:
    from myllm_core.decoding import Decoding
    from myllm_core.embedding import Embedder
    from myllm_core.models.tokenizer_file import hub_facts
    from myllm_onnx.decoder import DecoderBackend
    from myllm_onnx.encoder import Encoder
    from myllm_onnx.genai import GenaiBackend
    from myllm_onnx.session import open_session

    if layout.kind == "embedding":
        encoder = Encoder(open_session(layout.graph, settings))
        embedder = Embedder(encoder.run, layout.files, tokenizer)
        facts = hub_facts(layout.files, tokenizer, embedder.limit, tokenizer.size, {"embed"})
        return Parts(tokenizer, facts, encoder.free, embedder=embedder)
    context = memory.context_size(layout, settings, weights, free_memory())
    backend: GenaiBackend | DecoderBackend
    if layout.kind == "genai":
        backend = GenaiBackend(layout, settings, context)
    else:
        backend = DecoderBackend(open_session(layout.graph, settings), graph)
    facts = hub_facts(layout.files, tokenizer, context, backend.vocab_size, WRITES)
    ends = facts.eos_tokens | {token for token in layout.end_tokens if token < backend.vocab_size}
    facts = replace(facts, trained_context=layout.trained_context, eos_tokens=ends)
    decoding = Decoding(backend, context, settings.max_batch_size, settings.chunk_size)
    return Parts(tokenizer, facts, backend.free, decoding, max_sequences=settings.max_batch_size)
