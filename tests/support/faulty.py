"""A plugin with engines that misbehave, and models for them."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from myllm_core.models.manifest import Manifest, ModelFile
from myllm_core.models.store import ModelStore

FAULTY = """
import os, resource, signal, subprocess, sys, time
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
    def estimate(cls, model, options):
        if options["mode"] == "estimate-hangs": time.sleep(4)
        return MemoryEstimate(options["size"])
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
            case "hog":
                resource.setrlimit(resource.RLIMIT_AS, (2**32, resource.getrlimit(resource.RLIMIT_AS)[1]))
                bytearray(2**33)
            case "floods":
                for _ in range(1600): os.write(2, b"0123456789abcde\\n" * 4096)  # 100 MiB
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


def install(models_dir: Path, name: str, format: str, **more: Any) -> None:
    """Put a model of a few bytes into a models directory."""
    store = ModelStore(models_dir)
    with store.lock(name):
        staged = store.staging(name)
        (staged / "weights").write_bytes(b"echo\n")
        file = ModelFile(f"{staged.name}/weights", 5, hashlib.sha256(b"echo\n").hexdigest())
        store.commit(Manifest(name, format, (file,), **more))


@contextmanager
def faulty_plugin(site: Path, patch: pytest.MonkeyPatch, name: str = "faulty", source: str = FAULTY) -> Iterator[None]:
    """Install a plugin of one module for this process and its children."""
    info = site / f"myllm_{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (site / f"myllm_{name}_plugin.py").write_text(source)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: myllm-{name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[myllm]\n{name} = myllm_{name}_plugin\n")
    patch.setenv("PYTHONPATH", str(site), prepend=os.pathsep)
    patch.syspath_prepend(str(site))
    yield
    sys.modules.pop(f"myllm_{name}_plugin", None)
