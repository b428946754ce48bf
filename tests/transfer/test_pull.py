"""Names, sources and what they end in: the catalogue, fail-over, strangers' downloaders, names that are taken."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from myllm_core.errors import (
    IntegrityError,
    InvalidReference,
    InvalidRequest,
    ModelNotFound,
    MyllmError,
    NetworkError,
    NotFound,
    PluginError,
    UnsupportedError,
)
from myllm_core.models.manifest import Manifest
from myllm_core.models.store import ModelStore
from myllm_core.transfer.client import HttpClient
from myllm_core.transfer.fetch import Retry
from support.gguf import small_gguf
from support.pulling import Puller, StartServer
from support.wild_server import Exchange

DATA = small_gguf(20_000)
OTHER = small_gguf(20_000, seed=1)
SHA256 = hashlib.sha256(DATA).hexdigest()

AddPlugin = Callable[[str], None]


def good(exchange: Exchange) -> None:
    exchange.file(DATA)


def catalog(*sources: tuple[str, str], **facts: object) -> str:
    """A plugin whose catalogue knows ``tiny:1m``, also as ``tiny``, from these sources."""
    listed = ", ".join(f"Source({reference!r}, {sha256!r})" for reference, sha256 in sources)
    extra = "".join(f", {key}={value!r}" for key, value in facts.items())
    return (
        "from myllm_core import CatalogEntry, Source, hookimpl\n@hookimpl\ndef myllm_catalog():\n"
        f"    return [CatalogEntry('tiny:1m', ({listed},), aliases=('tiny', 'mini:x'){extra})]\n"
    )


def downloader(resolve: str, fetch: str = "raise NotImplementedError") -> str:
    """A plugin with a downloader ``odd:`` of this behaviour."""
    return (
        "import sys, time\nfrom myllm_core import Downloader, RemoteFile, Resolution, hookimpl\n"
        "class Odd(Downloader):\n    name = 'odd'\n    schemes = frozenset({'odd'})\n"
        f"    def resolve(self, reference):\n        {resolve}\n"
        f"    def fetch(self, file, sink):\n        {fetch}\n"
        "@hookimpl\ndef myllm_downloaders():\n    return [Odd]\n"
    )


RESOLVE = "return Resolution((RemoteFile('m.gguf'),), 'Odd One', reference.text, 'r1')"


# --- the catalogue ---


@pytest.mark.parametrize("name", ["tiny", "tiny:1m", "TINY", "mini:x"])
def test_a_catalogue_name_installs_with_all_that_the_catalogue_says(
    serve: StartServer, puller: Puller, add_plugin: AddPlugin, name: str
) -> None:
    server = serve(good)
    facts = {"options": {"temperature": 0.2}, "system": "Be brief.", "licence": "MIT", "context_size": 99}
    add_plugin(catalog((server.url(), SHA256.upper()), **facts))
    manifest = puller(name).manifest
    assert manifest.name == "tiny:1m"
    assert manifest.aliases == ("tiny:latest", "mini:x")
    assert (manifest.options, manifest.system, manifest.licence) == ({"temperature": 0.2}, "Be brief.", "MIT")
    assert (manifest.format, manifest.family, manifest.context_size) == ("gguf", "llama", 2048)
    assert manifest.source == server.url()
    assert manifest.revision == '"v1"'
    assert puller.store.get("tiny").name == "tiny:1m"


def test_under_another_name_the_aliases_stay_free(serve: StartServer, puller: Puller, add_plugin: AddPlugin) -> None:
    add_plugin(catalog((serve(good).url(), "")))
    assert puller("tiny", name="Mine:A").manifest.aliases == ()
    assert puller("tiny").name == "tiny:1m"
    assert [model.name for model in puller.store.list_models()] == ["mine:a", "tiny:1m"]


def test_what_is_there_is_returned_without_asking_anybody(
    serve: StartServer, puller: Puller, add_plugin: AddPlugin
) -> None:
    server = serve(good)
    add_plugin(catalog((server.url(), "")))
    first = puller("tiny")
    server.seen.clear()
    assert puller("tiny:1m") == first
    assert puller(server.url()) == first
    assert server.seen == []
    assert "installed already" in puller.told.text
    puller("tiny", force=True)
    assert len(server.seen) == 2
    assert len(puller.store.list_models()) == 1


def test_a_damaged_model_is_fetched_again(serve: StartServer, puller: Puller, add_plugin: AddPlugin) -> None:
    add_plugin(catalog((serve(good).url(), "")))
    puller("tiny").paths[0].unlink()
    assert puller.bytes_of(puller("tiny")) == DATA


@pytest.mark.parametrize("moment", ["transfer.install.inspect_files", "models.store.ModelStore.commit", "after"])
def test_ctrl_c_while_the_model_is_put_in_place(
    serve: StartServer, puller: Puller, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    server = serve(good)
    old = puller(server.url())
    commit = ModelStore.commit

    def commit_and_interrupt(store: ModelStore, manifest: Manifest) -> None:
        commit(store, manifest)
        raise KeyboardInterrupt

    late = moment == "after"
    with monkeypatch.context() as patch:
        if late:
            patch.setattr(ModelStore, "commit", commit_and_interrupt)
        else:
            patch.setattr(f"myllm_core.{moment}", interrupt)
        with pytest.raises(KeyboardInterrupt):
            puller(server.url(), force=True)
    (there,) = puller.store.list_models()
    assert puller.bytes_of(there) == DATA
    assert (there.paths == old.paths) is not late
    assert puller.partial_bytes == (0 if late else len(DATA))
    server.seen.clear()
    puller(server.url(), force=True)
    assert len(server.seen) == (2 if late else 1)  # what was here was used


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_unknown_names(puller: Puller, add_plugin: AddPlugin) -> None:
    add_plugin(catalog(("odd:x", "")))
    with pytest.raises(ModelNotFound, match=r"did you mean tiny.*myllm pull --list") as caught:
        puller("tinny")
    assert "tiny" in caught.value.data["suggestions"]
    with pytest.raises(ModelNotFound, match="in the catalogue; see"):
        puller("zzzzzz")


def test_a_name_that_was_pulled_from_elsewhere(serve: StartServer, puller: Puller) -> None:
    server = serve(good)
    puller(server.url(), name="mine")
    assert puller("mine").name == "mine:latest"
    with pytest.raises(InvalidRequest, match=f"myllm pull {server.url()} --name mine:latest --force"):
        puller("mine", force=True)


@pytest.mark.parametrize("name", ["My_Model!.gguf", "model.gguf"])
def test_a_file_that_looks_like_a_name(
    puller: Puller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(DATA)
    with pytest.raises(InvalidReference, match=re.escape(f"write ./{name}")):
        puller(name)
    assert puller.bytes_of(puller(f"./{name}")) == DATA


# --- several sources ---


def test_the_next_source_is_tried_and_the_reason_told(
    serve: StartServer, puller: Puller, add_plugin: AddPlugin
) -> None:
    wrong = serve(lambda exchange: exchange.file(OTHER))
    missing = serve(lambda exchange: exchange.answer(status=404))
    right = serve(good)
    add_plugin(
        catalog(
            ("none:such/plugin", ""), ("http://127.0.0.1:9/m.gguf", ""), (missing.url(), ""), (wrong.url(), SHA256),
            (right.url(), SHA256),
        )
    )  # fmt: skip
    model = puller("tiny")
    assert puller.bytes_of(model) == DATA
    assert model.manifest.source == right.url()
    for reason in ("no installed downloader knows none:", "connection refused", "404", "should be " + SHA256):
        assert reason in puller.told.text
    assert list(puller.store.partials_dir.iterdir()) == []


def test_when_no_source_works_all_reasons_are_told(serve: StartServer, puller: Puller, add_plugin: AddPlugin) -> None:
    missing = serve(lambda exchange: exchange.answer(status=404))
    add_plugin(catalog(("http://127.0.0.1:9/m.gguf?token=canary", ""), (missing.url(), "")))
    with pytest.raises(NetworkError, match=r"no source of tiny:1m worked.*connection refused.*404") as caught:
        puller("tiny")
    assert "canary" not in caught.value.message + puller.told.text
    puller.assert_nothing_installed()


@pytest.mark.parametrize("fault", ["silent", "stalls", "busy", "hangs"])
def test_a_source_that_does_not_answer_costs_little_when_there_is_another(
    serve: StartServer, puller: Puller, add_plugin: AddPlugin, fault: str
) -> None:
    def handler(exchange: Exchange) -> None:
        if fault == "silent" or (fault == "stalls" and exchange.number):
            exchange.wait(60)
        elif fault == "busy" and exchange.number:
            exchange.answer(status=503, Retry_After="60")
        else:
            good(exchange)

    first = "odd:x" if fault == "hangs" else serve(handler).url()
    add_plugin(downloader("time.sleep(60)"))
    add_plugin(catalog((first, ""), (serve(good).url(), "")))
    begin = time.monotonic()
    model = puller("tiny", patience=1.0, client=HttpClient(), retry=Retry())
    assert puller.bytes_of(model) == DATA
    assert time.monotonic() - begin < 12
    assert "didn't work" in puller.told.text


# --- names that are taken, hashes that are asked for ---


def test_a_name_taken_by_another_source(serve: StartServer, puller: Puller) -> None:
    server = serve(lambda e: e.file(OTHER if "other" in e.target else DATA))
    puller(server.url("/a/m.gguf"))
    with pytest.raises(InvalidRequest, match=r"--name, or replace it with --force"):
        puller(server.url("/other/m.gguf"))
    assert puller(server.url("/other/m.gguf"), name="m2").name == "m2:latest"
    assert puller.bytes_of(puller(server.url("/other/m.gguf"), force=True)) == OTHER
    assert {model.name for model in puller.store.list_models()} == {"m:latest", "m2:latest"}


def test_a_new_version_at_the_same_address_is_mentioned(serve: StartServer, puller: Puller) -> None:
    etag = '"v1"'
    server = serve(lambda e: e.file(DATA, etag=etag))
    puller(server.url("/m.gguf?x=1"))
    etag = '"v2"'
    assert puller(server.url("/m.gguf?x=1")).manifest.revision == '"v1"'
    assert "has changed at its source since; --force" in puller.told.text


def test_the_hash_that_was_asked_for(serve: StartServer, puller: Puller) -> None:
    server = serve(good)
    for bad in ("abc", "z" * 64):
        with pytest.raises(InvalidRequest, match="no sha256"):
            puller(server.url(), sha256=bad)
    model = puller(server.url(), sha256="sha256:" + SHA256.upper())
    assert model.manifest.files[0].sha256 == SHA256
    with pytest.raises(IntegrityError, match="is installed, but its sha256 is"):
        puller(server.url(), sha256="0" * 64)


def test_a_source_that_says_another_hash_itself(puller: Puller, add_plugin: AddPlugin) -> None:
    add_plugin(downloader("return Resolution((RemoteFile('m.gguf', sha256='A' * 64),), 'x', 'odd:x')"))
    with pytest.raises(IntegrityError, match="its source says that its sha256 is " + "a" * 64):
        puller("odd:x", sha256=SHA256)


def test_names_from_outside_never_leave_the_models_directory(puller: Puller, add_plugin: AddPlugin) -> None:
    add_plugin(downloader(RESOLVE.replace("Odd One", "../../etc/x"), f"sink.write({DATA!r})"))
    assert puller("odd:x").name == "etc-x:latest"
    for name in ("../x", "a/b", "..", "", "con"):
        with pytest.raises(InvalidReference):
            puller("odd:x", name=name or " ")


# --- strangers' downloaders ---


def test_a_downloader_without_urls(puller: Puller, add_plugin: AddPlugin) -> None:
    body = f"d = {DATA!r}; sink.expect(len(d)); sink.message('unpacking'); (sink.folder() / 'x').write_bytes(d)"
    add_plugin(downloader(RESOLVE, body + "; print('noise'); [sink.write(d[i:i+999]) for i in range(0, len(d), 999)]"))
    model = puller("odd:x")
    assert model.name == "odd-one:latest"
    assert puller.bytes_of(model) == DATA
    assert puller.told.messages == ["unpacking"]
    assert puller.told.files[-1] == ("m.gguf", len(DATA), len(DATA))
    assert list(puller.store.partials_dir.iterdir()) == []


def test_the_echo_plugin(puller: Puller) -> None:
    model = puller("echo:hi")
    assert (model.name, model.format, puller.bytes_of(model)) == ("echo:hi", "echo", b"echo\n")
    assert json.loads((model.folder / "manifest.json").read_text())["licence"] == "MIT"


@pytest.mark.parametrize(
    ("resolve", "fetch", "error", "says"),
    [
        ("1 / 0", "", PluginError, "odd downloader failed: ZeroDivisionError"),
        ("sys.exit(3)", "", PluginError, "SystemExit"),
        ("return None", "", PluginError, "gave no files"),
        ("return Resolution((), 'x', 'odd:x')", "", PluginError, "gave no files"),
        (RESOLVE, "1 / 0", PluginError, "failed at m.gguf: ZeroDivisionError"),
        (RESOLVE, "sys.exit()", PluginError, "failed at m.gguf: SystemExit"),
        (RESOLVE, "pass", IntegrityError, "m.gguf is empty"),
        (RESOLVE, "sink.expect(5); sink.write(b'abc')", IntegrityError, "should have 5 bytes, but 3 came"),
        (RESOLVE, "sink.expect(2); sink.write(b'abc')", IntegrityError, "more than the 2 bytes"),
        (RESOLVE, "sink.expect(10**18)", MyllmError, "not enough disk space"),
        (RESOLVE, "sink.write(b'#!/bin/sh')", IntegrityError, "GGUF"),
        (RESOLVE, "Downloader.fetch(self, file, sink)", UnsupportedError, "gave no URL"),
        ("return Resolution((RemoteFile('../m.gguf'),), 'x', 'odd:x')", "", IntegrityError, "isn't safe"),
        ("return Resolution((RemoteFile('m'), RemoteFile('M')), 'x', 'odd:x')", "", IntegrityError, "twice"),
        ("return Resolution((RemoteFile('m', 'file:///etc/passwd'),), 'x', 'odd:x')", "", NetworkError, "no scheme"),
        ("raise OSError(5, 'disk')", "", PluginError, "OSError"),
    ],
)  # fmt: skip
def test_downloaders_that_misbehave(
    puller: Puller, add_plugin: AddPlugin, resolve: str, fetch: str, error: type[MyllmError], says: str
) -> None:
    add_plugin(downloader(resolve, fetch or "pass"))
    with pytest.raises(error, match=says):
        puller("odd:x")
    puller.assert_nothing_installed()
    assert puller.partial_bytes == 0 or "expect" in fetch


def test_g4_another_file_in_place_of_the_rest_costs_no_bytes(
    serve: StartServer, puller: Puller, add_plugin: AddPlugin
) -> None:
    fault = "cut"

    def handler(exchange: Exchange) -> None:
        if fault == "cut":
            exchange.file(DATA, stop=5000)
        elif fault == "other":
            exchange.answer(b"Service for paying guests only", ETag='"x"')
        else:
            exchange.file(DATA)

    server = serve(handler)
    file = f"RemoteFile('m.gguf', {server.url()!r}, {len(DATA)})"
    add_plugin(downloader(f"return Resolution(({file},), 'm', reference.text, 'r1')"))
    with pytest.raises(NetworkError):
        puller("odd:x")
    fault = "other"
    with pytest.raises(IntegrityError, match=f"should have {len(DATA)} bytes, but the source has 30"):
        puller("odd:x")
    assert puller.partial_bytes == 5000
    fault = ""
    assert puller.bytes_of(puller("odd:x")) == DATA
    assert server.seen[-1].headers["range"] == "bytes=5000-"


def test_a_new_revision_takes_nothing_from_the_old_one(
    serve: StartServer, puller: Puller, add_plugin: AddPlugin, tmp_path: Path
) -> None:
    """G4 for files that were whole already."""
    revision = tmp_path / "revision"
    server = serve(lambda e: e.answer(status=404) if "config" in e.target else e.file(DATA))
    files = f"RemoteFile('m.gguf', {server.url('/m.gguf')!r}), RemoteFile('config.json', {server.url('/config')!r})"
    read = f"__import__('pathlib').Path({str(revision)!r}).read_text()"
    add_plugin(downloader(f"return Resolution(({files}), 'two', reference.text, {read})"))
    revision.write_text("r1")
    with pytest.raises(NotFound):
        puller("odd:x")
    assert puller.partial_bytes == len(DATA)
    revision.write_text("r2")
    server.handler = lambda e: e.file(OTHER if "gguf" in e.target else b"{}", etag="")
    assert puller.bytes_of(puller("odd:x")) == OTHER


def test_files_that_are_whole_are_not_fetched_twice(serve: StartServer, puller: Puller, add_plugin: AddPlugin) -> None:
    """G1 for a model of several files: the second is missing at first."""
    there = False

    def handler(exchange: Exchange) -> None:
        if "config" in exchange.target and not there:
            exchange.answer(status=404)
        else:
            exchange.file(DATA if "gguf" in exchange.target else b"{}")

    server = serve(handler)
    files = f"RemoteFile('m.gguf', {server.url('/m.gguf')!r}), RemoteFile('sub/config.json', {server.url('/config')!r})"
    add_plugin(downloader(f"return Resolution(({files}), 'two', reference.text, 'r1')"))
    with pytest.raises(NotFound):
        puller("odd:x")
    puller.assert_nothing_installed()
    assert puller.partial_bytes == len(DATA)
    there = True
    server.seen.clear()
    model = puller("odd:x")
    assert [exchange.target for exchange in server.seen] == ["/config"]
    assert [path.read_bytes() for path in model.paths] == [DATA, b"{}"]
    assert [file.path.partition("/")[2] for file in model.manifest.files] == ["m.gguf", "sub/config.json"]
