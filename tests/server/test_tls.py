"""HTTPS: it works, only with TLS 1.2 and later, and wrong files are one line before anything starts."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import trustme

from myllm_core.errors import ConfigError
from myllm_server.tls import tls_context
from support.serve import environment, served

Files = dict[str, Path]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A certificate by an authority of the test's own, its key, and files that are wrong."""
    from cryptography.hazmat.primitives import serialization as form

    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    mine, other = authority.issue_cert("localhost", "127.0.0.1"), authority.issue_cert("localhost")
    key = form.load_pem_private_key(mine.private_key_pem.bytes(), None)
    locked = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.BestAvailableEncryption(b"s3cret"))
    chain = b"".join(part.bytes() for part in mine.cert_chain_pems)
    contents = {
        "ca": authority.cert_pem.bytes(),
        "cert": chain,
        "key": mine.private_key_pem.bytes(),
        "both": mine.private_key_and_cert_chain_pem.bytes(),
        "other": other.private_key_pem.bytes(),
        "locked": locked,
        "text": b"hello\n",
        "empty": b"",
    }
    for name, content in contents.items():
        (folder / f"{name}.pem").write_bytes(content)
    return {name: folder / f"{name}.pem" for name in contents} | {"gone": folder / "gone.pem", "folder": folder}


@pytest.mark.parametrize(
    ("cert", "key", "password", "said"),
    [
        ("gone", None, "", "ssl_certfile: can't read .*gone.pem: No such file"),
        ("folder", None, "", "ssl_certfile: can't read .*: Is a directory"),
        ("cert", "gone", "", "ssl_keyfile: can't read .*gone.pem: No such file"),
        ("text", None, "", "text.pem must hold a certificate and its key in PEM"),
        ("empty", "key", "", "must hold a certificate and its key in PEM"),
        ("cert", None, "", "cert.pem must hold a certificate and its key in PEM; else set ssl_keyfile too"),
        ("cert", "text", "", "text.pem must hold a certificate and its key"),
        ("cert", "other", "", "ssl_keyfile: .*other.pem is not the key of the certificate"),
        ("cert", "locked", "", "locked.pem: it has a password; set ssl_keyfile_password"),
        ("cert", "locked", "wrong", "locked.pem: ssl_keyfile_password doesn't fit"),
    ],
)
def test_wrong_files_say_what_is_wrong(files: Files, cert: str, key: str | None, password: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        tls_context(files[cert], files[key] if key else None, password)
    assert "s3cret" not in str(caught.value) and "\n" not in str(caught.value)


def test_right_files(files: Files) -> None:
    for cert, key, password in (("both", None, ""), ("cert", "key", ""), ("cert", "locked", "s3cret")):
        context = tls_context(files[cert], files[key] if key else None, password)
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--ssl-certfile", "gone.pem"], "ssl_certfile: can't read gone.pem"),
        (["--ssl-keyfile", "key.pem"], "ssl_keyfile is set, but no ssl_certfile"),
    ],
)
def test_wrong_files_are_one_line(home: Path, tmp_path: Path, given: list[str], said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "myllm_cli", "serve", "--port", "0", *given],
        env=environment(home, tmp_path), capture_output=True, text=True, timeout=60, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and said in done.stderr


def trusting(files: Files) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(files["ca"]))


def test_a_server_by_https(home: Path, tmp_path: Path, files: Files) -> None:
    options = ("--ssl-certfile", str(files["cert"]), "--ssl-keyfile", str(files["key"]))
    with served(home, tmp_path, *options) as server:
        assert server.line.startswith("Listening on https://127.0.0.1:")
        with closing(http.client.HTTPSConnection("localhost", server.port, timeout=20, context=trusting(files))) as one:
            one.request("GET", "/health")
            assert (answer := one.getresponse()).status == 200 and json.loads(answer.read()) == {"status": "ok"}
            body = json.dumps({"model": "echo", "messages": [{"role": "user", "content": "a b"}]})
            one.request("POST", "/api/chat", body, {"content-type": "application/json"})
            assert b'"full_text":"a b"' in one.getresponse().read()
            one.request("GET", "/api/ps", headers={"origin": f"https://localhost:{server.port}"})
            assert one.getresponse().read() and one.sock is not None
        with pytest.raises(ssl.SSLCertVerificationError):
            http.client.HTTPSConnection("localhost", server.port, timeout=20).request("GET", "/health")
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as plain:
            plain.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"200" not in plain.recv(1000)
        own = {"MYLLM_SSL_CERTFILE": str(files["cert"]), "MYLLM_PORT": str(server.port)}
        done = subprocess.run(
            [sys.executable, "-m", "myllm_cli", "ps", "--json"],
            env=environment(home, tmp_path, **own), capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0 and json.loads(done.stdout)[0]["name"] == "echo:latest", done.stderr
        assert "Traceback" not in server.log


def test_tls_1_1_is_refused(home: Path, tmp_path: Path, files: Files) -> None:
    old = trusting(files)
    old.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    own = {"MYLLM_SSL_CERTFILE": str(files["both"])}
    with served(home, tmp_path, **own) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as plain, pytest.raises(ssl.SSLError):
            old.wrap_socket(plain, server_hostname="localhost")
        with (
            socket.create_connection(("127.0.0.1", server.port), timeout=20) as plain,
            trusting(files).wrap_socket(plain, server_hostname="localhost") as secure,
        ):
            assert secure.version() in ("TLSv1.2", "TLSv1.3")
