"""``myllm convert`` as people use it: what it makes runs, and what ends it early leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from myllm_optimum.engine import OptimumEngine
from myllm_optimum.files import older_config

from myllm_core import Model
from myllm_core.engine import Sequence
from myllm_core.models.store import ModelStore
from myllm_core.testing import EngineCase, EngineContract
from myllm_core.testing.engine.abilities import AbilityTests
from myllm_core.testing.engine.declared import DeclaredTests
from myllm_core.testing.engine.given import GREEDY
from support.vectors import assert_vectors_agree

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.timeout(600)

OPTIONS = {"max_length": 640, "intra_op_num_threads": 1}


class Home:
    """A models directory, and the program on it."""

    def __init__(self, folder: Path) -> None:
        self.store = ModelStore(folder / "models")
        self.environment = {**os.environ, "MYLLM_DATA_DIR": str(folder / "data")}

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "myllm_cli", "--models-dir", str(self.store.models_dir), *words]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = self.command(*words)
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=300)

    def files(self) -> list[str]:
        """What lies in the models directory, without lock files."""
        found = (path.relative_to(self.store.models_dir).as_posix() for path in self.store.models_dir.rglob("*"))
        return sorted(name for name in found if not name.startswith("."))


@pytest.fixture(scope="module")
def home(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    made = Home(tmp_path_factory.mktemp("home"))
    pulled = made.run("pull", str(tiny))
    assert pulled.returncode == 0, pulled.stderr
    yield made


@pytest.fixture(scope="module")
def converted(home: Home) -> Model:
    done = home.run("convert", "tiny", "--to", "onnx")
    assert done.returncode == 0, done.stderr
    assert "tiny-onnx" in done.stdout
    return home.store.get("tiny-onnx")


def test_a_converted_model_is_installed_whole(home: Home, converted: Model) -> None:
    assert (converted.format, converted.manifest.family) == ("onnx", "llama")
    assert converted.manifest.context_size == 2048
    assert home.store.broken() == []
    assert home.run("verify", "tiny-onnx").returncode == 0
    answer = home.run("run", "tiny-onnx", "--max-tokens", "4", "Hello")
    assert answer.returncode == 0 and answer.stdout.strip(), answer.stderr


def test_it_computes_what_the_model_computes(tiny: Path, converted: Model) -> None:
    ids = list(range(300, 340))
    engine = EngineCase(OptimumEngine, converted, {**OPTIONS, "chunk_size": 16}).load()
    try:
        engine.add(Sequence(1, ids, GREEDY, 8, logprobs=2))
        outs = [out for _ in range(12) for out in engine.step()][:8]
    finally:
        engine.close()
    config = older_config(json.loads((tiny / "config.json").read_text()))
    config.pop("model_type")
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        tiny, config=transformers.LlamaConfig(**config), dtype=torch.float32
    )
    tokens = [*ids, *(out.token for out in outs)]
    with torch.no_grad():
        logprobs = torch.log_softmax(reference(torch.tensor([tokens])).logits[0, len(ids) - 1 : -1], -1).numpy()
    assert [int(row.argmax()) for row in logprobs] == [out.token for out in outs]
    assert np.allclose(logprobs.max(-1), [out.logprob for out in outs], atol=1e-3)


def test_a_taken_name_is_kept(home: Home, converted: Model) -> None:
    before = home.files()
    done = home.run("convert", "tiny")
    assert done.returncode == 2 and "--force" in done.stderr
    assert home.files() == before


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["tiny", "--to", "gguf"], 2, "onnx"),
        (["none"], 3, "not installed"),
        (["tiny-onnx"], 7, "safetensors"),
        (["tiny", "--name", "../x"], 2, "name"),
    ],
)
def test_what_cant_be_done_is_said_in_a_line(
    home: Home, converted: Model, words: list[str], code: int, said: str
) -> None:
    done = home.run("convert", *words)
    assert said in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.returncode != 0 and done.stdout == ""


def test_ctrl_c_leaves_nothing(home: Home) -> None:
    before = home.files()
    command = home.command("convert", "tiny", "--name", "stopped")
    with subprocess.Popen(command, env=home.environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "Converting" in process.stderr.readline()
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert home.files() == before


def test_a_model_that_cant_be_exported_leaves_nothing(home: Home, tiny: Path, tmp_path: Path) -> None:
    strange = tmp_path / "strange"
    strange.mkdir()
    for path in tiny.iterdir():
        (strange / path.name).write_bytes(path.read_bytes())
    config = json.loads((strange / "config.json").read_text()) | {"model_type": "no_such_type"}
    (strange / "config.json").write_text(json.dumps(config))
    assert home.run("pull", str(strange)).returncode == 0
    before = home.files()
    done = home.run("convert", "strange")
    assert done.returncode == 7 and "no_such_type" in done.stderr.splitlines()[-1]
    assert home.files() == before


class TestDecoder(EngineContract):
    @pytest.fixture
    def case(self, converted: Model) -> EngineCase:
        return EngineCase(OptimumEngine, converted, OPTIONS, patience=240)


@pytest.fixture(scope="module")
def encoder(home: Home, minilm: Path) -> Model:
    for words in (["pull", str(minilm)], ["convert", "all-minilm-l6-v2", "--name", "vectors"]):
        done = home.run(*words)
        assert done.returncode == 0, done.stderr
    return home.store.get("vectors")


def test_vectors_are_sentence_transformers(encoder: Model) -> None:
    engine = EngineCase(OptimumEngine, encoder, {"intra_op_num_threads": 1}).load()
    assert_vectors_agree(engine, 1e-6)
    engine.close()


class TestEncoder(DeclaredTests, AbilityTests):
    """What concerns a model that only makes embeddings."""

    @pytest.fixture
    def case(self, encoder: Model) -> EngineCase:
        return EngineCase(OptimumEngine, encoder, {"intra_op_num_threads": 1}, patience=240)
