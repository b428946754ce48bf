"""The engine ``remote``: messages go to another server, its answer comes back as events."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

from myllm_core import (
    ChatRequest,
    CompletionRequest,
    Embeddings,
    Engine,
    Event,
    Finish,
    LoadOption,
    MemoryEstimate,
    Model,
    ModelFacts,
    Progress,
    Support,
)
from myllm_core.engine import LoadProgress
from myllm_core.errors import ContextLengthError, EngineError, InvalidOption, MyllmError, UnsupportedError
from myllm_remote.dialects import STANDARD, honoured
from myllm_remote.spec import Spec, read_spec

if TYPE_CHECKING:
    from myllm_remote.http import Exchange
    from myllm_remote.measure import Measure
    from myllm_remote.upstreams import Upstream, Upstreams

_CAPABILITIES = ("chat", "complete", "embed", "grammar", "logprobs", "tools", "vision")
_MEMORY = 48 * 2**20
_UNKNOWN_CONTEXT = 32_768
_MAX_ERROR = 65_536
_MAX_VECTORS = 256 * 2**20


class RemoteEngine(Engine):
    """A model on other servers that speak OpenAI's API."""

    name = "remote"
    formats = frozenset({"remote"})
    sampling: ClassVar[frozenset[str]] = STANDARD
    load_options = (
        LoadOption("api_key_env", "", "environment variable with the key for all servers of this model"),
        LoadOption("capabilities", "", "what it can do, of " + ", ".join(_CAPABILITIES) + "; empty: as far as known"),
        LoadOption("context_size", 0, "tokens that the model takes; 0: as the server says"),
        LoadOption("max_concurrency", 64, "requests at the same time to all servers together"),
        LoadOption("connect_timeout", 5.0, "seconds to make a connection"),
        LoadOption("stall_timeout", 300.0, "longest silence of a server, in seconds"),
        LoadOption("health_interval", 10.0, "seconds between two checks of each of several servers; 0: none"),
    )

    def __init__(
        self, spec: Spec, upstreams: Upstreams, capabilities: frozenset[str], measure: Measure, concurrency: int
    ) -> None:
        """Put the parts together; ``load`` makes them."""
        self.max_concurrency = concurrency
        self._spec = spec
        self._upstreams = upstreams
        self._measure = measure
        self._capabilities = capabilities

    @classmethod
    def probe(cls, model: Model) -> Support:
        """Any model that ``remote:`` installed."""
        try:
            spec = read_spec(model)
        except MyllmError as error:
            return Support(0, error.message)
        return Support(100, f"{spec.model} on {', '.join(spec.upstreams)}")

    @classmethod
    def sampling_for(cls, model: Model) -> frozenset[str]:
        """OpenAI's own options, and those that this kind of server has beside them."""
        return honoured(read_spec(model).dialect)

    @classmethod
    def estimate(cls, model: Model, options: Mapping[str, Any]) -> MemoryEstimate:
        """What a process that waits for others takes."""
        return MemoryEstimate(host=_MEMORY)

    @classmethod
    def load(cls, model: Model, options: Mapping[str, Any], progress: LoadProgress) -> Self:
        """Check that a server answers.

        Raises ``NetworkError`` when none does, ``InvalidOption``, ``ConfigError`` and ``IntegrityError``.
        """
        from myllm_remote.measure import Measure, sees
        from myllm_remote.upstreams import Upstreams

        spec = read_spec(model)
        capabilities = _capabilities(options["capabilities"])
        for name in ("connect_timeout", "stall_timeout", "max_concurrency"):
            if not 0 < options[name] < math.inf:
                raise InvalidOption(f"load option {name} must be above 0")
        upstreams = Upstreams(
            spec.upstreams,
            api_key_env=options["api_key_env"],
            connect=options["connect_timeout"],
            stall=options["stall_timeout"],
            interval=options["health_interval"],
        )
        try:
            upstreams.check()
            if not capabilities:
                capabilities = frozenset(_CAPABILITIES) - (set() if sees(spec, upstreams) else {"vision"})
            measure = Measure(spec, upstreams, options["context_size"])
        except BaseException:
            upstreams.close()
            raise
        progress(1.0)
        return cls(spec, upstreams, capabilities, measure, options["max_concurrency"])

    @property
    def facts(self) -> ModelFacts:
        """What the server said, and what was set."""
        size = self._measure.size or _UNKNOWN_CONTEXT
        return ModelFacts(size, self._spec.context_size, capabilities=self._capabilities)

    def chat(self, request: ChatRequest) -> Iterator[Event]:
        """Answer a conversation; of one that is too long the oldest turns are left out, by ``fit``."""
        from myllm_remote.bodies import chat_body
        from myllm_remote.fit import Fit

        self._require("chat")
        if any(message.images for message in request.messages):
            self._require("vision")
        fit = Fit(request, self._measure)
        fit.count()
        while True:
            asked = fit.request
            try:
                for event in self._ask("chat", "chat/completions", asked, partial(chat_body, self._spec, asked)):
                    yield replace(event, context=fit.report(event.usage)) if isinstance(event, Finish) else event
                return
            except ContextLengthError as error:
                if not fit.shorten(error):
                    raise

    def complete(self, request: CompletionRequest) -> Iterator[Event]:
        """Continue a raw prompt."""
        from myllm_remote.bodies import completion_body

        size = self.facts.context_size
        return self._ask("complete", "completions", request, lambda: completion_body(self._spec, request, size))

    def _ask(
        self, capability: str, path: str, request: ChatRequest | CompletionRequest, body: Callable[[], dict[str, Any]]
    ) -> Iterator[Event]:
        from myllm_remote.replies import Reply

        self._require(capability)
        with self._upstreams.send(path, _encoded(body())) as (upstream, exchange):
            reply = Reply(upstream.where, upstream.key, request.stop, request.sampling.seed)
            for _ in exchange.head():
                yield Progress("prompt")
            _check(upstream, exchange, optional=capability == "complete")
            _check_streams(upstream, exchange)
            yield from reply.events(exchange)

    def _require(self, capability: str) -> None:
        if capability not in self._capabilities:
            what = "reads no images" if capability == "vision" else f"can't {capability}"
            raise UnsupportedError(
                f"{self._spec.model} {what}, as far as its server or the load option capabilities says; if it does, "
                "name all that it can do in that option"
            )

    def embed(self, inputs: Seq[str]) -> Embeddings:
        """One vector per input, in one request."""
        self._require("embed")
        body = {"model": self._spec.model, "input": list(inputs), "encoding_format": "float"}
        with self._upstreams.send("embeddings", _encoded(body)) as (upstream, exchange):
            for _ in exchange.head():
                pass
            _check(upstream, exchange, optional=True)
            answer = exchange.whole(_MAX_VECTORS)
        try:
            return _embeddings(json.loads(answer), len(inputs))
        except (ValueError, TypeError, KeyError, RecursionError):
            raise EngineError(f"{upstream.where} sent embeddings that aren't as OpenAI's are") from None

    def close(self) -> None:
        """End the health checks; requests that run end by themselves."""
        self._upstreams.close()


def _encoded(body: dict[str, Any]) -> bytes:
    return json.dumps(body).encode()  # ASCII, so that half a surrogate pair reaches the server, which may refuse it


def _check(upstream: Upstream, exchange: Exchange, optional: bool) -> None:
    from myllm_remote.failures import failure

    if exchange.status != 200:
        body = exchange.whole(_MAX_ERROR)
        raise failure(upstream.target, exchange.status, exchange.headers, body, upstream.key, optional)


def _check_streams(upstream: Upstream, exchange: Exchange) -> None:
    from myllm_remote.failures import failure

    kind = exchange.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":  # some servers answer 200 and tell of an error in the body
        raise failure(upstream.target, 500, exchange.headers, exchange.whole(_MAX_ERROR), upstream.key)


def _capabilities(text: str) -> frozenset[str]:
    given = frozenset(filter(None, (name.strip() for name in text.split(","))))
    unknown = given - set(_CAPABILITIES)
    if unknown:
        raise InvalidOption(
            f"load option capabilities: {sorted(unknown)[0][:40]!r} isn't known; known: {', '.join(_CAPABILITIES)}"
        )
    return given


def _embeddings(document: dict[str, Any], count: int) -> Embeddings:
    data = sorted(document["data"], key=lambda entry: int(entry["index"]))
    vectors = [[float(value) for value in entry["embedding"]] for entry in data]
    lengths = {len(vector) for vector in vectors}
    if len(vectors) != count or len(lengths) != 1 or not all(map(math.isfinite, (v for vec in vectors for v in vec))):
        raise ValueError("vectors")
    tokens = (document.get("usage") or {}).get("prompt_tokens")
    return Embeddings(vectors, tokens if type(tokens) is int and tokens >= 0 else 0)
