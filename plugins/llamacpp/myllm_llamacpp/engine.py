"""The engine ``llamacpp``: GGUF files on llama.cpp. Nothing heavy is imported before ``load``."""

from __future__ import annotations

import importlib.util
from collections.abc import Generator, Mapping
from collections.abc import Sequence as Seq
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from myllm_core import Embeddings, MemoryEstimate, Model, ModelFacts, Scores, Sequence, Support, TokenEngine, TokenOut
from myllm_core.engine import LoadProgress
from myllm_core.errors import EngineError, EngineMissing, MyllmError, OutOfMemory, UnsupportedError
from myllm_core.types import Image, Sampling
from myllm_llamacpp.options import MAX_ROWS, LoadSettings

if TYPE_CHECKING:
    from myllm_llamacpp.context import Context
    from myllm_llamacpp.devices import Device
    from myllm_llamacpp.disk import Disk
    from myllm_llamacpp.files import Files
    from myllm_llamacpp.model import Model as LlamaModel
    from myllm_llamacpp.offload import Split
    from myllm_llamacpp.run import Stats
    from myllm_llamacpp.saver import Saver
    from myllm_llamacpp.scheduler import Scheduler
    from myllm_llamacpp.vision import Vision

_INSTALL = 'pip install "myllm[llamacpp]"'
_WEIGHTS_PROGRESS = 0.95
"""The share of loading that reading the weights is; the rest makes and warms the context."""


class LlamaCppEngine(TokenEngine):
    """A GGUF model on llama.cpp: several sequences in one batch, cached prefixes, embeddings."""

    name = "llamacpp"
    formats = frozenset({"gguf"})
    load_options = LoadSettings.load_options()
    sampling: ClassVar[frozenset[str]] = frozenset(field.name for field in fields(Sampling))
    tokenizes_anywhere = True

    def __init__(
        self,
        model: LlamaModel,
        context: Context | None,
        settings: LoadSettings,
        key: bytes | None = None,
        vision: Vision | str = "",
    ) -> None:
        """Put the loaded parts together; ``load`` makes them. Without a context the model only makes embeddings.

        Without a ``key`` (see ``disk.model_key``) no sequence is saved to disk. ``vision`` may say why there is none.
        """
        from myllm_llamacpp.embed import Embedder

        self._model = model
        self._context = context
        self._scheduler: Scheduler | None = None
        self._saver: Saver | None = None
        self._vision = None if isinstance(vision, str) else vision
        self._blind = vision if isinstance(vision, str) else ""
        self._facts = _facts(model, context, settings, self._vision is not None)
        self._embedder = Embedder(model, settings, self._facts.context_size)
        self.max_sequences = settings.n_parallel
        if context is not None:
            disk = _disk(settings, key)
            self._scheduler = _scheduler(model, context, settings, self._facts.context_size, disk)
            self._scheduler.vision = self._vision
            self._scheduler.slots.whole_images = self._vision is not None and self._vision.atomic
            self._saver = _saver(self._scheduler, disk)

    @classmethod
    def probe(cls, model: Model) -> Support:
        """A GGUF file is what llama.cpp is made for, whether it is installed or not."""
        if model.format not in cls.formats:
            return Support(0, f"llama.cpp loads gguf files, not {model.format}")
        if importlib.util.find_spec("llama_cpp") is None:
            reason = "llama.cpp isn't installed; where there is no prebuilt wheel, installing compiles it for minutes"
            return Support(100, reason, missing="llama-cpp-python", install=_INSTALL)
        sees = any("mmproj" in path.name.lower() for path in model.paths)
        return Support(100, "made for gguf files" + (", with a projector for images beside them" if sees else ""))

    @classmethod
    def estimate(cls, model: Model, options: Mapping[str, Any]) -> MemoryEstimate:
        """Weights, KV cache and buffers, from the file's metadata. Raises ``IntegrityError`` for a damaged one."""
        from myllm_core import machine
        from myllm_llamacpp import devices, memory
        from myllm_llamacpp.files import files_of

        settings = LoadSettings.parse(options)
        files, free = files_of(model, settings), machine.free_memory()
        split = _split(files, settings, free, devices.ask_gpus() if settings.n_gpu_layers else [], now=False)
        size = files.size + memory.draft_bytes(files, settings, free) + memory.vision_bytes(files)
        return memory.estimate(memory.shape_of(files.headers[0]), settings, size, free, split)

    @classmethod
    def load(cls, model: Model, options: Mapping[str, Any], progress: LoadProgress) -> Self:
        """Load weights, allocate the context and run it once.

        Raises ``InvalidOption``, ``EngineError`` (``EngineMissing``, ``OutOfMemory``), and ``IntegrityError`` for a
        file that isn't whole: it is checked before llama.cpp sees it.
        """
        from myllm_llamacpp.files import files_of

        settings = LoadSettings.parse(options)
        return cls._load(model, files_of(model, settings), settings, progress)

    @classmethod
    def _load(cls, model: Model, files: Files, settings: LoadSettings, progress: LoadProgress) -> Self:
        try:
            from myllm_llamacpp.devices import gpus
            from myllm_llamacpp.disk import model_key
            from myllm_llamacpp.model import Model as LlamaModel
        except (ImportError, RuntimeError) as error:
            raise EngineMissing(f"llama.cpp can't be used here: {error}; try: {_INSTALL}") from error
        settings, tokens = _room(files, settings, gpus() if settings.n_gpu_layers else [])
        with ExitStack() as undo:
            loaded = LlamaModel(files.weights, settings, lambda fraction: progress(fraction * _WEIGHTS_PROGRESS))
            undo.callback(loaded.close)
            loaded.adapt(files.adapters)
            context = _context(loaded, settings, tokens)
            if context is not None:
                undo.callback(context.close)
            vision = _vision(files, loaded, context, settings)
            if not isinstance(vision, str):
                undo.callback(vision.close)
            named = files.projector if settings.mmproj or settings.image_max_tokens else {}
            engine = cls(loaded, context, settings, model_key(model, settings, files.adapters, named), vision)
            if files.draft:
                engine._draft_with(files.draft, settings, tokens)
            progress(1.0)
            undo.pop_all()
        return engine

    def _draft_with(self, paths: list[Path], settings: LoadSettings, tokens: int) -> None:
        from myllm_llamacpp.draft import load_drafter

        if not self._running.guesses:
            raise UnsupportedError("sequences of this model can't be cut short, so none are guessed; leave draft out")
        self._running.drafter = load_drafter(paths, self._model, tokens, settings)

    @property
    def facts(self) -> ModelFacts:
        """What is true of the loaded model."""
        return self._facts

    @property
    def stats(self) -> Stats:
        """Counters since loading: steps, tokens, seconds in llama.cpp and around it."""
        return self._running.stats

    @property
    def _running(self) -> Scheduler:
        if self._scheduler is None:
            raise UnsupportedError("this model makes embeddings and can't write text; use a chat model")
        return self._scheduler

    def tokenize(self, text: str, special: bool) -> list[int]:
        """Token ids of a piece of a prompt; see ``model.Model.tokenize`` for SentencePiece's leading space."""
        return self._model.tokenize(text, special)

    def image_tokens(self, image: Image) -> list[int]:
        """What stands for an image; see ``TokenEngine``. Raises ``InvalidRequest``, ``UnsupportedError``."""
        if self._vision is not None:
            return self._vision.tokens(image)
        if self._blind:
            raise UnsupportedError(f"images can't be read with this model: {self._blind}; send text only")
        return super().image_tokens(image)

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for; empty for control tokens."""
        return self._model.piece(token)

    def add(self, sequence: Sequence) -> None:
        """Take a sequence on. Raises ``UnsupportedError`` for a model that only makes embeddings."""
        self._running.add(sequence)

    def cancel(self, sequence_id: int) -> None:
        """Drop a sequence; what it has read stays cached for prompts that begin the same."""
        if self._scheduler is not None:
            self._scheduler.cancel(sequence_id)

    def step(self) -> list[TokenOut]:
        """One forward pass over every running sequence, with a chunk of the prompts that are still being read."""
        return self._running.step()

    def idle(self) -> bool:
        """Save a piece of what was read lately to disk, so that it outlasts a restart."""
        return self._saver is not None and self._saver.idle()

    def embed(self, inputs: Seq[str]) -> Embeddings:
        """One vector of length 1 per input. Raises ``ContextLengthError``, ``InvalidRequest``."""
        steps = self.embed_steps(inputs)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                made: Embeddings = end.value
                return made

    def embed_steps(self, inputs: Seq[str]) -> Generator[None, None, Embeddings]:
        """The same in steps: while replies are written, each as short as one that reads a prompt beside them."""
        return self._embedder.steps(inputs, self._rows_beside)

    def rerank(self, query: str, documents: Seq[str]) -> Scores:
        """A score per document. Raises ``ContextLengthError``, ``UnsupportedError``."""
        return self._embedder.scores(query, documents)

    def _rows_beside(self) -> int:
        return MAX_ROWS if self._scheduler is None else self._scheduler.rows_beside()

    def close(self) -> None:
        """Save what is worth it, and free contexts and weights."""
        with ExitStack() as parts:  # closed from the last to the first, whatever one of them raises
            parts.callback(self._model.close)
            if self._context is not None:
                parts.callback(self._context.close)
            if self._saver is not None:
                parts.callback(self._saver.close)
            if self._vision is not None:
                parts.callback(self._vision.close)
            if self._scheduler is not None:
                parts.callback(self._scheduler.close)
            parts.callback(self._embedder.close)
            self._saver = None


def _room(files: Files, settings: LoadSettings, devices: list[Device]) -> tuple[LoadSettings, int]:
    """The settings with the layers for the GPU, and the tokens of cache to allocate.

    Raises ``OutOfMemory``: Linux would grant the memory, then kill the process.
    """
    from myllm_core import machine
    from myllm_llamacpp import memory

    size, free = files.size, machine.free_memory()
    shape = memory.shape_of(files.headers[0])
    split = _split(files, settings, free, devices, now=True)
    if split is not None:
        if split.least > split.free:
            raise OutOfMemory(
                f"{split.layers} layers need {split.device / 2**20:.0f} MiB of GPU memory and {split.free / 2**20:.0f} "
                "are free; set fewer n_gpu_layers, or -1 for as many as fit",
                needed=split.device,
                free=split.free,
            )
        settings = settings.model_copy(update={"n_gpu_layers": split.layers})
    needed = sum(shape.total(settings, size, free)) + (0 if settings.use_mmap else size)
    needed += memory.draft_bytes(files, settings, free) + memory.vision_bytes(files)
    if split is not None and not split.unified:
        needed -= split.cache + (0 if settings.use_mmap else split.weights)
    if needed > free:
        raise OutOfMemory(
            f"the context needs {needed / 2**20:.0f} MiB of memory and {free / 2**20:.0f} are free; "
            "set a smaller n_ctx, n_parallel or n_batch, or type_k and type_v q8_0",
            needed=needed,
            free=free,
        )
    return settings, shape.context(settings, size, free)


def _split(files: Files, settings: LoadSettings, free: int, devices: list[Device], now: bool) -> Split | None:
    """Which layers go to the GPU (see ``offload.split``)."""
    from myllm_llamacpp import memory
    from myllm_llamacpp.offload import Demand, layers_of, split

    cache, buffers = memory.shape_of(files.headers[0]).total(settings, files.size, free)
    buffers += memory.draft_bytes(files, settings, free) + memory.vision_bytes(files)
    buffers += sum(path.stat().st_size for path in (*files.draft, *files.projector))
    return split(Demand(layers_of(files.headers), cache, buffers), settings.n_gpu_layers, devices, now)


def _context(model: LlamaModel, settings: LoadSettings, tokens: int) -> Context | None:
    """The context that text is written in; None for a model that only makes embeddings."""
    from myllm_llamacpp.context import Context, ContextSize

    if model.has_encoder or model.is_diffusion:
        raise EngineError("this engine runs models that write one token after the other; take another model")
    if model.pooling != "none":
        return None
    context = Context(model, ContextSize(tokens, settings.n_batch, settings.n_parallel), settings)
    if context.memory is not None:
        return context
    context.close()
    return None


def _vision(files: Files, model: LlamaModel, context: Context | None, settings: LoadSettings) -> Vision | str:
    """What reads images, or why nothing does. Raises ``EngineError`` for a projector that was asked for by name."""
    if context is None or not files.projector:
        return ""
    from myllm_llamacpp.bindings import logger
    from myllm_llamacpp.projector import Projector
    from myllm_llamacpp.vision import Vision

    [(path, header)] = files.projector.items()
    try:
        return Vision(Projector(path, header, model, settings, context.threads.crowding.count))
    except MyllmError as error:
        if settings.mmproj:
            raise
        logger.warning("this model will read no images: %s", error)
        return str(error)


def _disk(settings: LoadSettings, key: bytes | None) -> Disk | None:
    from myllm_llamacpp.disk import Disk, default_folder

    if key is None or not settings.cache_disk:
        return None
    folder = Path(settings.cache_dir).expanduser() if settings.cache_dir else default_folder()
    return Disk(folder, key, settings.cache_disk * 2**20)


def _saver(scheduler: Scheduler, disk: Disk | None) -> Saver | None:
    from myllm_llamacpp.saver import Saver

    return Saver(scheduler.slots, disk) if disk is not None else None


def _scheduler(
    model: LlamaModel, context: Context, settings: LoadSettings, context_size: int, disk: Disk | None
) -> Scheduler:
    from myllm_llamacpp.pace import Pace
    from myllm_llamacpp.scheduler import Scheduler
    from myllm_llamacpp.slots import Slots
    from myllm_llamacpp.speculate import Rates
    from myllm_llamacpp.states import States, automatic_limit

    can_cut = context.warm_up()
    if settings.context_shift and not (can_cut and context.can_shift):
        more = ", or with swa_full" if model.sliding_window and can_cut else ""
        raise UnsupportedError(f"the cache of this model can't be shifted; load it without context_shift{more}")
    window = 0 if settings.swa_full else model.sliding_window
    states = States(automatic_limit() if settings.cache_ram < 0 else settings.cache_ram * 2**20)
    slots = Slots(context, states, disk, can_cut=can_cut, shared=settings.kv_unified, window=window)
    guesses = settings.guesses if slots.every_prefix else 0
    rates = Rates(always=settings.speculation == "lookup")
    keep = settings.n_keep if settings.context_shift else None
    return Scheduler(context, slots, Pace(context.batch.rows), rates, context_size, settings.kv_unified, guesses, keep)


def _facts(model: LlamaModel, context: Context | None, settings: LoadSettings, sees: bool) -> ModelFacts:
    trained = model.trained_context
    limits = [trained, settings.n_ctx if settings.kv_unified else 0, context.tokens_per_sequence if context else 0]
    writes = {"chat", "complete", "grammar", "logprobs"} if context else set()
    writes |= {"vision"} if sees else set()
    return ModelFacts(
        context_size=min(limit for limit in limits if limit),
        trained_context=trained,
        vocab_size=model.vocab_size,
        chat_template=model.chat_template,
        bos_token=model.bos if model.adds_bos else None,
        bos_text=model.text(model.bos),
        eos_text=model.text(model.eos),
        eos_tokens=model.end_tokens(),
        special_tokens=model.control_texts(),
        added_tokens=model.added_texts(),
        endless=settings.context_shift and context is not None,
        capabilities=frozenset(writes | {"rerank" if model.pooling == "rank" else "embed"}),
    )
