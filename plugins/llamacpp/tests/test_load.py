"""Loading and unloading: options, damaged files, memory, and what importing costs."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gguf
import psutil
import pytest
from myllm_llamacpp import memory
from myllm_llamacpp.engine import LlamaCppEngine
from myllm_llamacpp.options import LoadSettings

from myllm_core import Manifest, Model, ModelFile
from myllm_core.errors import EngineError, InvalidOption, OutOfMemory
from myllm_core.models.gguf import read_gguf
from myllm_core.plugins import load_plugins

GUARDED_LOAD = """
import sys
from pathlib import Path
from myllm_core import Manifest, Model, ModelFile
from myllm_core.errors import MyllmError
from myllm_llamacpp.engine import LlamaCppEngine
path = Path(sys.argv[1])
model = Model(Manifest("bad:latest", "gguf", (ModelFile(path.name, 0, ""),)), path.parent)
try:
    LlamaCppEngine.load(model, {"n_ctx": 256, "n_threads": 1}, lambda fraction: None).close()
    print("loaded")
except MyllmError as error:
    print(type(error).__name__, error)
"""


def guarded_load(path: Path) -> str:
    """Load in a process of its own, since native code may end it; what it said."""
    done = subprocess.run([sys.executable, "-c", GUARDED_LOAD, path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"it died with {done.returncode}: {done.stderr[-500:]}"
    return done.stdout.strip()


def model_at(path: Path) -> Model:
    return Model(Manifest("test:latest", "gguf", (ModelFile(path.name, path.stat().st_size, ""),)), path.parent)


def test_the_plugin_is_found_and_imports_nothing_heavy():
    code = """
import sys
import myllm_llamacpp
[engine] = myllm_llamacpp.myllm_engines()
print(engine.name, sorted(engine.formats), [option.name for option in engine.load_options])
print([name for name in ("llama_cpp", "numpy") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0].startswith("llamacpp ['gguf'] ['n_ctx', 'n_parallel'")
    assert done.stdout.splitlines()[1] == "[]"
    assert load_plugins().engine("llamacpp").__name__ == "LlamaCppEngine"


def test_probe_says_what_it_can_load_and_what_is_missing(smollm2_gguf, monkeypatch):
    model = model_at(smollm2_gguf)
    assert LlamaCppEngine.probe(model).score == 100
    assert LlamaCppEngine.probe(model).missing is None
    other = Model(replace(model.manifest, format="onnx"), model.folder)
    assert LlamaCppEngine.probe(other).score == 0
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    support = LlamaCppEngine.probe(model)
    assert (support.score, support.missing, support.install) == (
        100,
        "llama-cpp-python",
        'pip install "myllm[llamacpp]"',
    )


def test_progress_goes_from_0_to_1_and_what_it_raises_stops_the_loading(smollm2_gguf):
    seen: list[float] = []
    LlamaCppEngine.load(model_at(smollm2_gguf), {"n_ctx": 256, "n_threads": 1}, seen.append).close()
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0.0, 1.0)

    def stop(fraction: float) -> None:
        if fraction > 0.3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LlamaCppEngine.load(model_at(smollm2_gguf), {"n_ctx": 256}, stop)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_ctx": -1}, "load option n_ctx: .*greater than or equal to 0"),
        ({"n_ctx": 5}, "n_ctx 5 is too small; set 0"),
        ({"n_ctx": "big"}, "load option n_ctx: .*integer"),
        ({"n_ctx": True}, "load option n_ctx: .*integer"),
        ({"n_parallel": 257}, "load option n_parallel: .*256"),
        ({"n_batch": 4, "n_parallel": 8}, "n_batch 4 must not be below n_parallel 8"),
        ({"type_k": "q3"}, "load option type_k: .*'f16'"),
        ({"flash_attn": "off", "type_v": "q8_0"}, "type_v q8_0 needs flash attention"),
        ({"use_mmap": 1}, "load option use_mmap: .*boolean"),
        ({"rpc_servers": "x"}, "unknown load option rpc_servers; known: n_ctx, "),
    ],
)
def test_a_wrong_option_is_named(smollm2_gguf, options, message):
    with pytest.raises(InvalidOption, match=message):
        LlamaCppEngine.load(model_at(smollm2_gguf), options, lambda fraction: None)


@pytest.mark.parametrize(
    "options",
    [
        {"type_k": "q8_0", "type_v": "q8_0"},
        {"type_k": "bf16", "type_v": "bf16"},
        {"type_k": "f32", "type_v": "iq4_nl"},
        {"flash_attn": "off", "kv_unified": False},
        {"use_mmap": False},
        {"n_batch": 2, "n_parallel": 1},
        {"n_gpu_layers": 0, "swa_full": True, "use_mlock": True},
    ],
)
def test_options_that_change_how_it_runs_do_not_change_what_it_says(load, options):
    driver = load(**{"n_ctx": 512} | options)
    [reply] = driver.run("The capital of France is", tokens=2)
    assert driver.text(reply).startswith(" Paris")


def test_a_cache_type_that_does_not_fit_the_model_is_an_error(load, tiny):
    with pytest.raises(EngineError, match="does not divide.*choose type_k and type_v f16"):
        load(tiny["narrow"], type_k="q8_0")


def test_more_memory_than_there_is_is_refused_before_it_is_taken(load):
    with pytest.raises(OutOfMemory, match=r"needs \d+ MiB .* set a smaller n_ctx") as caught:
        load(n_ctx=2**24)
    assert caught.value.data["needed"] > caught.value.data["free"] > 0


def test_closing_twice_gives_the_memory_back(smollm2_gguf):
    process = psutil.Process()
    LlamaCppEngine.load(model_at(smollm2_gguf), {"n_ctx": 256}, lambda fraction: None).close()
    before = process.memory_info().rss
    for _ in range(3):
        engine = LlamaCppEngine.load(model_at(smollm2_gguf), {"n_ctx": 8192, "n_threads": 1}, lambda fraction: None)
        engine.embed(["some text"])
        assert process.memory_info().rss - before > 150 * 2**20
        engine.close()
        engine.close()
    assert process.memory_info().rss - before < 40 * 2**20


def test_the_estimate_is_near_what_loading_takes(smollm2_gguf):
    code = """
import sys, psutil
from pathlib import Path
from myllm_core import Manifest, Model, ModelFile
from myllm_llamacpp.engine import LlamaCppEngine
from myllm_llamacpp.bindings import library
path = Path(sys.argv[1])
model = Model(Manifest("test:latest", "gguf", (ModelFile(path.name, path.stat().st_size, ""),)), path.parent)
library()
before = psutil.Process().memory_info().rss
options = {"n_ctx": 8192, "n_threads": 1}
engine = LlamaCppEngine.load(model, options, lambda fraction: None)
print(psutil.Process().memory_info().rss - before, LlamaCppEngine.estimate(model, options).host)
"""
    done = subprocess.run([sys.executable, "-c", code, smollm2_gguf], capture_output=True, text=True, check=True)
    taken, estimated = map(int, done.stdout.split())
    assert 0.85 * taken < estimated < 1.3 * taken


def test_an_estimate_grows_with_context_and_shrinks_with_smaller_cache_types(smollm2_gguf):
    model = model_at(smollm2_gguf)
    host = lambda **options: LlamaCppEngine.estimate(model, options).host  # noqa: E731
    per_token = 30 * 3 * 2 * 64 * 2  # layers, KV heads, K and V, head size, bytes
    mask = 2 * 512  # two bytes for each token of a batch
    assert host(n_ctx=8192) - host(n_ctx=4096) == 4096 * (per_token + mask)
    assert host(n_ctx=8192, type_k="q8_0", type_v="q8_0") < host(n_ctx=8192)


@pytest.mark.parametrize(
    ("trained", "options", "free", "tokens"),
    [
        (8192, {}, 2**40, 16_384),
        (8192, {"n_ctx": 1000}, 2**40, 1000),
        (131_072, {}, 2**40, memory.AUTO_LIMIT),
        (131_072, {"n_parallel": 1}, 2**40, memory.AUTO_LIMIT),
        (2048, {"n_parallel": 4}, 2**40, 8192),
        (8192, {"n_parallel": 2, "kv_unified": False}, 2**40, 16_384),
        (8192, {}, 0, 2048),
        (512, {}, 0, 512),
        (0, {"n_parallel": 1}, 2**40, memory.AUTO_LIMIT),
    ],
)
def test_the_context_is_chosen_by_model_and_memory(smollm2_gguf, trained, options, free, tokens):
    shape = replace(memory.shape_of(read_gguf(smollm2_gguf)), trained_context=trained)
    assert shape.context(LoadSettings.parse(options), 0, free) == tokens


def test_memory_decides_between_the_extremes(smollm2_gguf):
    shape = memory.shape_of(read_gguf(smollm2_gguf))
    tokens = shape.context(LoadSettings(), 100 * 2**20, 1100 * 2**20)
    assert 2048 < tokens < 16_384
    assert tokens * shape.cache_bytes(LoadSettings()) <= 0.25 * 1000 * 2**20


def damage(source: bytes, kind: str) -> bytes:
    if kind == "not a model":
        return b"<html>404 not found</html>" * 100
    if kind == "empty":
        return b""
    if kind == "cut":
        return source[: len(source) // 2]
    if kind == "no tensors named":
        return source.replace(b"blk.0.attn_q.weight", b"blk.0.attn_z.weight")
    if kind == "unknown architecture":
        return source.replace(b"llama", b"lloma")
    return source.replace(b"tokenizer.ggml.model", b"tokenizer.ggml.mudel")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("not a model", "IntegrityError .*GGUF header"),
        ("empty", "IntegrityError .*GGUF header"),
        ("cut", "IntegrityError .*it isn't whole"),
        ("no tensors named", "EngineError .*tensor 'blk.0.attn_q.weight' not found.*pull it again"),
        ("unknown architecture", "EngineError .*architecture 'lloma'; update it"),
        ("no tokenizer", "EngineError .*tokenizer.ggml.model"),
    ],
)
def test_a_damaged_file_is_an_error_and_no_crash(tiny, tmp_path, kind, message):
    path = tmp_path / "bad.gguf"
    path.write_bytes(damage(tiny["llama"].read_bytes(), kind))
    assert re.match(message, guarded_load(path))


def test_damage_in_the_weights_is_noticed_when_it_makes_nonsense(load, tiny, tmp_path):
    path = tmp_path / "nan.gguf"
    data = bytearray(tiny["llama"].read_bytes())
    tensor = next(t for t in read_gguf(tiny["llama"]).tensors if t.name == "output_norm.weight")
    data[tensor.offset : tensor.offset + tensor.nbytes] = b"\xff" * tensor.nbytes
    path.write_bytes(data)
    driver = load(path)
    [reply] = driver.run([10, 11])
    assert isinstance(reply.error, EngineError)
    assert "isn't a number" in str(reply.error)
    with pytest.raises(EngineError, match="isn't a number"):
        driver.engine.embed(["hello"])


def test_a_model_in_several_files_is_loaded_whole(load, tiny, tmp_path):
    names = [f"m-{number:05}-of-00002.gguf" for number in (1, 2)]
    files = tuple(ModelFile(name, (tiny["parts"] / name).stat().st_size, "") for name in names)
    engine = LlamaCppEngine.load(
        Model(Manifest("parts:latest", "gguf", files), tiny["parts"]), {"n_ctx": 256, "n_threads": 1}, lambda _: None
    )
    try:
        assert engine.facts.vocab_size == load(tiny["llama"]).engine.facts.vocab_size
    finally:
        engine.close()


def test_what_is_no_model_is_refused(tiny, tmp_path):
    path = tmp_path / "adapter.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(EngineError, match="type adapter, which can't be run by itself"):
        LlamaCppEngine.load(model_at(path), {}, lambda fraction: None)
    with pytest.raises(EngineError, match="no gguf file"):
        LlamaCppEngine.load(model_at(Path(__file__)), {}, lambda fraction: None)


def test_every_load_option_is_in_the_readme_with_its_default():
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    rows = [line.split("|") for line in readme.splitlines() if line.startswith("| `")]
    documented = {name.strip(" `"): row[2].strip(" `") for row in rows for name in row[1].split(",")}
    for option in LlamaCppEngine.load_options:
        assert documented.get(option.name) == str(option.default).lower(), option.name
