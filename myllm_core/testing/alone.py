"""A plugin looked at in a fresh process: what importing and asking it brings in, prints and costs."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from myllm_core.plugins import load_plugins

HEAVY = (
    "PIL", "ctransformers", "diffusers", "google.protobuf", "grpc", "huggingface_hub", "jax", "keras", "llama_cpp",
    "mlx", "numpy", "onnx", "onnxruntime", "onnxruntime_genai", "optimum", "pandas", "ray", "safetensors", "scipy",
    "sentence_transformers", "sentencepiece", "sklearn", "tensorflow", "tokenizers", "torch", "transformers",
    "uvicorn", "vllm",
)  # fmt: skip
"""Packages that take long to import: a plugin brings them in when a model is loaded, not before."""

_TIMEOUT = 120

_SCRIPT = """
import json, sys, time
from importlib.metadata import EntryPoint
order = json.load(open(sys.argv[1], encoding="utf-8"))
calls = []
if order["offline"]:
    watched = ("socket.connect", "socket.getaddrinfo", "socket.sendto")
    sys.addaudithook(lambda event, args: calls.append(event) if event in watched else None)
from myllm_core.models.manifest import Manifest
from myllm_core.runtime.wire import unpack_model
def heavy():
    return [name for name in order["heavy"] if name in sys.modules]
def peak():
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
seen = {"heavy_before": heavy()}
module = EntryPoint(*order["plugin"]).load()
[cls] = [cls for cls in getattr(module, order["hook"])() if cls.name == order["name"]]
seen["heavy_after_import"] = heavy()
if "model" in order:
    cls.formats, cls.load_options, cls.sampling
    model, before = unpack_model(order["model"]), peak()
    for method, arguments in (("probe", (model,)), ("estimate", (model, order["options"]))):
        began = time.perf_counter()
        getattr(cls, method)(*arguments)
        seen[f"{method}_seconds"] = time.perf_counter() - began
        seen[f"heavy_after_{method}"] = heavy()
    seen["grown"] = peak() - before
elif order["offline"]:
    made = cls()
    made.schemes, made.name
seen["network"] = calls
json.dump(seen, open(sys.argv[2], "w", encoding="utf-8"))
"""


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen: ``facts`` by the script above, what went to standard output, and how the process ended."""

    facts: dict[str, Any]
    printed: str
    failure: str

    def expect(self) -> dict[str, Any]:
        """The facts; fails the test when the process did."""
        assert not self.failure, f"the plugin failed in a process of its own: {self.failure}"
        return self.facts


def plugin_of(hook: str, cls: type[Any]) -> EntryPoint:
    """The entry point of the installed plugin that offers a class; fails the test when there is none."""
    plugins = load_plugins(warn=lambda _: None)
    for plugin in plugins.entries(load=True):
        if cls.name in plugin.offers.get(hook, []) and _gives(plugin.entry_point, hook, cls):
            return plugin.entry_point
    broken = "; ".join(f"{plugin.label}: {plugin.error}" for plugin in plugins.broken())
    pytest.fail(
        f"no installed plugin offers {cls.__name__} by the hook myllm_{hook}; "
        f"install yours: pip install -e .{f' (broken: {broken})' if broken else ''}"
    )


def _gives(point: EntryPoint, hook: str, cls: type[Any]) -> bool:
    return any(given is cls for given in getattr(point.load(), f"myllm_{hook}")())


def look(point: EntryPoint, hook: str, cls: type[Any], **more: Any) -> Look:
    """Import a plugin in a fresh process and ask the class; ``more`` is what the script wants beside that."""
    order = {
        "plugin": [point.name, point.value, point.group],
        "hook": f"myllm_{hook}",
        "name": cls.name,
        "heavy": HEAVY,
        "offline": hook == "downloaders",
        **more,
    }
    with tempfile.TemporaryDirectory(prefix="myllm-look-") as folder:
        asked, answered = Path(folder, "asked.json"), Path(folder, "answered.json")
        asked.write_text(json.dumps(order), encoding="utf-8")
        command = [sys.executable, "-c", _SCRIPT, str(asked), str(answered)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, stdin=subprocess.DEVNULL)
        except subprocess.TimeoutExpired:
            return Look({}, "", f"it takes longer than {_TIMEOUT} s")
        facts = json.loads(answered.read_text(encoding="utf-8")) if answered.exists() else {}
        failure = "" if facts else f"exit code {done.returncode}: {done.stderr.strip()[-1000:]}"
    return Look(facts, done.stdout, failure)
