"""Measuring a model: how fast it loads, reads prompts and writes, alone and several replies at a time."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar

from myllm_core.errors import UnsupportedError
from myllm_core.options import parse_options
from myllm_core.runtime.runtime import Runtime
from myllm_core.types import Finish, Progress, ReasoningDelta, TextDelta, Usage

T = TypeVar("T")

_PROMPTS = (128, 512)
_PARALLEL = (4, 8)
_WRITTEN = 128
_LEAST_WRITTEN = 16
_REPEATS = 3
_ENOUGH = 5.0  # seconds: what takes longer isn't repeated, and writes less
_WORDS = ("amber", "breeze", "candle", "dawn", "echo", "frost", "garden", "harbour", "island", "jasmine", "lantern")


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens a second of ``tokens`` tokens: the median of what was measured, the least and the most."""

    tokens: int
    middle: float
    least: float
    most: float

    @classmethod
    def of(cls, tokens: int, measured: Sequence[float]) -> Speed:
        """The speed that several measurements say."""
        return cls(tokens, statistics.median(measured), min(measured), max(measured))


@dataclass(slots=True)
class Findings:
    """What was measured. Times are seconds, ``memory`` bytes; ``writing`` is by replies at a time."""

    engine: str = ""
    load: float = 0.0
    memory: int = 0
    first_token: float = 0.0
    reading: list[Speed] = field(default_factory=list)
    writing: dict[int, Speed] = field(default_factory=dict)


@dataclass(slots=True)
class _Written:
    """One reply: when it was asked for, when its first and last text came, how long it is."""

    asked: float
    first: float = 0.0
    last: float = 0.0
    pieces: int = 0
    usage: Usage = field(default_factory=Usage)
    reading: float = 0.0

    @property
    def tokens(self) -> int:
        return self.usage.completion_tokens or self.pieces


class Trial:
    """Measures one model of a runtime; ``tell`` is told what is being measured."""

    def __init__(
        self,
        runtime: Runtime,
        model: str,
        tell: Callable[[str], None],
        engine: str | None = None,
        load_options: dict[str, Any] | None = None,
    ) -> None:
        self.findings = Findings()
        self._runtime = runtime
        self._model = model
        self._tell = tell
        self._how: dict[str, Any] = {"engine": engine, "load_options": load_options}
        self._endless = True
        self._tokens_per_word = 1.0

    async def run(self, on_progress: Callable[[Progress], None]) -> Findings:
        """Measure everything. Raises what loading and running the model raise."""
        begin = time.perf_counter()
        loaded = await self._runtime.load(self._model, on_progress=on_progress, **self._how)
        self.findings.load = time.perf_counter() - begin
        self.findings.engine = loaded.engine
        speed = await self._first()
        for tokens in _PROMPTS:
            if tokens + _LEAST_WRITTEN < loaded.context_size:
                await self._read(tokens)
        length = max(_LEAST_WRITTEN, min(_WRITTEN, int(_ENOUGH * speed), loaded.context_size // 4))
        await self._write(1, length)
        for count in _PARALLEL:
            if not await self._write(count, max(_LEAST_WRITTEN, length // 2)):
                break
        self.findings.memory = max((one.memory for one in self._runtime.loaded()), default=0)
        return self.findings

    async def _first(self) -> float:
        """Time to the first token of short prompts; returns tokens a second, roughly."""
        self._tell("Measuring the time to the first token")
        await self._ask(8, 2)
        replies = [await self._ask(16, _LEAST_WRITTEN) for _ in range(_REPEATS)]
        self.findings.first_token = statistics.median(reply.first - reply.asked for reply in replies)
        short, long = await self._ask(8, 1), await self._ask(72, 1)
        counted = long.usage.prompt_tokens - short.usage.prompt_tokens
        self._tokens_per_word = max(counted / 64, 0.5)
        return statistics.median(map(_rate, replies))

    async def _read(self, tokens: int) -> None:
        self._tell(f"Measuring how fast it reads {tokens} tokens")
        words = max(1, int(tokens / self._tokens_per_word))
        replies = await _repeated(lambda: self._ask(words, 1))
        new = [max(1, reply.usage.prompt_tokens - reply.usage.cached_tokens) for reply in replies]
        speeds = [
            count / max(reply.reading or reply.first - reply.asked, 1e-9)
            for count, reply in zip(new, replies, strict=True)
        ]
        self.findings.reading.append(Speed.of(int(statistics.median(new)), speeds))

    async def _write(self, count: int, tokens: int) -> bool:
        """Write ``count`` replies at a time; False when the model can't do that, and writes one after the other."""
        self._tell(f"Measuring how fast it writes {count} at a time")

        async def together() -> list[_Written]:
            return await asyncio.gather(*(self._ask(16, tokens) for _ in range(count)))

        rounds = await _repeated(together)
        if all(max(reply.first for reply in replies) > min(reply.last for reply in replies) for replies in rounds):
            return False
        self.findings.writing[count] = Speed.of(tokens, [_rate(*replies) for replies in rounds])
        return True

    async def _ask(self, words: int, tokens: int) -> _Written:
        try:
            return await self._asked(words, tokens)
        except UnsupportedError:
            if not self._endless:
                raise
            self._endless = False  # this engine ends replies itself
            return await self._asked(words, tokens)

    async def _asked(self, words: int, tokens: int) -> _Written:
        text = "Write a long story with: " + " ".join(random.choices(_WORDS, k=words))
        options = parse_options({"max_tokens": tokens} | ({"ignore_eos": True} if self._endless else {}))
        reply = _Written(time.perf_counter())
        async with aclosing(self._runtime.chat(self._model, text, options=options, **self._how)) as events:
            async for event in events:
                if isinstance(event, TextDelta | ReasoningDelta):
                    reply.last = time.perf_counter()
                    reply.first = reply.first or reply.last
                    reply.pieces += 1
                elif isinstance(event, Finish):
                    if event.error is not None:
                        raise event.error
                    reply.usage, reply.reading = event.usage, event.timings.prompt
                    reply.last = time.perf_counter()
                    reply.first = reply.first or reply.last
        return reply


async def _repeated(work: Callable[[], Awaitable[T]]) -> list[T]:
    begin, done = time.perf_counter(), [await work()]
    while len(done) < _REPEATS and time.perf_counter() - begin < _ENOUGH:
        done.append(await work())
    return done


def _rate(*replies: _Written) -> float:
    """Tokens a second that replies have together, after the first one's first token."""
    seconds = max(reply.last for reply in replies) - min(reply.first for reply in replies)
    return sum(reply.tokens - 1 for reply in replies) / max(seconds, 1e-9)
