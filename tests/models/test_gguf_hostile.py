"""Broken and hostile GGUF files are refused, or harmless: nothing else, never slowly, never in much memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from myllm_core.errors import IntegrityError
from myllm_core.models.gguf import GGUF, read_gguf

shared_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def read_or_refuse(path: Path) -> GGUF | None:
    begin = time.process_time()
    try:
        header = read_gguf(path)
    except IntegrityError as error:
        assert error.message.isprintable()
        assert len(error.message) < 500
        return None
    finally:
        assert time.process_time() - begin < 2
    # What was accepted can be used without surprises.
    assert isinstance(header.architecture + header.quantization, str)
    assert header.context_length + header.parameters >= 0
    assert header.split[0] >= 0 < header.split[1]
    assert header.chat_template is None or isinstance(header.chat_template, str)
    size = path.stat().st_size
    assert all(t.offset >= 0 and t.offset + t.nbytes <= size for t in header.tensors)
    return header


def cases(f: SimpleNamespace) -> dict[str, bytes]:
    huge = 2**62
    u32, u64, key, tensor, build = f.u32, f.u64, f.key, f.tensor, f.gguf_bytes

    def head(tensors: int, keys: int) -> bytes:
        return b"GGUF" + u32(3) + u64(tensors) + u64(keys)

    def one(value: bytes, name: str = "k") -> bytes:
        return build(keys=[key(name, value)])

    def shaped(*shape: int, kind: int = 0, offset: int = 0) -> bytes:
        return build(tensors=[tensor("a", shape, kind, offset)])

    nest = u32(9) + u64(1)
    return {
        "empty": b"",
        "magic only": b"GGUF",
        "another magic": b"GGML" + build()[4:],
        "tensor count 2^62": build(head=head(huge, 4)),
        "tensor count 2^64-1": build(head=head(2**64 - 1, 4)),
        "key count 2^62": build(head=head(2, huge)),
        "more keys than bytes": build(head=head(2, 60_000)),
        "key of 2^62 bytes": build(keys=[u64(huge)]),
        "empty key": build(keys=[key("", 1)]),
        "key with escapes": build(keys=[key("a\x1b[2J", 1)]),
        "key with umlaut": build(keys=[key("ä", 1)]),
        "key of 70000 bytes": build(keys=[key("k" * 70_000, 1)]),
        "key twice": build(keys=[key("a", 1), key("a", 2)]),
        "string of 2^62 bytes": one(u32(8) + u64(huge)),
        "string beyond the end": one(u32(8) + u64(10_000)),
        "string of 17 MiB": one(u32(8) + u64(17 * 2**20) + bytes(17 * 2**20)),
        "string in a long array beyond the end": one(u32(9) + u32(8) + u64(2000) + f.text("a") * 1999 + u64(5000)),
        "string of 2^63 bytes in a long array": one(u32(9) + u32(8) + u64(2000) + u64(2**63) + bytes(20_000)),
        "array of 2^62 numbers": one(u32(9) + u32(12) + u64(huge)),
        "array of 2^62 strings": one(u32(9) + u32(8) + u64(huge)),
        "array that overflows 2^64": one(u32(9) + u32(12) + u64(2**61)),
        "array of an unknown type": one(u32(9) + u32(13) + u64(1) + bytes(8)),
        "long array of an unknown type": one(u32(9) + u32(77) + u64(2000) + bytes(8000)),
        "nested 5 deep": one(u32(9) + nest * 5 + u32(0) + u64(0)),
        "nested 100000 deep": one(u32(9) + nest * 100_000 + u32(0) + u64(0)),
        "many nested arrays": one(u32(9) + u32(9) + u64(300_000) + (u32(0) + u64(0)) * 300_000),
        "value of type -1": one(u32(2**32 - 1) + bytes(8)),
        "bool of 2": one(u32(7) + b"\2"),
        "alignment 0": build(keys=[key("general.alignment", 0)]),
        "alignment 3": build(keys=[key("general.alignment", 3)]),
        "alignment 2^31": build(keys=[key("general.alignment", 2**31)]),
        "alignment as a string": build(keys=[key("general.alignment", "32")]),
        "alignment as uint64": one(u32(10) + u64(32), "general.alignment"),
        "alignment as array": one(u32(9) + u32(4) + u64(1) + u32(32), "general.alignment"),
        "architecture as a number": build(keys=[key("general.architecture", 1)]),
        "template as a number": build(keys=[key("tokenizer.chat_template", 1)]),
        "context as a string": build(keys=[key("general.architecture", "x"), key("x.context_length", "8")]),
        "context as a bool": build(keys=[key("general.architecture", "x"), key("x.context_length", True)]),
        "context of 2^63": build(
            keys=[key("general.architecture", "x"), key("x.context_length", u32(10) + u64(2**63))]
        ),
        "negative context": build(
            keys=[key("general.architecture", "x"), key("x.context_length", u32(5) + u32(2**32 - 1))]
        ),
        "10^6 blocks": build(keys=[key("general.architecture", "x"), key("x.block_count", 10**6)]),
        "file type as a string": build(keys=[key("general.file_type", "Q4_0")]),
        "tensor name of 64 bytes": build(tensors=[tensor("a" * 64, (4,))]),
        "tensor name of 2^62 bytes": build(tensors=[u64(huge) + bytes(40)]),
        "tensor name with escapes": build(tensors=[tensor("\x1b]0;x\x07", (4,))]),
        "tensor name twice": build(tensors=[tensor("a", (8,)), tensor("a", (8,), offset=32)]),
        "5 dimensions": shaped(1, 1, 1, 1, 1),
        "2^32-1 dimensions": build(tensors=[f.text("a") + u32(2**32 - 1) + bytes(64)]),
        "dimension of 2^63": shaped(2**63),
        "dimensions that overflow": shaped(2**32, 2**32),
        "dimensions that overflow to 0": shaped(2**32, 2**32, 2**32, 2**32),
        "0 times 2^64-1": shaped(0, 2**64 - 1),
        "row no multiple of the block": shaped(33, 32, kind=2),
        "type -1": shaped(4, kind=2**32 - 1),
        "removed type": shaped(32, kind=4),
        "unknown type": shaped(32, kind=1000),
        "offset 1": shaped(4, offset=1),
        "offset 32 for the first": shaped(4, offset=32),
        "offset 2^63": shaped(4, offset=2**63),
        "offset 2^64-32": shaped(4, offset=2**64 - 32),
        "tensors that overlap": build(tensors=[tensor("a", (16,)), tensor("b", (16,), offset=32)]),
        "tensor beyond the end": shaped(65),
        "tensor without data": build(tensors=[tensor("a", (4,))], data=0),
        "split as a string": build(keys=[key("split.count", "2")]),
    }


def test_broken_files_are_refused_at_once(tmp_path: Path, files: SimpleNamespace) -> None:
    path = tmp_path / "m.gguf"
    wrong = {}
    for name, data in cases(files).items():
        path.write_bytes(data)
        begin = time.process_time()
        if read_or_refuse(path) is not None:
            wrong[name] = "was accepted"
        elif time.process_time() - begin > 1:
            wrong[name] = "took too long"
    assert wrong == {}


_MEASURE = """
import json, re, sys, time
from pathlib import Path
from myllm_core.errors import IntegrityError
from myllm_core.models.gguf import read_gguf
results = {}
for path in map(Path, sys.argv[1:]):
    begin = time.process_time()
    try:
        read_gguf(path)
        outcome = "read"
    except IntegrityError:
        outcome = "refused"
    results[path.name] = outcome, time.process_time() - begin
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
print(json.dumps([results, int(peak[1]) / 1024]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_the_largest_that_is_allowed_stays_small_and_quick(tmp_path: Path, files: SimpleNamespace) -> None:
    """Sparse files at the limits: what they make the reader do is bounded in time and memory."""
    u32, u64, key = files.u32, files.u64, files.key
    starts: dict[str, tuple[bytes, int]] = {
        "numbers": (key("k", u32(9) + u32(12) + u64(60 * 2**20)), 500 * 2**20),
        "texts": (key("k", u32(9) + u32(8) + u64(4 * 2**20)), 40 * 2**20),
        "spread": (b"", 0),
        "beyond": (key("k", u32(9) + u32(12) + u64(64 * 2**20)), 2**40),
        "strings": (b"".join(key(f"k{i}", u32(8) + u64(15 * 2**20)) + bytes(15 * 2**20) for i in range(3)), 0),
        "lists": (b"".join(key(f"k{i}", u32(9) + u32(12) + u64(1000)) + bytes(8000) for i in range(5000)), 0),
        "keys": (b"".join(key(f"key{i}", 1) for i in range(65_000)), 0),
    }
    counts = {"lists": 5000, "keys": 65_000, "strings": 3}
    paths = []
    for name, (keys, size) in starts.items():
        path = tmp_path / name
        path.write_bytes(b"GGUF" + u32(3) + u64(0) + u64(counts.get(name, 1)) + keys)
        with path.open("r+b") as file:
            if name == "spread":  # texts far apart in a file that is mostly a hole
                step = 2**20
                file.seek(24)
                file.write(key("k", u32(9) + u32(8) + u64(500_000)))
                for _ in range(20_000):
                    file.write(u64(step))
                    file.seek(step, os.SEEK_CUR)
            file.truncate(max(size, path.stat().st_size))
        paths.append(path)
    tensors = tmp_path / "tensors"
    tensors.write_bytes(
        b"GGUF" + u32(3) + u64(100_000) + u64(0) + b"".join(files.tensor(f"t{i}", ()) for i in range(100_000))
    )
    paths.append(tensors)
    command = [sys.executable, "-c", _MEASURE, *map(str, paths)]
    results, mebibytes = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert {name: outcome for name, (outcome, _) in results.items()} == {
        "numbers": "read", "texts": "read", "spread": "refused", "beyond": "refused", "strings": "refused",
        "lists": "read", "keys": "read", "tensors": "refused",
    }  # fmt: skip
    assert max(seconds for _, seconds in results.values()) < 2
    assert mebibytes < 200


@pytest.fixture(scope="module")
def real_header(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the real model whose weights are a hole, so that it costs no disk."""
    path = tmp_path_factory.mktemp("gguf") / "real.gguf"
    with smollm2_gguf.open("rb") as source, path.open("wb") as target:
        target.write(source.read(read_gguf(smollm2_gguf).data_offset))
        target.truncate(smollm2_gguf.stat().st_size)
    return path


@pytest.mark.model
def test_the_real_model_cut_anywhere_is_refused(real_header: Path) -> None:
    whole = real_header.stat().st_size
    header = read_gguf(real_header)
    cuts = {whole * part // 8 for part in range(8)} | {header.data_offset * part // 32 for part in range(33)}
    cut = real_header.with_name("cut.gguf")
    shutil.copyfile(real_header, cut)
    for size in sorted(cuts, reverse=True):
        os.truncate(cut, size)
        assert read_or_refuse(cut) is None


@pytest.mark.model
@given(data=st.data())
@settings(shared_folder, max_examples=40)  # a tenth of a second each
def test_the_real_model_with_a_changed_byte(real_header: Path, data: st.DataObject) -> None:
    vocabulary = (900, 1_770_000)  # the ends of the header, where the structure is, are changed more often
    end = read_gguf(real_header).data_offset
    where = data.draw(st.integers(0, vocabulary[0]) | st.integers(vocabulary[1], end - 1) | st.integers(0, end - 1))
    value = data.draw(st.integers(0, 255))
    with real_header.open("r+b", buffering=0) as file:
        file.seek(where)
        [old] = file.read(1)
        try:
            file.seek(where)
            file.write(bytes([value]))
            read_or_refuse(real_header)
        finally:
            file.seek(where)
            file.write(bytes([old]))


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "scratch.gguf"


edits = st.lists(st.tuples(st.integers(0, 2**16), st.binary(min_size=1, max_size=9)), min_size=1, max_size=4)


@given(edits=edits, cut=st.none() | st.integers(0, 400))
@settings(shared_folder, max_examples=1500)
def test_a_small_file_with_changed_bytes(
    scratch: Path, files: SimpleNamespace, edits: list[tuple[int, bytes]], cut: int | None
) -> None:
    body = bytearray(files.gguf_bytes())
    structure = len(body) - 256
    for where, new in edits:
        at = where % structure
        body[at : at + len(new)] = new
    scratch.write_bytes(body[:cut])
    read_or_refuse(scratch)


values = st.recursive(
    st.tuples(st.sampled_from([0, 1, 4, 6, 7, 8, 10, 12, 13, 99]), st.binary(max_size=20)),
    lambda inner: st.tuples(st.just(9), st.integers(0, 3), inner, st.integers(0, 4)),
    max_leaves=4,
)


def encode(f: SimpleNamespace, value: Any) -> bytes:
    if len(value) == 2:
        kind, data = value
        return bytes(f.u32(kind) + (f.text(data) if kind == 8 else data))
    _, length, inner, repeat = value
    element = encode(f, inner)
    return bytes(f.u32(9) + element[:4] + f.u64(length) + element[4:] * repeat)


@given(values=st.lists(st.tuples(st.text(max_size=6), values), max_size=5), rest=st.binary(max_size=60))
@settings(shared_folder, max_examples=500)
def test_made_up_metadata(scratch: Path, files: SimpleNamespace, values: list[Any], rest: bytes) -> None:
    keys = [files.text(name) + encode(files, value) for name, value in values]
    scratch.write_bytes(files.gguf_bytes(keys=keys) + rest)
    read_or_refuse(scratch)


@given(st.binary(max_size=300))
@settings(shared_folder, max_examples=300)
def test_noise_after_the_magic(scratch: Path, noise: bytes) -> None:
    scratch.write_bytes(b"GGUF\3\0\0\0" + noise)
    read_or_refuse(scratch)
