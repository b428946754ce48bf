"""The engine ``optimum``: ONNX exports on Optimum's classes. Nothing heavy is imported before ``load``."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self

from myllm_core import Embeddings, MemoryEstimate, Model, ModelFacts, Sequence, Support, TokenEngine, TokenOut
from myllm_core.allocator import give_back
from myllm_core.engine import LoadProgress
from myllm_core.errors import EngineMissing, IntegrityError, OutOfMemory, StorageError, UnsupportedError
from myllm_core.runtime.memory import free_memory
from myllm_core.types import Sampling
from myllm_optimum.files import Export, find_export, probe_export
from myllm_optimum.options import LOAD_OPTIONS, LoadSettings, parse_load_options

if TYPE_CHECKING:
    from myllm_core.decoding import Decoding
    from myllm_core.embedding import Embedder
    from myllm_core.models.tokenizer_file import TokenizerFile

_INSTALL = 'pip install "myllm[optimum]"'
_SCORE = 60  # below the engine onnx, which runs several sequences in one pass
_WRITES = ("chat", "complete", "grammar", "logprobs")
_AUTO_LIMIT = 4096
_FIXED = 400 * 2**20  # torch, transformers and Optimum


class OptimumEngine(TokenEngine):
    """An ONNX model that Optimum exported: a decoder with past keys and values, or a text encoder."""

    name = "optimum"
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
        """A graph with the names that Optimum gives, and the configuration beside it."""
        if model.format not in cls.formats:
            return Support(0, f"Optimum runs onnx files, not {model.format}")
        try:
            probe_export(model)
        except (UnsupportedError, IntegrityError, StorageError) as error:
            return Support(0, str(error))
        packages = {"optimum": "optimum-onnx", "onnxruntime": "onnxruntime", "transformers": "transformers<4.58"}
        missing = [package for name, package in packages.items() if importlib.util.find_spec(name) is None]
        reason = "an export by Optimum"
        return Support(_SCORE, reason, ", ".join(missing), _INSTALL) if missing else Support(_SCORE, reason)

    @classmethod
    def estimate(cls, model: Model, options: Mapping[str, Any]) -> MemoryEstimate:
        """Weights, cache and the libraries. Raises ``IntegrityError`` for damaged files, ``UnsupportedError``."""
        settings = parse_load_options(options)
        export = find_export(model, settings.file_name)
        config = export.files.text_config
        sizes = [config.get(key) for key in ("num_hidden_layers", "hidden_size")]
        layers, hidden = (size if type(size) is int and 0 < size < 2**24 else 0 for size in sizes)
        cache = 2 * 4 * layers * hidden * _context(export, settings) * settings.max_sequences if export.writes else 0
        return MemoryEstimate(host=export.size + cache + _FIXED)

    @classmethod
    def load(cls, model: Model, options: Mapping[str, Any], progress: LoadProgress) -> Self:
        """Check the files, then let the library load the graph.

        Raises ``InvalidOption``, ``UnsupportedError``, ``IntegrityError`` for files that are damaged or name others,
        and ``EngineError`` (``EngineMissing``, ``OutOfMemory``).
        """
        settings = parse_load_options(options)
        export = find_export(model, settings.file_name)
        free = free_memory()
        if export.size > free:
            needed = export.size / 2**20
            raise OutOfMemory(
                f"the weights need {needed:.0f} MiB of memory and {free / 2**20:.0f} are free; take a smaller model",
                needed=export.size,
                free=free,
            )
        try:
            from myllm_core.models.tokenizer_file import TokenizerFile

            tokenizer = TokenizerFile(export.files.need("tokenizer.json"), export.files.special_texts())
            progress(0.1)
            loaded = _load_model(export, settings, tokenizer)
        except ImportError as error:
            raise EngineMissing(f"Optimum can't be used here: {error}; try: {_INSTALL}") from error
        progress(1.0)
        return cls(tokenizer, loaded, settings.max_sequences)

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
        give_back()


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A model that writes has ``decoding``, one that makes embeddings ``embedder``."""

    facts: ModelFacts
    free: Callable[[], None]
    decoding: Decoding | None = None
    embedder: Embedder | None = None


def _context(export: Export, settings: LoadSettings) -> int:
    trained = export.files.trained_context
    if settings.max_length:
        return min(settings.max_length, trained or settings.max_length)
    return min(trained or _AUTO_LIMIT, _AUTO_LIMIT)


def _load_model(export: Export, settings: LoadSettings, tokenizer: TokenizerFile) -> _Loaded:
    from myllm_core.decoding import Decoding
    from myllm_core.embedding import Embedder
    from myllm_core.models.tokenizer_file import hub_facts
    from myllm_optimum.backend import DecoderBackend, Encoder, load

    model = load(export, settings)
    if not export.writes:
        encoder = Encoder(model)
        embedder = Embedder(encoder.run, export.files, tokenizer)
        facts = hub_facts(export.files, tokenizer, embedder.limit, tokenizer.size, {"embed"})
        return _Loaded(facts, encoder.free, embedder=embedder)
    said = export.files.text_config.get("vocab_size")
    backend = DecoderBackend(model, said if type(said) is int and 0 < said < 2**24 else 0)
    context = _context(export, settings)
    facts = hub_facts(export.files, tokenizer, context, backend.vocab_size, _WRITES)
    decoding = Decoding(backend, context, settings.max_sequences, settings.chunk_size)
    return _Loaded(facts, backend.free, decoding=decoding)
