"""A runtime on the echo model, and a plugin with engines that misbehave."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from pathlib import Path

import pytest

from myllm_core import Manifest, ModelFile, Runtime, load_settings
from myllm_core.models.store import ModelStore

FAULTY = """
import os, signal, subprocess, sys, time
from myllm_core import (
    Embeddings, Engine, Finish, LoadOption, MemoryEstimate, ModelFacts, Support, TextDelta, TokenEngine, TokenOut,
    hookimpl,
)
from myllm_core.errors import UnsupportedError

class FaultyEngine(Engine):
    name = "faulty"
    formats = frozenset({"faulty"})
    load_options = (LoadOption("mode", "fine", "how to fail"), LoadOption("size", 0, "bytes it says it needs"))

    @classmethod
    def probe(cls, model): return Support(50, "always")
    @classmethod
    def estimate(cls, model, options): return MemoryEstimate(options["size"])
    @classmethod
    def load(cls, model, options, progress):
        print("hello from native code"); os.write(1, b"more noise")
        if options["mode"] == "load-raises": raise OSError("no such tensor")
        if options["mode"] == "load-aborts": os.abort()
        if options["mode"] == "load-hangs": time.sleep(60)
        if options["mode"] == "load-slow": time.sleep(1.5)
        if options["mode"] == "child": subprocess.Popen(["sleep", "61.3"])
        self = cls(); self.mode = options["mode"]
        return self
    @property
    def facts(self):
        return ModelFacts(context_size=100, capabilities=frozenset({"chat"} | ({"embed"} & {self.mode[:5]})))
    def embed(self, inputs):
        if self.mode == "embed-dies": os.kill(os.getpid(), signal.SIGKILL)
        if self.mode == "embed-hangs": time.sleep(60)
    def chat(self, request):
        print("noise during the answer"); sys.stdout.flush()
        yield TextDelta("one ")
        match self.mode:
            case "raises": raise ValueError("bad matrix")
            case "aborts": os.abort()
            case "killed": os.kill(os.getpid(), signal.SIGKILL)
            case "exits": os._exit(3)
            case "no-finish": return
            case "not-an-event": yield b"bytes"
            case "endless":
                while True: yield TextDelta("more ")
            case "child": time.sleep(60)
            case "waits": time.sleep(0.5)
            case "slow-close":
                try:
                    while True: time.sleep(0.01); yield TextDelta("x")
                finally:
                    raise RuntimeError("closing failed")
        yield Finish("stop")
    def close(self):
        if getattr(self, "mode", "") == "close-raises": raise RuntimeError("can't close")

class TokensEngine(TokenEngine):
    name = "tokens"
    formats = frozenset({"tokens"})
    load_options = FaultyEngine.load_options
    max_sequences = 4
    probe, estimate = FaultyEngine.probe, FaultyEngine.estimate

    @classmethod
    def load(cls, model, options, progress):
        self = cls(); self.mode = options["mode"]; self.running = {}
        return self
    @property
    def facts(self):
        return ModelFacts(context_size=1000, vocab_size=256, capabilities=frozenset({"complete", "embed"}))
    def tokenize(self, text, special): return list(text.encode())
    def piece(self, token): return bytes([token])
    def add(self, sequence):
        if self.mode == "picky" and bytes(sequence.tokens) == b"bad": raise UnsupportedError("not this one")
        self.running[sequence.id] = sequence
    def cancel(self, sequence_id): self.running.pop(sequence_id, None)
    def step(self):
        time.sleep(0.01)
        outs = []
        for sequence in list(self.running.values()):
            outs.append(TokenOut(sequence.id, 65))
            sequence.tokens.append(65)
        return outs
    def embed(self, inputs):
        for text in inputs: time.sleep(0.1)
        return Embeddings([[float(len(text))] for text in inputs], len(inputs))

@hookimpl
def myllm_engines(): return [FaultyEngine, TokensEngine]
"""


def install(models_dir: Path, name: str, format: str, **more) -> None:
    store = ModelStore(models_dir)
    with store.lock(name):
        staged = store.staging(name)
        (staged / "weights").write_bytes(b"echo\n")
        file = ModelFile(f"{staged.name}/weights", 5, hashlib.sha256(b"echo\n").hexdigest())
        store.commit(Manifest(name, format, (file,), **more))


@pytest.fixture
def models_dir(tmp_path):
    install(tmp_path / "models", "echo:latest", "echo")
    install(tmp_path / "models", "echo:two", "echo")
    return tmp_path / "models"


@pytest.fixture
def faulty(tmp_path, models_dir, monkeypatch):
    """Installs the faulty plugin for this process and its children; `faulty(mode)` makes a model of it."""
    site = tmp_path / "site"
    info = site / "myllm_faulty-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "myllm_faulty_plugin.py").write_text(FAULTY)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: myllm-faulty\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[myllm]\nfaulty = myllm_faulty_plugin\n")
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=os.pathsep)
    monkeypatch.syspath_prepend(str(site))
    yield lambda mode, name="faulty:latest", format="faulty", **options: install(
        models_dir, name, format, load_options={"mode": mode, **options}
    )
    sys.modules.pop("myllm_faulty_plugin", None)


@pytest.fixture
def settings(tmp_path, models_dir):
    def make(**more):
        return load_settings(models_dir=models_dir, data_dir=tmp_path / "data", **more)

    return make


@pytest.fixture(scope="session")
def run():
    """Runs `test(runtime)` on a fresh runtime; whatever happens, no worker is left."""

    def go(settings, test):
        async def main():
            async with Runtime(settings) as runtime:
                return await test(runtime)

        return asyncio.run(main())

    return go
