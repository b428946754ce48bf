"""A model that says what the test tells it to: events of every kind, and faults in mid-stream."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from myllm_core.models.manifest import MANIFEST, Manifest, ModelFile, write_manifest
from support.server import LiveServer, live_server
from support.site import Site

ENGINE = """
    import json
    import time
    from myllm_core import *
    from myllm_core.errors import EngineError
    from myllm_core.types import PositionLogprobs, TokenLogprob, ToolCallDelta

    def position(text):
        chosen, other = TokenLogprob(text, text.encode(), -0.25), TokenLogprob("?", b"?", float("-inf"))
        return PositionLogprobs(chosen, (chosen, other))

    KINDS = {
        "text": lambda text: TextDelta(text),
        "logprob": lambda text: TextDelta(text, (position(text),)),
        "reasoning": lambda text: ReasoningDelta(text),
        "call": lambda fields: ToolCallDelta(*fields),
        "finish": lambda reason: Finish(reason, Usage(5, 3, 2)),
        "progress": lambda stage: Progress(stage),
        "read": lambda cached: Progress("prompt", 1.0, usage=Usage(5, 0, cached)),
    }

    class Told(Engine):
        name = "told"
        formats = frozenset({"told"})
        sampling = frozenset({"seed"})
        max_concurrency = 8
        facts = ModelFacts(1000, capabilities=frozenset({"chat", "complete", "logprobs"}))
        probe = classmethod(lambda cls, model: Support(100, "told"))
        estimate = classmethod(lambda cls, model, options: MemoryEstimate(1))
        load = classmethod(lambda cls, model, options, progress: cls())

        def chat(self, request):
            return self.play(request.messages[-1].content, request)

        def complete(self, request):
            return self.play(request.prompt, request)

        def play(self, script, request):
            for kind, value in json.loads(script):
                if kind == "raise":
                    raise EngineError(value)
                if kind == "sleep":
                    time.sleep(value)
                elif kind == "request":
                    yield TextDelta(repr(request))
                else:
                    yield KINDS[kind](value)

    @hookimpl
    def myllm_engines():
        return [Told]
"""


def install_told(site: Site, models_dir: Path) -> None:
    """Install the engine, and the model ``told`` for it."""
    site.install("told", ENGINE)
    folder = models_dir / "told@latest"
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"told")
    weights = ModelFile("weights", 4, hashlib.sha256(b"told").hexdigest())
    write_manifest(folder / MANIFEST, Manifest("told:latest", "told", (weights,)))


@contextmanager
def told_server(home: Path) -> Iterator[LiveServer]:
    """A live server that has the model ``told`` besides what is installed in ``home``."""
    (home / "site").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(home / "site")
        install_told(Site(home / "site"), home / "models")
        with live_server(home) as server:
            yield server


def script(*events: tuple[str, Any]) -> str:
    """What to send for these events."""
    return json.dumps(events)
