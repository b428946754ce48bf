"""``bench``: what it measures, what it says, and how it ends."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import gguf
import numpy as np
import pytest

from myllm_cli.bandwidth import bytes_per_token, read_bandwidth
from myllm_core.models.manifest import Manifest, Model, ModelFile

from .conftest import Myllm

ROW = 64


def write_gguf(path: Path, tensors: dict[str, int], **numbers: int) -> Model:
    """A model whose tensors have so many bytes each."""
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in numbers.items():
        writer.add_uint32(f"llama.{name}", value)
    for name, size in tensors.items():
        writer.add_tensor(name, np.zeros((size // 4 // ROW, ROW), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = ModelFile(path.name, path.stat().st_size, "0" * 64)
    return Model(Manifest("tiny:latest", "gguf", (file,)), path.parent)


def test_every_weight_is_read_for_a_token(tmp_path: Path) -> None:
    tied = write_gguf(tmp_path / "tied.gguf", {"token_embd.weight": 4096, "blk.0.ffn_up.weight": 8192})
    assert bytes_per_token(tied) == 4096 + 8192


def test_but_single_rows_of_an_embedding_table_and_few_experts(tmp_path: Path) -> None:
    tensors = {"token_embd.weight": 4096, "output.weight": 4096, "blk.0.ffn_up_exps.weight": 16384}
    model = write_gguf(tmp_path / "experts.gguf", tensors, expert_count=8, expert_used_count=2)
    assert bytes_per_token(model) == 4096 + 16384 // 4


def test_the_bandwidth_is_that_of_memory() -> None:
    assert 5e8 < read_bandwidth() < 5e12


def test_a_model_is_measured(with_echo: Myllm) -> None:
    done = with_echo("bench", "echo", "--load-option", "delay_ms=1", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["model"], found["engine"], found["bytes_per_token"]) == ("echo:latest", "echo", 5)
    assert [one["parallel"] for one in found["writing"]] == [1, 4, 8]
    assert len(found["reading"]) == 2
    alone, *together = (one["tokens_per_second"] for one in found["writing"])
    assert 0 < alone < 1000  # a word takes a millisecond at least
    assert all(one > 1.5 * alone for one in together)
    assert found["reached"] == pytest.approx(alone / found["limit_tokens_per_second"])
    assert 0.001 < found["first_token_seconds"] < 5


def test_it_reads_as_a_list_with_progress_on_standard_error(with_echo: Myllm) -> None:
    done = with_echo("bench", "echo", "--load-option", "delay_ms=1")
    assert done.returncode == 0, done.stderr
    lines = [line.split("  ")[0] for line in done.stdout.splitlines()]
    assert {
        "model",
        "load",
        "first token",
        "writing, 1 at a time",
        "writing, 8 at a time",
        "limit by memory",
        "reached of it",
    } <= set(lines)
    assert "Measuring how fast it writes 4 at a time" in done.stderr


def test_control_c_ends_it(with_echo: Myllm) -> None:
    arguments = ("bench", "echo", "--load-option", "delay_ms=100")
    process = with_echo.start(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stderr is not None
    while b"first token" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=20)
    assert (process.returncode, said) == (130, b"")
    assert b"Traceback" not in errors


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(("nothing",), 3), (("echo", "--load-option", "delay_ms=soon"), 2), (("echo", "--load-option", "x"), 2)],
)
def test_what_is_wrong_is_said(with_echo: Myllm, arguments: tuple[str, ...], code: int) -> None:
    done = with_echo("bench", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert "Error: " in done.stderr and "Traceback" not in done.stderr


@pytest.mark.model
def test_the_real_model_is_measured(myllm: Myllm, smollm2_gguf: Path) -> None:
    assert myllm("pull", f"file:{smollm2_gguf}", "--name", "smollm2").returncode == 0
    done = myllm("bench", "smollm2", "--json", timeout=110)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["engine"] == "llamacpp"
    assert found["bytes_per_token"] == pytest.approx(96.5e6, rel=0.01)
    assert [one["parallel"] for one in found["writing"]] == [1, 4, 8]
    assert [one["tokens"] for one in found["reading"]] == pytest.approx([128, 512], rel=0.2)
    assert found["memory_bytes"] > 100e6
    assert 0 < found["reached"] < 1.5
