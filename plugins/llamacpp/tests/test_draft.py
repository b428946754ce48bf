"""A draft model changes how quickly a text is written, never the text."""

from __future__ import annotations

import pytest
from myllm_llamacpp.draft import Payoff
from myllm_llamacpp.engine import LlamaCppEngine

from myllm_core import Manifest, Model, ModelFile, Sequence
from myllm_core.errors import EngineError, InvalidOption, UnsupportedError
from myllm_core.models.manifest import write_manifest
from myllm_core.types import Sampling

SAMPLINGS = [Sampling(temperature=0.0), Sampling(seed=1), Sampling(seed=2, temperature=0.3, repeat_penalty=1.2)]


def words(first, count):
    return [10 + (37 * first + 5 * step) % 250 for step in range(count)]


def said(driver, numbers):
    driver.finish()
    replies = [driver.replies[number] for number in numbers]
    assert [reply.error for reply in replies] == [None] * len(replies)
    slots = driver.engine._scheduler.slots._slots
    assert all(driver.engine._context.last(slot.id) + 1 == slot.cached for slot in slots)
    return [[(out.token, out.logprob) for out in reply.outs] for reply in replies]


def test_the_real_model_drafted_by_itself_writes_the_same_in_fewer_steps(load, smollm2_gguf):
    options = {"n_ctx": 512, "n_parallel": 1}
    drafted = load(**options, draft=str(smollm2_gguf), speculation="draft")
    plain = load(**options, speculation="off")
    prompt = "The capital of France is"
    for sampling in SAMPLINGS[:2]:
        texts = [said(driver, [driver.start(prompt, tokens=24, sampling=sampling)]) for driver in (drafted, plain)]
        assert texts[0] == texts[1]
    stats = drafted.engine.stats
    assert stats.right_guesses > 16
    assert stats.steps < plain.engine.stats.steps - 12


@pytest.mark.parametrize("mode", ["draft", "auto"])
@pytest.mark.parametrize("kind", ["llama", "narrow"])
def test_several_at_once_write_what_they_would_without(load, tiny, kind, mode, same):
    replies = []
    for options in ({"draft": str(tiny[kind]), "draft_max": 3, "speculation": mode}, {"speculation": "off"}):
        driver = load(tiny["llama"], n_ctx=2048, n_parallel=6, type_v="q8_0", **options)
        numbers = [
            driver.start(words(number, 20 + 30 * number), tokens=60, sampling=SAMPLINGS[number % 3])
            for number in range(6)
        ]
        said(driver, numbers)
        replies.append([driver.replies[number] for number in numbers])
        if mode == "draft" and options.get("draft"):
            stats = driver.engine.stats
            assert stats.guessed_tokens > 20
            assert stats.right_guesses > 10 or kind == "narrow"
    for one, other in zip(*replies, strict=True):
        same(one, other, tolerance=0.05)


def test_a_cache_that_is_short_and_contexts_that_end(load, tiny, same):
    options = {"n_ctx": 300, "n_parallel": 3, "n_batch": 32}
    driver = load(tiny["llama"], draft=str(tiny["llama"]), speculation="draft", **options)
    numbers = [driver.start(words(number, 40), tokens=150) for number in range(3)]
    said(driver, numbers)
    assert driver.engine.stats.right_guesses > 20
    alone = load(tiny["llama"], speculation="off", **options)
    for number in numbers:
        same(driver.replies[number], alone.run(words(number - 1, 40), tokens=150)[0])
    number = driver.start(words(1, 280), tokens=100)
    driver.finish()
    assert len(driver.replies[number].outs) == 300 - 280 + 1


def test_a_context_that_shifts_is_followed(load, tiny, same):
    options = {"n_ctx": 256, "n_parallel": 1, "context_shift": True}
    drafted = load(tiny["llama"], draft=str(tiny["llama"]), speculation="draft", **options)
    [reply] = drafted.run(words(1, 100), tokens=400)
    assert drafted.engine.stats.forgotten_tokens > 0 < drafted.engine.stats.right_guesses
    same(reply, load(tiny["llama"], speculation="off", **options).run(words(1, 100), tokens=400)[0])


class Everything:
    def forced(self, token):
        return []

    def allows(self, token):
        return True

    def mask(self):
        raise AssertionError("nothing needs to be ruled out")


def test_a_constrained_sequence_is_never_drafted(load, tiny):
    driver = load(tiny["llama"], draft=str(tiny["llama"]), speculation="draft")
    driver.engine.add(Sequence(99, words(1, 20), SAMPLINGS[0], 20, None, Everything()))
    for _ in range(20):
        assert len(driver.engine.step()) == 1
    assert driver.engine.stats.guessed_tokens == 0


def test_an_installed_model_can_be_the_draft_and_counts_in_the_estimate(tiny, tmp_path):
    models = []
    for name in ("big", "small"):
        folder = tmp_path / f"{name}@latest"
        (folder / "r-000000000000").mkdir(parents=True)
        path = folder / "r-000000000000/m.gguf"
        path.write_bytes(tiny["llama"].read_bytes())
        file = ModelFile("r-000000000000/m.gguf", path.stat().st_size, "ab" * 32)
        manifest = Manifest(f"{name}:latest", "gguf", (file,))
        write_manifest(folder / "manifest.json", manifest)
        models.append(Model(manifest, folder))
    options = {"n_ctx": 256, "n_threads": 1, "cache_disk": 0}
    LlamaCppEngine.load(models[0], options | {"draft": "small"}, lambda fraction: None).close()
    alone, with_draft = (LlamaCppEngine.estimate(models[0], options | more).host for more in ({}, {"draft": "small"}))
    assert with_draft > alone + models[1].manifest.size
    with pytest.raises(InvalidOption, match="draft: none is no file and no installed model"):
        LlamaCppEngine.load(models[0], options | {"draft": "none"}, lambda fraction: None)


def test_a_draft_model_that_does_not_fit_is_refused(load, tiny, smollm2_gguf, tmp_path):
    other = tmp_path / "other.gguf"
    other.write_bytes(tiny["llama"].read_bytes().replace("▁hello".encode(), "▁hallo".encode()))
    for path, message in (
        (smollm2_gguf, "the draft model has 49152 tokens, the model 291; take one of the same family"),
        (other, "token 290 is '▁hallo', the model's '▁hello'"),
        (tiny["bert"], "bert.gguf writes no text token by token"),
        (tiny["mamba"], "mamba.gguf can't be cut short"),
    ):
        with pytest.raises(EngineError, match=message):
            load(tiny["llama"], draft=str(path), n_ctx=256)
    with pytest.raises(UnsupportedError, match="can't be cut short, so none are guessed; leave draft out"):
        load(tiny["mamba"], draft=str(tiny["llama"]), n_ctx=256)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speculation": "draft"}, "needs a draft model; set draft"),
        ({"draft": "x", "speculation": "off"}, "isn't used with speculation off"),
        ({"draft_max": 16, "draft": "x"}, "draft_max: .*15"),
    ],
)
def test_options_that_contradict_each_other_are_refused(load, tiny, options, message):
    with pytest.raises(InvalidOption, match=message):
        load(tiny["llama"], **options)


def drafted_steps(seconds, right, steps=400, streams=1):
    """In how many of so many steps a token is drafted that takes so long with them, plain ones taking 10 ms."""
    payoff, made = Payoff(), 0
    for _ in range(steps):
        if payoff.wanted(streams):
            made += 1
            payoff.measured(streams, 3, streams + right, seconds)
        else:
            payoff.measured(streams, 0, streams, 0.010)
    return made


def test_it_drafts_where_that_pays():
    assert drafted_steps(0.015, right=2) > 360  # three tokens in half the time
    assert drafted_steps(0.015, right=0) < 60
    assert drafted_steps(0.040, right=3) < 60
    assert drafted_steps(0.015, right=2, streams=8) < 60
    payoff = Payoff(always=True)
    assert payoff.wanted(1) and payoff.wanted(100)


def test_what_reading_a_prompt_took_is_paid_back():
    payoff = Payoff()
    payoff.measured(1, 0, 1, 0.010)
    payoff.owe(0.005)
    for _ in range(20):
        payoff.measured(1, 2, 2, 0.010)
    assert payoff._debt == 0
    trial = payoff._trials[1]
    assert 1.5 < trial.ratio < 2
