"""What the clients do, at random, and whether what they got is right."""

from __future__ import annotations

import asyncio
import json
import random
import time
import urllib.parse
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from soaking.http import Call, CutOff

WORDS = [
    "the",
    "cat",
    "looked",
    "at",
    "seven",
    "small",
    "blue",
    "stars",
    "over",
    "quiet",
    "hills",
    "near",
    "old",
    "mills",
]
ERRORS = {503: "overloaded", 502: "engine_died", 504: "deadline_exceeded"}
"""Right answers to a good request when there is too much to do, or the worker was killed."""

CHAT = "/api/chat"


@dataclass(slots=True)
class Outcome:
    """How one request (and its retry, of a turn) ended: ``first`` is the time to the first token, in seconds."""

    kind: str
    result: str
    total: float
    first: float | None = None


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A turn whose client saw the end of its reply: it must be stored."""

    session: str
    key: str
    question: str
    reply: str


class Wrong(Exception):
    """An answer that breaks a promise."""


@dataclass
class Crowd:
    """Everything that all clients know together."""

    port: int
    model: str
    deadline: float
    seed: int
    outcomes: list[Outcome] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    turns: list[Acknowledged] = field(default_factory=list)
    stopping: bool = False

    async def run(self, clients: int) -> None:
        """Let clients ask until ``stopping``."""
        await asyncio.gather(*(Client(self, number).run() for number in range(clients)))


class Client:
    """One client: asks for one thing after the other."""

    def __init__(self, crowd: Crowd, number: int) -> None:
        self.crowd = crowd
        self.random = random.Random(f"{crowd.seed} {number}")
        self.sessions = [f"client{number}", f"shared{number % 20}"]
        self._first: float | None = None
        self._retry_after = 1
        self._impatient = number % 4 == 0

    async def run(self) -> None:
        """Ask until the crowd stops. Whatever is wrong is written down, and the client goes on."""
        await asyncio.sleep(self.random.random() * 2)
        kinds, weights = list(ACTIONS), [weight for weight, _ in ACTIONS.values()]
        while not self.crowd.stopping:
            [kind] = self.random.choices(kinds, weights)
            pause = await self._once(kind, ACTIONS[kind][1])
            await asyncio.sleep(pause + self.random.random() * 0.2)

    async def _once(self, kind: str, action: Callable[[Client], Awaitable[str]]) -> float:
        began = time.perf_counter()
        self._first = None
        try:
            result = await action(self)
        except (Wrong, CutOff, OSError, ValueError, KeyError, AssertionError) as error:
            result = "wrong"
            if len(self.crowd.wrong) < 200:
                self.crowd.wrong.append(f"{kind}: {type(error).__name__}: {error}"[:500])
        self.crowd.outcomes.append(Outcome(kind, result, time.perf_counter() - began, self._first))
        return self._patience() if result == "overloaded" else 0.0

    def _patience(self) -> float:
        """How long to wait when the server is full: most clients do as it says, some don't."""
        return self.random.random() if self._impatient else self._retry_after * self.random.uniform(0.5, 1)

    @asynccontextmanager
    async def call(self, patience: float = 0.0) -> AsyncIterator[Call]:
        """A request, which must end in time; ``patience`` is what the client itself adds to that."""
        began = time.perf_counter()
        async with Call(self.crowd.port) as call:
            yield call
        seconds, most = time.perf_counter() - began, self.crowd.deadline + patience
        if seconds > most:
            raise Wrong(f"it took {seconds:.1f} s, and should have ended within {most:.0f} s")

    def text(self, least: int = 3, most: int = 12) -> str:
        """Some words."""
        return " ".join(self.random.choices(WORDS, k=self.random.randint(least, most)))

    def chat_body(self, text: str, **more: Any) -> bytes:
        """A chat of one message."""
        options = {"max_tokens": self.random.randint(2, 16)}
        messages = [{"role": "user", "content": text}]
        return json.dumps({"model": self.crowd.model, "messages": messages, "options": options} | more).encode()

    async def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[str, Any]:
        """A request with a JSON answer: ``ok`` or the error's code, and the values."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.call() as call:
            await call.send(method, path, body, named)
            return await self._answer(call)

    async def _answer(self, call: Call) -> tuple[str, Any]:
        status = await call.head()
        values = json.loads(await call.body())
        if status == 200:
            return "ok", values
        return self._code(call, values), values

    def _code(self, call: Call, values: Any) -> str:
        code = str(values["error"]["code"])
        if ERRORS.get(call.status) != code:
            raise Wrong(f"status {call.status}: {json.dumps(values)[:300]}")
        if call.status == 503:
            self._retry_after = int(call.headers["retry-after"])
            if self._retry_after < 1:
                raise Wrong("503 without a good Retry-After")
        return code

    async def stream(self, path: str, body: bytes, leave_after: int | None = None, pause: float = 0.0) -> str:
        """A streamed answer, read to its end: ``ok`` or the error's code. ``leave_after`` frames it is left."""
        async with self.call(patience=60 if pause else 0) as call:
            await call.send("POST", path, body)
            return await self.read(call, leave_after, pause)

    async def read(self, call: Call, leave_after: int | None = None, pause: float = 0.0) -> str:
        """Read a stream that was asked for."""
        began = time.perf_counter()
        if await call.head() != 200:
            return self._code(call, json.loads(await call.body()))
        frames = Frames()
        async for data in call.data():
            for frame in frames.feed(data):
                if self._first is None and frame.get("token"):
                    self._first = time.perf_counter() - began
            if leave_after is not None and frames.count >= leave_after:
                return "left"
            await asyncio.sleep(pause)
        return frames.end()


class Frames:
    """The frames of a stream: there must be exactly one last one, with ``done`` or ``error``."""

    def __init__(self) -> None:
        self._rest = b""
        self.last: dict[str, Any] = {}
        self.texts: list[str] = []
        self.count = 0

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """The frames that are whole now."""
        *whole, self._rest = (self._rest + data).split(b"\n\n")
        frames = []
        for event in whole:
            lines = [line for line in event.split(b"\n") if line.startswith(b"data: ")]
            if not lines:
                continue
            if self.last.get("done"):
                raise Wrong(f"a frame after the last one: {event[:200]!r}")
            self.last = json.loads(lines[0][6:])
            self.texts.append(self.last.get("token", ""))
            self.count += 1
            frames.append(self.last)
        return frames

    def end(self) -> str:
        """``ok`` or the error's code, at the end of the stream."""
        if not self.last.get("done"):
            raise Wrong(f"the stream ended without done: {self.last}")
        if "error" not in self.last:
            if self.last["full_text"] != "".join(self.texts):
                raise Wrong("full_text isn't what was streamed")
            return "ok"
        code = str(self.last["error"]["code"])
        if code not in ERRORS.values():
            raise Wrong(f"the stream failed with {self.last['error']}")
        return code


async def chat_stream(client: Client) -> str:
    return await client.stream(CHAT, client.chat_body(client.text()))


async def chat_whole(client: Client) -> str:
    result, values = await client.ask("POST", CHAT, client.chat_body(client.text(), stream=False))
    if result == "ok" and values["message"]["role"] != "assistant":
        raise Wrong(f"no message: {values}")
    return result


async def session_turn(client: Client) -> str:
    """A turn of a session; what fails is sent again with the same key, as a careful client would."""
    session, key = client.random.choice(client.sessions), uuid.UUID(int=client.random.getrandbits(128)).hex
    question = f"{key[:8]} {client.text()}"
    body = client.chat_body(question, session_id=session, stream=False)
    for _ in range(3):
        result, values = await client.ask("POST", CHAT, body, idempotency_key=key)
        if result == "ok":
            reply = values["message"]["content"]
            client.crowd.turns.append(Acknowledged(session, key, question, reply))
            return result
        if client.crowd.stopping or result != "engine_died":
            break
        await asyncio.sleep(client.random.random())
    return result


async def session_left(client: Client) -> str:
    """A turn of a session that is left in the middle, and then asked for again with the same key."""
    session, key = client.random.choice(client.sessions), uuid.UUID(int=client.random.getrandbits(128)).hex
    question = f"{key[:8]} {client.text()}"
    body = client.chat_body(question, session_id=session)
    async with client.call() as call:
        await call.send("POST", CHAT, body, {"idempotency-key": key})
        result = await client.read(call, leave_after=client.random.randint(1, 4))
    if result not in ("left", "ok"):
        return result
    frames = Frames()
    async with client.call() as call:
        await call.send("POST", CHAT, body, {"idempotency-key": key})
        if await call.head() != 200:
            return client._code(call, json.loads(await call.body()))
        async for data in call.data():
            frames.feed(data)
    result = frames.end()
    if result == "ok":
        client.crowd.turns.append(Acknowledged(session, key, question, frames.last["full_text"]))
    return result


async def event_source(client: Client) -> str:
    query = urllib.parse.urlencode({"model": client.crowd.model, "message": client.text()})
    async with client.call() as call:
        await call.send("GET", f"{CHAT}?{query}", headers={"accept": "text/event-stream"})
        return await client.read(call, leave_after=client.random.choice([None, 2, 6]))


async def generate(client: Client) -> str:
    body = {"model": client.crowd.model, "prompt": client.text(), "options": {"max_tokens": 8}}
    return await client.stream("/api/generate", json.dumps(body).encode())


async def openai(client: Client) -> str:
    messages = [{"role": "user", "content": client.text()}]
    body = {"model": client.crowd.model, "messages": messages, "max_tokens": 8}
    async with client.call() as call:
        await call.send("POST", "/v1/chat/completions", json.dumps(body).encode())
        status = await call.head()
        values = json.loads(await call.body())
        if status == 200:
            return "ok" if values["choices"][0]["message"]["role"] == "assistant" else "wrong"
        if status not in ERRORS:
            raise Wrong(f"status {status}: {values}")
        return ERRORS[status]


async def embeddings(client: Client) -> str:
    texts = [client.text() for _ in range(client.random.randint(1, 5))]
    result, values = await client.ask(
        "POST", "/api/embeddings", json.dumps({"model": client.crowd.model, "input": texts}).encode()
    )
    if result == "ok" and len(values["embeddings"]) != len(texts):
        raise Wrong(f"{len(values['embeddings'])} vectors for {len(texts)} texts")
    return result


async def look(client: Client) -> str:
    path = client.random.choice(
        ["/api/models", f"/api/models/{client.crowd.model}", "/api/ps", "/api/sessions?limit=5", "/v1/models"]
        + ["/api/sessions?search=stars", "/metrics", "/openapi.json"]
    )
    async with client.call() as call:
        await call.send("GET", path)
        status = await call.head()
        body = await call.body()
    if status != 200:
        if status == 503 and json.loads(body)["error"]["code"] == "overloaded":
            return "overloaded"
        raise Wrong(f"{path}: status {status}: {body[:200]!r}")
    return "ok"


async def health(client: Client) -> str:
    async with client.call() as call:
        await call.send("GET", "/health")
        status = await call.head()
        body = json.loads(await call.body())
    if (status, body.get("status")) not in ((200, "ok"), (503, "unhealthy")):
        raise Wrong(f"health: {status} {body}")
    return "ok" if status == 200 else "unhealthy"


async def bad_body(client: Client) -> str:
    """What no server should take: each has the status that it must be answered with."""
    model = json.dumps(client.crowd.model)
    user = '[{"role":"user","content":"x"}]'
    bad: list[tuple[str, set[int]]] = [
        ("{", {400}),
        ("[" * 5000, {400, 422}),
        ("null", {422}),
        ('{"model":5,"messages":[]}', {422}),
        (f'{{"model":{model},"messages":[]}}', {422}),
        (f'{{"model":{model},"messages":{user},"colour":"red"}}', {422}),
        (f'{{"model":{model},"messages":{user},"options":{{"temperature":"hot"}}}}', {422}),
        (f'{{"model":{model},"messages":{user},"options":{{"nonesuch":1}}}}', {422}),
        (f'{{"model":{model},"messages":{user},"session_id":"../../x"}}', {422}),
        (f'{{"model":"nonesuch","messages":{user}}}', {404}),
        (f'{{"model":"../../etc","messages":{user}}}', {400, 404}),
        (f'{{"model":{model},"messages":[{{"role":"king","content":"x"}}]}}', {422}),
        (f'{{"model":{model},"messages":[{{"role":"user","content":"\\ud800"}}]}}', {400, 422}),
        (f'{{"model":{model},"messages":[{{"role":"assistant","content":"x"}}]}}', {400}),
        ('{"model":"' + "x" * 300 + '","messages":[]}', {422}),
    ]
    body, allowed = client.random.choice(bad)
    async with client.call() as call:
        await call.send("POST", CHAT, body.encode())
        status = await call.head()
        values = json.loads(await call.body())
    if status == 503 and values["error"]["code"] == "overloaded":
        return "overloaded"
    if status not in allowed:
        raise Wrong(f"{body[:80]!r} was answered {status}: {json.dumps(values)[:200]}")
    return "refused"


async def left_mid_stream(client: Client) -> str:
    body = client.chat_body(client.text(), options={"max_tokens": 200})
    return await client.stream(CHAT, body, leave_after=client.random.randint(1, 8))


async def left_before_first(client: Client) -> str:
    async with client.call() as call:
        await call.send("POST", CHAT, client.chat_body(client.text(), stream=client.random.random() < 0.5))
        await asyncio.sleep(client.random.random() * 0.3)
    return "left"


async def left_half_sent(client: Client) -> str:
    async with client.call() as call:
        call._writer.write(
            b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"[
                : client.random.randint(1, 70)
            ]
        )
        await asyncio.sleep(client.random.random())
    return "left"


async def slow_reader(client: Client) -> str:
    body = client.chat_body(client.text(), options={"max_tokens": 24})
    return await client.stream(CHAT, body, pause=0.3)


ACTIONS: dict[str, tuple[int, Callable[[Client], Awaitable[str]]]] = {
    "chat_stream": (25, chat_stream),
    "chat_whole": (10, chat_whole),
    "session_turn": (15, session_turn),
    "session_left": (5, session_left),
    "event_source": (5, event_source),
    "generate": (5, generate),
    "openai": (5, openai),
    "embeddings": (6, embeddings),
    "look": (8, look),
    "health": (4, health),
    "bad_body": (8, bad_body),
    "left_mid_stream": (8, left_mid_stream),
    "left_before_first": (6, left_before_first),
    "left_half_sent": (2, left_half_sent),
    "slow_reader": (3, slow_reader),
}
"""Each kind of request: how often, and how."""
