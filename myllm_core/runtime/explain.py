"""Why a model runs on the engine that it runs on: what every engine says of it, and which one is taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from myllm_core.errors import MyllmError
from myllm_core.machine import free_memory
from myllm_core.models.manifest import Model
from myllm_core.plugins import Plugins
from myllm_core.runtime.choose import Candidate, candidates, choose_engine, estimated, load_options
from myllm_core.settings import Settings


@dataclass(frozen=True, slots=True)
class Opinion:
    """What one engine says of a model.

    ``score`` is 0 (it can't) to 100 (made for it). ``memory`` and ``device_memory`` are estimated bytes for the load
    options of settings and manifest, None when there is no estimate; ``problem`` says why. ``missing`` isn't
    installed, and ``install`` installs it.
    """

    engine: str
    plugin: str
    formats: tuple[str, ...]
    score: int
    reason: str
    missing: str | None = None
    install: str | None = None
    memory: int | None = None
    device_memory: int | None = None
    problem: str = ""
    chosen: bool = False


@dataclass(frozen=True, slots=True)
class Explanation:
    """Every engine's opinion of a model, the best first; those that don't know its format come last.

    ``engine`` is the one that runs it, None when none can; ``why`` says why in a sentence. ``preferred`` is the
    manifest's engine. ``free_memory`` is in bytes. ``broken`` names plugins that might have offered one.
    """

    model: str
    format: str
    engine: str | None
    why: str
    preferred: str
    free_memory: int
    engines: tuple[Opinion, ...]
    broken: tuple[str, ...] = ()


def explain(model: Model, plugins: Plugins, settings: Settings) -> Explanation:
    """Ask every installed engine about a model. Loads nothing; an engine that fails has that as its reason."""
    found = candidates(model, plugins)
    try:
        chosen = choose_engine(model, plugins).engine
        why = _why(model, found, chosen.name)
    except MyllmError as error:
        chosen, why = None, error.message
    known = [_opinion(candidate, model, settings, candidate.engine is chosen) for candidate in found]
    others = [
        Opinion(name, plugin.name, _sorted(engine.formats), 0, f"it loads {', '.join(_sorted(engine.formats))} files")
        for name, (plugin, engine) in sorted(plugins.engines().items())
        if model.format not in engine.formats
    ]
    return Explanation(
        model.name,
        model.format,
        chosen.name if chosen else None,
        why,
        model.manifest.engine,
        free_memory(),
        (*known, *others),
        tuple(f"{plugin.label}: {plugin.error} (fix: {plugin.fix})" for plugin in plugins.broken()),
    )


def _why(model: Model, found: list[Candidate], chosen: str) -> str:
    if model.manifest.engine:
        return f"{chosen} is the engine that this model prefers (myllm set {model.name} --engine auto changes that)"
    usable = [candidate for candidate in found if candidate.support.score > 0 and not candidate.support.missing]
    better = [candidate for candidate in found if candidate.support.missing]
    lacking = "".join(f"; {c.engine.name} lacks {c.support.missing}: {c.support.install}" for c in better)
    if len(usable) == 1:
        return f"{chosen} is the only engine here that can run it{lacking}"
    return f"{chosen} has the highest score of the {len(usable)} engines that can run it{lacking}"


def _opinion(candidate: Candidate, model: Model, settings: Settings, chosen: bool) -> Opinion:
    engine, support = candidate.engine, candidate.support
    memory: Mapping[str, Any] = {}
    if support.score > 0 and not support.missing:
        try:
            configured = settings.engine_options.get(engine.name, {})
            estimate = estimated(engine, model, load_options(engine, configured, model.manifest.load_options))
            memory = {"memory": estimate.host, "device_memory": estimate.device}
        except MyllmError as error:
            memory = {"problem": error.message}
    return Opinion(
        engine.name,
        candidate.plugin.name,
        _sorted(engine.formats),
        support.score,
        support.reason,
        support.missing,
        support.install,
        chosen=chosen,
        **memory,
    )


def _sorted(names: frozenset[str]) -> tuple[str, ...]:
    return tuple(sorted(names))
