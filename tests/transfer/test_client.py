"""The HTTP client: what it refuses to follow, to send, to accept and to say. Rows G9 and G17 to G21 of the threats."""

from __future__ import annotations

import ast
import gzip
import logging
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3.util.connection

import myllm_core
from myllm_core.errors import InvalidRequest, NetworkError
from myllm_core.transfer.client import Broken, HttpClient, Unreachable
from myllm_core.transfer.urls import is_public, mask_url, parse_url, public_url
from myllm_core.transfer.waiting import OutOfTime, within
from support.pulling import StartServer
from support.wild_server import Exchange, WildServer

CLIENT = HttpClient(connect_timeout=2.0, stall_timeout=0.4)
BODY = b"some bytes"


def read(url: str, headers: dict[str, str] | None = None, client: HttpClient = CLIENT) -> bytes:
    with client.get(url, headers) as response:
        return b"".join(response.chunks())


def ok(exchange: Exchange) -> None:
    exchange.answer(BODY)


def test_g9_compressed_answers_are_refused(serve: StartServer) -> None:
    server = serve(lambda exchange: exchange.answer(gzip.compress(bytes(10**6)), Content_Encoding="gzip"))
    with pytest.raises(NetworkError, match="compresses"):
        read(server.url())
    assert server.seen[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "data:text/plain,x",
        "gopher://x/",
        "http://",
        "https:///x",
        "http://[::bad/",
    ],
)
def test_g17_redirects_elsewhere_than_http_are_refused(serve: StartServer, location: str) -> None:
    server = serve(lambda exchange: exchange.redirect(location))
    with pytest.raises(NetworkError, match="refused to follow a redirect"):
        read(server.url())


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(serve: StartServer, status: int) -> None:
    server = serve(lambda e: e.redirect("/next?a=b c", status) if e.target == "/model.gguf" else ok(e))
    assert read(server.url()) == BODY
    assert server.seen[1].target == "/next?a=b%20c"


def test_g20_redirect_loops_end(serve: StartServer) -> None:
    server = serve(lambda exchange: exchange.redirect(f"/{exchange.number}"))
    with pytest.raises(NetworkError, match="more than 10 redirects"):
        read(server.url())
    assert len(server.seen) == 11


# --- G18: from the internet into a private network ---


@pytest.fixture
def internet(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[list[str]]]:
    """A name server of our own: host to the answers it gives, one after the other, the last for ever.

    Public addresses lead to 127.0.0.1, where the test's server is.
    """
    names: dict[str, list[list[str]]] = {}
    real_lookup, real_connect = socket.getaddrinfo, urllib3.util.connection.create_connection

    def lookup(host: str, port: int, *args: Any, **options: Any) -> list[Any]:
        if host not in names:
            return real_lookup(host, port, *args, **options)
        answers = names[host]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in answer]

    def connect(address: tuple[str, int], *args: Any, **options: Any) -> socket.socket:
        host, port = address
        assert parse_ip(host), f"connected to the name {host}, which may mean another address by now"
        return real_connect(("127.0.0.1" if is_public(host) else host, port), *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    monkeypatch.setattr(urllib3.util.connection, "create_connection", connect)
    return names


def parse_ip(host: str) -> bool:
    try:
        socket.inet_aton(host)
    except OSError:
        return ":" in host
    return True


@pytest.mark.parametrize(
    "target",
    ["127.0.0.1", "inside.example", "169.254.169.254", "10.1.2.3", "[::1]", "[::ffff:127.0.0.1]", "2130706433"],
)
def test_g18_public_to_private_is_refused(
    serve: StartServer, internet: dict[str, list[list[str]]], target: str
) -> None:
    internet |= {"public.example": [["8.8.8.8"]], "inside.example": [["192.168.1.1"]]}
    server = serve(lambda exchange: exchange.redirect(f"http://{target}:{exchange.server.port}/secret"))
    with pytest.raises(NetworkError, match="private address"):
        read(f"http://public.example:{server.port}/")
    assert [exchange.target for exchange in server.seen] == ["/"]


def test_g18_public_to_public_goes_and_the_address_checked_is_the_one_connected_to(
    serve: StartServer, internet: dict[str, list[list[str]]]
) -> None:
    internet |= {"public.example": [["8.8.8.8"]], "cdn.example": [["1.1.1.1"], ["127.0.0.1"]]}
    server = serve(lambda e: ok(e) if e.target == "/x" else e.redirect(f"http://cdn.example:{e.server.port}/x"))
    assert read(f"http://public.example:{server.port}/") == BODY
    assert server.seen[1].headers["host"] == f"cdn.example:{server.port}"


def test_g18_a_name_that_flips_is_checked_at_each_hop(serve: StartServer, internet: dict[str, list[list[str]]]) -> None:
    internet |= {"flip.example": [["8.8.8.8"], ["127.0.0.1"]]}
    server = serve(lambda exchange: exchange.redirect("/again"))
    with pytest.raises(NetworkError, match="private address"):
        read(f"http://flip.example:{server.port}/")
    assert len(server.seen) == 1


def test_g18_of_several_addresses_only_public_ones_are_used(
    serve: StartServer, internet: dict[str, list[list[str]]]
) -> None:
    internet |= {"public.example": [["8.8.8.8"]], "both.example": [["10.0.0.1", "1.1.1.1"]]}
    server = serve(lambda e: ok(e) if e.target == "/x" else e.redirect(f"http://both.example:{e.server.port}/x"))
    assert read(f"http://public.example:{server.port}/") == BODY


def test_g18_what_the_user_typed_may_be_private_and_lead_to_private(serve: StartServer) -> None:
    other = serve(ok, host="127.0.0.2")
    server = serve(lambda exchange: exchange.redirect(other.url()))
    assert read(server.url()) == BODY


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("10.0.0.1", False),
        ("172.16.0.1", False),
        ("192.168.0.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:10.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::808:808", True),
        ("2002:7f00:1::", False),
    ],
)
def test_g18_addresses(address: str, public: bool) -> None:
    assert is_public(address) is public


# --- G19, G20: secrets ---

SECRETS = {"Authorization": "Bearer hf_secret", "X-Api-Key": "canary"}


@pytest.mark.parametrize("to", ["other host", "other port"])
def test_g19_headers_stay_with_their_host(serve: StartServer, to: str) -> None:
    other = serve(ok, host="127.0.0.2" if to == "other host" else "127.0.0.1")
    server = serve(lambda exchange: exchange.redirect(other.url()))
    assert read(server.url(), SECRETS) == BODY
    assert server.seen[0].headers["authorization"] == "Bearer hf_secret"
    assert not {"authorization", "x-api-key", "cookie"} & other.seen[0].headers.keys()


def test_g19_and_are_not_sent_again_when_a_stranger_leads_back(serve: StartServer) -> None:
    def first(exchange: Exchange) -> None:
        exchange.redirect(other.url()) if exchange.target == "/model.gguf" else ok(exchange)

    server = serve(first)
    other = serve(lambda exchange: exchange.redirect(server.url("/back")), host="127.0.0.2")
    assert read(server.url(), SECRETS) == BODY
    assert "x-api-key" not in server.seen[1].headers


def test_g19_headers_go_along_on_the_same_host(serve: StartServer) -> None:
    server = serve(lambda e: e.redirect("/next") if e.target == "/model.gguf" else ok(e))
    read(server.url(), SECRETS)
    assert server.seen[1].headers["x-api-key"] == "canary"


def test_g19_user_and_password_of_the_url(serve: StartServer) -> None:
    other = serve(ok, host="127.0.0.2")
    server = serve(lambda exchange: exchange.redirect(other.url().replace("http://", "http://eve:evil@")))
    read(server.url().replace("http://", "http://me:p%40ss@"))
    assert server.seen[0].headers["authorization"] == "Basic bWU6cEBzcw=="
    assert "authorization" not in other.seen[0].headers


def test_callers_cannot_change_what_the_client_depends_on(serve: StartServer) -> None:
    server = serve(ok)
    read(server.url(), {"accept-encoding": "gzip", "HOST": "evil.example", "Range": "bytes=5-", "X-Mine": "1"})
    headers = server.seen[0].headers
    assert headers["accept-encoding"] == "identity"
    assert headers["host"] == f"127.0.0.1:{server.port}"
    assert "range" not in headers
    assert headers["x-mine"] == "1"


@pytest.mark.parametrize("value", ["token\n", "canary\r\nX-Evil: 1", "canary\0"])
def test_headers_with_line_breaks_are_refused_without_showing_them(value: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read("http://127.0.0.1:1/", {"Authorization": value})
    assert value.split()[0] not in caught.value.message


SECRET_URLS = [
    "http://user:canary@127.0.0.1:{port}/x",
    "http://127.0.0.1:{port}/x?token=canary",
    "http://127.0.0.1:{port}/x?X-Amz-Signature=canary&b",
    "http://canary@127.0.0.1:{port}/x#canary",
]


@pytest.mark.parametrize("url", SECRET_URLS)
@pytest.mark.parametrize("fault", ["cut", "stall", "redirect", "gzip", "refused"])
def test_g20_no_secret_in_messages_or_logs(
    serve: StartServer, caplog: pytest.LogCaptureFixture, url: str, fault: str
) -> None:
    def handler(exchange: Exchange) -> None:
        if fault == "stall":
            exchange.wait(1)
        elif fault == "redirect":
            exchange.redirect("ftp://u:canary@x/?canary")
        elif fault == "gzip":
            exchange.answer(b"x", Content_Encoding="gzip")

    server = serve(handler)
    port = closed_port() if fault == "refused" else server.port
    client = HttpClient(2.0, 0.1)
    with caplog.at_level(logging.DEBUG), pytest.raises(NetworkError) as caught:
        read(url.format(port=port), client=client)
    assert "canary" not in caught.value.message
    assert "canary" not in str(caught.value.data)
    assert "canary" not in caplog.text


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_g20_masking() -> None:
    assert mask_url("https://u:p@host:8/a/b.gguf?token=x&y=z#f") == "https://host:8/a/b.gguf?…"
    assert mask_url("https://host/a.gguf") == "https://host/a.gguf"
    assert "\n" not in mask_url("https://host/a\nb")
    assert mask_url("http://[bad") == "a malformed URL"
    assert len(mask_url("https://host/" + "a" * 999)) <= 200
    kept = {public_url(f"https://u:p@host/a?id={n}") for n in range(3)}
    assert len(kept) == 3
    assert all("u:p" not in url and "id=" not in url for url in kept)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://h/x",
        "h/x",
        "http://",
        "http://h:99999/",
        "http://h:x/",
        "http://[::1/",
        "http://a b/",
        "http://a/" + "x" * 9000,
    ],
)
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(ValueError, match="URL|only http"):
        parse_url(url)


def test_urls_with_letters_of_the_world() -> None:
    target = parse_url("https://bücher.example/modèle 1.gguf?q=ü#x")
    assert target.host == "xn--bcher-kva.example"
    assert target.path == "/mod%C3%A8le%201.gguf?q=%C3%BC"
    assert parse_url("http://[::1]:8080/a%20b").url == "http://[::1]:8080/a%20b"


# --- unreachable, silent and broken servers ---


def test_nobody_listens() -> None:
    begin = time.monotonic()
    with pytest.raises(Unreachable, match="connection refused"):
        read(f"http://127.0.0.1:{closed_port()}/")
    assert time.monotonic() - begin < 2


def test_no_such_host() -> None:
    with pytest.raises(Unreachable, match="can't find nowhere.invalid"):
        read("http://nowhere.invalid/")


def test_a_host_that_swallows_packets_costs_no_more_than_the_connect_timeout() -> None:
    with socket.socket() as listener:  # its queue is full: connections are neither accepted nor refused
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        begin = time.monotonic()
        with pytest.raises(Unreachable, match="no answer in time"):
            read(f"http://127.0.0.1:{listener.getsockname()[1]}/", client=HttpClient(0.5, 30))
        assert time.monotonic() - begin < 3
        for filler in fillers:
            filler.close()


def test_g7_silence_before_the_answer(serve: StartServer) -> None:
    server = serve(lambda exchange: exchange.wait(20))
    begin = time.monotonic()
    with pytest.raises(Broken, match="no answer in time"):
        read(server.url())
    with pytest.raises(Broken), HttpClient(stall_timeout=30).get(server.url(), patience=0.3):
        pass
    assert time.monotonic() - begin < 4


@pytest.mark.parametrize("raw", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc"])
def test_broken_answers(serve: StartServer, raw: bytes) -> None:
    server = serve(lambda exchange: exchange.send(raw))
    with pytest.raises(Broken):
        read(server.url())


def test_what_does_not_come_back_in_time_is_left_behind() -> None:
    done = threading.Event()
    begin = time.monotonic()
    with pytest.raises(OutOfTime):
        within(0.2, lambda: done.wait(20))
    assert time.monotonic() - begin < 3
    done.set()


# --- G21: TLS and proxies ---


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that nobody trusts, with its key in the same file."""
    folder = tmp_path_factory.mktemp("tls")
    key, cert = folder / "key.pem", folder / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test"]
    extra = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run([*command, *extra], check=True, capture_output=True)
    both = folder / "both.pem"
    both.write_bytes(key.read_bytes() + cert.read_bytes())
    return both


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def test_g21_a_self_signed_certificate_is_refused(serve: StartServer, tls: ssl.SSLContext) -> None:
    server = serve(ok, tls=tls)
    with pytest.raises(NetworkError, match="isn't trusted") as caught:
        read(server.url())
    assert "SSL_CERT_FILE" in caught.value.message
    assert not isinstance(caught.value, Unreachable | Broken)  # another try wouldn't help
    assert server.seen == []


@pytest.fixture
def trusted(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> HttpClient:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    return HttpClient(2.0, 0.4)


def test_g21_certificates_of_the_users_own(serve: StartServer, tls: ssl.SSLContext, trusted: HttpClient) -> None:
    assert read(serve(ok, tls=tls).url(), client=trusted) == BODY


def test_g21_a_certificate_for_another_name(serve: StartServer, tls: ssl.SSLContext, trusted: HttpClient) -> None:
    with pytest.raises(NetworkError, match="isn't trusted"):
        read(serve(ok, tls=tls, host="127.0.0.2").url(), client=trusted)


def test_g17_https_never_leads_to_http(serve: StartServer, tls: ssl.SSLContext, trusted: HttpClient) -> None:
    plain = serve(ok)
    server = serve(lambda exchange: exchange.redirect(plain.url()), tls=tls)
    with pytest.raises(NetworkError, match="from https to http"):
        read(server.url(), client=trusted)
    assert plain.seen == []


def relay(exchange: Exchange) -> None:
    """A proxy: tunnels, and forwards of absolute URLs."""
    if exchange.method == "CONNECT":
        host, _, port = exchange.target.rpartition(":")
        with socket.create_connection((host, int(port)), 5) as there:
            exchange.head(200)
            back = threading.Thread(target=pump, args=(there, exchange.sock))
            back.start()
            pump(exchange.sock, there)
            back.join(5)
    else:
        exchange.answer(read_directly(exchange.target))


def pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def read_directly(url: str) -> bytes:
    target = parse_url(url)
    with socket.create_connection((target.host, target.port), 5) as there:
        there.sendall(f"GET {target.path} HTTP/1.0\r\n\r\n".encode())
        data = b""
        while more := there.recv(65536):
            data += more
    return data.partition(b"\r\n\r\n")[2]


@pytest.fixture
def proxy(serve: StartServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[WildServer]:
    server = serve(relay)
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"http://me:canary@127.0.0.1:{server.port}")
    monkeypatch.setenv("no_proxy", "127.0.0.3")
    yield server


def test_g21_proxies_for_http(serve: StartServer, proxy: WildServer) -> None:
    server = serve(ok)
    assert read(server.url("/a?b")) == BODY
    assert proxy.seen[0].target == f"http://127.0.0.1:{server.port}/a?b"
    assert proxy.seen[0].headers["proxy-authorization"].startswith("Basic ")
    assert proxy.seen[0].headers["host"] == f"127.0.0.1:{server.port}"


def test_g21_proxies_for_https_verify_the_far_end(
    serve: StartServer, proxy: WildServer, tls: ssl.SSLContext, trusted: HttpClient
) -> None:
    server = serve(ok, tls=tls)
    assert read(server.url(), client=trusted) == BODY
    assert proxy.seen[0].method == "CONNECT"
    assert "proxy-authorization" not in server.seen[0].headers
    other = serve(ok, tls=tls, host="127.0.0.2")
    with pytest.raises(NetworkError, match="isn't trusted"):
        read(other.url(), client=trusted)


def test_g21_no_proxy(serve: StartServer, proxy: WildServer) -> None:
    assert read(serve(ok, host="127.0.0.3").url()) == BODY
    assert proxy.seen == []


def test_g18_through_a_proxy_too(serve: StartServer, proxy: WildServer, internet: dict[str, list[list[str]]]) -> None:
    internet |= {"inside.example": [["10.0.0.1"]]}
    for host in ("127.0.0.1", "inside.example", "169.254.169.254"):
        proxy.handler = lambda exchange, host=host: exchange.redirect(f"http://{host}/")  # type: ignore[misc]
        with pytest.raises(NetworkError, match="private address"):
            read("http://public.example/")


def test_g21_a_dead_or_unusable_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", f"http://me:canary@127.0.0.1:{closed_port()}")
    with pytest.raises(Unreachable, match="through the proxy") as caught:
        read("https://public.example/")
    monkeypatch.setenv("https_proxy", "socks5://me:canary@127.0.0.1:1")
    with pytest.raises(NetworkError, match="only http and https") as second:
        read("https://public.example/")
    assert "canary" not in caught.value.message + second.value.message


CLIENTS = {"requests", "httpx", "aiohttp", "http.client", "urllib3", "urllib.request", "pycurl"}


def test_g21_no_other_http_client_in_the_core() -> None:
    root = Path(myllm_core.__file__).parent
    allowed = {f"transfer/{name}.py" for name in ("client", "proxies", "downloaders")}  # the last: url2pathname alone
    found = set()
    for path in root.rglob("*.py"):
        source = path.read_text("utf-8")
        for node in ast.walk(ast.parse(source)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name == client or name.startswith(f"{client}.") for name in names for client in CLIENTS):
                found.add(path.relative_to(root).as_posix())
        for insecure in ("CERT_NONE", "verify=False", "_create_unverified_context", "check_hostname = False"):
            assert insecure not in source, f"{path}: {insecure}"
        assert "urlopen" not in source
    assert found <= allowed
