"""An accelerator's memory is a budget like the host's: an engine that keeps accounts in a folder plays one."""

from __future__ import annotations

import sys

import pytest

from myllm_core.engine import MemoryEstimate
from myllm_core.errors import OutOfMemory
from myllm_core.runtime.memory import shortage, wants_more
from support.faulty import install

SOURCE = """
import os
from pathlib import Path
from myllm_core import Engine, Finish, LoadOption, MemoryEstimate, ModelFacts, Support, TextDelta, hookimpl

TOTAL = 1000
FOLDER = Path(__file__).parent / "device"

class OnDevice(Engine):
    name = "ondevice"
    formats = frozenset({"ondevice"})
    load_options = (
        LoadOption("wants", 0, "bytes of the device's memory"),
        LoadOption("needs", -1, "how many of them it can't do without; -1 is all"),
    )

    @classmethod
    def probe(cls, model): return Support(50, "always")
    @classmethod
    def free(cls): return TOTAL - sum(int(path.read_text()) for path in FOLDER.glob("*"))
    @classmethod
    def estimate(cls, model, options):
        return MemoryEstimate(1, options["wants"], cls.free(), None if options["needs"] < 0 else options["needs"])
    @classmethod
    def load(cls, model, options, progress):
        self = cls()
        FOLDER.mkdir(exist_ok=True)
        self.path, self.got = FOLDER / str(os.getpid()), min(options["wants"], cls.free())
        self.path.write_text(str(self.got))
        return self
    @property
    def facts(self): return ModelFacts(context_size=100, capabilities=frozenset({"chat"}))
    def chat(self, request):
        yield TextDelta(str(self.got))
        yield Finish("stop")
    def close(self): self.path.unlink(missing_ok=True)

@hookimpl
def myllm_engines(): return [OnDevice]
"""


@pytest.fixture
def device(tmp_path, models_dir, monkeypatch):
    """Installs the plugin; `device(name, …)` makes a model of it."""
    folder = tmp_path / "site"
    info = folder / "ondevice-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "ondevice_plugin.py").write_text(SOURCE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ondevice\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[myllm]\nondevice = ondevice_plugin\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.delitem(sys.modules, "ondevice_plugin", raising=False)  # another test's has its own accounts
    return lambda name, **options: install(models_dir, f"{name}:latest", "ondevice", load_options=options)


async def got(runtime, model):
    """Bytes of the device that a model got; 0 for one that isn't on it."""
    text = "".join([event.text async for event in runtime.chat(model, "x") if hasattr(event, "text")])
    return int(text) if text.isdigit() else 0


def loaded(runtime):
    return [one.name.partition(":")[0] for one in runtime.loaded()]


def test_a_model_that_lacks_device_memory_takes_the_place_of_one_that_holds_it(settings, run, device):
    device("large", wants=700)
    device("other", wants=600)

    async def test(runtime):
        assert await got(runtime, "large") == 700
        await got(runtime, "echo:two")
        assert await got(runtime, "other") == 600
        assert loaded(runtime) == ["echo", "other"]  # what isn't on the device needn't go

    run(settings(max_loaded_models=4), test)


def test_models_that_fit_together_stay(settings, run, device):
    device("one", wants=400)
    device("two", wants=600)

    async def test(runtime):
        assert (await got(runtime, "one"), await got(runtime, "two")) == (400, 600)
        assert loaded(runtime) == ["one", "two"]

    run(settings(max_loaded_models=4), test)


def test_one_that_could_never_fit_is_refused_and_unloads_nobody(settings, run, device):
    device("one", wants=400)
    device("huge", wants=1001)

    async def test(runtime):
        await got(runtime, "one")
        with pytest.raises(OutOfMemory, match=r"needs about 1 kB of GPU memory, 1 kB is free; .*fewer layers") as error:
            await got(runtime, "huge")
        assert error.value.data == {"needed": 1001, "free": 1000}
        assert loaded(runtime) == ["one"]

    run(settings(max_loaded_models=4), test)


def test_one_that_can_do_with_less_takes_what_idle_ones_held_and_goes_on_without_the_rest(settings, run, device):
    device("one", wants=400)
    device("flexible", wants=5000, needs=0)
    device("modest", wants=900, needs=0)

    async def test(runtime):
        await got(runtime, "one")
        assert await got(runtime, "flexible") == 1000
        assert loaded(runtime) == ["flexible"]

    run(settings(max_loaded_models=4), test)

    async def beside_a_pinned_one(runtime):
        await got(runtime, "one")
        assert await got(runtime, "modest") == 600
        assert loaded(runtime) == ["modest", "one"]

    run(settings(max_loaded_models=4, pinned_models=["one:latest"]), beside_a_pinned_one)


@pytest.mark.parametrize(
    ("needs", "held", "lacks"),
    [
        (MemoryEstimate(10), 0, None),
        (MemoryEstimate(11), 0, (11, 10, False)),
        (MemoryEstimate(5, 100), 0, None),  # nobody knows what is free there
        (MemoryEstimate(5, 100, 99), 0, (100, 99, True)),
        (MemoryEstimate(5, 100, 99), 1, None),
        (MemoryEstimate(5, 100, 99, 50), 0, None),
        (MemoryEstimate(5, 100, 40, 50), 0, (50, 40, True)),
    ],
)
def test_what_a_model_lacks(needs, held, lacks):
    found = shortage(needs, 10, held)
    assert (found and (found.needed, found.free, found.on_device)) == lacks
    assert wants_more(needs) == (needs.device_free is not None and needs.device_free < 100)
