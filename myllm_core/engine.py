"""What an engine is: a class that loads a model and answers requests.

Implement ``Engine`` when the backend takes messages and gives text (a remote server). Implement
``TokenEngine`` when it takes tokens and gives tokens: then the core adds chat template, context
fitting, stop strings, UTF-8 assembly, reasoning, usage and cancellation, the same for all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, Self

from myllm_core.errors import UnsupportedError
from myllm_core.models.manifest import Model
from myllm_core.types import (
    ChatRequest,
    CompletionRequest,
    Embeddings,
    Event,
    Image,
    Request,
    Sampling,
    Scores,
)

LoadProgress = Callable[[float], None]
"""Called with the fraction loaded, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Support:
    """How well an engine can load a model: ``score`` 0 (not at all) to 100 (made for it).

    ``missing`` names what isn't installed and ``install`` is the command that installs it; an engine
    with something missing keeps the score that it would have with it.
    """

    score: int
    reason: str
    missing: str | None = None
    install: str | None = None


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes that loading will take; ``device`` is accelerator memory, of which ``device_free`` are free now.

    ``device_least`` is what it can do with, where the rest may stay in the host's memory; None is all of ``device``.
    Without ``device_free`` nobody checks whether it fits there.
    """

    host: int
    device: int = 0
    device_free: int | None = None
    device_least: int | None = None


@dataclass(frozen=True, slots=True)
class LoadOption:
    """An option of ``Engine.load``; its type is its default's, or ``type`` when the default is None."""

    name: str
    default: Any
    help: str
    type: type = int


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What is true of a loaded model.

    ``context_size`` is what one sequence may use now, ``trained_context`` what the model was trained
    for. ``eos_tokens`` end a reply. ``special_tokens`` are the texts of control tokens, which a user's
    text must never become; ``added_tokens`` are other tokens that the tokenizer matches as a whole.
    ``bos_token`` is put first, unless the template already did, when it isn't None.
    With ``endless`` a reply may go on past the context: the engine forgets early tokens and says so.
    ``capabilities`` are those that are live: ``chat``, ``complete``, ``embed``, ``grammar``, ``logprobs``, ``vision``,
    ``rerank``, and ``tools`` of an engine that heeds ``ChatRequest.tools`` itself: for a TokenEngine the core does.
    """

    context_size: int
    trained_context: int = 0
    vocab_size: int = 0
    chat_template: str | None = None
    bos_token: int | None = None
    bos_text: str = ""
    eos_text: str = ""
    eos_tokens: frozenset[int] = frozenset()
    special_tokens: tuple[str, ...] = ()
    added_tokens: tuple[str, ...] = ()
    endless: bool = False
    capabilities: frozenset[str] = frozenset({"chat"})


class Engine(ABC):
    """A loaded model that turns messages into events. The class is the registration.

    ``name`` and ``formats`` are readable without importing the backend: import it inside methods.
    ``sampling`` names the options of ``Sampling`` that the engine honours; a request that sets
    another one is refused, so nothing is dropped silently. ``max_concurrency`` is how many ``chat``
    calls may run at the same time, each on a thread of its own. One that ``needs_process`` is run in a
    worker process also where the setting ``isolation`` says thread.
    """

    name: ClassVar[str]
    formats: ClassVar[frozenset[str]]
    load_options: ClassVar[tuple[LoadOption, ...]] = ()
    sampling: ClassVar[frozenset[str]] = frozenset()
    needs_process: ClassVar[bool] = False
    max_concurrency: int = 1

    @classmethod
    @abstractmethod
    def probe(cls, model: Model) -> Support:
        """Say how well this engine can load ``model``. Must be quick and load nothing."""

    @classmethod
    def sampling_for(cls, model: Model) -> frozenset[str]:
        """The options of ``Sampling`` honoured for ``model``, where that depends on it. Quick, as ``probe``."""
        return cls.sampling

    @classmethod
    @abstractmethod
    def estimate(cls, model: Model, options: Mapping[str, Any]) -> MemoryEstimate:
        """Say how much memory ``load`` with these options will take."""

    @classmethod
    @abstractmethod
    def load(cls, model: Model, options: Mapping[str, Any], progress: LoadProgress) -> Self:
        """Load the model. ``options`` holds every name of ``load_options``. Raises ``EngineError``."""

    @property
    @abstractmethod
    def facts(self) -> ModelFacts:
        """What is true of the loaded model."""

    @abstractmethod
    def chat(self, request: ChatRequest) -> Iterator[Event]:
        """Answer a conversation. Yields events, exactly one ``Finish``, last."""

    def complete(self, request: CompletionRequest) -> Iterator[Event]:
        """Continue a raw prompt. Raises ``UnsupportedError`` when the engine can't."""
        raise UnsupportedError(f"the {self.name} engine can't continue a raw prompt; send messages to chat instead")

    def embed(self, inputs: Seq[str]) -> Embeddings:
        """One vector per input. Raises ``UnsupportedError`` when the engine or model can't."""
        raise UnsupportedError(f"the {self.name} engine makes no embeddings of this model; use an embedding model")

    def rerank(self, query: str, documents: Seq[str]) -> Scores:
        """A score per document, by a model that was trained to give them (capability ``rerank``).

        Raises ``UnsupportedError`` when the engine or model can't.
        """
        raise UnsupportedError(f"the {self.name} engine has no scores of documents for this model; use a reranker")

    def close(self) -> None:  # noqa: B027 - most engines have nothing to release
        """Give all memory back. May be called twice."""


class TokenMask(Protocol):
    """Which tokens may come next in a sequence. The core moves it on by each token that ``step`` returns."""

    def allows(self, token: int) -> bool:
        """Whether ``token`` may come next: the quick question, to ask of the token that was chosen anyway."""

    def mask(self) -> bytes:
        """A bit per token id, the lowest bit first, at least as long as the vocabulary: which tokens may come next."""

    def forced(self, token: int) -> list[int]:
        """The tokens that must come after ``token``, which may come next: ``step`` may return them with it."""


@dataclass(slots=True)
class Sequence:
    """A prompt that an engine continues: ``tokens`` is the whole prompt, at least one token.

    The engine goes on until ``cancel(id)``: the core decides when a reply ends. ``max_tokens`` is how
    many tokens the core will take at most, so that the engine can plan memory. ``logprobs`` as in
    ``ChatRequest``. With ``allowed`` only tokens that it allows may be chosen, at most one in each step, which those
    that it forces may follow; an engine that does so has the capability ``grammar``, and gets no such sequences
    otherwise. ``images`` are those whose rows stand in the prompt (see ``TokenEngine.image_tokens``), in their order.
    """

    id: int
    tokens: list[int]
    sampling: Sampling
    max_tokens: int
    logprobs: int | None = None
    allowed: TokenMask | None = None
    images: tuple[Image, ...] = ()


@dataclass(slots=True)
class TokenOut:
    """One new token of a sequence.

    ``cached_tokens`` counts prompt tokens that were reused, and is read on a sequence's first token.
    ``forgotten`` counts tokens of the sequence that were given up to make room for this one (see ``ModelFacts``).
    ``logprob`` and ``top`` (token, logprob; best first) are set when the sequence asked for them.
    A sequence that can't go on yields a last TokenOut with ``error``; the engine has dropped it then.
    """

    sequence_id: int
    token: int
    cached_tokens: int = 0
    logprob: float = 0.0
    top: list[tuple[int, float]] = field(default_factory=list)
    error: Exception | None = None
    forgotten: int = 0


class TokenEngine(Engine):
    """A loaded model that turns tokens into tokens. Called from one thread, always the same.

    Where it ``tokenizes_anywhere``, ``tokenize`` and ``piece`` are also called on another thread, while ``step`` runs:
    then prompts that come meanwhile are ready for the next one.
    """

    tokenizes_anywhere: ClassVar[bool] = False
    max_sequences: int = 1

    @abstractmethod
    def tokenize(self, text: str, special: bool) -> list[int]:
        """Token ids of ``text``, without BOS or EOS. Control tokens are recognised only when ``special``."""

    def image_tokens(self, image: Image) -> list[int]:
        """The tokens that stand for an image in a prompt: an engine that can has the capability ``vision``.

        Those from 0 on are of the vocabulary (marks around the image). Each below 0 stands for one row of the
        image's embedding and is made from a hash of the file and the row's number (31 bits), so that equal images
        have equal tokens and prefixes with them can be reused. Quick: the rows themselves are computed in ``step``.
        Raises ``InvalidRequest`` for a file that can't be read, ``UnsupportedError`` when the model reads no images.
        """
        raise UnsupportedError(f"the {self.name} engine reads no images with this model; send text only")

    @abstractmethod
    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for; empty for control tokens."""

    @abstractmethod
    def add(self, sequence: Sequence) -> None:
        """Take a sequence on. Never called for more than ``max_sequences`` at a time."""

    @abstractmethod
    def cancel(self, sequence_id: int) -> None:
        """Drop a sequence, whether it is done or not; unknown ids are ignored."""

    @abstractmethod
    def step(self) -> list[TokenOut]:
        """One forward pass over every running sequence.

        It may bring nothing for one that still reads its prompt, and several tokens, in order, where some were guessed.
        """

    def embed_steps(self, inputs: Seq[str]) -> Generator[None, None, Embeddings]:
        """``embed`` in steps of about the length of ``step``, which others are called between: those of replies.

        An engine that makes long embeddings at once stalls running replies. It is never called for other inputs before
        it has returned or was closed.
        """
        return self.embed(inputs)
        yield

    def idle(self) -> bool:
        """Do a piece of work that was put off, of some milliseconds; called when nothing runs. False: none is left."""
        return False

    def chat(self, request: ChatRequest) -> Iterator[Event]:
        """Answer a conversation alone, without a worker: for tests and scripts."""
        return self._alone(request)

    def complete(self, request: CompletionRequest) -> Iterator[Event]:
        """Continue a raw prompt alone, without a worker: for tests and scripts."""
        return self._alone(request)

    def _alone(self, request: Request) -> Iterator[Event]:
        from myllm_core.chat.pipeline import run_alone

        return run_alone(self, request)
