"""Images in prompts: the rows of projectors of several kinds, batched, cached, interrupted and refused."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from myllm_llamacpp.encoder import Encoder
from myllm_llamacpp.engine import LlamaCppEngine
from myllm_llamacpp.pace import Pace

from myllm_core import Image, Manifest, Model, ModelFile, Sequence
from myllm_core.errors import EngineError, IntegrityError, InvalidOption, InvalidRequest, UnsupportedError
from myllm_core.sampler import log_probabilities
from myllm_core.types import Sampling

from .projectors import gemma, llava, picture, qwen

KINDS = {"llava": "llama", "gemma": "llama", "qwen": "qwen2vl", "window": "window"}
"""Which tiny model each projector is tried with."""


@pytest.fixture(scope="session")
def projectors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("projectors")
    made = {"llava": llava(folder / "llava.gguf"), "gemma": gemma(folder / "gemma.gguf")}
    made |= {"qwen": qwen(folder / "qwen.gguf"), "wide": llava(folder / "wide.gguf", text=96)}
    return made | {"window": made["gemma"], "smollm2": llava(folder / "smollm2.gguf", text=576)}


@pytest.fixture
def seeing(load, tiny, projectors):
    """Load a tiny model that sees; ``kind`` is the projector's."""

    def make(kind: str, **options):
        return load(tiny[KINDS[kind]], **({"n_ctx": 512, "mmproj": str(projectors[kind])} | options))

    return make


def expected(driver, prompt, tokens: int) -> Iterator[tuple[int, float]]:
    """What the model writes greedily and its log probabilities, by llama.cpp's own helper in a new context."""
    from llama_cpp import llama_cpp as api
    from llama_cpp import mtmd_cpp as mtmd

    engine: LlamaCppEngine = driver.engine
    projector = engine._vision._projector
    params = api.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_threads = 512, 512, 512, 1
    with ExitStack() as undo:
        context = api.llama_init_from_model(engine._model.handle, params)
        undo.callback(api.llama_free, context)
        past = 0
        for part in prompt:
            if not isinstance(part, Image):
                past = _read(api, context, engine.tokenize(part, False) if isinstance(part, str) else part, past)
                continue
            from myllm_core.images import decode_rgb

            pieces = projector.pieces(decode_rgb(part))
            for piece in pieces.pieces:
                if piece.rows:
                    end = ctypes.c_int32(past)
                    code = mtmd.mtmd_helper_eval_chunk_single(
                        projector.handle, context, piece.chunk, past, 0, 512, True, ctypes.byref(end)
                    )
                    assert code == 0
                    past = end.value
                else:
                    past = _read(api, context, piece.tokens, past)
        for _ in range(tokens):
            logits = np.ctypeslib.as_array(api.llama_get_logits_ith(context, -1), (engine.facts.vocab_size,))
            token = int(logits.argmax())
            yield token, log_probabilities(logits, token, 1)[0]
            past = _read(api, context, [token], past)


def _read(api, context, tokens: list[int], past: int) -> int:
    ids = (ctypes.c_int32 * len(tokens))(*tokens)
    batch = api.llama_batch_get_one(ids, len(tokens))
    batch.pos = (ctypes.c_int32 * len(tokens))(*range(past, past + len(tokens)))
    assert api.llama_decode(context, batch) == 0
    return past + len(tokens)


PROMPTS = [
    ("look ", picture(1), " what is it"),
    (picture(1), "is what"),
    ("one", picture(1), picture(2), "and", picture(3, 90, 30), "so many"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_with_images_reads_as_with_llama_cpps_own_helper(seeing, kind, prompt):
    driver = seeing(kind, type_k="f16")
    [reply] = driver.run(prompt, tokens=6)
    wanted = list(expected(driver, prompt, 6))
    assert reply.error is None
    assert reply.tokens == [token for token, _ in wanted]
    assert np.allclose([out.logprob for out in reply.outs], [logprob for _, logprob in wanted], atol=0.01)


def alone(seeing, kind: str, prompt, **options):
    """What a new engine writes after a prompt."""
    [reply] = seeing(kind, **options).run(prompt, tokens=6)
    return reply


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_changes_what_is_written(seeing, kind):
    driver = seeing(kind)
    replies = driver.run(("see ", picture(1), "?"), ("see ", picture(2), "?"), "see ?", tokens=2)
    assert len({reply.outs[0].logprob for reply in replies}) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_is_answered_the_same_alone_and_among_others(seeing, same, kind):
    prompt = ("look here ", picture(1), " what is it")
    others = [f"something else number {number}" for number in range(4)]
    others += [("and ", picture(number), " too") for number in range(2, 5)]
    driver = seeing(kind)
    reply, *rest = driver.run(prompt, *others, tokens=6)
    assert all(other.error is None and len(other.outs) == 6 for other in rest)
    same(reply, alone(seeing, kind, prompt))


@pytest.mark.parametrize("kind", ["llava", "gemma", "qwen"])
@pytest.mark.parametrize("options", [{}, {"n_batch": 20, "n_parallel": 2}, {"kv_unified": False, "n_ctx": 2048}])
def test_an_image_that_was_read_is_a_cached_prefix(seeing, same, kind, options):
    driver = seeing(kind, **options)
    before = driver.tokens(("look ", picture(1)))[0]
    driver.run(("look ", picture(1), " what"), tokens=2)
    prompt = ("look ", picture(1), " and more words")
    [reply] = driver.run(prompt, tokens=6)
    assert reply.cached > len(before)
    same(reply, alone(seeing, kind, prompt))
    other = ("look ", picture(2), " what")
    [reply] = driver.run(other, tokens=6)
    assert all(token >= 0 for token in driver.tokens(other)[0][: reply.cached])
    same(reply, alone(seeing, kind, other))


@pytest.mark.parametrize("kind", ["llava", "qwen"])
def test_an_image_that_was_read_in_part_is_gone_on_with_or_read_anew(seeing, same, kind, monkeypatch):
    driver = seeing(kind, n_batch=8)
    monkeypatch.setattr(Pace, "chunk", lambda self, streams, prompts=1: 3)
    prompt = ("look ", picture(1, 112, 112), " what")
    number = driver.start(prompt, 6)
    slots = driver.engine._scheduler.slots
    ids = driver.tokens(prompt)[0]
    for _ in range(40):
        driver.step()
        [slot] = [slot for slot in slots._slots if slot.busy]
        if slot.cached and ids[slot.cached] < 0 and ids[slot.cached - 1] < 0:
            break
    else:
        raise AssertionError("the image wasn't read in parts")
    driver.cancel(number)
    [reply] = driver.run(prompt, tokens=6)
    if kind == "qwen":
        assert all(token >= 0 for token in ids[: reply.cached])
    same(reply, alone(seeing, kind, prompt))


@pytest.mark.parametrize("kind", ["llava", "gemma", "qwen"])
def test_what_left_the_cache_comes_back_with_its_image(seeing, same, kind):
    driver = seeing(kind)
    slots = driver.engine._scheduler.slots
    prompt = ("look ", picture(1), " at all of these words " * 4)
    driver.run(prompt, tokens=2)
    while slots.evict():
        pass
    assert len(list(slots.states)) == 1
    [reply] = driver.run((*prompt, "and on"), tokens=6)
    assert reply.cached >= len(driver.tokens(prompt)[0])
    same(reply, alone(seeing, kind, (*prompt, "and on")))


@pytest.mark.parametrize("kind", ["llava", "qwen"])
def test_what_was_saved_to_disk_comes_back_with_its_image(seeing, same, kind, tmp_path):
    prompt = ("look ", picture(1), "at all of these words " * 5, picture(2), "!")
    options = {"sha256": "a" * 64, "cache_dir": str(tmp_path), "cache_disk": 10, "n_ctx": 1024}
    first = seeing(kind, **options)
    first.run((*prompt, "at all of these words " * 7), tokens=2)
    first.engine.close()
    assert list(tmp_path.iterdir())
    again = seeing(kind, **options)
    [reply] = again.run((*prompt, "what"), tokens=6)
    assert reply.cached >= len(again.tokens(prompt)[0]) - 2
    same(reply, alone(seeing, kind, (*prompt, "what")))
    bare = seeing(kind, **(options | {"image_max_tokens": 8}))
    [reply] = bare.run((*prompt, "what"), tokens=1)
    assert reply.cached == 0, "the same image may stand for other rows now"


@pytest.mark.parametrize(("kind", "tokens"), [("llava", 256), ("gemma", 320), ("qwen", 320)])
def test_images_are_read_again_after_a_sequence_was_set_back(seeing, same, kind, tokens):
    prompts = [(f"number {number} ", picture(number), " is what " * 3) for number in range(3)]
    driver = seeing(kind, n_ctx=tokens, n_parallel=3, n_batch=32, cache_ram=0)
    replies = driver.run(*prompts, tokens=110)
    assert driver.engine.stats.preemptions
    for prompt, reply in zip(prompts, replies, strict=True):
        assert len(reply.outs) == 110
        reply.outs = reply.outs[:6]
        same(reply, alone(seeing, kind, prompt))


def test_guesses_leave_images_out(seeing, same):
    words = "one two three one two three one two "
    prompt = (words, picture(1), "one two three ", picture(1), words)
    [reply] = seeing("llava", speculation="lookup").run(prompt, tokens=24)
    [plain] = seeing("llava", speculation="off").run(prompt, tokens=24)
    assert min(reply.tokens) >= 0
    same(reply, plain)


def test_penalties_see_no_images(seeing):
    driver = seeing("llava")
    sampling = Sampling(temperature=0.0, repeat_penalty=1.5, repeat_last_n=64)
    [reply] = driver.run(("look ", picture(1), "?"), tokens=4, sampling=sampling)
    assert reply.error is None


@pytest.mark.parametrize("kept", [2, 12])
def test_a_context_that_is_shifted_forgets_images_whole(seeing, kept):
    driver = seeing("llava", n_ctx=128, context_shift=True, n_keep=kept, n_parallel=1)
    prompt = ("look ", picture(1), "now ", picture(2), "words and more of them")
    number = driver.start(prompt, 160)
    driver.finish()
    reply = driver.replies[number]
    assert reply.error is None
    assert len(reply.outs) == 160
    assert sum(out.forgotten for out in reply.outs) > 32


def test_running_replies_go_on_while_an_image_is_encoded(seeing, same, monkeypatch):
    driver = seeing("llava")
    stream = driver.start("hello you", 200)
    driver.step()
    monkeypatch.setattr(Pace, "seconds", lambda self, streams, prompts=1: 0.0)
    prompt = ("look ", picture(1), " what")
    number = driver.start(prompt, 6)
    steps = 0
    while not driver.replies[number].outs:
        assert any(out.sequence_id == stream for out in driver.step())
        steps += 1
    assert steps > 5, "the encoder was never interrupted"
    driver.finish()
    same(driver.replies[number], alone(seeing, "llava", prompt))


def test_an_image_can_be_cancelled_while_it_is_encoded(seeing, same, monkeypatch):
    driver = seeing("llava")
    monkeypatch.setattr(Pace, "seconds", lambda self, streams, prompts=1: 0.0)
    number = driver.start(("look ", picture(1), " what"), 6)
    for _ in range(3):
        driver.step()
    assert "encode" in {thread.name for thread in threading.enumerate()}
    driver.cancel(number)
    prompt = ("look ", picture(2), " what")
    [reply] = driver.run(prompt, tokens=6)
    same(reply, alone(seeing, "llava", prompt))
    driver.start(("look ", picture(3), " what"), 6)
    driver.step()
    driver.engine.close()
    assert "encode" not in {thread.name for thread in threading.enumerate()}


def test_images_are_forgotten_when_they_take_too_much_and_encoded_again(seeing, same):
    driver = seeing("llava")
    driver.engine._vision._kept = 1
    prompt = ("one ", picture(1), " two ", picture(2), " three ", picture(1))
    [reply] = driver.run(prompt, tokens=6)
    same(reply, alone(seeing, "llava", prompt))


def test_a_prompt_may_end_with_an_image(seeing):
    driver = seeing("llava", type_k="f16")
    prompt = ("look at this ", picture(1))
    [reply] = driver.run(prompt, tokens=4)
    wanted = list(expected(driver, (*prompt, reply.tokens[:1]), 3))
    assert reply.tokens[1:] == [token for token, _ in wanted]
    assert np.allclose([out.logprob for out in reply.outs[1:]], [logprob for _, logprob in wanted], atol=0.01)
    [longer] = driver.run((*prompt, "a"), tokens=1)
    assert longer.cached == len(driver.tokens(prompt)[0])


def test_equal_files_have_equal_tokens_and_others_dont(seeing):
    engine = seeing("qwen").engine
    one, two, large = picture(1), picture(2), picture(1, 280, 280)
    assert engine.image_tokens(one) == engine.image_tokens(replace(one, at=3))
    assert not {*engine.image_tokens(one)} & {token for token in engine.image_tokens(two) if token < 0}
    assert len(engine.image_tokens(large)) > len(engine.image_tokens(one))
    assert all(-(2**31) <= token < engine.facts.vocab_size for token in engine.image_tokens(large))


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (2000, 1500)])
@pytest.mark.parametrize("kind", ["llava", "gemma", "qwen"])
def test_images_of_any_shape_are_read(seeing, kind, size):
    [reply] = seeing(kind, n_ctx=8192).run(("look ", picture(1, *size), " what"), tokens=2)
    assert reply.error is None or "tokens don't fit" in str(reply.error)


def test_what_is_no_image_is_refused(seeing):
    engine = seeing("llava").engine
    good = picture(1)
    for data in (b"", b"no image", good.data[:60], good.data[:-40]):
        with pytest.raises(InvalidRequest, match="images:"):
            engine.image_tokens(Image(data, "image/png"))


def test_images_that_arent_those_of_the_prompt_are_refused(seeing):
    driver = seeing("llava")
    ids, images = driver.tokens(("look ", picture(1), "!"))
    for number, (tokens, given) in enumerate([(ids, (picture(2),)), (ids[:9] + ids[10:], images), (ids, images * 2)]):
        driver.engine.add(Sequence(100 + number, tokens, Sampling(), 4, images=given))
        [out] = driver.engine.step()
        assert isinstance(out.error, InvalidRequest)
    driver.engine.add(Sequence(200, ids, Sampling(), 4))
    [out] = driver.engine.step()
    assert isinstance(out.error, InvalidRequest)


def test_an_image_that_is_read_at_once_must_fit_a_batch(seeing):
    with pytest.raises(EngineError, match="has 16 rows, which the model reads at once.*n_batch=16"):
        seeing("gemma", n_batch=12, n_parallel=2)
    assert seeing("gemma", n_batch=16, n_parallel=2).engine.image_tokens(picture(1))


def beside(model: Path, *others: Path) -> Model:
    files = tuple(ModelFile(str(path), path.stat().st_size, "") for path in (model, *others))
    return Model(Manifest("test:latest", "gguf", files), model.parent)


def load_beside(model: Model, **options) -> LlamaCppEngine:
    return LlamaCppEngine.load(model, {"n_ctx": 512, "n_threads": 1, "cache_disk": 0} | options, lambda fraction: None)


def test_the_projector_beside_the_model_is_taken(tiny, projectors):
    model = beside(tiny["llama"], projectors["llava"])
    for options, sees in (({}, True), ({"mmproj": "off"}, False), ({"mmproj": "llava.gguf"}, True)):
        engine = load_beside(model, **options)
        assert ("vision" in engine.facts.capabilities) is sees
        engine.close()
    with pytest.raises(InvalidOption, match="load option mmproj: there is no file nowhere.gguf"):
        load_beside(model, mmproj="nowhere.gguf")
    with pytest.raises(EngineError, match="llama.gguf is no projector for images"):
        load_beside(model, mmproj=str(tiny["llama"]))


def test_the_engines_opinion_names_a_projector(tiny, tmp_path):
    seeing = beside(tiny["llama"], llava(tmp_path / "mmproj-F16.gguf"))
    assert "projector for images" in LlamaCppEngine.probe(seeing).reason
    assert "projector" not in LlamaCppEngine.probe(beside(tiny["llama"])).reason


def test_a_projector_counts_in_the_estimate(tiny, projectors):
    model = beside(tiny["llama"], projectors["llava"])
    sizes = [LlamaCppEngine.estimate(model, {"mmproj": given}).host for given in ("", "off")]
    assert sizes[0] - sizes[1] > projectors["llava"].stat().st_size


def test_a_projector_of_another_width_is_refused_by_name_and_left_out_beside(tiny, projectors, caplog):
    model = beside(tiny["llama"], projectors["wide"])
    with pytest.raises(EngineError, match="wide.gguf: its rows have 96 numbers and the model reads 64"):
        load_beside(model, mmproj=str(projectors["wide"]))
    engine = load_beside(model)
    assert "vision" not in engine.facts.capabilities
    assert "will read no images" in caplog.text
    with pytest.raises(UnsupportedError, match="96"):
        engine.image_tokens(picture(1))
    engine.close()


def test_a_damaged_projector_is_refused(tiny, projectors, tmp_path):
    data = projectors["llava"].read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(data[: len(data) // 2])
    with pytest.raises(IntegrityError, match="cut.gguf"):
        load_beside(beside(tiny["llama"], cut))


def test_a_projector_whose_tensors_dont_fit_each_other_ends_no_process(tiny, tmp_path, caplog):
    path = llava(tmp_path / "odd.gguf")
    data = path.read_bytes()
    at = data.index(b"clip.vision.attention.head_count") + len(b"clip.vision.attention.head_count") + 4
    path.write_bytes(data[:at] + (27).to_bytes(4, "little") + data[at + 4 :])
    with pytest.raises(EngineError, match="odd.gguf makes llama.cpp crash"):
        load_beside(beside(tiny["llama"]), mmproj=str(path))
    engine = load_beside(beside(tiny["llama"], path))
    assert "vision" not in engine.facts.capabilities
    engine.close()


def test_the_encoder_stops_where_it_is_asked_to():
    encoder, done = Encoder(), []

    def job():
        for number in range(1000):
            if encoder.watch(None, True, None) and not encoder.watch(None, False, None):
                return np.zeros((1, 1), np.float32)
            done.append(number)
        return np.ones((1, 1), np.float32)

    assert encoder.work("one", job, 0.0) is None
    first = len(done)
    assert first < 1000
    assert encoder.work("one", job, 0.0) is None
    assert len(done) > first
    made = encoder.work("one", job, 60.0)
    assert made is not None
    assert made[0, 0] == 1
    with pytest.raises(ZeroDivisionError):
        encoder.work("two", lambda: 1 / 0, 1.0)
    encoder.work("three", job, 0.0)
    encoder.drop()
    assert "encode" not in {thread.name for thread in threading.enumerate()}
