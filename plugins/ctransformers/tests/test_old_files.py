"""Old files: what is loaded of them, and what is refused before native code sees it."""

from __future__ import annotations

import asyncio
import random
import shutil
import struct
from pathlib import Path

import pytest
from myllm_ctransformers.engine import CTransformersEngine
from myllm_ctransformers.header import read_header

from myllm_core import Finish, Model, Runtime, TextDelta, load_plugins, load_settings
from myllm_core.errors import IntegrityError, UnsupportedError
from myllm_core.models.store import ModelStore
from myllm_core.options import parse_options
from myllm_core.runtime.choose import candidates, choose_engine, load_options
from myllm_core.testing import model_of
from myllm_core.transfer.pull import pull


class Quiet:
    def message(self, text: str) -> None: ...

    def file(self, path: str, done: int, total: int | None) -> None: ...


def load(model: Model, **options: object) -> CTransformersEngine:
    given = load_options(CTransformersEngine, {"n_threads": 1}, options)
    return CTransformersEngine.load(model, given, lambda fraction: None)


@pytest.mark.model
def test_it_knows_the_capital_of_france(early: Path, tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "models")
    plugins = load_plugins()
    pull(f"file:{early}", plugins=plugins, store=store, progress=Quiet(), name="old")

    async def main() -> None:
        # isolation "thread" notwithstanding it has a process of its own
        settings = load_settings(models_dir=store.models_dir, data_dir=tmp_path, isolation="thread")
        async with Runtime(settings, plugins) as runtime:
            options = parse_options({"temperature": 0, "max_tokens": 16})
            events = [
                event
                async for event in runtime.chat(
                    "old",
                    "What is the capital of France?",
                    engine="ctransformers",
                    options=options,
                    load_options={"n_threads": 1},  # two would wait for each other on a busy machine
                )
            ]
            text = "".join(event.text for event in events if isinstance(event, TextDelta))
            assert "Paris" in text and isinstance(events[-1], Finish) and events[-1].engine == "ctransformers"
            assert runtime.loaded()[0].pid not in (None, __import__("os").getpid())

    asyncio.run(main())


def test_it_is_the_last_resort(early: Path, gpt2: Path) -> None:
    plugins = load_plugins()
    model = model_of(early, format="gguf")
    found = [candidate.engine.name for candidate in candidates(model, plugins)]
    assert found.index("ctransformers") == len(found) - 1 and choose_engine(model, plugins).engine.name == "llamacpp"
    assert choose_engine(model, plugins, "ctransformers").engine is CTransformersEngine
    assert choose_engine(model_of(gpt2, format="ggml"), plugins).engine is CTransformersEngine


def test_a_gguf_of_today_is_left_to_others(smollm2_gguf: Path) -> None:
    support = CTransformersEngine.probe(model_of(smollm2_gguf, format="gguf"))
    assert support.score == 0 and "llamacpp" in support.reason


def test_a_gpt2_of_the_format_before_gguf_is_pulled_and_runs(gpt2: Path, tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "models")
    model = pull(f"file:{gpt2}", plugins=load_plugins(), store=store, progress=Quiet(), name="tiny")
    assert model.format == "ggml"
    engine = load(model)
    try:
        assert (engine.facts.vocab_size, engine.facts.context_size) == (300, 128)
        assert engine.tokenize("Hi wah", True) == [*b"Hi", 256 + 7]
        assert engine.tokenize("<|endoftext|>", True) == [299] and 299 not in engine.tokenize("<|endoftext|>", False)
        assert engine.piece(299) == b"" and engine.piece(ord("H")) == b"H" and engine.facts.eos_tokens == {299}
        from myllm_core import Sampling, Sequence

        engine.add(Sequence(1, engine.tokenize("Hello there", True), Sampling(temperature=0), 20, logprobs=2))
        outs = [out for _ in range(20) for out in engine.step()]
        assert len(outs) == 20 and not any(out.error for out in outs)
        assert outs[0].top[0][1] <= 0 and {out.token for out in outs} <= set(range(300))
        engine.cancel(1)
    finally:
        engine.close()


def test_a_name_or_an_option_tells_kinds_apart_whose_files_are_alike(gpt2: Path, tmp_path: Path) -> None:
    assert read_header(gpt2).kind == "gpt2"
    assert read_header(gpt2, "tiny_starcoder:latest").kind == "starcoder"
    assert read_header(gpt2, "x", "starcoder").kind == "starcoder"
    with pytest.raises(IntegrityError, match="model_type"):
        read_header(gpt2, "x", "falcon")


def test_text_that_the_library_would_cut_is_refused(gpt2: Path) -> None:
    engine = load(model_of(gpt2, format="ggml"))
    try:
        with pytest.raises(UnsupportedError):
            engine.tokenize("a\0b", False)
        long = "word" * 10_000  # its regular expressions would need a stack of megabytes
        assert b"".join(map(engine.piece, engine.tokenize(long, False))) == long.encode()
    finally:
        engine.close()


def test_every_truncated_file_is_refused(gpt2: Path, tmp_path: Path) -> None:
    data = gpt2.read_bytes()
    cut = tmp_path / "cut.bin"
    for size in [*range(60), *random.Random(1).sample(range(60, len(data)), 100), len(data) - 1]:
        cut.write_bytes(data[:size])
        with pytest.raises(IntegrityError):
            read_header(cut)


@pytest.mark.parametrize(
    ("at", "value"),
    [(4, 0), (4, -1), (8, 0), (8, 127), (12, 7), (16, 0), (16, 5), (20, 1), (20, 10**6), (24, -5), (24, 30), (28, 299)],
)
def test_numbers_that_would_hurt_are_refused(gpt2: Path, at: int, value: int) -> None:
    data = bytearray(gpt2.read_bytes())
    data[at : at + 4] = struct.pack("<i", value)
    gpt2.write_bytes(data)
    with pytest.raises(IntegrityError):
        read_header(gpt2)


def test_tensors_of_other_kinds_and_names_are_refused(gpt2: Path) -> None:
    data = gpt2.read_bytes()
    at = data.index(b"model/wte") - 20  # its dimensions, the length of its name, its type, its shape
    for place, value in ((at, 3), (at, 0), (at, 10**9), (at + 4, 10**6), (at + 4, -1), (at + 8, 30), (at + 12, 31)):
        copy = bytearray(data)
        copy[place : place + 4] = struct.pack("<i", value)
        gpt2.write_bytes(copy)
        with pytest.raises(IntegrityError):
            read_header(gpt2)
    gpt2.write_bytes(data.replace(b"model/wte", b"model-wte"))
    with pytest.raises(IntegrityError, match="model-wte"):
        read_header(gpt2)


@pytest.mark.model
def test_an_early_gguf_that_lacks_its_sizes_is_refused(early: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    shutil.copy(early, copy)
    with copy.open("r+b") as file:
        data = file.read(4096)
        file.seek(data.index(b"llama.attention.head_count") + 17)
        file.write(b"bled")
    with pytest.raises(IntegrityError, match="sizes"):
        read_header(copy)
