"""The engine ``onnx``: ONNX models on ONNX Runtime and its GenAI. Nothing heavy is imported before ``load``."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from myllm_core import Embeddings, MemoryEstimate, Model, ModelFacts, Sequence, Support, TokenEngine, TokenOut
from myllm_core.engine import LoadProgress
from myllm_core.errors import EngineMissing, IntegrityError, StorageError, UnsupportedError
from myllm_core.models.onnx_file import checked_graph
from myllm_core.runtime.memory import free_memory
from myllm_core.types import Sampling
from myllm_onnx import memory
from myllm_onnx.layout import Layout, find_layout
from myllm_onnx.options import LOAD_OPTIONS, LoadSettings, parse_load_options

if TYPE_CHECKING:
    from myllm_core.decoding import Decoding
    from myllm_core.embedding import Embedder
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
_WRITES = ("chat", "complete", "grammar", "logprobs")
_TOKENIZER = 0.1
"""The share of loading that comes before reading the weights."""


class OnnxEngine(TokenEngine):
    """An ONNX model: one made for GenAI, a plain decoder with past keys and values, or a text encoder."""

    name = "onnx"
    formats = frozenset({"onnx"})
    load_options = LOAD_OPTIONS
    sampling: ClassVar[frozenset[str]] = frozenset(field.name for field in fields(Sampling))

    def __init__(self, tokenizer: TokenizerFile, loaded: _Loaded, max_sequences: int) -> None:
        """Put the loaded parts together; ``load`` makes them."""
        self._tokenizer = tokenizer
        self._loaded = loaded
        self.max_sequences = max_sequences

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
        settings = parse_load_options(options)
        layout = find_layout(model, settings.file_name)
        _, weights = checked_graph(model, layout.graph)
        return memory.estimate(layout, settings, weights, free_memory())

    @classmethod
    def load(cls, model: Model, options: Mapping[str, Any], progress: LoadProgress) -> Self:
        """Check the files, then let the library load them.

        Raises ``InvalidOption``, ``UnsupportedError``, ``IntegrityError`` for files that are damaged or name others,
        and ``EngineError`` (``EngineMissing``, ``OutOfMemory``).
        """
        settings = parse_load_options(options)
        layout = find_layout(model, settings.file_name)
        graph, weights = checked_graph(model, layout.graph)
        memory.check_room(layout, settings, weights, free_memory())
        try:
            from myllm_core.models.tokenizer_file import TokenizerFile

            tokenizer = TokenizerFile(layout.files.need("tokenizer.json"), layout.files.special_texts())
            progress(_TOKENIZER)
            loaded = _load_model(layout, graph, settings, weights, tokenizer)
        except ImportError as error:
            raise EngineMissing(f"ONNX Runtime can't be used here: {error}; try: {_INSTALL}") from error
        progress(1.0)
        return cls(tokenizer, loaded, settings.max_batch_size)

    @property
    def facts(self) -> ModelFacts:
        """What is true of the loaded model."""
        return self._loaded.facts

    @property
    def _running(self) -> Decoding:
        if self._loaded.decoding is None:
            raise UnsupportedError("this model makes embeddings and can't write text; use a chat model")
        return self._loaded.decoding

    def tokenize(self, text: str, special: bool) -> list[int]:
        """Token ids of a piece of a prompt; see ``TokenizerFile.tokenize`` for SentencePiece's leading space."""
        return self._tokenizer.tokenize(text, special)

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for; empty for control tokens."""
        return self._tokenizer.piece(token)

    def add(self, sequence: Sequence) -> None:
        """Take a sequence on. Raises ``UnsupportedError`` for a model that only makes embeddings."""
        self._running.add(sequence)

    def cancel(self, sequence_id: int) -> None:
        """Drop a sequence; what it has read is kept for a prompt that begins the same."""
        if self._loaded.decoding is not None:
            self._loaded.decoding.cancel(sequence_id)

    def step(self) -> list[TokenOut]:
        """A token of every sequence that writes, and a chunk of a prompt."""
        return self._running.step()

    def embed(self, inputs: Seq[str]) -> Embeddings:
        """One vector per input. Raises ``ContextLengthError``, ``InvalidRequest``, ``UnsupportedError``."""
        if self._loaded.embedder is None:
            raise UnsupportedError("this model writes text and makes no embeddings; use an embedding model")
        return self._loaded.embedder.embed(inputs)

    def close(self) -> None:
        """Free the model."""
        if self._loaded.decoding is not None:
            self._loaded.decoding.close()
        self._loaded.free()


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A model that writes has ``decoding``, one that makes embeddings ``embedder``."""

    facts: ModelFacts
    free: Callable[[], None]
    decoding: Decoding | None = None
    embedder: Embedder | None = None


def _load_model(
    layout: Layout, graph: Graph, settings: LoadSettings, weights: int, tokenizer: TokenizerFile
) -> _Loaded:
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
        return _Loaded(facts, encoder.free, embedder=embedder)
    context = memory.context_size(layout, settings, weights, free_memory())
    backend: GenaiBackend | DecoderBackend
    if layout.kind == "genai":
        backend = GenaiBackend(layout, settings, context)
    else:
        backend = DecoderBackend(open_session(layout.graph, settings), graph)
    facts = hub_facts(layout.files, tokenizer, context, backend.vocab_size, _WRITES)
    ends = facts.eos_tokens | {token for token in layout.end_tokens if token < backend.vocab_size}
    facts = replace(facts, trained_context=layout.trained_context, eos_tokens=ends)
    decoding = Decoding(backend, context, settings.max_batch_size, settings.chunk_size)
    return _Loaded(facts, backend.free, decoding=decoding)
