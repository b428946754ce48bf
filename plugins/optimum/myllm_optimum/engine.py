"""The engine ``optimum``: ONNX exports on Optimum's classes. Nothing heavy is imported before ``load``."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from myllm_core import MemoryEstimate, Model, Support
from myllm_core.allocator import give_back
from myllm_core.assembled import WRITES, AssembledEngine, Parts
from myllm_core.engine import LoadProgress
from myllm_core.errors import EngineMissing, IntegrityError, OutOfMemory, StorageError, UnsupportedError
from myllm_core.machine import free_memory
from myllm_optimum.files import Export, find_export, probe_export
from myllm_optimum.options import LoadSettings

if TYPE_CHECKING:
    from myllm_core.models.tokenizer_file import TokenizerFile

_INSTALL = 'pip install "myllm[optimum]"'
_SCORE = 60  # below the engine onnx, which runs several sequences in one pass
_AUTO_LIMIT = 4096
_FIXED = 400 * 2**20  # torch, transformers and Optimum


class OptimumEngine(AssembledEngine):
    """An ONNX model that Optimum exported: a decoder with past keys and values, or a text encoder."""

    name = "optimum"
    formats = frozenset({"onnx"})
    tokenizes_anywhere = True
    load_options = LoadSettings.load_options()

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
        settings = LoadSettings.parse(options)
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
        settings = LoadSettings.parse(options)
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
            parts = _load_model(export, settings, tokenizer)
        except ImportError as error:
            raise EngineMissing(f"Optimum can't be used here: {error}; try: {_INSTALL}") from error
        progress(1.0)
        return cls(parts)

    def close(self) -> None:
        """Free the model; torch's allocator keeps what it can."""
        super().close()
        give_back()


def _context(export: Export, settings: LoadSettings) -> int:
    trained = export.files.trained_context
    if settings.max_length:
        return min(settings.max_length, trained or settings.max_length)
    return min(trained or _AUTO_LIMIT, _AUTO_LIMIT)


def _load_model(export: Export, settings: LoadSettings, tokenizer: TokenizerFile) -> Parts:
    from myllm_core.decoding import Decoding
    from myllm_core.embedding import Embedder
    from myllm_core.models.tokenizer_file import hub_facts
    from myllm_optimum.backend import DecoderBackend, Encoder, load

    model = load(export, settings)
    if not export.writes:
        encoder = Encoder(model)
        embedder = Embedder(encoder.run, export.files, tokenizer)
        facts = hub_facts(export.files, tokenizer, embedder.limit, tokenizer.size, {"embed"})
        return Parts(tokenizer, facts, encoder.free, embedder=embedder)
    said = export.files.text_config.get("vocab_size")
    backend = DecoderBackend(model, said if type(said) is int and 0 < said < 2**24 else 0)
    context = _context(export, settings)
    facts = hub_facts(export.files, tokenizer, context, backend.vocab_size, WRITES)
    decoding = Decoding(backend, context, settings.max_sequences, settings.chunk_size)
    return Parts(tokenizer, facts, backend.free, decoding, max_sequences=settings.max_sequences)
