"""Which engine runs a model, and why: the choice, and what is said of it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from myllm_core import Runtime, load_settings
from myllm_core.errors import EngineMissing, ModelNotFound
from myllm_core.models.store import ModelStore
from myllm_core.plugins import Plugins
from myllm_core.runtime.explain import Explanation, explain
from support.faulty import install
from support.site import Site

ENGINES = """
    from myllm_core import Engine, MemoryEstimate, Support, hookimpl
    from myllm_core.errors import EngineError

    class Base(Engine):
        formats = frozenset({"odd"})
        estimate = classmethod(lambda cls, model, options: MemoryEstimate(1_000, 20))
        load = classmethod(lambda cls, *args: None)
        facts = property(lambda self: None)
        def chat(self, request): ...

    class Better(Base):
        name = "better"
        probe = classmethod(lambda cls, model: Support(90, "quick with these"))

    class Plain(Base):
        name = "plain"
        probe = classmethod(lambda cls, model: Support(20, "it works"))

        @classmethod
        def estimate(cls, model, options):
            raise EngineError("the file can't be measured")

    class Lacking(Base):
        name = "lacking"
        probe = classmethod(lambda cls, model: Support(95, "the best", "libodd", "pip install libodd"))

    class Broken(Base):
        name = "broken"
        probe = classmethod(lambda cls, model: 1 / 0)

    @hookimpl
    def myllm_engines():
        return [Plain, Broken, Better, Lacking]
"""


@pytest.fixture
def plugins(site: Site) -> Plugins:
    site.install("odd", ENGINES)
    return site.load()


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    install(tmp_path / "models", "odd:latest", "odd")
    return ModelStore(tmp_path / "models")


def about(store: ModelStore, plugins: Plugins, name: str = "odd") -> Explanation:
    return explain(store.get(name), plugins, load_settings(models_dir=store.models_dir))


def test_every_engine_says_what_it_thinks_the_best_first(store: ModelStore, plugins: Plugins) -> None:
    found = about(store, plugins)
    assert (found.engine, found.preferred, found.format) == ("better", "", "odd")
    known = [one for one in found.engines if "odd" in one.formats]
    assert [one.engine for one in known] == ["better", "plain", "broken", "lacking"]
    assert [one.chosen for one in known] == [True, False, False, False]
    better, plain, broken, lacking = known
    assert (better.score, better.reason, better.memory, better.device_memory) == (90, "quick with these", 1000, 20)
    assert plain.memory is None and plain.problem == "the file can't be measured"
    assert broken.score == 0 and "ZeroDivisionError" in broken.reason
    assert (lacking.missing, lacking.install, lacking.memory) == ("libodd", "pip install libodd", None)
    assert "highest score of the 2 engines" in found.why and "pip install libodd" in found.why
    assert found.free_memory > 0


def test_engines_of_other_formats_are_named_last(store: ModelStore, plugins: Plugins) -> None:
    last = about(store, plugins).engines[-1]
    assert "odd" not in last.formats and last.score == 0 and last.formats[0] in last.reason


def test_a_preferred_engine_is_taken_and_can_be_given_up(store: ModelStore, plugins: Plugins) -> None:
    before = store.get("odd").manifest
    store.prefer_engine("odd", "plain")
    found = about(store, plugins)
    assert (found.engine, found.preferred) == ("plain", "plain") and "prefers" in found.why
    store.prefer_engine("odd", "")
    assert about(store, plugins).engine == "better" and store.get("odd").manifest == before


def test_when_none_can_run_it_the_reason_is_told(store: ModelStore, plugins: Plugins, tmp_path: Path) -> None:
    store.prefer_engine("odd", "lacking")
    found = about(store, plugins)
    assert found.engine is None and "pip install libodd" in found.why
    install(tmp_path / "models", "strange:latest", "strange")
    found = about(store, plugins, "strange")
    assert found.engine is None and "no installed engine loads strange models" in found.why
    assert found.engines and all(one.score == 0 for one in found.engines)


def test_a_broken_plugin_that_might_have_had_one_is_named(store: ModelStore, site: Site) -> None:
    site.install("odd", ENGINES)
    site.install("ruin", "raise RuntimeError('no')")
    [text] = [text for text in about(store, site.load()).broken if text.startswith("ruin")]
    assert "no" in text and "fix:" in text


def test_a_runtime_says_which_engine_comes_next(store: ModelStore, plugins: Plugins, tmp_path: Path) -> None:
    async def main() -> None:
        async with Runtime(load_settings(models_dir=store.models_dir, data_dir=tmp_path), plugins) as runtime:
            assert runtime.engine_of("odd") == "better"
            assert runtime.explain("odd").engine == "better"
            with pytest.raises(ModelNotFound):
                runtime.engine_of("nobody")
            install(tmp_path / "models", "strange:latest", "strange")
            with pytest.raises(EngineMissing):
                runtime.engine_of("strange")

    asyncio.run(main())


def test_a_model_that_another_process_pulls_is_not_changed(store: ModelStore, monkeypatch) -> None:
    from myllm_core.errors import Overloaded

    lock = ModelStore.lock
    monkeypatch.setattr(ModelStore, "lock", lambda self, name, timeout=0.1: lock(self, name, timeout))
    with lock(ModelStore(store.models_dir), "odd"), pytest.raises(Overloaded):
        store.prefer_engine("odd", "plain")
    assert store.get("odd").manifest.engine == ""
