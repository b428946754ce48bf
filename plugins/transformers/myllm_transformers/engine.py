"""The engine ``transformers``: safetensors models on torch. Nothing heavy is imported before ``load``."""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Self

from myllm_core import Image, MemoryEstimate, Model, Support
from myllm_core.assembled import WRITES, AssembledEngine, Parts
from myllm_core.engine import LoadProgress
from myllm_core.errors import EngineMissing, MyllmError, UnsupportedError
from myllm_core.machine import free_memory
from myllm_core.models.hub_files import HubFiles
from myllm_core.types import Scores
from myllm_transformers.options import LoadSettings
from myllm_transformers.scoring import scores_documents
from myllm_transformers.shape import (
    Shape,
    estimate,
    quantization_of,
    read_shape,
    refusal,
    sees_images,
    weights_of,
    writes_text,
)

if TYPE_CHECKING:
    from myllm_core.decoding import Decoding
    from myllm_core.models.tokenizer_file import TokenizerFile
    from myllm_transformers.model import LoadedModel
    from myllm_transformers.rerank import Reranker
    from myllm_transformers.vision import Vision

_INSTALL = 'pip install "myllm[transformers]"'
_LEAST_VERSION = (5, 3)  # earlier ones run code that a config names: CVE-2026-4372
_QUANTIZERS = {
    "awq": "gptqmodel", "bitsandbytes": "bitsandbytes", "compressed-tensors": "compressed_tensors", "gptq": "gptqmodel",
    "hqq": "hqq", "torchao": "torchao",
}  # fmt: skip
"""The package that runs weights quantized with each method, by its module's name."""
_BLIND = "this model reads no images; send text only"
_SEES = "a model that writes and reads images"
_NEEDED = {"PixtralProcessor": "torchvision", "SmolVLMProcessor": "num2words"}
"""The package that a class of processors needs beside ours, as far as is known before it is loaded."""

log = logging.getLogger("myllm.transformers")


class TransformersEngine(AssembledEngine):
    """A safetensors model on torch: several sequences in one pass, prefixes that are kept, embeddings, scores."""

    name = "transformers"
    formats = frozenset({"safetensors"})
    tokenizes_anywhere = True
    load_options = LoadSettings.load_options()

    def __init__(self, parts: Parts, vision: Vision | str, reranker: Reranker | None = None) -> None:
        """As ``AssembledEngine``; ``vision`` is what images are read with, or why none can be."""
        super().__init__(parts)
        self._vision = vision
        self._reranker = reranker

    @classmethod
    def probe(cls, model: Model) -> Support:
        """Models that write, make embeddings or score documents, when their files hold no code and name none."""
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
        if not writes_text(files):
            does = "scores documents (a reranker)" if scores_documents(files) else "makes embeddings"
            return Support(80, f"a model that {does}")
        if not sees_images(files):
            return Support(80, "a model that writes")
        lack = _lack(files)
        return Support(80, f"a model that writes, and reads images once it has {lack}" if lack else _SEES)

    @classmethod
    def estimate(cls, model: Model, options: Mapping[str, Any]) -> MemoryEstimate:
        """Weights, cache and buffers, told from the files' headers. Raises ``IntegrityError`` for damaged ones."""
        return estimate(read_shape(model, HubFiles(model)), LoadSettings.parse(options), free_memory())

    @classmethod
    def load(cls, model: Model, options: Mapping[str, Any], progress: LoadProgress) -> Self:
        """Load the weights and try them once.

        Raises ``InvalidOption``, ``EngineError`` (``EngineMissing``, ``OutOfMemory``), and ``IntegrityError`` for files
        that aren't whole, name code, or don't fit each other: they are looked at before transformers sees them.
        """
        settings = LoadSettings.parse(options)
        files = HubFiles(model)
        shape = read_shape(model, files)
        if missing := _missing(shape.quantized):
            raise EngineMissing(f"the model needs {missing}; install it: {_install(missing)}")
        progress(0.05)
        from myllm_core.models.tokenizer_file import TokenizerFile
        from myllm_transformers.model import load_model

        tokenizer = TokenizerFile(files.need("tokenizer.json"), files.special_texts())
        with ExitStack() as undo:
            loaded = load_model(weights_of(model, files), files, shape, settings)
            undo.callback(loaded.close)
            progress(0.9)
            if shape.scores:
                engine = cls._scoring(loaded, files, tokenizer)
            else:
                engine = cls._embedding(loaded, files, tokenizer, shape, settings)
            progress(1.0)
            undo.pop_all()
        return engine

    @classmethod
    def _embedding(
        cls, loaded: LoadedModel, files: HubFiles, tokenizer: TokenizerFile, shape: Shape, settings: LoadSettings
    ) -> Self:
        """A model that makes embeddings, and perhaps writes."""
        from myllm_core.embedding import Embedder
        from myllm_core.models.tokenizer_file import hub_facts
        from myllm_transformers.embed import LONGEST, Encoder

        embedder = Embedder(Encoder(loaded, files).run, files, tokenizer, LONGEST)
        if not shape.writes:
            facts = hub_facts(files, tokenizer, embedder.limit, tokenizer.size, {"embed"})
            return cls(Parts(tokenizer, facts, loaded.close, None, embedder, settings.max_sequences), _BLIND)
        dtype = str(loaded.dtype).removeprefix("torch.")
        context = shape.context(settings, dtype, free_memory() + loaded.bytes)
        decoding, vocabulary, vision = _decoding(loaded, files, shape, settings, context)
        abilities = WRITES | ({"embed"} if isinstance(vision, str) else {"embed", "vision"})
        facts = hub_facts(files, tokenizer, context, vocabulary, abilities)
        return cls(Parts(tokenizer, facts, loaded.close, decoding, embedder, settings.max_sequences), vision)

    @classmethod
    def _scoring(cls, loaded: LoadedModel, files: HubFiles, tokenizer: TokenizerFile) -> Self:
        from myllm_core.models.tokenizer_file import hub_facts
        from myllm_transformers.rerank import Reranker

        reranker = Reranker(loaded, files, tokenizer)
        facts = hub_facts(files, tokenizer, reranker.limit, tokenizer.size, {"rerank"})
        return cls(Parts(tokenizer, facts, loaded.close), _BLIND, reranker)

    def rerank(self, query: str, documents: Seq[str]) -> Scores:
        """A score per document. Raises ``ContextLengthError``, ``EngineError``, ``UnsupportedError``."""
        if self._reranker is None:
            return super().rerank(query, documents)
        return self._reranker.scores(query, documents)

    def image_tokens(self, image: Image) -> list[int]:
        """The tokens that the model's processor puts where an image stands, those of its rows below 0.

        Around them are the marks that its chat template has for an image (see ``processor.place_of_image``). Raises
        ``InvalidRequest`` for a file that can't be read, ``UnsupportedError`` with the reason when no image can be.
        """
        if isinstance(self._vision, str):
            raise UnsupportedError(self._vision)
        return self._vision.tokens(image)

    def close(self) -> None:
        """Free the model."""
        self._vision = "the engine was closed"
        self._reranker = None
        super().close()


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


def _lack(files: HubFiles) -> str:
    """What a model needs so that its images can be read, as far as its files tell; empty when nothing."""
    processor, images = files.config("processor_config.json"), files.config("preprocessor_config.json")
    if not images and "image_processor" not in processor:
        return "the preprocessor_config.json of its repository; pull it again"
    package = _NEEDED.get(str(processor.get("processor_class") or images.get("processor_class")))
    return "" if package is None or importlib.util.find_spec(package) else f"{package} (pip install {package})"


def _install(missing: str) -> str:
    own = missing == "torch" or missing.startswith("transformers")
    return _INSTALL if own else f"pip install {missing}"


def _decoding(
    model: LoadedModel, files: HubFiles, shape: Shape, settings: LoadSettings, context: int
) -> tuple[Decoding, int, Vision | str]:
    """What runs the model, the width of its logits, and what reads images or why nothing does."""
    from myllm_core.decoding import Decoding
    from myllm_transformers.sight import Sight
    from myllm_transformers.trial import choose_backend
    from myllm_transformers.vision import Vision

    sequences, batch = settings.max_sequences, settings.n_batch
    why = _BLIND
    if shape.sees:
        try:
            vision = Vision(model, files)
            backend, pieces = choose_backend(model, sequences, context, vision.trial())
            sight = Sight(vision, backend)
            decoding = Decoding(backend, context, sequences, batch if pieces else context, sight)
            return decoding, backend.vocab_size, vision
        except MyllmError as error:
            lack = _lack(files)
            why = "images can't be read with this model: " + (f"it needs {lack}" if lack else str(error))
            log.warning(why)
    backend, pieces = choose_backend(model, sequences, context)
    return Decoding(backend, context, sequences, batch if pieces else context), backend.vocab_size, why
