"""What a restart costs a long conversation: time to the next reply's first token, with and without the disk cache.

    python benchmarks/bench_restart.py [--model FILE] [--tokens N] [--rounds N]

Each round starts ``myllm serve``, holds a conversation of so many tokens, stops the server, starts it again and asks
for the next turn: once with the sequences that were saved to disk, once without. Loading the model isn't counted.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from myllm_core.models.manifest import Manifest, ModelFile, write_manifest

LIMIT = 0.25
FILE = Path(__file__).parent.parent / ".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf"
WORDS = ("river", "stone", "cloud", "paper", "engine", "garden", "window", "silver", "market", "forest", "letter")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=FILE, help="a GGUF file (the tests' one)")
    parser.add_argument("--tokens", type=int, default=3000, help="tokens of the conversation (3000)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (3)")
    given = parser.parse_args()
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        install(home, given.model)
        for number in range(given.rounds):
            warm, cold = one_round(home, given.tokens, number)
            ratios.append(warm / cold)
            print(f"round {number + 1}: {warm * 1000:6.0f} ms after a restart, {cold * 1000:6.0f} ms cold", flush=True)
    ratio = statistics.median(ratios)
    print(f"median ratio {ratio:.3f}; more than {LIMIT}: {'yes' if ratio > LIMIT else 'no'}")
    return 0


def install(home: Path, file: Path) -> None:
    folder = home / "models" / "bench@latest"
    folder.mkdir(parents=True)
    with file.open("rb") as data:
        digest = hashlib.file_digest(data, "sha256").hexdigest()
    manifest = Manifest("bench:latest", "gguf", (ModelFile(str(file.resolve()), file.stat().st_size, digest),))
    write_manifest(folder / "manifest.json", manifest)


def one_round(home: Path, tokens: int, number: int) -> tuple[float, float]:
    """Seconds to the first token of the second turn, with the disk cache and without."""
    words = random.Random(number)
    story = " ".join(words.choice(WORDS) for _ in range(tokens - 50))
    messages = [{"role": "user", "content": f"Remember these words: {story}"}]
    with server(home, 512) as port:
        _, reply = turn(port, messages)
    messages += [{"role": "assistant", "content": reply}, {"role": "user", "content": "Which word came first?"}]
    with server(home, 512) as port:
        warm, _ = turn(port, messages)
    with server(home, 0) as port:
        cold, _ = turn(port, messages)
    return warm, cold


@contextmanager
def server(home: Path, cache_disk: int) -> Iterator[int]:
    options = {"llamacpp": {"cache_disk": cache_disk, "cache_dir": str(home / "kv")}}
    environment = os.environ | {
        "MYLLM_MODELS_DIR": str(home / "models"),
        "MYLLM_DATA_DIR": str(home / "data"),
        "MYLLM_CONFIG": str(home / "none.toml"),
        "MYLLM_LOG_LEVEL": "warning",
        "MYLLM_ENGINE_OPTIONS": json.dumps(options),
    }
    command = [sys.executable, "-m", "myllm_cli", "serve", "--port", "0"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline().rpartition(":")[2])
            list(post(port, "/api/models/bench/load", {}))
            yield port
        finally:
            process.terminate()


def turn(port: int, messages: list[dict[str, str]]) -> tuple[float, str]:
    """Ask for a reply; seconds to the first token, and the reply."""
    began = time.perf_counter()
    body: dict[str, object] = {"model": "bench", "messages": messages, "options": {"temperature": 0, "max_tokens": 16}}
    first, last = 0.0, {}
    for line in post(port, "/api/chat", body):
        if line.startswith(b"data: "):
            first = first or time.perf_counter() - began
            last = json.loads(line[6:])
    if "full_text" not in last:
        raise SystemExit(f"no reply: {last}")
    return first, str(last["full_text"])


def post(port: int, path: str, body: dict[str, object]) -> Iterator[bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        yield from answer
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
