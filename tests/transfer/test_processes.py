"""Processes that are killed, interrupted, or pull the same model at once: rows G7, G10, G11 and G13 of the threats."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.gguf import small_gguf
from support.pulling import Puller, StartServer
from support.wild_server import Exchange, Handler, WildServer

DATA = small_gguf(2_000_000)

PULL = """
import sys
from pathlib import Path
{patch}
from support.pulling import Puller
from myllm_core.errors import MyllmError
from myllm_core.models.store import ModelStore
from myllm_core.plugins import load_plugins
puller = Puller(ModelStore(Path(sys.argv[1])), load_plugins())
print("ready", flush=True)
try:
    print(puller(sys.argv[2]).name)
except KeyboardInterrupt:
    sys.exit(130)
except MyllmError as error:
    print(error.message)
    sys.exit(error.exit_code)
finally:
    print(puller.told.text)
"""

# Disks where locks do nothing.
NO_LOCKS = "import fcntl; fcntl.flock = lambda *a: None"


def start(puller: Puller, server: WildServer, patch: str = "") -> subprocess.Popen[str]:
    """A process that pulls; it has said that it begins."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", PULL.format(patch=patch), str(puller.store.models_dir), server.url()]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", process.communicate()[1]
    return process


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, err = process.communicate(timeout=60)
    assert "Traceback" not in err, err
    return process.returncode, out


def slow(exchange: Exchange) -> None:
    """The file in about a second, but for those who only ask what is there."""
    if exchange.start or any(e.number < exchange.number and not e.start for e in exchange.server.seen):
        data = DATA[exchange.start :]
        content_range = f"bytes {exchange.start}-{len(DATA) - 1}/{len(DATA)}"
        sizes: dict[str, str | int] = {"Content_Range": content_range} if exchange.start else {}
        exchange.head(206 if exchange.start else 200, Content_Length=len(data), ETag='"v1"', **sizes)
        exchange.slowly(data, 40, 0.8)
    else:
        exchange.file(DATA)


def test_g10_killed_at_any_moment_the_next_pull_just_works(serve: StartServer, puller: Puller) -> None:
    server = serve(slow)
    chance = random.Random(2)
    for _ in range(6):
        process = start(puller, server)
        time.sleep(chance.uniform(0.0, 0.6))
        process.kill()
        process.communicate()
        puller.assert_nothing_installed()
    model = puller(server.url())
    assert puller.bytes_of(model) == DATA
    assert puller.store.broken() == []
    assert list(puller.store.partials_dir.iterdir()) == []


@pytest.mark.parametrize(
    "moment",
    ["os.replace", "myllm_core.models.store.ModelStore.staging", "myllm_core.transfer.install.inspect_files",
     "myllm_core.models.store.ModelStore.commit", "myllm_core.transfer.pull.sweep"],
)  # fmt: skip
def test_g13_killed_between_the_last_byte_and_the_end(serve: StartServer, puller: Puller, moment: str) -> None:
    """The process dies just before ``moment`` of putting the model in place."""
    server = serve(lambda exchange: exchange.file(DATA))
    module, _, function = moment.rpartition(".")
    owner = module if module == "os" else f"pkgutil.resolve_name('{module}')"
    patch = f"""
import os, pkgutil, signal
from myllm_core.transfer import install as installing, pull as pulling
real = pulling.install
def die(*a, **k):
    os.kill(os.getpid(), signal.SIGKILL)
def install(*a, **k):
    setattr({owner}, '{function}', die)
    return real(*a, **k)
pulling.install = install
"""
    process = start(puller, server, patch)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    there = puller.store.list_models()
    assert [puller.bytes_of(model) for model in there] == ([DATA] if moment.endswith("sweep") else [])
    server.seen.clear()
    model = puller(server.url())
    assert puller.bytes_of(model) == DATA
    assert len(puller.store.list_models()) == 1


def test_g7_ctrl_c_ends_a_pull_within_two_seconds_and_keeps_what_is_here(serve: StartServer, puller: Puller) -> None:
    def handler(exchange: Exchange) -> None:
        exchange.file(DATA, stop=1_000_000 if exchange.number == 1 else None)
        if exchange.number == 1:
            exchange.wait(60)

    server = serve(handler)
    patch = (
        "import support.pulling as p; p.HttpClient = lambda **k: __import__('myllm_core').transfer.client.HttpClient()"
    )
    process = start(puller, server, patch)
    until = time.monotonic() + 20
    while puller.partial_bytes < 1_000_000 and time.monotonic() < until:
        time.sleep(0.05)
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    code, _ = finish(process)
    assert time.monotonic() - begin < 2
    assert code == 130
    puller.assert_nothing_installed()
    assert puller.partial_bytes == 1_000_000
    assert puller.bytes_of(puller(server.url())) == DATA
    assert server.seen[-1].headers["range"] == "bytes=1000000-"


def test_g7_ctrl_c_before_the_server_answers(serve: StartServer, puller: Puller) -> None:
    server = serve(lambda exchange: exchange.wait(60))
    process = start(puller, server)
    while not server.seen:
        time.sleep(0.02)
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 130
    assert time.monotonic() - begin < 2


def together(requests: int) -> Handler:
    """The file, the end of it only when so many requests have come."""

    def handler(exchange: Exchange) -> None:
        exchange.head(Content_Length=len(DATA), ETag='"v1"')
        sent, until = 0, time.monotonic() + 30
        while len(exchange.server.seen) < requests and time.monotonic() < until:
            exchange.send(DATA[sent : sent + 1000])
            sent += 1000
            exchange.wait(0.1)
        exchange.slowly(DATA[sent:], 5, 0.5)

    return handler


def test_g11_three_pulls_at_once_fetch_once(serve: StartServer, puller: Puller) -> None:
    server = serve(together(4))  # each asks what is there, one fetches
    processes = [start(puller, server) for _ in range(3)]
    results = [finish(process) for process in processes]
    assert [code for code, _ in results] == [0, 0, 0], results
    (model,) = puller.store.list_models()
    assert puller.bytes_of(model) == DATA
    assert len(server.seen) == 4
    assert sum("waiting for it" in out for _, out in results) >= 1, results
    assert sum("installed already" in out for _, out in results) == 2, results
    assert list(puller.store.partials_dir.iterdir()) == []


def test_g11_even_where_locks_do_nothing(serve: StartServer, puller: Puller) -> None:
    server = serve(together(6))  # all three fetch
    processes = [start(puller, server, NO_LOCKS) for _ in range(3)]
    results = [finish(process) for process in processes]
    assert [code for code, _ in results] == [0, 0, 0], results
    assert len(server.seen) == 6
    (model,) = puller.store.list_models()
    assert puller.bytes_of(model) == DATA
    assert model.manifest.files[0].sha256 == hashlib.sha256(DATA).hexdigest()
