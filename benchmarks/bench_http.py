"""What a streamed token costs the server: processor time of the server's own process, not of the model's.

    python benchmarks/bench_http.py [--streams N] [--words N] [--api native openai anthropic ollama]

Starts ``myllm serve`` over the echo model (which must be installed) that says a word every few milliseconds, as a model
does, and reads streams. Each line: which API, how many streams at once, tokens a second, microseconds of processor time
per token.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder, server(Path(folder)) as (process, port):
        asyncio.run(streams(port, sizes.api[0], 1, 20))  # the model is loaded
        for api, count in itertools.product(sizes.api, sizes.streams):
            before, began = cpu(process), time.perf_counter()
            tokens = asyncio.run(streams(port, api, count, sizes.words // count))
            seconds, used = time.perf_counter() - began, cpu(process) - before
            cost = used / tokens * 1e6
            worst = max(worst, cost)
            print(f"{api:9} {count:4} streams  {tokens / seconds:7.0f} tokens/s  {cost:6.0f} µs a token")
    print(f"more than {LIMIT} µs: {'yes' if worst > LIMIT else 'no'}")
    return 0


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
            assert process.stdout is not None
            yield psutil.Process(process.pid), int(process.stdout.readline().rpartition(":")[2])
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
