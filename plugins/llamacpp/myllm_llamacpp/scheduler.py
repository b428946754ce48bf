"""Continuous batching: which tokens of which sequences go through the model in each step."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from myllm_core.engine import Sequence, TokenOut
from myllm_core.errors import EngineError, InvalidRequest, MyllmError
from myllm_core.refusals import refusal, too_long
from myllm_core.sampler import Sampler, log_probabilities
from myllm_llamacpp.context import Context, as_tokens
from myllm_llamacpp.draft import Drafter, Wish
from myllm_llamacpp.pace import Pace
from myllm_llamacpp.run import Part, Plan, Run, Stats
from myllm_llamacpp.slots import History, Slots
from myllm_llamacpp.speculate import Lookup, Rates

if TYPE_CHECKING:
    from myllm_llamacpp.vision import Vision

_COPIED = 4e9
"""Bytes that are copied out of the cache in a second, at least."""
_SHORT_STEP = 0.005
"""Seconds of a step that was never measured."""

_MOST_KEPT = 0.75
"""The share of a context that is never forgotten at most: the rest must be worth going on with."""


@dataclass(slots=True)
class Scheduler:
    """Runs sequences side by side in one context.

    Each step reads the newest token of every writing sequence, then prompt tokens in fair shares, as many as ``pace``
    allows. Admission is first come, first served, as long as the cache has room. When the cache is full after all,
    resident prefixes go first; then the newest sequence is set back: it keeps what it has written, waits, and goes on
    from a copy of its state, or reads everything again. So the oldest sequence always gets on.

    While no prompt is read, a step may also check up to ``guesses`` guessed tokens.

    With ``keep`` a sequence whose context is full goes on: half of what comes after its first ``keep`` tokens (-1: its
    prompt) is forgotten.

    An image is read for one sequence at a time, the one that came first: in each step its rows are computed for as long
    as a prompt may hold replies up, and then read in a batch of their own.
    """

    context: Context
    slots: Slots
    pace: Pace
    rates: Rates
    context_size: int
    unified: bool
    guesses: int = 0
    keep: int | None = None
    drafter: Drafter | None = None
    vision: Vision | None = None
    stats: Stats = field(default_factory=Stats)
    _runs: dict[int, Run] = field(default_factory=dict)
    _running: list[Run] = field(default_factory=list)
    _waiting: deque[Run] = field(default_factory=deque)
    _failed: list[TokenOut] = field(default_factory=list)
    _drafted: bool = False

    def add(self, request: Sequence) -> None:
        """Take a sequence on; one that can't be run fails at the next step."""
        if request.id in self._runs:
            raise InvalidRequest(f"a sequence {request.id} is running already")
        error = refusal(request, self.context.vocab_size, self.context_size, "n_ctx")
        if error is not None:
            self._failed.append(TokenOut(request.id, -1, error=error))
            return
        tokens = as_tokens(request.tokens)
        try:
            spans = self.vision.spans(tokens, request.images) if self.vision and request.images else ()
        except InvalidRequest as wrong:
            self._failed.append(TokenOut(request.id, -1, error=wrong))
            return
        history = History(tokens, spans)
        words = [token for token in request.tokens if token >= 0] if spans else request.tokens
        sampler = Sampler(request.sampling, self.context_size, words)
        looks_up = self.guesses and request.allowed is None and not (self.drafter and self.drafter.payoff.always)
        lookup = Lookup(self.context.vocab_size, history.length) if looks_up else None
        run = self._runs[request.id] = Run(request, history, sampler, lookup)
        self._waiting.append(run)

    def cancel(self, sequence_id: int) -> None:
        """Drop a sequence; unknown ids are ignored. What it has read stays cached for the next one."""
        self._failed = [out for out in self._failed if out.sequence_id != sequence_id]
        run = self._runs.pop(sequence_id, None)
        if run is None:
            return
        if run.slot is None:
            self._waiting.remove(run)
            return
        self._running.remove(run)
        self.slots.release(run.slot)

    def step(self) -> list[TokenOut]:
        """One forward pass; the tokens that it brought, and the sequences that failed."""
        begin = perf_counter()
        decoded, read = self.stats.decode_seconds, self.stats.prompt_tokens
        self._admit()
        self._retire()
        plan = self._run_batch(self._plan())
        written = [out for part, row in plan for out in self._write(part, row)]
        if plan:
            self.slots.tidy(int(_COPIED * (self.pace.step or _SHORT_STEP)))
        looks = self.vision is not None and self._look(self.vision, written, self.stats.prompt_tokens != read)
        if plan and self.stats.prompt_tokens == read and not looks:
            self._learn(len(plan), sum(len(part.guess) for part, _ in plan), len(written), decoded)
        outs, self._failed = self._failed + written, []
        self.stats.step_seconds += perf_counter() - begin
        return outs

    def _learn(self, streams: int, guessed: int, written: int, decoded: float) -> None:
        """Take note of what a step without prompts brought and cost, from ``decoded`` seconds on."""
        seconds = self.stats.decode_seconds - decoded
        if not self._drafted:
            self.rates.measured(streams, guessed, written - streams, seconds)
        if self.drafter is not None and bool(guessed) == self._drafted:
            self.drafter.payoff.measured(streams, guessed, written, seconds)

    def rows_beside(self) -> int:
        """Tokens that another context may read between two steps without holding replies up."""
        return self.pace.chunk(len(self._running)) if self._running else self.context.batch.rows

    def _admit(self) -> None:
        while self._waiting:
            run = self._waiting[0]
            if self._running and self.unified and not self._fits(run):
                return
            self._waiting.popleft()
            run.slot = self.slots.claim(run.history)
            self._running.append(run)
            self.stats.cached_tokens += run.slot.cached
            if not run.written:
                run.cached_tokens = run.slot.cached

    def _fits(self, run: Run) -> bool:
        used = sum(min(other.room, self.context_size) - other.held.shared for other in self._running)
        return used + min(run.room, self.context_size) - self.slots.shareable(run.history) <= self.context.tokens

    def _retire(self) -> None:
        for run in [run for run in self._running if run.history.length > self.context_size]:
            if self.keep is None:
                self._fail(run, too_long(run.history.length, self.context_size, "n_ctx"))
            else:
                self._shift(run, self.keep)

    def _shift(self, run: Run, keep: int) -> None:
        kept = min(keep if keep >= 0 else len(run.request.tokens), int(_MOST_KEPT * self.context_size))
        end = kept + (run.history.length - kept) // 2
        first, last = run.history.image_at(kept), run.history.image_at(end)
        kept, end = first.start if first else kept, last.end if last else end
        run.history = self.slots.shift(run.held, kept, end)
        run.forgotten += end - kept
        self.stats.forgotten_tokens += end - kept
        if run.lookup is not None:
            run.lookup = Lookup(self.context.vocab_size, run.history.length)

    def _plan(self) -> Plan:
        plan = [Part(run, 1) for run in self._running if run.pending == 1 and run.text]
        reading = sorted((run for run in self._running if run.pending > 1 and run.text), key=lambda run: run.pending)
        if not reading:
            self._guess(plan)
            return plan
        most = self.pace.chunk(len(plan), len(reading)) // (1 + self._sees())
        budget = min(most, self.context.batch.rows - len(plan))
        for left, run in zip(range(len(reading), 0, -1), reading, strict=True):
            share = min(run.text, -(-budget // left))
            if share:
                plan.append(Part(run, share))
                budget -= share
        return plan

    def _sees(self) -> bool:
        """Whether an image is next for some run."""
        return self.vision is not None and any(run.pending and not run.text for run in self._running)

    def _look(self, vision: Vision, written: list[TokenOut], half: bool) -> bool:
        """Go on with the image that is next, and put what a prompt that ends with it writes to ``written``.

        False: there is none. With ``half`` a step's time for prompts, since others were read in this one.
        """
        run = next((run for run in self._running if run.pending and not run.text), None)
        image = run.image if run is not None else None
        if run is None or image is None:
            return False
        others = sum(other.pending == 1 for other in self._running)
        begin = perf_counter()
        try:
            rows = vision.rows(image, self.pace.seconds(others) / (1 + half))
        except MyllmError as error:
            self._fail(run, error)
            return True
        self.stats.decode_seconds += perf_counter() - begin
        if rows is not None:
            left = image.end - run.held.cached
            most = min(max(1, self.pace.chunk(others) // (1 + half)), self.context.batch.rows)
            share = left if vision.non_causal else min(left, most)
            for part, row in self._run_batch([Part(run, share, rows=rows)]):
                written += self._write(part, row)
        return True

    def _guess(self, plan: Plan) -> None:
        self._drafted = False
        if not self.guesses:
            return
        room = min(self.guesses, self.context.batch.rows - len(plan))
        for part in plan:
            if part.run.lookup is not None:  # only here: nobody waits for a first token while a prompt is taken in
                part.run.lookup.follow(part.run.history.tokens, self.rates)
        if self.rates.prepare(len(plan), self.pace.token):
            for part in plan:
                run = part.run
                if run.lookup is not None:
                    part.guess = run.lookup.guess(run.history.tokens, min(room, self._left(run)), self.rates)
                    room -= len(part.guess)
        if self.drafter is not None and not any(len(part.guess) for part in plan):
            self._draft(self.drafter, plan, room)

    def _draft(self, drafter: Drafter, plan: Plan, room: int) -> None:
        """Have a draft model guess what nobody has said before."""
        parts = [part for part in plan if part.run.request.allowed is None and not part.run.history.spans]
        if not parts or not drafter.payoff.wanted(len(plan)):
            return
        begin = perf_counter()
        wishes = [Wish(part.run.held.id, part.run.history.tokens, self._left(part.run)) for part in parts]
        drafter.guess(wishes, room)
        for part, wish in zip(parts, wishes, strict=True):
            part.guess = wish.guess
        self._drafted = True
        self.stats.decode_seconds += perf_counter() - begin

    def _left(self, run: Run) -> int:
        """How many tokens may be guessed at most: those after them must fit too."""
        return min(run.request.max_tokens - run.written - 1, self.context_size - run.history.length)

    def _run_batch(self, plan: Plan) -> list[tuple[Part, int]]:
        """Read the planned tokens; give the parts that can write now, with the first of their rows of the batch."""
        while plan:
            image = plan[0] if plan[0].rows is not None else None
            rows = self._fill(plan) if image is None else [image.share - 1]
            begin = perf_counter()
            code = self.context.decode() if image is None else self._decode_image(image)
            seconds = perf_counter() - begin
            self.stats.decode_seconds += seconds
            if code == 0:
                return self._commit(plan, rows, seconds)
            if code == 1:
                plan = self._make_room(plan)
                continue
            for part in plan:
                self.slots.forget(part.run.held)  # a part of the batch may be in the cache
                self._fail(part.run, EngineError(f"llama.cpp failed at this batch (code {code}); try again"))
            return []
        return []

    def _decode_image(self, part: Part) -> int:
        run, slot, image = part.run, part.run.held, part.run.image
        assert part.rows is not None and image is not None, "it was planned with rows"
        first = slot.cached - image.start
        places = image.places(run.history.position(image.start))[..., first : first + part.share]
        causal = not (self.vision and self.vision.non_causal)
        ends = part.share == run.pending
        return self.context.decode_rows(part.rows[first : first + part.share], places, slot.id, causal, ends)

    def _fill(self, plan: Plan) -> list[int]:
        batch = self.context.batch
        batch.clear()
        rows = []
        for part in plan:
            run, slot = part.run, part.run.held
            tokens = run.history.slice(slot.cached, slot.cached + part.share)
            position = run.history.position(slot.cached) if run.history.spans else slot.cached
            if len(part.guess):
                last = batch.add(np.concatenate([tokens, part.guess]), position, slot.id, "all")
            else:
                last = batch.add(tokens, position, slot.id, "last" if part.share == run.pending else "none")
            rows.append(last - len(part.guess))
        return rows

    def _commit(self, plan: Plan, rows: list[int], seconds: float) -> list[tuple[Part, int]]:
        streams = read = guessed = 0
        writing = []
        for part, row in zip(plan, rows, strict=True):
            run, slot = part.run, part.run.held
            guessed += len(part.guess)
            if run.written and run.pending == 1:
                streams += 1
            else:
                read += part.share
            slot.cached += part.share
            if slot.cached == run.history.length:
                writing.append((part, row))
        if not guessed:
            self.pace.measured(streams, read, seconds)
        self.stats.steps += 1
        self.stats.prompt_tokens += read
        self.stats.guessed_tokens += guessed
        return writing

    def _make_room(self, plan: Plan) -> Plan:
        """The cache is full: give up guesses, resident prefixes, the newest run, large shares, then the last run."""
        if any(len(part.guess) for part in plan):
            return [Part(part.run, part.share) for part in plan]
        if self.slots.evict():
            self.stats.evictions += 1
            return plan
        if len(self._running) > 1:
            newest = self._running[-1]
            self._set_back(newest)
            return [part for part in plan if part.run is not newest]
        [part] = plan
        if part.share > 1 and not (part.rows is not None and self.vision and self.vision.non_causal):
            return [Part(part.run, part.share // 2, rows=part.rows)]
        self._fail(part.run, EngineError("the KV cache is full; load the model with a larger n_ctx"))
        return []

    def _set_back(self, run: Run) -> None:
        slot = run.held
        self.slots.give_up(slot)
        self.slots.release(slot)
        run.slot = None
        self._running.remove(run)
        self._waiting.appendleft(run)
        self.stats.preemptions += 1

    def _write(self, part: Part, row: int) -> list[TokenOut]:
        """The token after a part, and those after each guess that was right: the model chose what was guessed."""
        run, outs = part.run, list[TokenOut]()
        for guess in (*part.guess.tolist(), None):
            try:
                outs.append(self._choose(run, row + len(outs)))
            except EngineError as error:
                self.slots.forget(run.held)
                self._fail(run, error)
                return outs
            if outs[-1].token != guess:
                break
        if run.request.allowed is not None and run.request.logprobs is None:
            outs += self._force(run, run.request.allowed.forced(outs[-1].token))
        if len(part.guess):
            self.slots.extend(run.held, len(outs) - 1)
            self.stats.right_guesses += len(outs) - 1
        return outs

    def _force(self, run: Run, tokens: list[int]) -> list[TokenOut]:
        """Tokens that a grammar leaves no choice about: they are written at once, and read with the next step."""
        room = min(run.request.max_tokens - run.written, self.context_size - run.history.length)
        outs = []
        for token in tokens[: max(0, room)]:
            run.sampler.take(token)
            outs.append(self._append(run, TokenOut(run.request.id, token, run.cached_tokens)))
        self.stats.forced_tokens += len(outs)
        return outs

    def _choose(self, run: Run, row: int) -> TokenOut:
        logits = self.context.logits(row)
        token = run.sampler.choose(logits, run.request.allowed)
        out = TokenOut(run.request.id, token, run.cached_tokens, forgotten=run.forgotten)
        run.forgotten = 0
        if run.request.logprobs is not None:
            out.logprob, out.top = log_probabilities(logits, token, run.request.logprobs)
        return self._append(run, out)

    def _append(self, run: Run, out: TokenOut) -> TokenOut:
        run.history.append(out.token)
        run.written += 1
        self.stats.generated_tokens += 1
        return out

    def _fail(self, run: Run, error: MyllmError) -> None:
        self.cancel(run.request.id)
        self._failed.append(TokenOut(run.request.id, -1, error=error))

    def close(self) -> None:
        """Drop all sequences, and free the draft model."""
        if self.drafter is not None:
            self.drafter.close()
        for sequence_id in list(self._runs):
            self.cancel(sequence_id)
