"""A plugin with an engine that takes its time: to load, and with one request at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

SOURCE = """
import sys, time
from myllm_core import Engine, Finish, LoadOption, MemoryEstimate, ModelFacts, Support, TextDelta, Usage, hookimpl

class Patient(Engine):
    name = "patient"
    formats = frozenset({"patient"})
    load_options = (
        LoadOption("load_ms", 0, "how long loading takes"),
        LoadOption("delay_ms", 0, "how long a word takes"),
        LoadOption("fails", False, "whether loading fails in the end"),
    )

    @classmethod
    def probe(cls, model): return Support(50, "always")
    @classmethod
    def estimate(cls, model, options): return MemoryEstimate(0)
    @classmethod
    def load(cls, model, options, progress):
        for step in range(20):
            progress(step / 20)
            time.sleep(options["load_ms"] / 20_000)
        print("loaded\\x1b[31m and said so", file=sys.stderr)
        if options["fails"]: raise OSError("no such tensor")
        self = cls(); self.delay = options["delay_ms"] / 1000
        return self
    @property
    def facts(self): return ModelFacts(context_size=1000, capabilities=frozenset({"chat"}))
    def chat(self, request):
        words = request.messages[-1].content.split()
        for word in words[:request.max_tokens]:
            time.sleep(self.delay)
            yield TextDelta(word + " ")
        counted = len(words[:request.max_tokens])
        yield Finish("stop", Usage(len(words), counted, len(words) // 2))

@hookimpl
def myllm_engines(): return [Patient]
"""


def install_patient(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the plugin where this process and workers find it."""
    info = folder / "patient-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "patient_plugin.py").write_text(SOURCE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: patient\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[myllm]\npatient = patient_plugin\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))
