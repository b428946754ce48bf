"""From an hf: reference to an installed model: this plugin's resolution, the core's transfer, a hub on a socket."""

from __future__ import annotations

import hashlib

import pytest

from myllm_core.errors import IntegrityError, NetworkError
from myllm_core.models.store import ModelStore
from myllm_core.models.verify import verify
from myllm_core.plugins import load_plugins
from myllm_core.transfer.fetch import Retry
from myllm_core.transfer.pull import pull
from myllm_core.transfer.repair import repair


class Silent:
    def message(self, text):
        pass

    def file(self, path, done, total):
        pass


@pytest.fixture
def fetch(tmp_path):
    store = ModelStore(tmp_path / "models")

    def run(reference, **more):
        retry = Retry(attempts=1, first=0.01)
        return pull(reference, plugins=load_plugins(), store=store, progress=Silent(), retry=retry, **more)

    run.store = store
    return run


def test_a_gguf_is_installed_with_what_the_hub_says_of_it(hub, fetch):
    files = {"tiny-Q4_K_M.gguf": hub.gguf, "tiny-Q8_0.gguf": hub.gguf + b"8" * 32}
    hub.add("maker/Tiny-GGUF", files, card={"license": "mit"})
    model = fetch("hf:maker/Tiny-GGUF")
    assert model.name == "tiny:q4_k_m"
    assert model.paths[0].read_bytes() == hub.gguf
    manifest = model.manifest
    assert (manifest.format, manifest.family, manifest.context_size) == ("gguf", "llama", 2048)
    assert (manifest.source, manifest.revision, manifest.licence) == ("hf:maker/Tiny-GGUF:Q4_K_M", hub.commit, "mit")
    assert [m.name for m in fetch.store.list_models()] == ["tiny:q4_k_m"]


def test_a_projector_comes_with_its_model_and_isnt_taken_for_it(hub, fetch):
    projector = hub.shard(architecture="clip")
    hub.add("maker/Seeing-GGUF", {"mmproj-F16.gguf": projector, "seeing-Q4_K_M.gguf": hub.gguf})
    model = fetch("hf:maker/Seeing-GGUF", sha256=hashlib.sha256(hub.gguf).hexdigest())
    assert [path.name for path in model.paths] == ["seeing-Q4_K_M.gguf", "mmproj-F16.gguf"]
    assert (model.manifest.family, model.manifest.size) == ("llama", len(hub.gguf) + len(projector))
    assert verify(model, lambda path, done, size: None) == []


def test_the_token_stays_with_the_hub(hub, fetch, monkeypatch):
    hub.tokens.add("granted")
    monkeypatch.setenv("HF_TOKEN", "granted")
    hub.add("meta/gated-GGUF", {"gated-Q4_0.gguf": hub.gguf}, gated="manual")
    fetch("hf:meta/gated-GGUF")
    resolved = [token for method, _, token in hub.asked("/meta/gated-GGUF/resolve/") if method == "GET"]
    assert resolved == ["granted"]
    assert [token for _, _, token in hub.asked("/cdn/")] == [""], "the other host gets no token"


def test_a_safetensors_model_is_installed_whole(hub, fetch):
    header = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    weights = len(header).to_bytes(8, "little") + header + bytes(8)
    config = b'{"model_type": "llama", "max_position_embeddings": 4096}'
    hub.add("maker/plain", {"config.json": config, "tokenizer.json": b"{}", "model.safetensors": weights, "a.py": b"0"})
    model = fetch("hf:maker/plain")
    assert (model.name, model.format) == ("plain:latest", "safetensors")
    assert sorted(path.name for path in model.paths) == ["config.json", "model.safetensors", "tokenizer.json"]


def test_shards_lie_side_by_side(hub, fetch):
    shards = {f"Q8_0/big-Q8_0-{n:05}-of-00002.gguf": hub.shard(n - 1, 2) for n in (1, 2)}
    hub.add("maker/big-GGUF", shards)
    model = fetch("hf:maker/big-GGUF:q8_0")
    assert [path.name for path in model.paths] == ["big-Q8_0-00001-of-00002.gguf", "big-Q8_0-00002-of-00002.gguf"]


def test_content_that_isnt_what_the_listing_says_is_never_installed(hub, fetch):
    hub.add("maker/tiny-GGUF", {"tiny-Q4_0.gguf": hub.gguf})
    hub.lies["maker/tiny-GGUF"] = hub.gguf[:-1] + b"!"
    with pytest.raises(IntegrityError, match="sha256"):
        fetch("hf:maker/tiny-GGUF")
    assert fetch.store.list_models() == []


def test_a_commit_that_moves_on_between_two_pulls_changes_nothing_unasked(hub, fetch):
    hub.add("maker/tiny-GGUF", {"tiny-Q4_0.gguf": hub.gguf})
    first = fetch("hf:maker/tiny-GGUF")
    hub.repos["maker/tiny-GGUF"].files["tiny-Q4_0.gguf"] = hub.gguf + bytes(32)
    assert fetch("hf:maker/tiny-GGUF").manifest == first.manifest
    assert fetch("hf:maker/tiny-GGUF", force=True).manifest.files[0].size == len(hub.gguf) + 32


def test_a_hub_that_breaks_after_the_listing_is_a_network_error(hub, fetch):
    hub.add("maker/tiny-GGUF", {"tiny-Q4_0.gguf": hub.gguf})
    hub.breaks_at = "/maker/tiny-GGUF/resolve/"
    with pytest.raises(NetworkError):
        fetch("hf:maker/tiny-GGUF")
    hub.breaks_at = ""
    assert fetch("hf:maker/tiny-GGUF").paths[0].read_bytes() == hub.gguf


def test_a_damaged_file_is_mended_from_the_commit_that_was_pulled(hub, fetch):
    config = b'{"model_type": "llama", "max_position_embeddings": 4096}'
    header = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    weights = len(header).to_bytes(8, "little") + header + bytes(8)
    hub.add("maker/plain", {"config.json": config, "model.safetensors": weights})
    model = fetch("hf:maker/plain")
    hub.repos["maker/plain"].revisions = (hub.commit,)  # the branch is gone, or leads elsewhere
    for path in model.paths:
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    problems = verify(model, lambda path, done, size: None)
    mended = repair(model, problems, plugins=load_plugins(), store=fetch.store, progress=Silent())
    assert sorted(path.rpartition("/")[2] for path in mended) == ["config.json", "model.safetensors"]
    assert verify(model, lambda path, done, size: None) == []
