"""The one object that the command line, the server and Python programs use to run models.

::

    async with Runtime() as runtime:
        async for event in runtime.chat("smollm2", "Why is the sky blue?"):
            if isinstance(event, TextDelta):
                print(event.text, end="", flush=True)
"""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar
from weakref import WeakValueDictionary

from myllm_core.chat.images import check_images, check_total
from myllm_core.chat.shape import check_conversation, check_tools
from myllm_core.engine import TokenEngine
from myllm_core.errors import (
    DeadlineExceeded,
    InvalidRequest,
    SessionNotFound,
    UnsupportedError,
)
from myllm_core.models.store import ModelStore
from myllm_core.options import Options, merge
from myllm_core.plugins import Plugins, load_plugins
from myllm_core.runtime.handle import LoadOrder
from myllm_core.runtime.keep import keep_with_turn
from myllm_core.runtime.observe import Kind, Observer, Watch
from myllm_core.runtime.pool import Pool
from myllm_core.runtime.rank import score
from myllm_core.runtime.request import check_live, limit_tokens, make_request, require
from myllm_core.runtime.slot import Lease, Loaded
from myllm_core.runtime.wire import pack_request
from myllm_core.session_store import SessionStore, check_session_id
from myllm_core.sessions.age import delete_idle, idle_sessions, note_use
from myllm_core.sessions.conversation import Branch, Turn, plan_turn, repeat_reply, resume_turn
from myllm_core.settings import Settings, load_settings
from myllm_core.types import (
    Embeddings,
    Event,
    Finish,
    Message,
    Progress,
    Prompt,
    Scores,
    Tools,
)

if TYPE_CHECKING:
    from myllm_core.runtime.explain import Explanation

T = TypeVar("T")


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
                events = keep_with_turn(events, self, session_id, turn, installed.name)
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
                        require(step, "embed", "makes no embeddings; use an embedding model")
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
        request = make_request(order.model, told, merge(order.model.manifest.options, options), order.engine, tools)
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

    async def delete_idle_sessions(self, age: float) -> AsyncGenerator[str, None]:
        """Delete the sessions that haven't changed for ``age`` seconds, one by one, and yield each one's id.

        One that is answering stays. Raises ``InvalidRequest`` for less than an hour.
        """
        for session in await self.sessions(lambda store: idle_sessions(store, age)):
            lock = self._session_locks.get(session.id)
            if lock is not None and lock.locked():
                continue
            async with self._session_lock(session.id, math.inf):
                if await self.sessions(partial(delete_idle, session_id=session.id, age=age)):
                    yield session.id

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
                turn = taken or plan_turn(store.path(session_id, branch.after), asked, key or uuid.uuid4().hex)
                note_use(store, session_id)
            except SessionNotFound:
                return plan_turn([], asked, key or uuid.uuid4().hex)
            return turn

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
        merged = limit_tokens(merge(order.model.manifest.options, options), options, self.settings.max_tokens)
        request = make_request(order.model, asked, merged, order.engine, tools)
        with self._watch("chat" if isinstance(asked, tuple) else "generate", order) as watch:
            async with aclosing(self._held(order, keep_alive, client, deadline)) as steps:
                async for step in steps:
                    if isinstance(step, Progress):
                        yield step
                        continue
                    watch.admitted()
                    check_live(step, request)
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
