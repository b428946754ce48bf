"""Engines that each break one rule. ``FAULTS`` says which tests find it, and with which words."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from sound_engines import CONTROL, IM_END, Running, SeeingTokens, SoundMessages, SoundTokens

from myllm_core import (
    Embeddings,
    Finish,
    Image,
    LoadOption,
    MemoryEstimate,
    Scores,
    Sequence,
    Support,
    TextDelta,
    TokenOut,
)

FAULTS: dict[str, dict[str, str]] = {}
ENGINES: list[Any] = [SoundTokens, SoundMessages]


def fails(**tests: str) -> Any:
    """``test_NAME`` fails for the class, with this in its message."""

    def note(cls: Any) -> Any:
        FAULTS[cls.__name__] = {f"test_{test}": words for test, words in tests.items()}
        ENGINES.append(cls)
        cls.name = cls.__name__.lower()
        return cls

    return note


def in_a_test() -> bool:
    return "pytest" in sys.modules


# What it says of itself


@fails(the_class_data_are_usable="max_concurrency")
class NoConcurrency(SoundTokens):
    max_concurrency = 0


@fails(the_load_options_can_be_set_and_others_are_refused="nobody can type a PosixPath")
class PathOption(SoundTokens):
    load_options: ClassVar[Any] = (*SoundTokens.load_options, LoadOption("folder", Path("/"), "where to look"))


@fails(a_sampling_option_that_it_lacks_is_refused="DID NOT RAISE")
class TakesEverything(SoundMessages):
    """Sound; its test runs on a core that drops unknown options without a word."""


@fails(probe_is_quick_and_loads_nothing="probe imports ray")
class ImportsInProbe(SoundTokens):
    @classmethod
    def probe(cls, model: Any) -> Support:
        import ray  # noqa: F401 - a light stand-in of the tests

        return Support(100, "made for it")


@fails(the_plugin_prints_nothing_when_it_is_asked="standard output")
class PrintsInProbe(SoundTokens):
    @classmethod
    def probe(cls, model: Any) -> Support:
        print("looking at the model")
        return Support(100, "made for it")


@fails(estimate_is_quick_and_loads_nothing="MiB of memory")
class LoadsToEstimate(SoundTokens):
    @classmethod
    def estimate(cls, model: Any, options: Any) -> MemoryEstimate:
        return MemoryEstimate(len(b"x" * 200_000_000))


@fails(probe_supports_the_model="assert (True and 0 < 0)")
class SupportsNothing(SoundTokens):
    @classmethod
    def probe(cls, model: Any) -> Support:
        return Support(0, "no")


@fails(estimate_gives_bytes="float")
class EstimatesInFloats(SoundTokens):
    @classmethod
    def estimate(cls, model: Any, options: Any) -> MemoryEstimate:
        return MemoryEstimate(1.5)  # type: ignore[arg-type]


# Replies


@fails(loading_tells_fractions_that_rise="[1.0, 0.5]")
class ProgressBackwards(SoundTokens):
    @classmethod
    def load(cls, model: Any, options: Any, progress: Any) -> Any:
        progress(1.0)
        progress(0.5)
        return cls(options["context"])


@fails(a_reply_ends_with_one_finish="exactly one Finish")
class FinishesTwice(SoundMessages):
    def chat(self, request: Any) -> Any:
        yield from super().chat(request)
        yield Finish("stop")


@fails(a_reply_ends_with_one_finish="the device is gone")
class RaisesAfterFinish(SoundMessages):
    def chat(self, request: Any) -> Any:
        yield from super().chat(request)
        raise RuntimeError("the device is gone")


@fails(a_reply_ends_with_one_finish="exactly one Finish")
class NeverFinishes(SoundMessages):
    def chat(self, request: Any) -> Any:
        yield TextDelta("hello")


@fails(max_tokens_ends_a_reply="assert 6 <= 1")
class EndlessTalker(SoundMessages):
    def chat(self, request: Any) -> Any:
        words = self.words(request)
        yield from map(TextDelta, words)
        yield Finish("stop", self.usage(words))

    @staticmethod
    def usage(words: list[str]) -> Any:
        from myllm_core import Usage

        return Usage(len(words), len(words))


@fails(a_long_conversation_is_answered="only user")
class UsersOnly(SoundMessages):
    def chat(self, request: Any) -> Any:
        if any(message.role != "user" for message in request.messages):
            raise ValueError("only user messages")
        return super().chat(request)


@fails(odd_text_is_answered_or_refused="surrogates not allowed", half_a_pair_is_tokenized_or_refused="surrogates")
class StrictText(SoundTokens):
    def tokenize(self, text: str, special: bool) -> list[int]:
        text.encode()
        return super().tokenize(text, special)


@fails(a_cancelled_reply_leaves_it_usable="still busy", a_worker_goes_on_after_replies_were_cancelled="still busy")
class KeepsItsLock(SoundMessages):
    busy = False

    def chat(self, request: Any) -> Any:
        if self.busy:
            raise RuntimeError("still busy")
        self.busy = True
        yield from super().chat(request)
        self.busy = False


@fails(one_conversation_leaves_no_trace_in_the_next="alike")
class Remembers(SoundTokens):
    last: ClassVar[list[int]] = []

    def add(self, sequence: Sequence) -> None:
        before, Remembers.last = self.last, list(sequence.tokens)
        super().add(sequence)
        self.running[sequence.id].history = [*sequence.tokens, *before[-2:]]


@fails(as_many_chats_run_side_by_side_as_it_says="each other's way")
class SharesItsState(SoundMessages):
    def chat(self, request: Any) -> Any:
        self.current = self.words(request)
        for place in range(len(self.current)):
            time.sleep(0.02)
            yield TextDelta(self.current[place])
        yield Finish("stop")


@fails(nothing_is_printed="standard output")
class PrintsNatively(SoundTokens):
    def step(self) -> list[TokenOut]:
        os.write(1, b"step\n")
        return super().step()


@fails(close_may_be_called_twice="closed already")
class ClosesOnce(SoundTokens):
    closed = False

    def close(self) -> None:
        if self.closed:
            raise RuntimeError("closed already")
        self.closed = True


@fails(close_gives_memory_back="MiB behind")
class KeepsItsWeights(SoundTokens):
    weights: ClassVar[list[bytes]] = []

    def __init__(self, context: int) -> None:
        super().__init__(context)
        self.weights.append(b"w" * 40_000_000)


# Sampling


@fails(temperature_zero_takes_the_likeliest="the seed changes the reply")
class NeverGreedy(SoundTokens):
    def choose(self, run: Running, logits: list[float]) -> int:
        return run.random.choice(sorted(range(259), key=lambda token: -logits[token])[:5])


@fails(truncation_to_one_token_takes_the_likeliest="doesn't keep the likeliest", a_penalty_ends_a_repetition="nothing")
class TemperatureOnly(SoundTokens):
    def choose(self, run: Running, logits: list[float]) -> int:
        tokens = sorted(range(259), key=lambda token: -logits[token])
        return tokens[0] if run.sequence.sampling.temperature == 0 else run.random.choice(tokens[:5])


@fails(a_seed_repeats_a_reply="another reply the second time")
class ForgetsTheSeed(SoundTokens):
    def add(self, sequence: Sequence) -> None:
        super().add(sequence)
        self.running[sequence.id].random = random.Random()


@fails(seeds_differ="every seed gives the same")
class OneSeed(SoundTokens):
    def add(self, sequence: Sequence) -> None:
        super().add(sequence)
        self.running[sequence.id].random = random.Random(0)


@fails(a_seed_repeats_a_reply_in_a_batch="what else is in the batch")
class SharesItsRandomness(SoundTokens):
    def add(self, sequence: Sequence) -> None:
        super().add(sequence)
        shared = random.Random(sequence.sampling.seed)
        for run in self.running.values():
            run.random = shared


# Tokens


@fails(the_facts_are_sane="trained_context")
class OddFacts(SoundTokens):
    @property
    def facts(self) -> Any:
        from dataclasses import replace

        return replace(self._facts, trained_context=-1)


@fails(the_tokens_of_a_text_stand_for_its_bytes="don't fit together")
class StripsText(SoundTokens):
    def tokenize(self, text: str, special: bool) -> list[int]:
        return super().tokenize(" ".join(text.split()), special)


@fails(texts_are_tokenized_while_a_step_runs="while another thread tokenizes")
class OneBuffer(SoundTokens):
    tokenizes_anywhere = True

    def tokenize(self, text: str, special: bool) -> list[int]:
        self._text = text
        time.sleep(0.001)
        return super().tokenize(self._text, special)


@fails(no_text_has_no_tokens="the core adds BOS")
class AddsBos(SoundTokens):
    def tokenize(self, text: str, special: bool) -> list[int]:
        return [CONTROL["<s>"], *super().tokenize(text, special)]


@fails(control_tokens_come_from_special_text_only="gets the control token")
class AlwaysSpecial(SoundTokens):
    def tokenize(self, text: str, special: bool) -> list[int]:
        return super().tokenize(text, True)


@fails(every_token_has_bytes="NoneType")
class NoBytes(SoundTokens):
    def piece(self, token: int) -> Any:
        return super().piece(token) if token < 250 else None


@fails(
    characters_split_over_tokens_come_out_whole="\ufffd", a_stop_string_split_over_tokens_ends_a_reply="Stop before the"
)
class DecodesEachToken(SoundTokens):
    def piece(self, token: int) -> bytes:
        return super().piece(token).decode("utf-8", "replace").encode()


@fails(
    the_context_can_be_filled_and_one_token_more_is_refused="no room",
    a_reply_may_go_on_until_the_context_is_full="no room",
)
class SmallerThanItSays(SoundTokens):
    def step(self) -> list[TokenOut]:
        full = [run for run in self.running.values() if len(run.history) > 250]
        return [TokenOut(run.sequence.id, -1, error=RuntimeError("no room")) for run in full] or super().step()


@fails(as_many_sequences_run_side_by_side_as_it_says="only two")
class FewerThanItSays(SoundTokens):
    def step(self) -> list[TokenOut]:
        if len(self.running) > 2:
            raise RuntimeError("only two")
        return super().step()


@fails(a_step_that_fails_ends_its_replies_once_and_nothing_else="")
class KeepsWhatFailed(SoundTokens):
    def cancel(self, sequence_id: int) -> None:
        if sequence_id in self.running and len(self.running[sequence_id].written) > 2:
            super().cancel(sequence_id)


@fails(cancelling_what_isnt_there_is_nothing="987654")
class MissesNobody(SoundTokens):
    def cancel(self, sequence_id: int) -> None:
        del self.running[sequence_id]


# What it claims


@fails(the_capabilities_are_known_ones="telepathy")
class Telepathic(SoundTokens):
    claims = SoundTokens.claims | {"telepathy"}


@fails(chat_is_refused_when_it_isnt_claimed="it answered")
class ChatsAnyway(SoundTokens):
    claims = frozenset({"embed"})


@fails(a_raw_prompt_goes_on_or_is_refused="can't continue a raw prompt")
class ClaimsToComplete(SoundMessages):
    @property
    def facts(self) -> Any:
        from dataclasses import replace

        return replace(super().facts, capabilities=frozenset({"chat", "complete"}))


@fails(embeddings_are_refused_when_they_arent_claimed="DID NOT RAISE")
class EmbedsAnyway(SoundTokens):
    claims = frozenset({"chat", "complete"})


@fails(there_is_a_vector_for_each_text="assert 1 == 4")
class OneVector(SoundTokens):
    def embed(self, inputs: Any) -> Embeddings:
        return Embeddings(super().embed(inputs).vectors[:1])


@fails(there_is_a_score_for_each_document_or_none="two scores")
class ScoresByPlace(SoundTokens):
    claims = SoundTokens.claims | {"rerank"}

    def rerank(self, query: str, documents: Any) -> Scores:
        return Scores([float(place) for place, _ in enumerate(documents)])


@fails(embeddings_of_odd_text_are_made_or_refused="surrogates not allowed")
class StrictEmbeddings(SoundTokens):
    def embed(self, inputs: Any) -> Embeddings:
        return Embeddings([[float(len(text.encode())) + 1.0] for text in inputs])


@fails(log_probabilities_are_sound="assert (")
class GivesLogits(SoundTokens):
    def advance(self, run: Running) -> TokenOut:
        out = super().advance(run)
        out.logprob, out.top = out.logprob + 9, [(token, value + 9) for token, value in out.top]
        return out


@fails(a_reply_matches_its_expression="", a_reply_follows_its_schema="")
class IgnoresTheMask(SoundTokens):
    def add(self, sequence: Sequence) -> None:
        sequence.allowed = None
        super().add(sequence)


# In a worker


@fails(a_worker_answers="only in tests")
class OnlyInTests(SoundMessages):
    def chat(self, request: Any) -> Any:
        if not in_a_test():
            raise RuntimeError("only in tests")
        return super().chat(request)


@fails(a_worker_refuses_what_isnt_claimed="DID NOT RAISE")
class ClaimsMoreInAWorker(SoundTokens):
    claims = frozenset({"chat"}) if in_a_test() else SoundTokens.claims


@fails(a_worker_that_died_is_replaced="used by another process")
class LeavesALock(SoundTokens):
    @classmethod
    def load(cls, model: Any, options: Any, progress: Any) -> Any:
        loaded = cls(options["context"])
        if not in_a_test():
            lock = model.paths[0].with_suffix(".lock")
            if lock.exists():
                raise RuntimeError("the model is used by another process")
            lock.touch()
        return loaded


@fails(
    a_worker_and_its_children_end_with_the_model="still running", a_worker_and_its_children_end_with_the_parent="still"
)
class LeavesAChild(SoundTokens):
    @classmethod
    def load(cls, model: Any, options: Any, progress: Any) -> Any:
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
        return cls(options["context"])


@fails(a_worker_survives_a_damaged_model="a damaged file ends the process")
class DiesOfDamage(SoundTokens):
    @classmethod
    def load(cls, model: Any, options: Any, progress: Any) -> Any:
        if model.paths[0].read_bytes() != b"sound\n":
            os.abort()
        return cls(options["context"])


# Images


@fails(images_are_refused_when_vision_isnt_claimed="DID NOT RAISE")
class SeesInSecret(SeeingTokens):
    claims = SoundTokens.claims


@fails(an_image_takes_the_tokens_that_stand_for_it="no row of an embedding")
class HasNoRows(SeeingTokens):
    def image_tokens(self, image: Image) -> list[int]:
        return [IM_END]


@fails(equal_images_have_equal_tokens="other tokens each time")
class CountsImages(SeeingTokens):
    count = 0

    def image_tokens(self, image: Image) -> list[int]:
        self.count += 1
        return [token - self.count if token < 0 else token for token in super().image_tokens(image)]


@fails(a_reply_depends_on_its_image="the same for another image")
class LooksAway(SeeingTokens):
    def color(self, image: Image) -> bytes:
        return b""


@fails(a_reply_depends_on_the_order_of_images="in another order")
class SortsImages(SeeingTokens):
    def add(self, sequence: Sequence) -> None:
        images = tuple(sorted(sequence.images, key=lambda image: image.data))
        super().add(replace(sequence, images=images))


@fails(a_broken_image_is_refused_and_the_engine_goes_on="not an InvalidRequest")
class BelievesAnyFile(SeeingTokens):
    def image_tokens(self, image: Image) -> list[int]:
        return [-1]

    def color(self, image: Image) -> bytes:
        return image.data[:3]


@fails(cancelling_while_an_image_is_read_hurts_nobody="nobody waits for the image")
class ReadsForNobody(SeeingTokens):
    """An image takes it a step, in which it can't be cancelled."""

    reading: Sequence | None = None
    lost = False

    def add(self, sequence: Sequence) -> None:
        super().add(sequence)
        self.reading = sequence if sequence.images else self.reading

    def cancel(self, sequence_id: int) -> None:
        self.lost = self.lost or (self.reading is not None and self.reading.id == sequence_id)
        super().cancel(sequence_id)

    def step(self) -> list[TokenOut]:
        if self.lost:
            raise RuntimeError("nobody waits for the image")
        outs = [out for out in super().step() if self.reading is None or out.sequence_id != self.reading.id]
        self.reading = None if self.steps_on() else self.reading
        return outs

    def steps_on(self) -> bool:
        """Every other time."""
        self.turn = not getattr(self, "turn", True)
        return self.turn
