"""The hf: downloader against a hub on a real socket."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import time

import pytest
from myllm_huggingface.downloader import HuggingFaceDownloader

from myllm_core.errors import InvalidReference, NetworkError, NotFound
from myllm_core.models.reference import parse_reference


def resolve(text):
    return HuggingFaceDownloader().resolve(parse_reference(text, frozenset({"hf"})))


@pytest.mark.parametrize(
    ("source", "pinned"),
    [
        ("hf:a/b", "hf:a/b@c0ffee"),
        ("hf:a/b:Q4_K_M", "hf:a/b@c0ffee:Q4_K_M"),
        ("hf:a/b@refs/pr/3:sub/x.gguf", "hf:a/b@c0ffee:sub/x.gguf"),
    ],
)
def test_a_source_is_pinned_to_a_commit(source, pinned):
    reference = HuggingFaceDownloader().pin(parse_reference(source, frozenset({"hf"})), "c0ffee")
    assert reference == parse_reference(pinned, frozenset({"hf"}))


@pytest.fixture
def tiny(hub):
    """A repository with three quantizations, the way publishers of GGUF files lay them out."""
    files = {f"tiny-instruct-{q}.gguf": hub.gguf + q.encode() for q in ("Q2_K", "Q4_K_M", "Q8_0")}
    hub.add("maker/tiny-instruct-GGUF", files | {"README.md": b"# tiny"}, card={"license": "apache-2.0"})
    return hub


def test_a_reference_becomes_a_pinned_url_with_size_and_hash(tiny):
    resolution = resolve("hf:maker/tiny-instruct-GGUF")
    (file,) = resolution.files
    data = tiny.repos["maker/tiny-instruct-GGUF"].files["tiny-instruct-Q4_K_M.gguf"]
    assert file.url == f"{tiny.url}/maker/tiny-instruct-GGUF/resolve/{tiny.commit}/tiny-instruct-Q4_K_M.gguf"
    assert (file.path, file.size) == ("tiny-instruct-Q4_K_M.gguf", len(data))
    assert file.sha256 == hashlib.sha256(data).hexdigest()
    assert file.headers == {}
    assert resolution.name == "tiny-instruct:q4_k_m"
    assert resolution.source == "hf:maker/tiny-instruct-GGUF:Q4_K_M"
    assert (resolution.revision, resolution.licence) == (tiny.commit, "apache-2.0")


@pytest.mark.parametrize("selector", ["q8_0", "Q8_0", "tiny-instruct-Q8_0.gguf"])
def test_quantization_and_file_name_select_the_same_file(tiny, selector):
    resolution = resolve(f"hf:maker/tiny-instruct-GGUF:{selector}")
    assert [f.path for f in resolution.files] == ["tiny-instruct-Q8_0.gguf"]
    assert resolution.name == "tiny-instruct:q8_0"
    assert resolution.source == "hf:maker/tiny-instruct-GGUF:Q8_0"


def test_a_revision_is_asked_for_and_kept_in_the_source(hub):
    hub.add("maker/tiny-GGUF", {"tiny-Q4_0.gguf": hub.gguf}, revisions=("main", "refs/pr/3", hub.commit))
    resolution = resolve("hf:maker/tiny-GGUF@refs/pr/3:Q4_0")
    assert resolution.source == "hf:maker/tiny-GGUF@refs/pr/3:Q4_0"
    assert resolution.revision == hub.commit
    assert hub.commit in resolution.files[0].url


def test_what_a_source_says_resolves_to_the_same_files_again(hub):
    hub.add("maker/two", {"a-Q4_K_M.gguf": hub.gguf, "sub/b-Q4_K_M.gguf": hub.gguf, "only-Q8_0.gguf": hub.gguf})
    for selector in ("a-Q4_K_M.gguf", "sub/b-Q4_K_M.gguf", "Q8_0"):
        first = resolve(f"hf:maker/two:{selector}")
        assert resolve(first.source) == first
    assert resolve("hf:maker/two:sub/b-Q4_K_M.gguf").name == "b-q4_k_m:latest"
    assert resolve("hf:maker/two:sub/b-Q4_K_M.gguf").files[0].path == "b-Q4_K_M.gguf"


def test_safetensors_of_a_plain_repository(hub):
    names = ["config.json", "tokenizer.json", "model.safetensors", "pytorch_model.bin", "modeling.py"]
    hub.add("maker/Plain", {name: b"x" * 40 for name in names}, tags=["license:mit"])
    resolution = resolve("hf:maker/Plain")
    assert [f.path for f in resolution.files] == ["model.safetensors", "config.json", "tokenizer.json"]
    assert [bool(f.sha256) for f in resolution.files] == [True, False, False]
    assert (resolution.name, resolution.source, resolution.licence) == ("plain:latest", "hf:maker/Plain", "mit")
    hub.repos["maker/Plain"].files["plain-Q4_0.gguf"] = hub.gguf
    both = resolve("hf:maker/Plain:safetensors")
    assert (both.source, both.name) == ("hf:maker/Plain:model.safetensors", "plain:model.safetensors")
    assert resolve(both.source) == both


def test_a_licence_called_other_gives_its_name(hub):
    card = {"license": "other", "license_name": "gemma"}
    hub.add("maker/g-GGUF", {"g-Q4_0.gguf": hub.gguf}, card=card)
    assert resolve("hf:maker/g-GGUF").licence == "gemma"


def test_the_token_of_the_environment_goes_along(hub, monkeypatch):
    hub.tokens.add("secret")
    monkeypatch.setenv("HF_TOKEN", "secret")
    hub.add("maker/private-GGUF", {"p-Q4_0.gguf": hub.gguf}, private=True)
    resolution = resolve("hf:maker/private-GGUF")
    assert resolution.files[0].headers == {"authorization": "Bearer secret"}
    assert "secret" not in repr(resolution)


def test_an_unknown_repository_says_how_to_search(hub):
    with pytest.raises(NotFound, match=r"no model maker/nothing .*/models\?search=nothing"):
        resolve("hf:maker/nothing")


def test_an_unknown_repository_with_a_good_token_is_not_found_too(hub, monkeypatch):
    hub.tokens.add("secret")
    monkeypatch.setenv("HF_TOKEN", "secret")
    with pytest.raises(NotFound, match="maker/nothing"):
        resolve("hf:maker/nothing")


def test_a_bad_token_is_named_and_not_shown(tiny, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "stale-token")
    with pytest.raises(NetworkError, match="renew HF_TOKEN") as caught:
        resolve("hf:maker/tiny-instruct-GGUF")
    assert "stale-token" not in str(caught.value)


def test_unknown_revision(tiny):
    with pytest.raises(NotFound, match="has no revision v9"):
        resolve("hf:maker/tiny-instruct-GGUF@v9")


def test_unknown_quantization_lists_the_known_ones(tiny):
    with pytest.raises(NotFound, match=r"Q2_K \(0\.1 MB\), Q4_K_M \(0\.1 MB\), Q8_0"):
        resolve("hf:maker/tiny-instruct-GGUF:Q5_K_M")


@pytest.mark.parametrize("token", ["", "not-granted"])
def test_a_gated_repository_says_what_to_do_before_the_download(hub, monkeypatch, token):
    hub.add("meta/gated-GGUF", {"gated-Q4_0.gguf": hub.gguf}, gated="manual")
    if token:
        hub.tokens.add(token)
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(NetworkError, match=r"gated: accept its licence at .*/meta/gated-GGUF, then set HF_TOKEN"):
        resolve("hf:meta/gated-GGUF")


def test_a_gated_repository_opens_to_whoever_has_access(hub, monkeypatch):
    hub.tokens.add("granted")
    monkeypatch.setenv("HF_TOKEN", "granted")
    hub.add("meta/gated-GGUF", {"gated-Q4_0.gguf": hub.gguf}, gated="auto")
    assert resolve("hf:meta/gated-GGUF").name == "gated:q4_0"
    assert not [r for r in hub.requests if r[1].startswith("/cdn/")], "the redirect to the content isn't followed"


def test_a_server_error_is_asked_once_more_and_then_reported(tiny):
    tiny.failures = [503]
    assert resolve("hf:maker/tiny-instruct-GGUF").files
    tiny.requests.clear()
    tiny.failures = [503, 502, 500]
    with pytest.raises(NetworkError, match="answers 502"):
        resolve("hf:maker/tiny-instruct-GGUF")
    assert len(tiny.asked("/api/models/")) == 2


def test_too_many_requests_are_not_repeated(tiny):
    tiny.failures = [429]
    with pytest.raises(NetworkError, match="too many requests"):
        resolve("hf:maker/tiny-instruct-GGUF")
    assert len(tiny.asked("/api/models/")) == 1


def test_a_login_page_is_no_hub(tiny):
    tiny.html = True
    with pytest.raises(NetworkError, match="didn't answer like a model hub"):
        resolve("hf:maker/tiny-instruct-GGUF")


def test_an_unreachable_hub_is_said_quickly(hub, monkeypatch):
    from huggingface_hub import constants

    with socket.socket() as taken:  # bound and not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(NetworkError, match="can't be reached .* check the connection"):
            resolve("hf:maker/tiny-GGUF")
    assert time.monotonic() - start < 5


def test_a_silent_hub_is_given_up(hub, monkeypatch):
    import myllm_huggingface.hub as module
    from huggingface_hub import constants

    monkeypatch.setattr(module, "TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        start = time.monotonic()
        with pytest.raises(NetworkError, match="can't be reached"):
            resolve("hf:maker/tiny-GGUF")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    "text",
    [
        "hf:tiny",
        "hf:a/b/c",
        "hf:owner/re po",
        "hf:../../etc/passwd",
        "hf:owner/repo@",
        "hf:owner/repo:",
        "hf:owner/-repo",
        "hf:own..er/repo",
        "hf://owner/repo",
        "hf:owner/repo?x=1",
        "hf:owner/" + "r" * 200,
    ],
)
def test_what_cant_be_a_repository_is_refused_without_asking(hub, text):
    with pytest.raises(InvalidReference, match="write hf:owner/repo"):
        resolve(text)
    assert hub.asked("/api/models") == []


def test_hub_settings_come_from_the_environment(tiny, tmp_path):
    """A process of its own, because huggingface_hub reads its settings once, when it is imported."""
    tiny.tokens.add("from-env")
    env = os.environ | {"HF_ENDPOINT": tiny.url, "HF_HOME": str(tmp_path), "HF_TOKEN": "from-env"}
    script = (
        "import json, sys\n"
        "from myllm_core.errors import MyllmError\n"
        "from myllm_core.models.reference import parse_reference\n"
        "from myllm_huggingface.downloader import HuggingFaceDownloader\n"
        "try:\n"
        "    r = HuggingFaceDownloader().resolve(parse_reference('hf:maker/tiny-instruct-GGUF', frozenset({'hf'})))\n"
        "    print(json.dumps([r.name, r.files[0].url, dict(r.files[0].headers)]))\n"
        "except MyllmError as error:\n"
        "    print(json.dumps(error.to_dict()))\n"
    )

    def run(env):
        done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=60)
        return json.loads(done.stdout)

    name, url, headers = run(env)
    assert (name, headers) == ("tiny-instruct:q4_k_m", {"authorization": "Bearer from-env"})
    assert url.startswith(tiny.url)
    offline = run(env | {"HF_HUB_OFFLINE": "1"})
    assert offline["code"] == "network_error"
    assert "HF_HUB_OFFLINE" in offline["message"]


def test_the_plugin_is_found_and_imports_no_hub_library():
    script = (
        "import sys\n"
        "from myllm_core import load_plugins\n"
        "assert 'hf' in load_plugins().downloaders()\n"
        "print([m for m in sys.modules if m.startswith(('huggingface_hub', 'httpx'))])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
