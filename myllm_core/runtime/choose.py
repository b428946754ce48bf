"""Which engine runs a model: every engine of its format is asked, the best one that is complete wins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from myllm_core.discovery import Plugin, extras
from myllm_core.engine import Engine, MemoryEstimate, Support
from myllm_core.errors import EngineError, EngineMissing, InvalidOption, MyllmError, PluginError
from myllm_core.guard import guarded, shown
from myllm_core.models.manifest import Model
from myllm_core.plugins import Plugins


@dataclass(frozen=True, slots=True)
class Candidate:
    """An engine that knows the model's format, and what it says of the model."""

    plugin: Plugin
    engine: type[Engine]
    support: Support


def candidates(model: Model, plugins: Plugins) -> list[Candidate]:
    """Every engine of the model's format, the best first. One whose ``probe`` fails scores 0."""
    found = []
    for plugin, engine in plugins.engines().values():
        if model.format not in engine.formats:
            continue
        found.append(Candidate(plugin, engine, _probe(engine, model)))
    return sorted(found, key=lambda c: (c.support.missing is None, c.support.score), reverse=True)


def _probe(engine: type[Engine], model: Model) -> Support:
    try:
        with guarded():
            support: Any = engine.probe(model)
    except PluginError as error:
        return Support(0, f"its probe failed: {error}")
    return support if isinstance(support, Support) else Support(0, f"its probe gave {shown(support)}, no Support")


def estimated(engine: type[Engine], model: Model, options: Mapping[str, Any]) -> MemoryEstimate:
    """The memory that loading will take, by the engine itself. Raises ``EngineError``, or its own ``MyllmError``."""
    try:
        with guarded():
            estimate: Any = engine.estimate(model, options)
    except PluginError as error:
        if isinstance(error.__cause__, MyllmError):
            raise error.__cause__ from None
        raise EngineError(f"the {engine.name} engine can't estimate the memory of {model.name}: {error}") from error
    if not isinstance(estimate, MemoryEstimate):
        raise EngineError(f"the {engine.name} engine estimated {shown(estimate)}, no MemoryEstimate")
    return estimate


def choose_engine(model: Model, plugins: Plugins, wanted: str | None = None) -> Candidate:
    """The engine to load ``model`` with: ``wanted``, else the manifest's, else the best. Raises ``EngineMissing``."""
    found = candidates(model, plugins)
    name = wanted or model.manifest.engine
    if name:
        cls = plugins.engine(name)
        found = [candidate for candidate in found if candidate.engine is cls]
        if not found:
            formats = ", ".join(sorted(cls.formats))
            raise EngineMissing(f"the engine {name} can't load {model.format} models, only: {formats}")
    if not found:
        raise EngineMissing(
            f"no installed engine loads {model.format} models; install one: pip install "
            f'"myllm[ENGINE]" with ENGINE one of {", ".join(extras()) or "all"}, or another plugin'
            + plugins.broken_hint()
        )
    best = found[0]
    if best.support.missing:
        raise EngineMissing(
            f"the engine {best.engine.name} needs {best.support.missing}; install it: {best.support.install}"
        )
    if best.support.score <= 0:
        if name:
            raise EngineMissing(f"the engine {name} can't load {model.name}: {best.support.reason}")
        reasons = "; ".join(f"{c.engine.name}: {c.support.reason}" for c in found)
        raise EngineMissing(f"no installed engine can load {model.name}: {reasons}")
    return best


def sampling_of(engine: type[Engine], model: Model) -> frozenset[str]:
    """The sampling options that an engine honours for a model. Raises ``EngineError`` when it can't say."""
    if getattr(engine.sampling_for, "__func__", None) is Engine.sampling_for.__func__:  # type: ignore[attr-defined]
        return engine.sampling
    try:
        with guarded():
            names: Any = engine.sampling_for(model)
    except PluginError as error:
        raise EngineError(f"the {engine.name} engine can't say which options {model.name} has: {error}") from error
    if not isinstance(names, set | frozenset):
        raise EngineError(f"the {engine.name} engine gave {shown(names)} as the options of {model.name}, no set")
    return frozenset(names)


def load_options(engine: type[Engine], *layers: Mapping[str, Any]) -> dict[str, Any]:
    """Every load option of the engine: its default, or the value of the last layer that has it.

    Raises ``InvalidOption`` for a name that the engine doesn't know, or a value of another type.
    """
    known = {option.name: option for option in engine.load_options}
    values = {name: option.default for name, option in known.items()}
    for name, value in ((name, value) for layer in layers for name, value in layer.items()):
        if name not in known:
            listed = ", ".join(sorted(known)) or "none"
            raise InvalidOption(f"the engine {engine.name} has no load option {name}; known: {listed}")
        default = known[name].default
        expected = known[name].type if default is None else type(default)
        if expected is float and type(value) is int:
            value = float(value)
        if type(value) is not expected and not (value is None and default is None):
            raise InvalidOption(f"load option {name} must be a {expected.__name__}, not {value!r}")
        values[name] = value
    return values
