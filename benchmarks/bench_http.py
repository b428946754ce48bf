"""What a streamed token costs the server: processor time of the server's own process, not of the model's.

    python benchmarks/bench_http.py [--streams N] [--words N] [--api native openai anthropic ollama]

Starts ``myllm serve`` over the echo model (which must be installed) that says a word every few milliseconds, as a model
does, and reads streams. Each line: which API, how many streams at once, tokens a second, microseconds of processor time
per token, and how many of them are more than a process takes that only hands tokens on from a pipe to sockets
(``bare_server.py``): where an idle processor must be woken for each token, most of the time is the kernel's.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import itertools
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from myllm_core.models.manifest import Manifest, ModelFile, write_manifest

LIMIT = 150  # microseconds
APIS = {
    "native": ("/api/chat", {"stream": True}, b'"done":false'),
    "openai": ("/v1/chat/completions", {"stream": True}, b'"delta":{"content":'),
    "anthropic": ("/v1/messages", {"stream": True, "max_tokens": 100_000}, b'"type":"text_delta"'),
    "ollama": ("/ollama/api/chat", {"stream": True}, b'"done":false'),
}
"""Path, what its body has besides model and messages, and what there is one of in each token's frame."""
ENDED = re.compile(rb'"(?:finish_reason|stop_reason|done_reason)":"(?:stop|end_turn)"')


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 16], help="streams at once (1 4 16)")
    parser.add_argument("--words", type=int, default=4000, help="words in all streams together (4000)")
    parser.add_argument("--api", nargs="+", choices=APIS, default=list(APIS), help="which APIs (all)")
    sizes = parser.parse_args()
    worst, bare = 0.0, dict[int, float]()
    with bare_server() as (process, port):
        for count in sizes.streams:
            bare[count] = report("bare", count, process, bare_streams(port, count, sizes.words // count))
    with tempfile.TemporaryDirectory() as folder, server(Path(folder)) as (process, port):
        asyncio.run(streams(port, sizes.api[0], 1, 20))  # the model is loaded
        for api, count in itertools.product(sizes.api, sizes.streams):
            cost = report(api, count, process, streams(port, api, count, sizes.words // count), bare[count])
            worst = max(worst, cost - bare[count])
    print(f"more than {LIMIT} µs over bare: {'yes' if worst > LIMIT else 'no'}")
    return 0


def report(
    name: str, count: int, process: psutil.Process, reading: Coroutine[Any, Any, int], bare: float = math.nan
) -> float:
    """Read streams and print what each of their tokens cost the process, in microseconds."""
    before, began = cpu(process), time.perf_counter()
    tokens = asyncio.run(reading)
    seconds, cost = time.perf_counter() - began, (cpu(process) - before) / tokens * 1e6
    more = "" if math.isnan(bare) else f" {cost - bare:6.0f} over bare"
    print(f"{name:9} {count:4} streams  {tokens / seconds:7.0f} tokens/s  {cost:6.0f} µs a token{more}")
    return cost


@contextmanager
def bare_server() -> Iterator[tuple[psutil.Process, int]]:
    command = [sys.executable, str(Path(__file__).with_name("bare_server.py")), "serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield psutil.Process(process.pid), _port(process)
        finally:
            process.terminate()


def _port(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline().rpartition(":")[2])


async def bare_streams(port: int, count: int, words: int) -> int:
    async def read() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
        writer.write(b"%d %d\n" % (count, words))
        answer = await reader.read()
        writer.close()
        return answer.count(b"\n\n")

    return sum(await asyncio.gather(*(read() for _ in range(count))))


@contextmanager
def server(home: Path) -> Iterator[tuple[psutil.Process, int]]:
    folder = home / "models" / "echo@latest"
    folder.mkdir(parents=True)
    (folder / "echo.txt").write_bytes(b"echo\n")
    file = ModelFile("echo.txt", 5, hashlib.sha256(b"echo\n").hexdigest())
    options = {"delay_ms": 4}
    write_manifest(folder / "manifest.json", Manifest("echo:latest", "echo", (file,), load_options=options))
    environment = os.environ | {
        "MYLLM_MODELS_DIR": str(home / "models"),
        "MYLLM_DATA_DIR": str(home / "data"),
        "MYLLM_CONFIG": str(home / "none.toml"),
        "MYLLM_LOG_LEVEL": "warning",
    }
    command = [sys.executable, "-m", "myllm_cli", "serve", "--port", "0"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield psutil.Process(process.pid), _port(process)
        finally:
            process.terminate()


def cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


async def streams(port: int, api: str, count: int, words: int) -> int:
    """Read ``count`` streams of so many words at the same time; how many tokens came."""
    return sum(await asyncio.gather(*(stream(port, api, words) for _ in range(count))))


async def stream(port: int, api: str, words: int) -> int:
    path, fields, token = APIS[api]
    message = {"role": "user", "content": " ".join(f"word{i}" for i in range(words))}
    body = json.dumps({"model": "echo", "messages": [message], **fields}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert ENDED.search(answer), answer[-300:]
    return answer.count(token)


if __name__ == "__main__":
    sys.exit(main())
