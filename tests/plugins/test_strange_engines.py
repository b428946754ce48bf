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

        load = classmethod(lambda cls, *args: None)
        facts = property(lambda self: None)
        def chat(self, request): ...

    @hookimpl
    def myllm_engines():
        return [Strange]
"""


def failure(site: Site, home: Path, probe: str, estimate: str) -> MyllmError:
    """What a chat with a model of the strange engine's ends in."""
    site.install("strange", STRANGE.replace("PROBE", probe).replace("ESTIMATE", estimate))
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
