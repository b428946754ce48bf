"""The one object that the command line, the server and Python programs use to run models.

::

    async with Runtime() as runtime:
        async for event in runtime.chat("smollm2", "Why is the sky blue?"):
            if isinstance(event, TextDelta):
                print(event.text, end="", flush=True)
"""

from __future__ import annotations

import asyncio
import logging
import math
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self, TypeVar
from weakref import WeakValueDictionary

from myllm_core.chat.images import check_images, check_total
from myllm_core.chat.shape import check_conversation, check_tools
from myllm_core.engine import Engine, TokenEngine
from myllm_core.errors import (
    DeadlineExceeded,
    InvalidOption,
    InvalidRequest,
    MyllmError,
    SessionNotFound,
    UnsupportedError,
)
from myllm_core.models.manifest import Model
from myllm_core.models.store import ModelStore
from myllm_core.options import Options, grammar, merge, sampling
from myllm_core.plugins import Plugins, load_plugins
from myllm_core.runtime.choose import sampling_of
from myllm_core.runtime.handle import LoadOrder
from myllm_core.runtime.observe import Kind, Observer, Watch
from myllm_core.runtime.pool import Pool
from myllm_core.runtime.rank import score
from myllm_core.runtime.slot import Lease, Loaded
from myllm_core.runtime.wire import pack_request
from myllm_core.session_store import SessionStore, check_session_id
from myllm_core.sessions.conversation import Branch, Said, Turn, keep_turn, plan_turn, repeat_reply, resume_turn
from myllm_core.settings import Settings, load_settings
from myllm_core.types import (
    ChatRequest,
    CompletionRequest,
    Embeddings,
    Event,
    Finish,
    Message,
    Progress,
    Prompt,
    Request,
    Scores,
    Tools,
)

if TYPE_CHECKING:
    from myllm_core.runtime.explain import Explanation

T = TypeVar("T")

log = logging.getLogger("myllm.runtime")


class Runtime:
    """Runs installed models. Use it as ``async with Runtime() as runtime``, on one event loop."""

    def __init__(self, settings: Settings | None = None, plugins: Plugins | None = None) -> None:
        self.settings = settings or load_settings()
        self.plugins = plugins or load_plugins(self.settings.disabled_plugins)
        self.models = ModelStore(self.settings.models_dir)
        self.observers: list[Observer] = []
        self._pool = Pool(self.settings, self.plugins, self.observers)
        self._store: SessionStore | None = None
        self._store_lock = asyncio.Lock()
        self._session_locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Unload all models, end their processes, close the session store."""
        await self._pool.close()
        if self._store is not None:
            await asyncio.to_thread(self._store.close)
            self._store = None

    async def chat(
        self,
        model: str,
        messages: str | Sequence[Message],
        *,
        options: Options | None = None,
        tools: Tools | None = None,
        session_id: str | None = None,
        turn_key: str | None = None,
        branch: Branch | None = None,
        instructions: str = "",
        engine: str | None = None,
        load_options: Mapping[str, Any] | None = None,
        keep_alive: float | None = None,
        client: str = "",
    ) -> AsyncGenerator[Event, None]:
        """Answer a conversation: yields events, exactly one ``Finish``, last.

        With ``session_id`` the stored conversation comes first, and the turn is stored before ``Finish`` is
        yielded; a reply that is cancelled (by closing the generator) is stored as such. A retry with the same
        ``turn_key`` gets the reply that was stored, or a new one to the same message if that was interrupted. Two
        requests to one session take turns, and so do the ``client``s that wait for a busy model. ``tools`` are the
        functions that the model may call in this reply; whoever asks runs them, and sends a message of the role
        ``tool`` for each call. ``branch`` says where in the session to go on; ``instructions`` are a system message for
        this reply alone, which isn't stored. Raises a ``MyllmError`` at the first event for whatever is wrong before
        generation starts.
        """
        if tools is not None:
            check_tools(tools)
        asked = [Message("user", messages)] if isinstance(messages, str) else check_images(messages, self.settings)
        installed = self.models.get(model)
        deadline = self._deadline()
        async with AsyncExitStack() as stack:
            turn = Turn(tuple(asked), tuple(asked), None)
            if session_id is not None:
                await stack.enter_async_context(self._session_lock(check_session_id(session_id), deadline))
                turn = await self._plan(session_id, asked, turn_key, branch or Branch())
            if turn.reply is not None:
                for event in repeat_reply(turn.reply):
                    yield event
                return
            check_conversation(turn.messages)
            check_total(turn.messages)
            order = self._pool.order(installed, engine, load_options)
            told = (Message("system", instructions), *turn.messages) if instructions else turn.messages
            events = self._generate(order, told, options, keep_alive, client, deadline, tools)
            if session_id is not None:
                events = self._kept(events, session_id, turn, installed.name)
            async with aclosing(events):
                async for event in events:
                    yield event

    async def generate(
        self,
        model: str,
        prompt: str | Sequence[int],
        *,
        options: Options | None = None,
        engine: str | None = None,
        load_options: Mapping[str, Any] | None = None,
        keep_alive: float | None = None,
        client: str = "",
    ) -> AsyncGenerator[Event, None]:
        """Continue a raw prompt, a text or tokens, without a chat template.

        Yields events, exactly one ``Finish``, last. Tokens are read as they are. Raises as ``chat`` does, and
        ``UnsupportedError`` for tokens where the engine has none.
        """
        order = self._pool.order(self.models.get(model), engine, load_options)
        raw = prompt if isinstance(prompt, str) else list(prompt)
        events = self._generate(order, raw, options, keep_alive, client, self._deadline())
        async with aclosing(events):
            async for event in events:
                yield event

    async def embed(
        self,
        model: str,
        inputs: Sequence[str],
        *,
        engine: str | None = None,
        load_options: Mapping[str, Any] | None = None,
        keep_alive: float | None = None,
        client: str = "",
    ) -> Embeddings:
        """One vector per input. Raises ``UnsupportedError`` when the model makes none."""
        if not inputs:
            raise InvalidRequest("there is nothing to embed; send at least one text")
        order = self._pool.order(self.models.get(model), engine, load_options)
        with self._watch("embed", order) as watch:
            async with aclosing(self._held(order, keep_alive, client, self._deadline())) as steps:
                async for step in steps:
                    if isinstance(step, Lease):
                        watch.admitted()
                        _require(step, "embed", "makes no embeddings; use an embedding model")
                        embeddings = await step.handle.embed(list(inputs), step.left)
            watch.made(embeddings)
            return embeddings

    async def rerank(self, model: str, query: str, documents: Sequence[str], *, client: str = "") -> Scores:
        """How well each document answers the query; more is better.

        The scores are the model's own where it is a reranker, else the cosines of its embeddings. Raises
        ``UnsupportedError`` when it makes neither.
        """
        if not documents:
            raise InvalidRequest("there is nothing to put in order; send at least one document")
        order = self._pool.order(self.models.get(model), None, None)
        with self._watch("embed", order) as watch:
            async with aclosing(self._held(order, None, client, self._deadline())) as steps:
                async for step in steps:
                    if isinstance(step, Lease):
                        watch.admitted()
                        scores = await score(step, query, documents)
            watch.made(scores)
            return scores

    async def prompt(
        self,
        model: str,
        asked: str | Sequence[Message],
        *,
        options: Options | None = None,
        tools: Tools | None = None,
        engine: str | None = None,
        load_options: Mapping[str, Any] | None = None,
        keep_alive: float | None = None,
    ) -> Prompt:
        """What the model would read for a conversation, or for a raw prompt, whether it fits the context or not.

        Takes no turn: running replies aren't waited for. Raises ``UnsupportedError`` for an engine without tokens.
        """
        if tools is not None:
            check_tools(tools)
        order = self._pool.order(self.models.get(model), engine, load_options)
        told = asked if isinstance(asked, str) else tuple(check_images(asked, self.settings))
        request = _request(order.model, told, merge(order.model.manifest.options, options), order.engine, tools)
        return Prompt(**await self._looked_up(order, keep_alive, "prompt", pack_request(request)))

    async def tokenize(
        self,
        model: str,
        text: str,
        *,
        special: bool = False,
        engine: str | None = None,
        keep_alive: float | None = None,
    ) -> list[int]:
        """Token ids of a text, without BOS and EOS; the texts of control tokens count as such only when ``special``.

        Takes no turn. Raises ``UnsupportedError`` for an engine without tokens.
        """
        order = self._pool.order(self.models.get(model), engine, None)
        return list((await self._looked_up(order, keep_alive, "tokenize", text, special))["tokens"])

    async def detokenize(
        self, model: str, tokens: Sequence[int], *, engine: str | None = None, keep_alive: float | None = None
    ) -> str:
        """The text of tokens; takes no turn.

        Raises ``InvalidRequest`` for a token that the model doesn't have, ``UnsupportedError`` as ``tokenize``.
        """
        order = self._pool.order(self.models.get(model), engine, None)
        return str((await self._looked_up(order, keep_alive, "detokenize", list(tokens)))["text"])

    async def _looked_up(self, order: LoadOrder, keep_alive: float | None, what: str, *given: Any) -> dict[str, Any]:
        if not issubclass(order.engine, TokenEngine):
            raise UnsupportedError(f"the {order.engine.name} engine doesn't show tokens; use a model of another engine")
        async with self._pool.lease(order, keep_alive, "", self._deadline()) as lease:
            async with aclosing(lease.loading()) as loading:
                async for _ in loading:
                    pass
            return await lease.handle.look_up(what, *given, timeout=lease.left)

    def _watch(self, kind: Kind, order: LoadOrder) -> Watch:
        return Watch(self.observers, kind, order.model.name, order.engine.name)

    async def load(
        self,
        model: str,
        *,
        on_progress: Callable[[Progress], None] | None = None,
        engine: str | None = None,
        load_options: Mapping[str, Any] | None = None,
        keep_alive: float | None = None,
    ) -> Loaded:
        """Load a model before it is needed."""
        installed = self.models.get(model)
        order = self._pool.order(installed, engine, load_options)
        async with aclosing(self._held(order, keep_alive, "", self._deadline())) as steps:
            async for step in steps:
                if isinstance(step, Lease):
                    held = step.describe()
                elif on_progress is not None:
                    on_progress(step)
        # when it expires is known only now that it isn't held any more
        return next((loaded for loaded in self._pool.loaded() if loaded.name == held.name), held)

    async def unload(self, model: str) -> bool:
        """Unload a model when its running requests have ended; False when it wasn't loaded."""
        return await self._pool.unload(self.models.get(model).name)

    def explain(self, model: str) -> Explanation:
        """Which engine runs a model, why, and what each other one says of it. Asks plugins: call it on a thread."""
        from myllm_core.runtime.explain import explain

        return explain(self.models.get(model), self.plugins, self.settings)

    def engine_of(self, model: str) -> str:
        """The name of the engine that the next request for a model runs on. Raises as ``chat`` does."""
        return self._pool.order(self.models.get(model), None, None).engine.name

    def loaded(self) -> list[Loaded]:
        """The models that are loaded now, by name."""
        return self._pool.loaded()

    async def dead_models(self, timeout: float = 2.0) -> list[str]:
        """Names of loaded models whose worker doesn't answer: an idle one within ``timeout`` seconds."""
        return await self._pool.dead_models(timeout)

    async def sessions(self, use: Callable[[SessionStore], T]) -> T:
        """Run ``use(store)`` on a thread of its own; the store is opened when it is first used."""
        async with self._store_lock:
            if self._store is None:
                cls = self.plugins.session_store(self.settings.session_store)
                self._store = await asyncio.to_thread(cls.open, self.settings.session_url, self.settings.data_dir)
        return await asyncio.to_thread(use, self._store)

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self.settings.request_timeout

    @asynccontextmanager
    async def _session_lock(self, session_id: str, deadline: float) -> AsyncGenerator[None, None]:
        lock = self._session_locks.setdefault(session_id, asyncio.Lock())
        try:
            async with asyncio.timeout_at(None if math.isinf(deadline) else deadline):
                await lock.acquire()
        except TimeoutError:
            raise DeadlineExceeded(
                f"the request's time was up while session {session_id} answered others; try again later"
            ) from None
        try:
            yield
        finally:
            lock.release()

    async def _plan(self, session_id: str, asked: Sequence[Message], key: str | None, branch: Branch) -> Turn:
        def read(store: SessionStore) -> Turn:
            try:
                taken = resume_turn(store, session_id, asked, key) if key else None
                return taken or plan_turn(store.path(session_id, branch.after), asked, key or uuid.uuid4().hex)
            except SessionNotFound:
                return plan_turn([], asked, key or uuid.uuid4().hex)

        return replace(await self.sessions(read), meta=branch.meta)

    async def _generate(
        self,
        order: LoadOrder,
        asked: tuple[Message, ...] | str | list[int],
        options: Options | None,
        keep_alive: float | None,
        client: str,
        deadline: float,
        tools: Tools | None = None,
    ) -> AsyncGenerator[Event, None]:
        merged = _limited(merge(order.model.manifest.options, options), options, self.settings.max_tokens)
        request = _request(order.model, asked, merged, order.engine, tools)
        with self._watch("chat" if isinstance(asked, tuple) else "generate", order) as watch:
            async with aclosing(self._held(order, keep_alive, client, deadline)) as steps:
                async for step in steps:
                    if isinstance(step, Progress):
                        yield step
                        continue
                    watch.admitted()
                    _check_live(step, request)
                    async with aclosing(step.handle.run(request, step.left)) as events:
                        async for event in events:
                            watch.see(event)
                            yield replace(event, engine=step.engine) if isinstance(event, Finish) else event

    async def _held(
        self, order: LoadOrder, keep_alive: float | None, client: str, deadline: float
    ) -> AsyncGenerator[Progress | Lease, None]:
        """What goes on, and then the lease of a model that is ready for this request; held until this is closed.

        When a worker dies, those that only waited in line wait for the next one.
        """
        while True:
            async with self._pool.lease(order, keep_alive, client, deadline) as lease:
                async with aclosing(lease.wait()) as waiting:
                    async for progress in waiting:
                        yield progress
                if lease.handle.dead is None:
                    yield lease
                    return

    async def _kept(
        self, events: AsyncGenerator[Event, None], session_id: str, turn: Turn, model: str
    ) -> AsyncGenerator[Event, None]:
        """The same events; the turn is stored before the last one, or when the reader goes away."""
        said = Said()
        kept = False

        async def keep(finish: Finish) -> None:
            if not said and finish.reason in ("cancelled", "error"):
                return
            reply = said.message(finish.reason)
            await self.sessions(lambda store: keep_turn(store, session_id, turn, reply, finish, model))

        try:
            async with aclosing(events):
                async for event in events:
                    if isinstance(event, Finish):
                        kept = True
                        event = await _or_error(event, keep(event))
                    else:
                        said.take(event)
                    yield event
        except (GeneratorExit, asyncio.CancelledError):
            if not kept:
                finish = await _or_error(Finish("cancelled"), keep(Finish("cancelled")))
                if finish.error is not None:  # nobody is left to tell
                    log.warning("an interrupted reply of session %s isn't stored: %s", session_id, finish.error)
            raise


async def _or_error(finish: Finish, keeping: Coroutine[Any, Any, None]) -> Finish:
    """The finish, or one that says that the turn couldn't be stored. Cancelling waits until it is."""
    task = asyncio.ensure_future(keeping)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])  # the session is ours until then: the next request reads what was stored
        raise
    except MyllmError as error:
        return replace(finish, reason="error", error=finish.error or error)
    return finish


def _limited(merged: Options, asked: Options | None, most: int) -> Options:
    """``merged`` with at most ``most`` tokens (0: no limit). Raises ``InvalidOption`` when more were asked for."""
    if not most:
        return merged
    if asked is not None and (asked.max_tokens or 0) > most:
        raise InvalidOption(f"option max_tokens: at most {most} here (setting max_tokens)", max_tokens=most)
    return merged.model_copy(update={"max_tokens": min(merged.max_tokens or most, most)})


def _request(
    model: Model,
    asked: tuple[Message, ...] | str | list[int],
    options: Options,
    engine: type[Engine],
    tools: Tools | None = None,
) -> Request:
    how = sampling(options, sampling_of(engine, model), engine.name)
    stop, endless = tuple(options.stop or ()), bool(options.ignore_eos)
    if endless and not issubclass(engine, TokenEngine):
        raise UnsupportedError(f"the {engine.name} engine can't ignore_eos; it ends replies itself")
    if not isinstance(asked, tuple):
        if options.reasoning_effort is not None:
            raise UnsupportedError("a raw prompt has no reasoning_effort; leave it out, or send messages to chat")
        if isinstance(asked, list) and not issubclass(engine, TokenEngine):
            raise UnsupportedError(f"the {engine.name} engine takes no tokens; send text")
        text, tokens = (asked, ()) if isinstance(asked, str) else ("", tuple(asked))
        rule = grammar(options)
        return CompletionRequest(text, how, options.max_tokens, stop, options.logprobs, rule, endless, tokens)
    system = model.manifest.system
    if system and not any(message.role == "system" for message in asked):
        asked = (Message("system", system), *asked)
    fit = options.fit or "drop"
    rule, effort = grammar(options), options.reasoning_effort
    if effort is not None and not issubclass(engine, TokenEngine):
        raise UnsupportedError(f"the {engine.name} engine has no option reasoning_effort; leave it out")
    return ChatRequest(asked, how, options.max_tokens, stop, options.logprobs, fit, rule, endless, tools, effort)


def _check_live(lease: Lease, request: Request) -> None:
    if request.logprobs is not None:
        _require(lease, "logprobs", "gives no log probabilities")
    if request.grammar is not None:
        _require(lease, "grammar", "can't be held to a JSON schema or grammar")
    if isinstance(request, ChatRequest):
        if any(message.images for message in request.messages):
            _require(lease, "vision", "reads no images; send text only, or use a model with vision")
        if request.tools is not None:
            _check_tools_live(lease, request.tools)


def _check_tools_live(lease: Lease, tools: Tools) -> None:
    """With a TokenEngine the core finds the calls in the reply; other engines do so themselves, or don't."""
    if not issubclass(lease.handle.order.engine, TokenEngine):
        _require(lease, "tools", "calls no tools; leave them out, or use another engine")
    elif tools.choice == "required" or any(tool.strict for tool in tools.functions):
        _require(lease, "grammar", "can't be held to a tool's schema; use tool_choice auto, without strict")


def _require(lease: Lease, capability: str, otherwise: str) -> None:
    if capability not in lease.handle.facts["capabilities"]:
        raise UnsupportedError(f"{lease.handle.order.model.name} on the {lease.engine} engine {otherwise}")
