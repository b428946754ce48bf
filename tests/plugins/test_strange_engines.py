"""Engines that misbehave when they are asked about a model, before anything is loaded."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest

from myllm_core.errors import EngineError, EngineMissing, MyllmError
from myllm_core.models.manifest import MANIFEST, Manifest, ModelFile, write_manifest
from myllm_core.runtime.runtime import Runtime
from myllm_core.settings import Settings
from support.site import Site

STRANGE = """
    from myllm_core import *
    from myllm_core.errors import OutOfMemory

    class Strange(Engine):
        name = "NAME"
        formats = frozenset({"strange"})

        @classmethod
        def probe(cls, model):
            print("noise by probe")
            PROBE

        @classmethod
        def estimate(cls, model, options):
            print("noise by estimate")
            ESTIMATE

        load = classmethod(lambda cls, *args: LOAD)
        facts = FACTS
        def chat(self, request): ...

    @hookimpl
    def myllm_engines():
        return [Strange]
"""


def failure(site: Site, home: Path, probe: str, estimate: str, load: str = "None", facts: str = "None") -> MyllmError:
    """What a chat with a model of the strange engine's ends in."""
    code = STRANGE.replace("PROBE", probe).replace("ESTIMATE", estimate)
    site.install("strange", code.replace("LOAD", load).replace("FACTS", facts))
    (home / "odd@latest").mkdir(parents=True)
    (home / "odd@latest" / "weights").write_bytes(b"odd")
    weights = ModelFile("weights", 3, hashlib.sha256(b"odd").hexdigest())
    write_manifest(home / "odd@latest" / MANIFEST, Manifest("odd:latest", "strange", (weights,)))

    async def chat() -> None:
        async with Runtime(Settings(models_dir=home, isolation="thread"), site.load()) as runtime:
            async for _ in runtime.chat("odd", "hello"):
                pass

    with pytest.raises(MyllmError) as caught:
        asyncio.run(chat())
    return caught.value


@pytest.mark.parametrize(
    ("probe", "said"),
    [
        ("raise ValueError('no idea')", "strange: its probe failed: ValueError: no idea"),
        ("raise SystemExit(0)", "strange: its probe failed: SystemExit: 0"),
        ("return None", "strange: its probe gave NoneType object, no Support"),
        ("return Support(0, 'not that one')", "strange: not that one"),
    ],
)
def test_a_probe_that_fails_is_told(
    site: Site, tmp_path: Path, capfd: pytest.CaptureFixture[str], probe: str, said: str
) -> None:
    error = failure(site, tmp_path / "models", probe, "return MemoryEstimate(1)")
    assert isinstance(error, EngineMissing) and said in error.message
    assert capfd.readouterr().out == ""


def test_what_is_missing_comes_with_the_command_that_installs_it(site: Site, tmp_path: Path) -> None:
    error = failure(site, tmp_path / "models", "return Support(90, 'fits', 'its library', 'pip install it')", "...")
    assert isinstance(error, EngineMissing)
    assert error.message == "the engine strange needs its library; install it: pip install it"


@pytest.mark.parametrize(
    ("estimate", "code", "said"),
    [
        ("raise ValueError('no idea')", "engine_error", "can't estimate the memory of odd:latest: ValueError: no idea"),
        ("raise SystemExit(0)", "engine_error", "can't estimate the memory of odd:latest: SystemExit: 0"),
        ("return 7", "engine_error", "estimated int object, no MemoryEstimate"),
        ("raise OutOfMemory('too large', needed=2, free=1)", "out_of_memory", "too large"),
    ],
)
def test_an_estimate_that_fails_is_told(
    site: Site, tmp_path: Path, capfd: pytest.CaptureFixture[str], estimate: str, code: str, said: str
) -> None:
    error = failure(site, tmp_path / "models", "return Support(90, 'fits')", estimate)
    assert isinstance(error, EngineError) and error.code == code and said in error.message
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("load", "facts", "said"),
    [
        ("None", "None", "the load method of the strange engine gave NoneType, no engine"),
        ("cls()", "lambda self: ModelFacts(context_size=1)", "facts of the strange engine gave a method; make it a"),
        ("cls()", "property(lambda self: {})", "facts of the strange engine gave dict"),
    ],
)
def test_what_load_gives_is_looked_at(site: Site, tmp_path: Path, load: str, facts: str, said: str) -> None:
    fits, small = "return Support(90, 'fits')", "return MemoryEstimate(1)"
    error = failure(site, tmp_path / "models", fits, small, load, facts)
    assert isinstance(error, EngineError) and said in error.message


def test_the_log_has_the_traceback_of_what_an_engine_raised(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    error = failure(site, tmp_path / "models", "return Support(90, 'fits')", "return MemoryEstimate(1)", "{}['key']")
    assert error.message == "the engine failed while loading the model: KeyError: 'key'"
    assert "while loading the model" in caplog.text and "in <lambda>" in caplog.text and "strange" in caplog.text
