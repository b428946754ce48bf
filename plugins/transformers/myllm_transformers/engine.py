"""The engine ``transformers``: safetensors models on torch. Nothing heavy is imported before ``load``."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from contextlib import ExitStack
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, ClassVar, Self

from myllm_core import Embeddings, MemoryEstimate, Model, ModelFacts, Sequence, Support, TokenEngine, TokenOut
from myllm_core.engine import LoadProgress
from myllm_core.errors import EngineMissing, MyllmError, UnsupportedError
from myllm_core.models.hub_files import HubFiles
from myllm_core.runtime.memory import free_memory
from myllm_core.types import Sampling
from myllm_transformers.options import LOAD_OPTIONS, parse_load_options
from myllm_transformers.shape import estimate, quantization_of, read_shape, refusal, weights_of, writes_text

if TYPE_CHECKING:
    from myllm_core.decoding import Decoding
    from myllm_core.models.tokenizer_file import TokenizerFile
    from myllm_transformers.embed import Embedder
    from myllm_transformers.model import LoadedModel

_INSTALL = 'pip install "myllm[transformers]"'
_LEAST_VERSION = (5, 3)  # earlier ones run code that a config names: CVE-2026-4372
_QUANTIZERS = {
    "awq": "gptqmodel", "bitsandbytes": "bitsandbytes", "compressed-tensors": "compressed_tensors", "gptq": "gptqmodel",
    "hqq": "hqq", "torchao": "torchao",
}  # fmt: skip
"""The package that runs weights quantized with each method, by its module's name."""


class TransformersEngine(TokenEngine):
    """A safetensors model on torch: several sequences in one pass, prefixes that are kept, embeddings."""

    name = "transformers"
    formats = frozenset({"safetensors"})
    load_options = LOAD_OPTIONS
    sampling: ClassVar[frozenset[str]] = frozenset(field.name for field in fields(Sampling))

    def __init__(
        self,
        model: LoadedModel,
        tokenizer: TokenizerFile,
        facts: ModelFacts,
        embedder: Embedder,
        decoding: Decoding | None,
        max_sequences: int,
    ) -> None:
        """Put the loaded parts together; ``load`` makes them. Without ``decoding`` the model only makes embeddings."""
        self._model = model
        self._tokenizer = tokenizer
        self._facts = facts
        self._embedder = embedder
        self._decoding = decoding
        self.max_sequences = max_sequences

    @classmethod
    def probe(cls, model: Model) -> Support:
        """Causal models and those that make embeddings, when their files hold no code and name none."""
        if model.format not in cls.formats:
            return Support(0, f"transformers loads safetensors files, not {model.format}")
        files = HubFiles(model)
        try:
            if reason := refusal(files):
                return Support(0, reason)
        except MyllmError as error:
            return Support(0, str(error))
        missing = _missing(quantization_of(files.config("config.json")))
        if missing:
            return Support(80, f"the model needs {missing}, which isn't installed", missing, _install(missing))
        return Support(80, "a model that writes" if writes_text(files) else "a model that makes embeddings")

    @classmethod
    def estimate(cls, model: Model, options: Mapping[str, Any]) -> MemoryEstimate:
        """Weights, cache and buffers, told from the files' headers. Raises ``IntegrityError`` for damaged ones."""
        return estimate(read_shape(model, HubFiles(model)), parse_load_options(options), free_memory())

    @classmethod
    def load(cls, model: Model, options: Mapping[str, Any], progress: LoadProgress) -> Self:
        """Load the weights and try them once.

        Raises ``InvalidOption``, ``EngineError`` (``EngineMissing``, ``OutOfMemory``), and ``IntegrityError`` for files
        that aren't whole, name code, or don't fit each other: they are looked at before transformers sees them.
        """
        settings = parse_load_options(options)
        files = HubFiles(model)
        shape = read_shape(model, files)
        if missing := _missing(shape.quantized):
            raise EngineMissing(f"the model needs {missing}; install it: {_install(missing)}")
        progress(0.05)
        from myllm_core.models.tokenizer_file import TokenizerFile, hub_facts
        from myllm_transformers.embed import Embedder
        from myllm_transformers.model import load_model

        tokenizer = TokenizerFile(files.need("tokenizer.json"), files.special_texts())
        with ExitStack() as undo:
            loaded = load_model(weights_of(model, files), files, shape, settings)
            undo.callback(loaded.close)
            progress(0.9)
            embedder = Embedder(loaded, tokenizer, files)
            decoding, facts = None, hub_facts(files, tokenizer, embedder.limit, tokenizer.size, {"embed"})
            if shape.writes:
                dtype = str(loaded.dtype).removeprefix("torch.")
                context = shape.context(settings, dtype, free_memory() + loaded.bytes)
                decoding, vocabulary = _decoding(loaded, settings.max_sequences, context, settings.n_batch)
                writes = {"chat", "complete", "grammar", "logprobs", "embed"}
                facts = hub_facts(files, tokenizer, context, vocabulary, writes)
            engine = cls(loaded, tokenizer, facts, embedder, decoding, settings.max_sequences)
            progress(1.0)
            undo.pop_all()
        return engine

    @property
    def facts(self) -> ModelFacts:
        """What is true of the loaded model."""
        return self._facts

    @property
    def _running(self) -> Decoding:
        if self._decoding is None:
            raise UnsupportedError("this model makes embeddings and can't write text; use a chat model")
        return self._decoding

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
        """Drop a sequence; unknown ids are ignored."""
        if self._decoding is not None:
            self._decoding.cancel(sequence_id)

    def step(self) -> list[TokenOut]:
        """One token of every sequence that writes, and a piece of a prompt."""
        return self._running.step()

    def embed(self, inputs: Seq[str]) -> Embeddings:
        """One vector per input. Raises ``ContextLengthError`` and ``InvalidRequest``."""
        return self._embedder.embed(inputs)

    def close(self) -> None:
        """Free weights and cache."""
        self._decoding = None
        self._embedder.close()
        self._model.close()


def _missing(quantized: str) -> str | None:
    """What must be installed before a model can be loaded; None when nothing."""
    try:
        found = tuple(map(int, re.findall(r"\d+", version("transformers"))[:2]))
    except PackageNotFoundError:
        return "transformers"
    if found < _LEAST_VERSION:
        return "transformers>=5.3"
    needed = ["torch", *([_QUANTIZERS[quantized]] if quantized in _QUANTIZERS else [])]
    return next((name for name in needed if importlib.util.find_spec(name) is None), None)


def _install(missing: str) -> str:
    own = missing == "torch" or missing.startswith("transformers")
    return _INSTALL if own else f"pip install {missing}"


def _decoding(model: LoadedModel, sequences: int, context: int, batch: int) -> tuple[Decoding, int]:
    from myllm_core.decoding import Decoding
    from myllm_transformers.backend import choose_backend

    backend, pieces = choose_backend(model, sequences, context)
    return Decoding(backend, context, sequences, batch if pieces else context), backend.vocab_size
