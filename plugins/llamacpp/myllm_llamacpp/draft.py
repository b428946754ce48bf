"""A draft model: a small one that guesses what the large one will write, which then checks several tokens in a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from myllm_core.errors import EngineError
from myllm_llamacpp.context import Context, ContextSize, Ints, as_tokens
from myllm_llamacpp.model import Model
from myllm_llamacpp.options import LoadSettings
from myllm_llamacpp.slots import History
from myllm_llamacpp.speculate import NO_GUESS

_SIZES_DIFFER = 128
"""Tokens that one vocabulary may have more: some files are padded."""
_WEIGHT = 0.2  # of the newest measurement
_PLAIN_EACH = 16
_TRIES = 8
_WORTH = 1.05  # what drafting must bring
_FIRST_PAUSE, _LONGEST_PAUSE = 32, 4096
_REPAID = 0.1  # of a plain step, for what reading prompts took


@dataclass(slots=True)
class Wish:
    """A sequence to guess for: its slot, all its tokens, and how many tokens at most."""

    slot: int
    tokens: Ints
    most: int
    guess: Ints = field(default_factory=lambda: NO_GUESS)


class Drafter:
    """Guesses greedily for several sequences at once. Its cache follows theirs: it reads what is new first."""

    def __init__(self, model: Model, context: Context, target: Model, most: int, always: bool) -> None:
        """Guess up to ``most`` tokens of the model ``target``. Raises ``EngineError`` for another vocabulary."""
        check_vocabulary(model, target)
        self._model = model
        self._context = context
        self._known = min(model.vocab_size, target.vocab_size)
        self._limit = min(context.tokens_per_sequence, model.trained_context or context.tokens)
        self._read = [History() for _ in range(context.sequences)]
        self.most = most
        self.payoff = Payoff(always)

    def guess(self, wishes: list[Wish], room: int) -> None:
        """Fill the wishes in, as far as the model has read them, with ``room`` tokens together."""
        began = perf_counter()
        for wish in wishes:
            wish.most = min(wish.most, self.most, room // len(wishes))
        ready, bulk = self._catch_up([wish for wish in wishes if self._can(wish)])
        if bulk:
            self.payoff.owe(perf_counter() - began)
        guesses: dict[int, list[int]] = {wish.slot: [] for wish, _ in ready}
        while ready:
            chosen = [(wish, int(self._context.logits(row)[: self._known].argmax())) for wish, row in ready]
            for wish, token in chosen:
                guesses[wish.slot].append(token)
            chosen = [(wish, token) for wish, token in chosen if len(guesses[wish.slot]) < wish.most]
            ready = self._feed([(wish, as_tokens([token])) for wish, token in chosen])
        for wish in wishes:
            wish.guess = as_tokens(guesses.get(wish.slot, []))

    def _can(self, wish: Wish) -> bool:
        """Whether the model knows all the tokens, and has room for them."""
        return wish.most > 0 and len(wish.tokens) + wish.most <= self._limit and int(wish.tokens.max()) < self._known

    def _catch_up(self, wishes: list[Wish]) -> tuple[list[tuple[Wish, int]], bool]:
        """Read what is new of the sequences; those that are read to their end, and whether that was a lot."""
        left = []
        for wish in wishes:
            common = min(self._read[wish.slot].common(wish.tokens), len(wish.tokens) - 1)
            self._cut(wish.slot, common)
            left.append((wish, wish.tokens[common:]))
        left.sort(key=lambda pair: len(pair[1]))
        room, parts = self._context.batch.rows, []
        for wish, tokens in left:
            if room:
                parts.append((wish, tokens[:room]))
                room -= len(tokens[:room])
        bulk = any(len(tokens) > self.most + 1 for _, tokens in left)
        ready = self._feed(parts)
        return [(wish, row) for wish, row in ready if self._read[wish.slot].length == len(wish.tokens)], bulk

    def _feed(self, parts: Sequence[tuple[Wish, Ints]]) -> list[tuple[Wish, int]]:
        """Read these tokens; each wish with the row of its last one. Nothing when there is no room any more."""
        if not parts:
            return []
        self._context.batch.clear()
        rows = []
        for wish, tokens in parts:
            read = self._read[wish.slot]
            rows.append((wish, self._context.batch.add(tokens, read.length, wish.slot, "last")))
            for token in tokens.tolist():
                read.append(token)
        if self._context.decode() != 0:
            self.forget()
            return []
        return rows

    def _cut(self, slot: int, length: int) -> None:
        read = self._read[slot]
        if read.length > length:
            self._context.remove(slot, length)
            self._read[slot] = History(read.slice(0, length).copy())

    def forget(self) -> None:
        """Empty its cache."""
        self._context.clear()
        self._read = [History() for _ in self._read]

    def close(self) -> None:
        """Free its context and weights."""
        self._context.close()
        self._model.close()


class Payoff:
    """Whether steps with drafted tokens write more a second than plain ones, by how many sequences are written.

    Found out by trying: after some steps that didn't pay it rests, twice as long each time. What reading prompts took
    is paid back by the steps that follow.
    """

    def __init__(self, always: bool = False) -> None:
        """Begin without measurements; ``always`` drafts whatever it costs."""
        self.always = always
        self._plain: dict[int, float] = {}
        self._trials: dict[int, _Trial] = {}
        self._debt = 0.0

    def owe(self, seconds: float) -> None:
        """Reading took so long, once."""
        self._debt += seconds

    def wanted(self, streams: int) -> bool:
        """Whether to draft in this step."""
        if self.always:
            return True
        trial = self._trials.setdefault(streams, _Trial())
        trial.steps += 1
        return streams in self._plain and trial.steps % _PLAIN_EACH != 0 and trial.steps >= trial.resume

    def measured(self, streams: int, guessed: int, written: int, seconds: float) -> None:
        """A step with so many guesses wrote so many tokens of ``streams`` sequences."""
        plain = self._plain.get(streams)
        if not guessed:
            self._plain[streams] = seconds if plain is None else plain + _WEIGHT * (seconds - plain)
            return
        if plain is None or self.always:
            return
        repaid = min(self._debt, _REPAID * plain)
        self._debt -= repaid
        self._trials.setdefault(streams, _Trial()).take(written * plain / streams / (seconds + repaid))


@dataclass(slots=True)
class _Trial:
    """How drafting went lately: ``ratio`` is what it brought against plain steps."""

    steps: int = 0
    resume: int = 0
    pause: int = _FIRST_PAUSE
    tries: int = 0
    ratio: float = _WORTH

    def take(self, ratio: float) -> None:
        self.tries += 1
        self.ratio += _WEIGHT * (ratio - self.ratio)
        if self.tries >= _TRIES and self.ratio < _WORTH:
            self.resume, self.pause = self.steps + self.pause, min(2 * self.pause, _LONGEST_PAUSE)
            self.tries, self.ratio = 0, _WORTH
        elif self.tries >= 4 * _TRIES:
            self.pause = _FIRST_PAUSE


def load_drafter(paths: list[Path], target: Model, tokens: int, settings: LoadSettings) -> Drafter:
    """Load a draft model with a cache of ``tokens``. Raises ``EngineError``, ``OutOfMemory``."""
    name = paths[0].name
    own = draft_settings(settings)
    model = Model(paths, own, lambda fraction: None)
    try:
        if model.has_encoder or model.is_diffusion or model.pooling != "none":
            raise EngineError(f"the draft model {name} writes no text token by token; take another one")
        context = Context(model, ContextSize(tokens, settings.n_batch, settings.n_parallel), own)
        try:
            if context.memory is None or not context.warm_up() or model.sliding_window:
                raise EngineError(f"the cache of the draft model {name} can't be cut short; take another one")
            return Drafter(model, context, target, settings.draft_max, settings.speculation == "draft")
        except BaseException:
            context.close()
            raise
    except BaseException:
        model.close()
        raise


def draft_settings(settings: LoadSettings) -> LoadSettings:
    """How the draft model is loaded: as the other one is, but for what only that can have."""
    own = {"speculation": "off", "draft": "", "lora": "", "type_k": "auto", "type_v": "f16", "context_shift": False}
    return settings.model_copy(update=own)


def check_vocabulary(draft: Model, target: Model) -> None:
    """See whether two models have the same tokens. Raises ``EngineError``."""
    sizes = draft.vocab_size, target.vocab_size
    if abs(sizes[0] - sizes[1]) > _SIZES_DIFFER:
        raise EngineError(f"the draft model has {sizes[0]} tokens, the model {sizes[1]}; take one of the same family")
    for token in range(min(sizes)):
        one, other = draft.text(token), target.text(token)
        if one != other:
            raise EngineError(
                f"the draft model's token {token} is {one[:30]!r}, the model's {other[:30]!r}; "
                "take one of the same family"
            )
