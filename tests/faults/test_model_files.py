"""The real model: its memory comes back, it may not fit, and its file may be damaged in any way."""

from __future__ import annotations

import asyncio
import os
import struct
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from myllm_core.models.gguf import read_gguf
from soaking.http import ask
from soaking.server import Server, gone
from support.faults import Start, chat, get, install_gguf
from support.faulty import faulty_plugin

pytestmark = pytest.mark.model

EXAMPLES = int(os.environ.get("MYLLM_FAULT_EXAMPLES", "40"))
SHORT = {"max_tokens": 3}


POOR = """
import resource
from myllm_core import Support, hookimpl
from myllm_llamacpp.engine import LlamaCppEngine

class PoorEngine(LlamaCppEngine):
    name = "poor"

    @classmethod
    def probe(cls, model): return Support(1, "for this test only")
    @classmethod
    def load(cls, model, options, progress):
        from myllm_llamacpp.bindings import library
        library()
        with open("/proc/self/statm") as file: used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, resource.RLIM_INFINITY))
        return super().load(model, options, progress)

@hookimpl
def myllm_engines(): return [PoorEngine]
"""


@pytest.fixture(scope="module")
def gguf_server(
    models: Path, start: Start, smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server with the real model; under the name ``poor`` it gets too little memory for its context."""
    install_gguf(models, "good:latest", smollm2_gguf)
    install_gguf(models, "poor:latest", smollm2_gguf, engine="poor")
    source = POOR.replace("ROOM", str(smollm2_gguf.stat().st_size + 20 * 2**20))
    with (
        pytest.MonkeyPatch.context() as patch,
        faulty_plugin(tmp_path_factory.mktemp("poor") / "site", patch, "poor", source),
    ):
        yield start(models, request_timeout="60s", max_loaded_models=2)


def test_a_worker_that_may_not_have_the_memory_says_so(gguf_server: Server) -> None:
    status, values = chat(gguf_server, "poor", options=SHORT)
    error = values["error"]
    assert (status, error["code"]) in ((507, "out_of_memory"), (502, "engine_died"), (500, "engine_error")), values
    assert "memory" in error["message"] and ("smaller" in error["message"])
    assert chat(gguf_server, "good", options=SHORT)[0] == 200


def test_unloading_gives_the_memory_back(gguf_server: Server) -> None:
    assert chat(gguf_server, "good", options=SHORT)[0] == 200
    chat(gguf_server, "echo")
    loaded = {model["name"]: model for model in get(gguf_server, "/api/ps")[1]["models"]}
    [worker] = [one for one in gguf_server.workers() if one.pid == loaded["good:latest"]["pid"]]
    assert worker.memory_info().rss > 80 * 2**20
    server = gguf_server.sample(0).memory
    for _ in range(3):
        assert unload(gguf_server) == 200
        assert gone([worker], 0.1), "the process is gone when the call returns"
        assert chat(gguf_server, "good", options=SHORT)[0] == 200
        [worker] = [one for one in gguf_server.workers() if one.memory_info().rss > 80 * 2**20]
    assert gguf_server.sample(0).memory - server < 4 * 2**20


def unload(server: Server) -> int:
    return asyncio.run(ask(server.port, "POST", "/api/models/good/unload", {}))[0]


def numbers(path: Path) -> list[tuple[int, int]]:
    """Where numbers of the header lie, and how many bytes each has: counts, lengths, types, dimensions, offsets."""
    reader = gguf.GGUFReader(path)
    base = reader.data.ctypes.data
    fields = [*reader.fields.values(), *(tensor.field for tensor in reader.tensors)]
    parts = [part for field in fields for part in (*field.parts[:6], *field.parts[-4:])]
    return [(part.ctypes.data - base, part.nbytes) for part in parts if part.nbytes in (4, 8)]


@pytest.fixture(scope="module")
def hollow(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[int, int]]]:
    """A copy of the real model whose weights are a hole, and where its header's numbers lie."""
    path = tmp_path_factory.mktemp("gguf") / "hollow.gguf"
    with smollm2_gguf.open("rb") as source, path.open("wb") as target:
        target.write(source.read(read_gguf(smollm2_gguf).data_offset))
        target.truncate(smollm2_gguf.stat().st_size)
    return path, numbers(smollm2_gguf)


ODD = [0, 1, 2, 3, 7, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
cuts = st.tuples(st.just("cut"), st.floats(0, 1, exclude_max=True), st.booleans())
changes = st.tuples(
    st.just("change"),
    st.integers(0, 10**6),
    st.sampled_from(ODD) | st.sampled_from(["+1", "-1", "*2"]) | st.integers(0, 2**64 - 1),
)
serial = count()


def damage(path: Path, places: list[tuple[int, int]], how: tuple) -> None:
    kind, where, what = how
    if kind == "cut":
        whole = read_gguf(path).data_offset if what else path.stat().st_size
        os.truncate(path, int(whole * where))
        return
    at, size = places[where % len(places)]
    with path.open("r+b") as file:
        file.seek(at)
        old = int.from_bytes(file.read(size), "little")
        new = {"+1": old + 1, "-1": old - 1, "*2": old * 2}.get(what, what)
        file.seek(at)
        file.write(struct.pack("<Q", new % 2**64)[:size])


@pytest.mark.timeout(600)
@given(how=cuts | changes)
@settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
def test_a_damaged_file_is_an_error_and_harms_nothing(
    gguf_server: Server, models: Path, hollow: tuple[Path, list[tuple[int, int]]], how: tuple
) -> None:
    original, places = hollow
    copy = original.with_name(f"copy{next(serial)}.gguf")
    copy_sparse(original, copy)
    damage(copy, places, how)
    name = f"bad:v{copy.stem}"
    install_gguf(models, name, copy)
    copy.unlink()
    began = time.monotonic()
    status, values = chat(gguf_server, name, options=SHORT)
    assert time.monotonic() - began < 60
    if status != 200:  # some changes do no harm
        error = values["error"]
        allowed = {422: "integrity_error", 500: "engine_error", 502: "engine_died", 507: "out_of_memory"}
        more = {400: {"template_error", "context_length", "unsupported"}, 501: {"engine_missing"}}
        assert error["code"] == allowed.get(status) or error["code"] in more.get(status, ()), values
        assert len(error["message"]) < 1000
    assert chat(gguf_server, "echo", "still here")[1]["message"]["content"] == "still here"
    assert gguf_server.alive


def copy_sparse(source: Path, target: Path) -> None:
    header = read_gguf(source).data_offset
    with source.open("rb") as reading, target.open("wb") as writing:
        writing.write(reading.read(header))
        writing.truncate(source.stat().st_size)


def test_the_good_model_still_answers(gguf_server: Server) -> None:
    assert chat(gguf_server, "good", options=SHORT)[0] == 200
    assert get(gguf_server, "/health")[0] == 200
