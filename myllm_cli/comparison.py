"""Putting the same questions to several models or engines, and telling how far their answers agree."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from myllm_core.errors import UnsupportedError
from myllm_core.options import parse_options
from myllm_core.runtime.runtime import Runtime
from myllm_core.types import Finish, Message, PositionLogprobs, Progress, ReasoningDelta, TextDelta, Usage

PROMPTS = (
    "What is the capital of France?",
    "Name three animals that live in the sea.",
    "Why is the sky blue?",
    "Write one sentence about the moon.",
    "What is 12 plus 30?",
    "Translate to French: Good morning.",
    "Who wrote Romeo and Juliet?",
    "List the days of the week.",
    "What do bees make?",
    "Describe a river in ten words.",
)


@dataclass(frozen=True, slots=True)
class Case:
    """What is compared: a model on an engine, None for the one that it runs on anyway."""

    model: str
    engine: str | None = None


@dataclass(slots=True)
class Answer:
    """A greedy answer. ``prompt`` are the tokens that the model read, None where the engine shows none."""

    prompt: list[int] | None = None
    text: str = ""
    positions: list[PositionLogprobs] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    first: float = 0.0
    seconds: float = 0.0

    @property
    def speed(self) -> float:
        """Tokens a second after the first one."""
        return max(0, self.usage.completion_tokens - 1) / max(self.seconds - self.first, 1e-9)


@dataclass(slots=True)
class Measured:
    """What was seen of a case. Times are seconds, ``memory`` bytes."""

    model: str
    engine: str
    format: str
    quantization: str
    load: float
    memory: int
    answers: list[Answer]

    @property
    def label(self) -> str:
        """Model and engine, to tell cases apart."""
        return f"{self.model.removesuffix(':latest')} on {self.engine}"

    @property
    def first_token(self) -> float:
        """The median time to the first token."""
        return statistics.median(answer.first for answer in self.answers)

    @property
    def speed(self) -> float:
        """The median of tokens a second."""
        return statistics.median(answer.speed for answer in self.answers)


@dataclass(frozen=True, slots=True)
class Difference:
    """Where an answer leaves the reference's: after ``agreed`` tokens of ``length``.

    ``margin`` is how much likelier the reference's choice was to it than its second one (natural log), None when
    unknown; near 0 rounding decides. ``logprobs`` are the differences of the log probabilities of tokens that agree.
    """

    prompt: int
    same_prompt: bool | None
    agreed: int
    length: int
    expected: str = ""
    found: str = ""
    margin: float | None = None
    logprobs: tuple[float, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether the answers are the same to their ends."""
        return self.agreed == self.length


class Comparison:
    """Measures cases one after the other, each alone in memory; ``tell`` is told what goes on."""

    def __init__(self, runtime: Runtime, prompts: Sequence[str], tokens: int, tell: Callable[[str], None]) -> None:
        self._runtime = runtime
        self._prompts = prompts
        self._tokens = tokens
        self._tell = tell

    async def measure(self, case: Case, load_options: dict[str, Any] | None = None) -> Measured:
        """Load a case, ask it everything, unload it. Raises what loading and running raise."""
        self._tell(f"Loading {case.model}" + (f" on {case.engine}" if case.engine else ""))
        await self._runtime.unload(case.model)
        how: dict[str, Any] = {"engine": case.engine, "load_options": load_options}
        began = time.perf_counter()
        loaded = await self._runtime.load(case.model, **how)
        seconds = time.perf_counter() - began
        await self._ask(case, self._prompts[0], how, 2)  # the first one warms up
        answers = []
        for number, prompt in enumerate(self._prompts):
            self._tell(f"Asking {case.model} on {loaded.engine}, {number + 1} of {len(self._prompts)}")
            answers.append(await self._ask(case, prompt, how, self._tokens))
        memory = max((one.memory for one in self._runtime.loaded() if one.name == loaded.name), default=0)
        await self._runtime.unload(case.model)
        manifest = self._runtime.models.get(case.model).manifest
        return Measured(loaded.name, loaded.engine, manifest.format, manifest.quantization, seconds, memory, answers)

    async def _ask(self, case: Case, prompt: str, how: dict[str, Any], tokens: int) -> Answer:
        answer = Answer()
        try:
            read = await self._runtime.prompt(case.model, [Message("user", prompt)], **how)
            answer.prompt = read.tokens
        except UnsupportedError:
            pass
        try:
            await self._answer(case, prompt, how, {"max_tokens": tokens, "logprobs": 2}, answer)
        except UnsupportedError:  # this engine gives no log probabilities
            await self._answer(case, prompt, how, {"max_tokens": tokens}, answer)
        return answer

    async def _answer(
        self, case: Case, prompt: str, how: dict[str, Any], options: dict[str, Any], answer: Answer
    ) -> None:
        began = time.perf_counter()
        given = parse_options({"temperature": 0, **options})
        async with aclosing(self._runtime.chat(case.model, prompt, options=given, **how)) as events:
            async for event in events:
                if isinstance(event, TextDelta | ReasoningDelta):
                    answer.first = answer.first or time.perf_counter() - began
                    answer.text += event.text
                if isinstance(event, TextDelta):
                    answer.positions += event.logprobs
                elif isinstance(event, Finish):
                    if event.error is not None:
                        raise event.error
                    answer.usage = event.usage
                elif isinstance(event, Progress):
                    continue
        answer.seconds = time.perf_counter() - began


def differences(reference: Measured, other: Measured) -> list[Difference]:
    """How each answer of ``other`` compares with the reference's."""
    pairs = zip(reference.answers, other.answers, strict=True)
    return [_difference(number, one, two) for number, (one, two) in enumerate(pairs)]


def _difference(number: int, one: Answer, two: Answer) -> Difference:
    same = None if one.prompt is None or two.prompt is None else one.prompt == two.prompt
    if not (one.positions and two.positions):
        return _by_words(number, same, one.text, two.text)
    length = max(len(one.positions), len(two.positions))
    agreed = next((at for at in range(length) if _chosen(one, at) != _chosen(two, at)), length)
    gaps = tuple(abs(one.positions[at].chosen.logprob - two.positions[at].chosen.logprob) for at in range(agreed))
    if agreed == length:
        return Difference(number, same, agreed, length, logprobs=gaps)
    return Difference(number, same, agreed, length, _text(one, agreed), _text(two, agreed), _margin(one, agreed), gaps)


def _by_words(number: int, same: bool | None, one: str, two: str) -> Difference:
    """As well as it can be told without tokens."""
    ours, theirs = one.split(), two.split()
    length = max(len(ours), len(theirs))
    agreed = next((at for at in range(length) if ours[at : at + 1] != theirs[at : at + 1]), length)
    return Difference(number, same, agreed, length, " ".join(ours[agreed:][:1]), " ".join(theirs[agreed:][:1]))


def _chosen(answer: Answer, at: int) -> bytes | None:
    return answer.positions[at].chosen.bytes if at < len(answer.positions) else None


def _text(answer: Answer, at: int) -> str:
    return answer.positions[at].chosen.token if at < len(answer.positions) else "(end)"


def _margin(answer: Answer, at: int) -> float | None:
    top = answer.positions[at].top if at < len(answer.positions) else ()
    return top[0].logprob - top[1].logprob if len(top) > 1 else None
