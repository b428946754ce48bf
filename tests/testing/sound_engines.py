"""Two small engines that keep the contract: one of tokens, one of messages. ``faulty_engines`` breaks them.

The token engine's model is a hash: the last tokens decide how likely each byte is. Its tokens are bytes.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from myllm_core import (
    Embeddings,
    Engine,
    Finish,
    Image,
    LoadOption,
    MemoryEstimate,
    ModelFacts,
    Sequence,
    Support,
    TextDelta,
    TokenEngine,
    TokenOut,
    Usage,
)
from myllm_core.errors import UnsupportedError
from myllm_core.images import decode_rgb

BOS, IM_START, IM_END = 256, 257, 258
CONTROL = {"<s>": BOS, "<|im_start|>": IM_START, "<|im_end|>": IM_END}
WORDS = b" abcdefghijklmnopqrstuvwxyz"


@dataclass
class Running:
    sequence: Sequence
    history: list[int]
    random: random.Random
    written: list[int] = field(default_factory=list)


class SoundTokens(TokenEngine):
    """A whole engine with everything that one can claim."""

    name = "sound-tokens"
    formats = frozenset({"sound"})
    load_options: ClassVar[Any] = (LoadOption("context", 256, "tokens of a sequence"),)
    sampling = frozenset({"temperature", "top_k", "top_p", "min_p", "repeat_penalty", "frequency_penalty", "seed"})
    max_sequences = 3
    tokenizes_anywhere = True
    claims = frozenset({"chat", "complete", "embed", "grammar", "logprobs"})

    def __init__(self, context: int) -> None:
        self.running: dict[int, Running] = {}
        self._facts = ModelFacts(
            context_size=context,
            vocab_size=259,
            bos_token=BOS,
            bos_text="<s>",
            eos_text="<|im_end|>",
            eos_tokens=frozenset({IM_END}),
            special_tokens=tuple(CONTROL),
            capabilities=self.claims,
        )

    @classmethod
    def probe(cls, model: Any) -> Support:
        return Support(100, "made for it")

    @classmethod
    def estimate(cls, model: Any, options: Any) -> MemoryEstimate:
        return MemoryEstimate(1000)

    @classmethod
    def load(cls, model: Any, options: Any, progress: Any) -> SoundTokens:
        progress(0.5)
        progress(1.0)
        return cls(options["context"])

    @property
    def facts(self) -> ModelFacts:
        return self._facts

    def tokenize(self, text: str, special: bool) -> list[int]:
        parts = re.split(f"({'|'.join(map(re.escape, CONTROL))})", text) if special else [text]
        ids = [[CONTROL[part]] if special and part in CONTROL else part.encode("utf-8", "replace") for part in parts]
        return [token for part in ids for token in part]

    def piece(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else b""

    def add(self, sequence: Sequence) -> None:
        assert len(self.running) < self.max_sequences
        self.running[sequence.id] = Running(sequence, list(sequence.tokens), random.Random(sequence.sampling.seed))

    def cancel(self, sequence_id: int) -> None:
        self.running.pop(sequence_id, None)

    def step(self) -> list[TokenOut]:
        return [self.advance(run) for run in self.running.values()]

    def advance(self, run: Running) -> TokenOut:
        logits = self.logits(run)
        token = self.choose(run, list(logits))
        run.history.append(token)
        run.written.append(token)
        out = TokenOut(run.sequence.id, token)
        if run.sequence.logprobs is not None:
            total = math.log(math.fsum(math.exp(value) for value in logits))
            best = sorted(range(len(logits)), key=lambda t: -logits[t])[: run.sequence.logprobs]
            out.logprob, out.top = logits[token] - total, [(t, logits[t] - total) for t in best]
        return out

    def logits(self, run: Running) -> list[float]:
        """Of every token. Half of the prompt counts too, so that conversations differ; a repetition goes on."""
        key = bytes(t % 251 for t in run.history[-3:]) + bytes(t % 251 for t in run.sequence.tokens[-60:])
        source = random.Random(hashlib.sha256(key).digest())
        values = [0.5] * 259
        for rank, byte in enumerate(source.sample(WORDS, 8)):
            values[byte] = 8 - 0.6 * rank
        if len(set(run.history[-8:])) == 1:
            values[run.history[-1]] = 12.0
        return values

    def choose(self, run: Running, logits: list[float]) -> int:
        sampling, recent = run.sequence.sampling, [token for token in run.history[-64:] if token >= 0]
        for token in set(recent):
            logits[token] = logits[token] / sampling.repeat_penalty - sampling.frequency_penalty * recent.count(token)
        allowed = run.sequence.allowed
        tokens = [t for t in range(len(logits)) if allowed is None or allowed.allows(t)]
        tokens.sort(key=lambda t: -logits[t])
        if sampling.temperature == 0:
            return tokens[0]
        tokens = tokens[: sampling.top_k or None]
        weights = [math.exp((logits[t] - logits[tokens[0]]) / sampling.temperature) for t in tokens]
        kept, mass, total = 0, 0.0, sum(weights)
        while kept < len(tokens) and (kept == 0 or (mass < sampling.top_p and weights[kept] >= sampling.min_p)):
            mass += weights[kept] / total
            kept += 1
        return run.random.choices(tokens[:kept], weights[:kept])[0]

    def embed(self, inputs: Any) -> Embeddings:
        vectors = [[float(byte) for byte in hashlib.sha256(t.encode("utf-8", "replace")).digest()] for t in inputs]
        return Embeddings(vectors, len(inputs))


class SeeingTokens(SoundTokens):
    """One that sees: the mean colors of the images decide too, in their order. Four rows stand for an image."""

    name = "seeing-tokens"
    claims = SoundTokens.claims | {"vision"}
    rows = 4

    def image_tokens(self, image: Image) -> list[int]:
        decode_rgb(image)
        digest = int.from_bytes(hashlib.sha256(image.data).digest()[:3], "big")
        return [IM_START, *(-1 - self.rows * digest - row for row in range(self.rows)), IM_END]

    def logits(self, run: Running) -> list[float]:
        text = [token for token in run.sequence.tokens if token >= 0]
        seen = b"".join(map(self.color, run.sequence.images))
        tokens = [*text[-48:], *seen, *run.history[-3:]]
        return super().logits(replace(run, sequence=replace(run.sequence, tokens=tokens)))

    def color(self, image: Image) -> bytes:
        pixels = decode_rgb(image)
        return bytes(pixels.reduce(pixels.size).getpixel((0, 0)))


class SoundMessages(Engine):
    """Says the message's words again."""

    name = "sound-messages"
    formats = frozenset({"sound"})
    load_options: ClassVar[Any] = ()
    sampling = frozenset({"temperature", "seed"})
    max_concurrency = 4

    @classmethod
    def probe(cls, model: Any) -> Support:
        return Support(100, "made for it")

    @classmethod
    def estimate(cls, model: Any, options: Any) -> MemoryEstimate:
        return MemoryEstimate(1000)

    @classmethod
    def load(cls, model: Any, options: Any, progress: Any) -> SoundMessages:
        return cls()

    @property
    def facts(self) -> ModelFacts:
        return ModelFacts(context_size=1000)

    def words(self, request: Any) -> list[str]:
        return [f"{word} " for word in request.messages[-1].content.split()]

    def chat(self, request: Any) -> Any:
        words = self.words(request)
        taken = words[: request.max_tokens]
        yield from map(TextDelta, taken)
        yield Finish("stop" if taken == words else "length", Usage(len(words), len(taken)))


class EmbedsOnly(SoundTokens):
    """A model that only makes embeddings."""

    name = "embeds-only"
    claims = frozenset({"embed"})

    def add(self, sequence: Sequence) -> None:
        raise UnsupportedError("this model writes no text")
