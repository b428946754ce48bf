"""The command, with models of known sizes."""

from types import SimpleNamespace

import pytest
from myllm_disk import disk

from myllm_core import Manifest, ModelFile
from myllm_core.models.manifest import write_manifest
from myllm_core.models.store import ModelStore


@pytest.fixture
def context(tmp_path):
    for name, size in (("small", 300_000), ("large", 2_000_000)):
        folder = tmp_path / f"{name}@latest"
        folder.mkdir()
        (folder / "weights.bin").write_bytes(bytes(size))
        file = ModelFile("weights.bin", size, "0" * 64)
        write_manifest(folder / "manifest.json", Manifest(f"{name}:latest", "odd", (file,)))
    return SimpleNamespace(obj=SimpleNamespace(models=ModelStore(tmp_path)))


def test_every_model_is_told_the_largest_first_and_their_sum(context, capsys):
    disk(context)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [["2.0", "MB", "large:latest"], ["0.3", "MB", "small:latest"], ["2.3", "MB", "in", "2", "models"]]


def test_small_ones_can_be_left_out(context, capsys):
    disk(context, over=1.0)
    assert "small" not in capsys.readouterr().out
