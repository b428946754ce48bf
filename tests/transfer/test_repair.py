"""Damaged models: found, told where, and mended from where they came from."""

from __future__ import annotations

import mmap
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from myllm_core.errors import IntegrityError, MyllmError, NetworkError, NotFound, Overloaded
from myllm_core.models import blocks
from myllm_core.models.manifest import Model
from myllm_core.models.verify import Problem, verify
from myllm_core.transfer.client import HttpClient
from myllm_core.transfer.repair import repair
from support.gguf import small_gguf
from support.pulling import QUICK, Puller, StartServer
from support.wild_server import Exchange, Handler, WildServer

BLOCK = 100_000
DATA = small_gguf(1_050_000)
AddPlugin = Callable[[str], None]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_SIZE", BLOCK)


def good(exchange: Exchange) -> None:
    exchange.file(DATA)


def quiet(path: str, done: int, total: int) -> None:
    """No progress wanted."""


def damage(path: Path, *places: int) -> None:
    """Flip a bit at each place."""
    with path.open("r+b") as file:
        for place in places:
            file.seek(place)
            [byte] = file.read(1)
            file.seek(place)
            file.write(bytes([byte ^ 1]))


def problems_of(puller: Puller, model: Model) -> list[Problem]:
    return verify(puller.store.unchecked(model.name), quiet)


def mend(puller: Puller, model: Model) -> list[str]:
    client = HttpClient(connect_timeout=2.0, stall_timeout=0.4)
    return repair(
        model,
        problems_of(puller, model),
        plugins=puller.plugins,
        store=puller.store,
        progress=puller.told,
        client=client,
        retry=QUICK,
    )


def pulled(serve: StartServer, puller: Puller, handler: Handler = good) -> tuple[WildServer, Model]:
    """A model from a good server, which goes over to ``handler`` then."""
    server = serve(good)
    model = puller(server.url(), name="m:1")
    server.handler = handler
    server.seen.clear()
    return server, model


def assert_whole(puller: Puller, model: Model) -> None:
    assert problems_of(puller, model) == []
    assert puller.bytes_of(puller.store.get(model.name)) == DATA
    assert list(puller.store.partials_dir.iterdir()) == []


def ranges_asked_for(server: WildServer) -> list[str]:
    return [exchange.headers["range"] for exchange in server.seen if "range" in exchange.headers]


def test_only_the_bad_blocks_are_fetched(serve: StartServer, puller: Puller) -> None:
    server, model = pulled(serve, puller)
    damage(model.paths[0], 5, 350_000, 420_000, len(DATA) - 1)
    [problem] = problems_of(puller, model)
    assert problem.ranges == ((0, 100_000), (300_000, 500_000), (1_000_000, len(DATA)))
    assert f"bytes 0-99999, 300000-499999, 1000000-{len(DATA) - 1}" in problem.message
    assert mend(puller, model) == [model.manifest.files[0].path]
    assert_whole(puller, model)
    assert ranges_asked_for(server) == ["bytes=0-99999", "bytes=300000-499999", f"bytes=1000000-{len(DATA) - 1}"]


def test_a_file_that_is_gone_short_long_or_no_file(serve: StartServer, puller: Puller) -> None:
    server, model = pulled(serve, puller)
    [path] = model.paths
    path.unlink()
    [problem] = problems_of(puller, model)
    assert (problem.ranges, "is missing" in problem.message) == (None, True)
    mend(puller, model)
    assert_whole(puller, model)
    os.truncate(path, 720_000)
    [problem] = problems_of(puller, model)
    assert problem.ranges == ((700_000, len(DATA)),)
    server.seen.clear()
    mend(puller, model)
    assert_whole(puller, model)
    assert ranges_asked_for(server) == [f"bytes=700000-{len(DATA) - 1}"]
    with path.open("ab") as file:
        file.write(b"too much")
    server.seen.clear()
    [problem] = problems_of(puller, model)
    assert problem.ranges == ()
    mend(puller, model)
    assert_whole(puller, model)
    assert server.seen == []  # all that is needed was here
    path.unlink()
    path.mkdir()
    assert len(problems_of(puller, model)) == 1
    with pytest.raises(MyllmError, match="a folder is where a file should be"):
        mend(puller, model)


def test_a_model_without_block_hashes_is_fetched_as_a_whole_and_has_them_then(
    serve: StartServer, puller: Puller
) -> None:
    server, model = pulled(serve, puller)
    [kept] = model.folder.glob("*.blocks.json")
    kept.unlink()
    damage(model.paths[0], 5)
    [problem] = problems_of(puller, model)
    assert problem.ranges is None
    mend(puller, model)
    assert_whole(puller, model)
    assert ranges_asked_for(server) == []
    damage(model.paths[0], 5)
    [problem] = problems_of(puller, model)
    assert problem.ranges == ((0, BLOCK),)


def test_who_has_the_file_open_keeps_it(serve: StartServer, puller: Puller) -> None:
    _, model = pulled(serve, puller)
    damage(model.paths[0], 5)
    before = model.paths[0].read_bytes()
    with model.paths[0].open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        mend(puller, model)
        assert mapped[:] == before
    assert_whole(puller, model)


def test_a_server_that_sends_only_whole_files(serve: StartServer, puller: Puller) -> None:
    _, model = pulled(serve, puller, lambda exchange: exchange.answer(DATA, ETag='"v1"'))
    damage(model.paths[0], 350_000)
    mend(puller, model)
    assert_whole(puller, model)
    assert "the source sends only whole files" in puller.told.text


@pytest.mark.parametrize("content_range", ["", "bytes 0-99999/{size}", "bytes 300000-{size}/{size}", "nonsense"])
def test_a_server_with_its_own_idea_of_ranges(serve: StartServer, puller: Puller, content_range: str) -> None:
    def handler(exchange: Exchange) -> None:
        if exchange.headers.get("range", "").startswith("bytes=300000-"):
            headers = {"Content_Range": content_range.format(size=len(DATA))} if content_range else {}
            exchange.answer(DATA[:BLOCK], 206, ETag='"v1"', **headers)
        else:
            exchange.file(DATA)

    _, model = pulled(serve, puller, handler)
    damage(model.paths[0], 350_000)
    mend(puller, model)
    assert_whole(puller, model)


def test_connections_that_break_are_gone_on_with(serve: StartServer, puller: Puller) -> None:
    def handler(exchange: Exchange) -> None:
        exchange.file(DATA, stop=exchange.start + 30_000 if "range" in exchange.headers else None)

    server, model = pulled(serve, puller, handler)
    damage(model.paths[0], 150_000, 250_000)
    mend(puller, model)
    assert_whole(puller, model)
    starts = [int(asked[6:].partition("-")[0]) for asked in ranges_asked_for(server)]
    assert starts == [100_000, 130_000, 160_000, 190_000, 220_000, 250_000, 280_000]


def assert_unchanged(puller: Puller, model: Model, before: bytes) -> None:
    assert puller.bytes_of(model) == before
    assert [path.name for path in model.folder.iterdir() if path.is_dir()] == [model.manifest.files[0].path[:14]]


def test_a_source_that_says_it_changed(serve: StartServer, puller: Puller) -> None:
    server, model = pulled(serve, puller, lambda exchange: exchange.file(DATA, etag='"v2"'))
    damage(model.paths[0], 350_000)
    before = puller.bytes_of(model)
    with pytest.raises(IntegrityError, match=r"has changed since it was pulled; .*myllm pull NAME --force"):
        mend(puller, model)
    assert ranges_asked_for(server) == []
    assert_unchanged(puller, model, before)


def test_a_source_of_another_size(serve: StartServer, puller: Puller) -> None:
    _, model = pulled(serve, puller, lambda exchange: exchange.file(DATA + b"more"))
    damage(model.paths[0], 350_000)
    with pytest.raises(IntegrityError, match="has changed since it was pulled"):
        mend(puller, model)


@pytest.mark.parametrize("known", [True, False], ids=["bad blocks", "whole file"])
def test_a_source_that_changed_without_saying_so(serve: StartServer, puller: Puller, known: bool) -> None:
    other = bytearray(DATA)
    other[350_001] ^= 1
    _, model = pulled(serve, puller, lambda exchange: exchange.file(bytes(other)))
    if not known:
        [kept] = model.folder.glob("*.blocks.json")
        kept.unlink()
    damage(model.paths[0], 350_000)
    before = puller.bytes_of(model)
    with pytest.raises(IntegrityError, match="has changed since" if known else "is not the expected file"):
        mend(puller, model)
    assert_unchanged(puller, model, before)
    assert len(problems_of(puller, model)) == 1


def test_a_source_that_does_not_answer(serve: StartServer, puller: Puller) -> None:
    server, model = pulled(serve, puller)
    server.__exit__()
    damage(model.paths[0], 350_000)
    before = puller.bytes_of(model)
    with pytest.raises(NetworkError, match="can't connect"):
        mend(puller, model)
    assert_unchanged(puller, model, before)


def test_a_source_that_breaks_for_good_leaves_all_as_it_was(serve: StartServer, puller: Puller) -> None:
    def handler(exchange: Exchange) -> None:
        exchange.file(DATA, stop=0 if "range" in exchange.headers else None)

    _, model = pulled(serve, puller, handler)
    damage(model.paths[0], 350_000)
    before = puller.bytes_of(model)
    with pytest.raises(NetworkError, match="nothing was changed: try again later"):
        mend(puller, model)
    assert_unchanged(puller, model, before)


def test_what_cannot_be_asked_for_again(serve: StartServer, puller: Puller) -> None:
    model = puller(serve(good).url("/model.gguf?token=secret"), name="m:1")
    damage(model.paths[0], 5)
    with pytest.raises(IntegrityError, match="an address with a query") as caught:
        mend(puller, model)
    assert "secret=" not in caught.value.message and "token" not in caught.value.message


def test_a_file_of_this_machine(puller: Puller, tmp_path: Path) -> None:
    origin = tmp_path / "mine.gguf"
    origin.write_bytes(DATA)
    model = puller(str(origin), name="m:1")
    damage(model.paths[0], 5, 900_000)
    mend(puller, model)
    assert_whole(puller, model)
    damage(model.paths[0], 5)
    origin.write_bytes(small_gguf(1_050_000, seed=1))
    with pytest.raises(IntegrityError, match="has changed since it was pulled"):
        mend(puller, model)
    origin.unlink()
    with pytest.raises(NotFound):
        mend(puller, model)


PINNING = """
from myllm_core import Downloader, Reference, RemoteFile, Resolution, hookimpl
MYLLM_API = 1
class Hub(Downloader):
    name, schemes = "hub", frozenset({{"hub"}})
    def resolve(self, reference):
        version = reference.rest.partition("@")[2] or "2"
        files = tuple(RemoteFile(f"{{n}}/m.gguf", f"{url}/{{version}}/{{n}}") for n in ("a", "b"))
        return Resolution(files[: {count}], "m", "hub:it", version)
    def pin(self, reference, revision):
        return Reference("hub", f"{{reference.rest}}@{{revision}}", reference.text)
@hookimpl
def myllm_downloaders():
    return [Hub]
"""


def test_the_pinned_revision_is_asked_for(serve: StartServer, puller: Puller, add_plugin: AddPlugin) -> None:
    def handler(exchange: Exchange) -> None:
        exchange.file(DATA if exchange.target.startswith("/1/") else small_gguf(1_050_000, seed=9))

    server = serve(handler)
    add_plugin(PINNING.format(url=server.url("").rstrip("/"), count=1))
    model = puller("hub:it@1")
    assert model.manifest.revision == "1"
    damage(model.paths[0], 350_000)
    server.seen.clear()
    mend(puller, model)
    assert_whole(puller, model)
    assert {exchange.target for exchange in server.seen} == {"/1/a"}


def test_files_mended_before_a_failure_stay_mended(serve: StartServer, puller: Puller, add_plugin: AddPlugin) -> None:
    alive = True

    def handler(exchange: Exchange) -> None:
        if alive or exchange.target.endswith("/a"):
            exchange.file(small_gguf(600_000) if exchange.target.endswith("/a") else b"a text, no weights\n" * 20_000)
        else:
            exchange.answer(status=404)

    server = serve(handler)
    source = PINNING.format(url=server.url("").rstrip("/"), count=2).replace(
        'f"{n}/m.gguf"', '["m.gguf", "b/notes.txt"][n == "b"]'
    )
    add_plugin(source)
    model = puller("hub:it")
    first, second = (file.path for file in model.manifest.files)
    damage(model.folder / first, 100)
    damage(model.folder / second, 100)
    alive = False
    with pytest.raises(NotFound) as caught:
        mend(puller, model)
    assert caught.value.data["repaired"] == [first]
    assert [problem.path for problem in problems_of(puller, model)] == [second]
    alive = True
    assert mend(puller, model) == [second]
    assert problems_of(puller, model) == []


def test_a_model_that_is_being_pulled(serve: StartServer, puller: Puller, monkeypatch: pytest.MonkeyPatch) -> None:
    _, model = pulled(serve, puller)
    damage(model.paths[0], 5)
    found = problems_of(puller, model)
    puller(model.manifest.source, name="m:1", force=True)
    with pytest.raises(Overloaded, match="was changed in the meantime"):
        repair(model, found, plugins=puller.plugins, store=puller.store, progress=puller.told)


@pytest.mark.model
def test_the_real_model(
    serve: StartServer, puller: Puller, smollm2_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_SIZE", 16 * 2**20)
    data = smollm2_gguf.read_bytes()
    server = serve(lambda exchange: exchange.file(data))
    model = puller(server.url(), name="smollm2:135m")
    [kept] = model.folder.glob("*.blocks.json")
    assert kept.stat().st_size < 2000
    place = random.Random(1).randrange(len(data))
    damage(model.paths[0], place)
    server.seen.clear()
    mend(puller, model)
    assert problems_of(puller, model) == []
    start = place // (16 * 2**20) * 16 * 2**20
    assert ranges_asked_for(server) == [f"bytes={start}-{min(start + 16 * 2**20, len(data)) - 1}"]
