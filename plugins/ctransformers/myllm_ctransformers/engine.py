"""The engine ``ctransformers``: GGML and early GGUF files. Nothing heavy is imported before ``load``."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

from myllm_core import LoadOption, MemoryEstimate, Model, ModelFacts, Support
from myllm_core.assembled import WRITES, AssembledEngine, Parts
from myllm_core.engine import LoadProgress
from myllm_core.errors import EngineMissing, InvalidOption, MyllmError
from myllm_core.machine import free_cores
from myllm_ctransformers.header import read_header
from myllm_ctransformers.kinds import Header

if TYPE_CHECKING:
    from myllm_ctransformers.native import NativeModel

_INSTALL = 'pip install "myllm[ctransformers]"'
_BUFFERS = 800 * 2**20
"""What the library allocates for computing, whatever the model; most of it is never touched."""
_CHUNK = 64
_ENDS = ("</s>", "<|endoftext|>", "<|im_end|>", "<|end|>", "<|end_of_text|>", "<|eot_id|>", "### End")


class CTransformersEngine(AssembledEngine):
    """A model file of 2023 on ctransformers: one sequence at a time, on the processor."""

    name = "ctransformers"
    formats = frozenset({"ggml", "gguf"})
    needs_process: ClassVar[bool] = True
    load_options = (
        LoadOption("n_ctx", 0, "tokens that a sequence may have; 0: as the file says, at most 4096"),
        LoadOption(
            "n_threads",
            0,
            "processor threads; 0 takes the physical cores that affinity and control groups leave us, at most 8",
        ),
        LoadOption("use_mmap", True, "map the file into memory instead of reading it (GGUF and LLaMA only)"),
        LoadOption("model_type", "", "kind of the file, where neither words nor name tell: starcoder, dolly-v2"),
    )

    @classmethod
    def probe(cls, model: Model) -> Support:
        """A last resort, since nobody maintains the library: its score is below every other engine's."""
        try:
            header = _header(model)
        except MyllmError as error:
            return Support(0, error.message)
        score, reason = (1, "for early GGUF files; unmaintained") if header.kind == "gguf" else (10, header.kind)
        reason = f"ctransformers of 2023 ({reason})"
        if importlib.util.find_spec("ctransformers") is None:
            return Support(score, reason, missing="ctransformers", install=_INSTALL)
        return Support(score, reason)

    @classmethod
    def estimate(cls, model: Model, options: Mapping[str, Any]) -> MemoryEstimate:
        """Weights, keys and values of the context, and the library's buffers."""
        header = _header(model)
        cache = 2 * 4 * header.n_layer * header.n_embd * _context(header, options)
        return MemoryEstimate(model.manifest.size + cache + _BUFFERS // 2)

    @classmethod
    def load(cls, model: Model, options: Mapping[str, Any], progress: LoadProgress) -> Self:
        """Check the file, then load it.

        Raises ``IntegrityError`` for a file that isn't whole, ``InvalidOption``, ``EngineMissing`` and ``EngineError``.
        """
        header = _header(model, options["model_type"])
        n_ctx = _context(header, options)
        threads = options["n_threads"] or min(8, free_cores())
        if not 0 < threads <= 512:
            raise InvalidOption(f"load option n_threads must be 0 to 512, not {threads}")
        try:
            from myllm_core.decoding import Decoding
            from myllm_ctransformers.native import NativeModel

            native = NativeModel(model.paths[0], header, n_ctx, threads, options["use_mmap"])
        except (ImportError, OSError) as error:
            raise EngineMissing(f"ctransformers can't be used here: {error}; try: {_INSTALL}") from error
        progress(1.0)
        facts = _facts(native, header)
        return cls(Parts(native, facts, native.free, Decoding(native, facts.context_size, 1, _CHUNK)))


def _header(model: Model, kind: str = "") -> Header:
    return read_header(model.paths[0], model.name, kind)


def _context(header: Header, options: Mapping[str, Any]) -> int:
    wanted = options["n_ctx"]
    if wanted < 0:
        raise InvalidOption(f"load option n_ctx must be 0 or more, not {wanted}")
    # a larger one has no positions in the file of a GPT-2, and would read beyond its table
    return min(wanted or 4096, header.n_ctx)


def _facts(native: NativeModel, header: Header) -> ModelFacts:
    ends = {number for text, number in header.control.items() if text in _ENDS} | {native.eos}
    texts = {number: text for text, number in header.control.items()}
    return ModelFacts(
        context_size=native.context_size,
        trained_context=header.n_ctx,
        vocab_size=native.vocab_size,
        chat_template=header.chat_template,
        bos_token=native.bos if header.adds_bos else None,
        bos_text=texts.get(native.bos, ""),
        eos_text=texts.get(native.eos, ""),
        eos_tokens=frozenset(ends),
        special_tokens=tuple(header.control),
        capabilities=WRITES,
    )
