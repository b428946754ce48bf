from __future__ import annotations

import errno
import io
from collections.abc import Callable
from pathlib import Path

import pytest

from myllm_core.models import blocks
from myllm_core.models import verify as verifying
from myllm_core.models.blocks import BlockHasher, write_blocks
from myllm_core.models.manifest import Manifest, Model
from myllm_core.models.verify import verify

Install = Callable[..., Model]


def quiet(path: str, done: int, total: int) -> None:
    """No progress wanted."""


def test_a_whole_model_has_no_problem_and_progress_is_told(install: Install) -> None:
    model = install("a:1")
    seen = []
    assert verify(model, lambda *told: seen.append(told)) == []
    [file] = model.manifest.files
    assert seen == [(file.path, file.size, file.size)]


@pytest.mark.model
def test_the_real_model(install: Install, smollm2_gguf: Path) -> None:
    model = install("smollm2:135m", smollm2_gguf.read_bytes())
    done = []
    assert verify(model, lambda path, count, total: done.append(count)) == []
    assert done == sorted(done)
    assert done[-1] == model.manifest.size
    with model.paths[0].open("r+b") as weights:  # one bit, far inside the weights
        weights.seek(50_000_000)
        [byte] = weights.read(1)
        weights.seek(50_000_000)
        weights.write(bytes([byte ^ 1]))
    [problem] = verify(model, quiet)
    assert problem.path == model.manifest.files[0].path
    assert "has changed: its sha256 is" in problem.message
    assert model.manifest.files[0].sha256 in problem.message


def test_a_file_that_is_gone(install: Install) -> None:
    model = install("a:1")
    model.paths[0].unlink()
    [problem] = verify(model, quiet)
    assert "is missing" in problem.message


def test_what_was_installed_without_being_a_model(install: Install) -> None:
    [problem] = verify(install("a:1", b"<html>not found</html>"), quiet)
    assert "web page" in problem.message


def test_a_remote_model_has_nothing_to_check(tmp_path: Path) -> None:
    assert verify(Model(Manifest("a:1", "remote", ()), tmp_path), quiet) == []


def test_a_disk_that_cannot_read_some_blocks(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bad range is named, so that the rest can be saved."""

    class Rotten(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() >= 100:
                raise OSError(errno.EIO, "Input/output error")
            return super().read(min(size or 0, 100 - self.tell()))

    monkeypatch.setattr(blocks, "BLOCK_SIZE", 100)
    model = install("a:1")
    data = model.paths[0].read_bytes()
    [file] = model.manifest.files
    hasher = BlockHasher()
    hasher.update(data)
    revision, _, path = file.path.partition("/")
    write_blocks(model.folder, revision, {path: (file.sha256, hasher.finish())})
    real = verifying.open_regular
    monkeypatch.setattr(verifying, "open_regular", lambda path: Rotten(data) if path in model.paths else real(path))
    [problem] = verify(model, quiet)
    assert "Input/output error" in problem.message
    assert problem.ranges == ((100, len(data)),)


def test_many_ranges_are_not_all_said(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_SIZE", 10)
    model = install("a:1")
    data = model.paths[0].read_bytes()
    [file] = model.manifest.files
    hasher = BlockHasher()
    hasher.update(data)
    revision, _, path = file.path.partition("/")
    write_blocks(model.folder, revision, {path: (file.sha256, hasher.finish())})
    changed = bytearray(data)
    changed[5::20] = bytes(byte ^ 1 for byte in changed[5::20])
    model.paths[0].write_bytes(changed)
    [problem] = verify(model, quiet)
    assert problem.ranges is not None
    assert problem.ranges[:2] == ((0, 10), (20, 30))
    assert (
        f"damaged: bytes 0-9, 20-29, 40-49, 60-69, 80-89 and {len(problem.ranges) - 5} more ranges" in problem.message
    )
