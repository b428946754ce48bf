"""What an engine says of itself before it loads anything."""

# ruff: noqa: D102 - a test's name says what it tests

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from myllm_core.engine import MemoryEstimate, Support
from myllm_core.errors import InvalidOption, UnsupportedError
from myllm_core.offers import CHECKS
from myllm_core.options import parse_options
from myllm_core.runtime.wire import pack_model
from myllm_core.testing.alone import Look, look, plugin_of
from myllm_core.testing.engine.given import EngineCase, EngineFixtures
from myllm_core.testing.engine.working import runtime_for
from myllm_core.types import Sampling

_QUICK = 2.0  # seconds, in a fresh process on a busy machine
_LIGHT = 96 * 2**20


class DeclaredTests(EngineFixtures):
    """Class data, ``probe`` and ``estimate``."""

    @pytest.fixture
    def alone(self, case: EngineCase, kept: list[Any]) -> Look:
        """What was seen of the plugin in a fresh process."""
        found = next((thing for thing in kept if isinstance(thing, Look)), None)
        if found is None:
            point = plugin_of("engines", case.engine)
            more = {"model": pack_model(case.model), "options": case.options()}
            found = look(point, "engines", case.engine, **more)
            kept.append(found)
        return found

    def test_the_class_data_are_usable(self, case: EngineCase) -> None:
        engine = case.engine
        assert CHECKS["engines"](engine) == ""
        assert engine.formats, "an engine names the formats that it loads"
        assert set(engine.sampling_for(case.model)) <= set(asdict(Sampling())), "sampling_for names unknown options"
        assert all(name and name == name.lower() for name in engine.formats)
        assert isinstance(engine.max_concurrency, int) and engine.max_concurrency >= 1

    def test_the_load_options_can_be_set_and_others_are_refused(self, case: EngineCase, tmp_path: Path) -> None:
        options = case.engine.load_options
        assert len({option.name for option in options}) == len(options), "two load options have one name"
        for option in options:
            kind = option.type if option.default is None else type(option.default)
            assert option.name.isidentifier(), f"{option.name!r} can't be typed as NAME=VALUE"
            assert option.help, f"the load option {option.name} has no help"
            assert kind in (bool, int, float, str), f"nobody can type a {kind.__name__} for {option.name}"
        json.dumps(case.options())

        async def load() -> None:
            async with runtime_for(case, tmp_path, isolation="thread") as runtime:
                await runtime.load(case.model.name, engine=case.engine.name, load_options={"no_such_option": 1})

        with pytest.raises(InvalidOption, match="no_such_option"):
            asyncio.run(load())

    def test_a_sampling_option_that_it_lacks_is_refused(self, case: EngineCase, tmp_path: Path) -> None:
        missing = sorted(set(asdict(Sampling())) - case.engine.sampling_for(case.model) - {"repeat_last_n"})
        if not missing:
            pytest.skip("the engine has all sampling options")
        values: dict[str, Any] = {"seed": 5, "top_k": 3, "min_p": 0.5, "repeat_penalty": 1.5, "logit_bias": {"5": 1}}
        options = parse_options({missing[0]: values.get(missing[0], 0.5)})

        async def chat() -> None:
            async with runtime_for(case, tmp_path, isolation="thread") as runtime:
                await anext(runtime.chat(case.model.name, "x", engine=case.engine.name, options=options))

        with pytest.raises(UnsupportedError, match=missing[0]):
            asyncio.run(chat())

    def test_importing_the_plugin_is_light(self, alone: Look) -> None:
        facts = alone.expect()
        brought = set(facts["heavy_after_import"]) - set(facts["heavy_before"])
        assert not brought, f"importing the plugin imports {', '.join(sorted(brought))}; import it inside load"

    def test_probe_is_quick_and_loads_nothing(self, alone: Look) -> None:
        facts = alone.expect()
        brought = set(facts["heavy_after_probe"]) - set(facts["heavy_after_import"])
        assert not brought, f"probe imports {', '.join(sorted(brought))}; ask importlib.util.find_spec instead"
        assert facts["probe_seconds"] < _QUICK

    def test_estimate_is_quick_and_loads_nothing(self, alone: Look, case: EngineCase) -> None:
        facts = alone.expect()
        assert facts["estimate_seconds"] < 2 * _QUICK
        limit = max(_LIGHT, case.model.manifest.size // 2)
        assert facts["grown"] < limit, f"probe and estimate took {facts['grown'] / 2**20:.0f} MiB of memory"

    def test_the_plugin_prints_nothing_when_it_is_asked(self, alone: Look) -> None:
        alone.expect()
        assert alone.printed == "", "standard output belongs to the answer; log, or print to standard error"

    def test_probe_supports_the_model(self, case: EngineCase) -> None:
        assert case.model.format in case.engine.formats
        support = case.engine.probe(case.model)
        assert isinstance(support, Support)
        assert isinstance(support.score, int) and 0 < support.score <= 100
        assert support.reason
        assert support.missing is None, f"install what is missing first: {support.install}"

    def test_estimate_gives_bytes(self, case: EngineCase) -> None:
        estimate = case.engine.estimate(case.model, case.options())
        assert isinstance(estimate, MemoryEstimate)
        for number in (estimate.host, estimate.device):
            assert type(number) is int and 0 <= number < 2**50
