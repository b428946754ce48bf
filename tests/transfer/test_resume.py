"""Connections that break off and servers that lie: rows G1 to G7 of the threats."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

import pytest

from myllm_core.errors import IntegrityError, NetworkError, NotFound
from myllm_core.transfer.fetch import Retry
from support.gguf import small_gguf
from support.pulling import Puller, StartServer
from support.wild_server import Exchange, WildServer

DATA = small_gguf(300_000)
OTHER = small_gguf(300_000, seed=1)


def ranges(server: WildServer) -> list[str]:
    return [exchange.headers.get("range", "") for exchange in server.seen]


def installed(puller: Puller, server: WildServer, data: bytes = DATA, **choices: object) -> None:
    model = puller(server.url(), **choices)
    assert puller.bytes_of(model) == data
    assert model.manifest.files[0].sha256 == hashlib.sha256(data).hexdigest()
    assert [m.name for m in puller.store.list_models()] == [model.name]
    assert puller.partial_bytes == 0


def test_a_good_server(serve: StartServer, puller: Puller) -> None:
    server = serve(lambda exchange: exchange.file(DATA))
    installed(puller, server)
    path, done, total = puller.told.files[-1]
    assert (path, done, total) == ("model.gguf", len(DATA), len(DATA))
    assert all(exchange.headers["accept-encoding"] == "identity" for exchange in server.seen)


def test_g1_cut_connections_are_resumed(serve: StartServer, puller: Puller) -> None:
    server = serve(lambda exchange: exchange.file(DATA, stop=exchange.start + 40_000 if exchange.number else None))
    installed(puller, server, retry=Retry(attempts=2, first=0.01, progress_bytes=10_000))
    assert ranges(server)[2:] == [f"bytes={n}-" for n in range(40_000, len(DATA), 40_000)]
    assert "trying again" in puller.told.text


def test_g1_a_source_that_only_breaks_leaves_a_partial_and_nothing_installed(
    serve: StartServer, puller: Puller
) -> None:
    cut = True
    server = serve(lambda exchange: exchange.file(DATA, stop=100_000 if cut and exchange.number else None))
    with pytest.raises(NetworkError, match="are kept: pull again to go on"):
        puller(server.url())
    puller.assert_nothing_installed()
    assert puller.partial_bytes == 100_000
    assert len(server.seen) == 1 + 1 + 5  # asking what is there, the first try, five more
    cut = False
    installed(puller, server)
    assert ranges(server)[-1] == "bytes=100000-"


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_g2_bodies_shorter_than_announced(serve: StartServer, puller: Puller, chunked: bool) -> None:
    def handler(exchange: Exchange) -> None:
        if chunked:
            exchange.head(Transfer_Encoding="chunked", ETag='"v1"')
            exchange.send(b"%x\r\n%b\r\n" % (1000, DATA[:1000]))  # and no end
        else:
            exchange.head(Content_Length=len(DATA), ETag='"v1"')
            exchange.send(DATA[:1000])

    server = serve(handler)
    with pytest.raises(NetworkError):
        puller(server.url())
    puller.assert_nothing_installed()


def test_g2_more_bytes_than_announced(serve: StartServer, puller: Puller) -> None:
    def handler(exchange: Exchange) -> None:
        if exchange.number == 0:
            exchange.head(Content_Length=1000)
        else:
            exchange.head(Transfer_Encoding="chunked")
            exchange.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(DATA), DATA))

    server = serve(handler)
    with pytest.raises(IntegrityError, match="more than the 1000 bytes"):
        puller(server.url())
    puller.assert_nothing_installed()


def test_a_chunked_answer_without_a_size(serve: StartServer, puller: Puller) -> None:
    def handler(exchange: Exchange) -> None:
        exchange.head(Transfer_Encoding="chunked")
        for at in range(0, len(DATA), 5000):
            piece = DATA[at : at + 5000]
            exchange.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        exchange.send(b"0\r\n\r\n")

    installed(puller, serve(handler))
    assert puller.told.files[-1] == ("model.gguf", len(DATA), None)


def test_g3_a_wrong_hash_is_refused_and_the_file_deleted(serve: StartServer, puller: Puller) -> None:
    server = serve(lambda exchange: exchange.file(OTHER))
    wanted, got = hashlib.sha256(DATA).hexdigest(), hashlib.sha256(OTHER).hexdigest()
    with pytest.raises(IntegrityError) as caught:
        puller(server.url(), sha256=wanted)
    assert wanted in caught.value.message
    assert got in caught.value.message
    puller.assert_nothing_installed()
    assert puller.partial_bytes == 0


def test_g3_a_damaged_partial_is_fetched_anew(serve: StartServer, puller: Puller) -> None:
    cut = True
    server = serve(lambda exchange: exchange.file(DATA, stop=100_000 if cut and exchange.number else None))
    with pytest.raises(NetworkError):
        puller(server.url())
    (partial,) = puller.store.partials_dir.glob("*/data.part")
    with partial.open("r+b") as file:
        file.seek(5000)
        file.write(b"flipped")
    cut = False
    installed(puller, server, sha256=hashlib.sha256(DATA).hexdigest())
    assert "damaged" in puller.told.text
    assert ranges(server)[-2:] == ["bytes=100000-", ""]


def interrupted(serve: StartServer, puller: Puller, then: Callable[[Exchange], None]) -> WildServer:
    """A pull that broke off at byte 100 000; the server goes on with ``then``."""
    broken = True

    def handler(exchange: Exchange) -> None:
        if broken:
            exchange.file(DATA, stop=100_000 if exchange.number else None)
        else:
            then(exchange)

    server = serve(handler)
    with pytest.raises(NetworkError):
        puller(server.url())
    assert puller.partial_bytes == 100_000
    broken = False
    server.seen.clear()
    return server


def test_g4_a_server_that_ignores_range(serve: StartServer, puller: Puller) -> None:
    server = interrupted(serve, puller, lambda e: e.answer(DATA, ETag='"v1"'))
    installed(puller, server)
    assert ranges(server)[-1] == "bytes=100000-"
    assert "from the start" in puller.told.text


def test_g4_a_changed_file_is_never_mixed(serve: StartServer, puller: Puller) -> None:
    server = interrupted(serve, puller, lambda e: e.file(OTHER, etag='"v2"'))
    installed(puller, server, data=OTHER)


def test_g4_a_file_that_changes_while_it_is_fetched(serve: StartServer, puller: Puller) -> None:
    def handler(exchange: Exchange) -> None:
        if exchange.number < 2:
            exchange.file(DATA, stop=100_000 if exchange.number else None)
        else:
            exchange.file(OTHER, etag='"v2"')

    server = serve(handler)
    installed(puller, server, data=OTHER)
    assert server.seen[2].headers["if-range"] == '"v1"'


def test_g4_a_server_that_ignores_if_range(serve: StartServer, puller: Puller) -> None:
    def handler(exchange: Exchange) -> None:
        if exchange.number < 2:
            exchange.file(DATA, stop=100_000 if exchange.number else None)
            return
        if exchange.start:  # the tail of another file, as if it were this one's
            start = exchange.start
            content_range = f"bytes {start}-{len(OTHER) - 1}/{len(OTHER)}"
            exchange.answer(OTHER[start:], 206, Content_Range=content_range, ETag='"v2"')
        else:
            exchange.file(OTHER, etag='"v2"')

    server = serve(handler)
    installed(puller, server, data=OTHER)
    assert ranges(server)[2:] == ["bytes=100000-", ""]


WRONG_START = f"bytes 5-{len(DATA) - 1}/{len(DATA)}"


@pytest.mark.parametrize("content_range", ["bytes 5-299/300", WRONG_START, "nonsense", "bytes 100000-/300000", ""])
def test_g4_a_part_that_does_not_fit(serve: StartServer, puller: Puller, content_range: str) -> None:
    def then(exchange: Exchange) -> None:
        if exchange.start:
            exchange.answer(DATA[5:], 206, Content_Range=content_range, ETag='"v1"')
        else:
            exchange.file(DATA)

    installed(puller, interrupted(serve, puller, then))


def test_a_server_that_sends_small_parts(serve: StartServer, puller: Puller) -> None:
    def then(exchange: Exchange) -> None:
        if exchange.start:
            part = DATA[exchange.start : exchange.start + 90_000]
            content_range = f"bytes {exchange.start}-{exchange.start + len(part) - 1}/{len(DATA)}"
            exchange.answer(part, 206, Content_Range=content_range, ETag='"v1"')
        else:
            exchange.file(DATA)

    server = interrupted(serve, puller, then)
    installed(puller, server)
    assert ranges(server)[1:] == ["bytes=100000-", "bytes=190000-", "bytes=280000-"]


def test_bytes_that_may_not_have_reached_the_disk_are_not_trusted(serve: StartServer, puller: Puller) -> None:
    server = interrupted(serve, puller, lambda exchange: exchange.file(DATA))
    (partial,) = puller.store.partials_dir.glob("*/data.part")
    with partial.open("ab") as file:
        file.write(bytes(5000))  # as after a loss of power: the length is right, the bytes aren't
    installed(puller, server)
    assert ranges(server)[-1] == "bytes=100000-"


def test_g4_range_not_satisfiable(serve: StartServer, puller: Puller) -> None:
    def then(exchange: Exchange) -> None:
        if exchange.start:
            exchange.answer(status=416, Content_Range="bytes */5000")
        else:
            exchange.file(DATA)

    installed(puller, interrupted(serve, puller, then))


@pytest.mark.parametrize("etag", ['W/"weak"', ""], ids=["weak", "none"])
def test_g4_without_a_strong_validator_nothing_is_appended(serve: StartServer, puller: Puller, etag: str) -> None:
    def handler(exchange: Exchange) -> None:
        exchange.file(OTHER if exchange.number > 1 else DATA, etag, stop=100_000 if exchange.number == 1 else None)

    server = serve(handler)
    installed(puller, server, data=OTHER)
    assert ranges(server) == ["", "", ""]


def test_a_known_hash_is_validator_enough(serve: StartServer, puller: Puller) -> None:
    server = serve(lambda e: e.file(DATA, etag="", stop=100_000 if e.number == 1 else None))
    installed(puller, server, sha256=hashlib.sha256(DATA).hexdigest())
    assert ranges(server)[-1] == "bytes=100000-"


HTML = b"<!DOCTYPE html><html><body>Please log in</body></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize(
    ("body", "kind"), [(HTML, "text/html; charset=utf-8"), (HTML, "application/octet-stream"), (POINTER, ""), (b"", "")]
)
def test_g5_what_is_no_model(serve: StartServer, puller: Puller, body: bytes, kind: str) -> None:
    server = serve(lambda exchange: exchange.answer(body, Content_Type=kind))
    with pytest.raises(IntegrityError, match="not a model"):
        puller(server.url())
    puller.assert_nothing_installed()
    assert puller.partial_bytes == 0


def test_g5_a_login_page_in_between_costs_no_bytes(serve: StartServer, puller: Puller) -> None:
    page = True
    server = interrupted(serve, puller, lambda e: e.file(DATA) if not (page and e.start) else login(e))

    def login(exchange: Exchange) -> None:
        exchange.answer(HTML, Content_Type="text/html")

    with pytest.raises(IntegrityError, match="web page"):
        puller(server.url())
    assert puller.partial_bytes == 100_000
    page = False
    installed(puller, server)
    assert ranges(server)[-1] == "bytes=100000-"


@pytest.mark.parametrize("status", [429, 500, 503])
def test_g6_busy_servers_are_asked_again(serve: StartServer, puller: Puller, status: int) -> None:
    def handler(exchange: Exchange) -> None:
        if exchange.number in (1, 2):
            exchange.answer(status=status)
        else:
            exchange.file(DATA)

    installed(puller, serve(handler))
    assert f"({status})" in puller.told.text


def test_g6_retry_after_is_honoured_up_to_a_cap(serve: StartServer, puller: Puller) -> None:
    at: list[float] = []

    def handler(exchange: Exchange) -> None:
        at.append(time.monotonic())
        if exchange.number in (1, 2):
            exchange.answer(status=503, Retry_After="0" if exchange.number == 1 else "86400")
        else:
            exchange.file(DATA)

    installed(puller, serve(handler))
    assert at[2] - at[1] < 0.25
    assert 0.3 <= at[3] - at[2] < 3


def test_g6_retries_are_bounded(serve: StartServer, puller: Puller) -> None:
    server = serve(lambda exchange: exchange.answer(status=503) if exchange.number else exchange.file(DATA))
    with pytest.raises(NetworkError, match="503"):
        puller(server.url())
    assert len(server.seen) == 7


@pytest.mark.parametrize(
    ("status", "error"),
    [(404, NotFound), (410, NotFound), (401, NetworkError), (403, NetworkError), (304, NetworkError)],
)
def test_final_answers_are_not_asked_for_twice(
    serve: StartServer, puller: Puller, status: int, error: type[Exception]
) -> None:
    server = serve(lambda exchange: exchange.answer(status=status))
    with pytest.raises(error):
        puller(server.url())
    assert len(server.seen) == 1


def test_g7_a_stalled_server_is_asked_again(serve: StartServer, puller: Puller) -> None:
    def handler(exchange: Exchange) -> None:
        if exchange.number == 1:
            exchange.file(DATA, stop=100_000)
            exchange.wait(30)
        else:
            exchange.file(DATA)

    server = serve(handler)
    begin = time.monotonic()
    installed(puller, server)
    assert time.monotonic() - begin < 5
    assert ranges(server)[-1] == "bytes=100000-"


def test_a_server_that_starts_over_again_and_again_is_given_up(serve: StartServer, puller: Puller) -> None:
    server = serve(
        lambda e: e.answer(DATA) if not e.number else (e.head(Content_Length=len(DATA)), e.send(DATA[:90_000]))
    )
    with pytest.raises(NetworkError):
        puller(server.url())
    assert len(server.seen) == 7


def test_a_model_in_parts(serve: StartServer, puller: Puller) -> None:
    server = serve(
        lambda exchange: exchange.file(DATA) if "00002-of" in exchange.target else exchange.answer(status=404)
    )
    with pytest.raises(NotFound):  # the first part is missing
        puller(server.url("/m-00002-of-00002.gguf"))
    assert [exchange.target for exchange in server.seen] == ["/m-00001-of-00002.gguf"]
