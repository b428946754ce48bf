"""The command, with models of known sizes."""

from types import SimpleNamespace

import pytest
from myllm_disk import disk

from myllm_core.models.store import ModelStore
from support.server import install_echo


@pytest.fixture
def context(tmp_path):
    install_echo(tmp_path, "one:latest")
    install_echo(tmp_path, "two:latest")
    return SimpleNamespace(obj=SimpleNamespace(models=ModelStore(tmp_path)))


def test_every_model_is_told_and_their_sum(context, capsys):
    disk(context)
    assert capsys.readouterr().out.splitlines()[-1].split() == ["0.0", "MB", "in", "2", "models"]


def test_small_ones_can_be_left_out(context, capsys):
    disk(context, over=1.0)
    assert "in 0 models" in capsys.readouterr().out
