"""Finding plugins by the metadata of the installed packages. Nothing is imported here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import Distribution, EntryPoint, PackageNotFoundError, distributions, metadata, version

from myllm_core.hookspecs import COMMAND_GROUP, GROUP

BUILTIN = EntryPoint("builtin", "myllm_core.builtin", GROUP)


@dataclass(slots=True)
class Plugin:
    """An entry point of the group ``myllm``; ``error`` is why it can't be used, ``offers`` what it gave."""

    entry_point: EntryPoint
    distribution: str = ""
    version: str = ""
    loaded: bool = False
    error: str = ""
    fix: str = ""
    offers: dict[str, list[str]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The entry point's name."""
        return self.entry_point.name

    @property
    def label(self) -> str:
        """Name, distribution and version, for messages."""
        return f"{self.name} ({self.distribution} {self.version})" if self.distribution else self.name

    @property
    def missing(self) -> list[str]:
        """What this plugin's distribution always requires and isn't installed, as pip takes it."""
        requires = (self.entry_point.dist.requires if self.entry_point.dist else None) or []
        return [text for text in requires if ";" not in text and not _installed(text)]


def _installed(requirement: str) -> bool:
    name = re.match(r"[\w.-]+", requirement)
    try:
        return bool(name and version(name[0]))
    except PackageNotFoundError:
        return False


def extras() -> list[str]:
    """The extras of myllm's own distribution that install plugins; none when its metadata aren't there."""
    try:
        about = metadata("myllm")
    except PackageNotFoundError:
        return []
    needed = about.get_all("Requires-Dist") or []
    plugins = [name for name in about.get_all("Provides-Extra") or [] if any(f"myllm-{name}" in one for one in needed)]
    return sorted(plugins)


def find_plugins(disabled: frozenset[str] = frozenset()) -> tuple[list[Plugin], list[EntryPoint]]:
    """The plugins, the built-in one first, then by name; and the commands that plugins add.

    A plugin whose name is taken by an earlier one, or whose metadata are damaged, is there with its ``error``.
    """
    builtin = Plugin(BUILTIN, "myllm", "built in")
    plugins, owners = [builtin], {builtin.name: builtin}
    commands: list[EntryPoint] = []
    for plugin in sorted(_entry_points(), key=lambda plugin: (plugin.name, plugin.distribution)):
        if plugin.entry_point.group == COMMAND_GROUP:
            commands.append(plugin.entry_point)
        elif plugin.name not in disabled:
            owner = owners.setdefault(plugin.name, plugin)
            if owner is not plugin:
                plugin.error, plugin.fix = f"its name is taken by {owner.label}", "uninstall one of the two"
            plugins.append(plugin)
    return plugins, commands


def _entry_points() -> Iterator[Plugin]:
    # importlib.metadata.entry_points() would fail for all when one installed package's file is damaged.
    seen: set[str] = set()
    for dist in distributions():
        try:
            points = [point for point in dist.entry_points if point.group in (GROUP, COMMAND_GROUP)]
        except Exception:  # noqa: BLE001 - a damaged file of a stranger's package
            points = _damaged(dist)
        if not points:
            continue
        name, number = _identity(dist)
        if name in seen:
            continue  # further down the path: Python would import the first one
        seen.add(name)
        for point in points:
            error = "" if point.value else "its entry_points.txt is damaged"
            yield Plugin(point, name, number, error=error, fix=f"reinstall {name}" if error else "")


def _identity(dist: Distribution) -> tuple[str, str]:
    try:
        return str(dist.metadata["Name"] or "?"), str(dist.metadata["Version"] or "?")
    except Exception:  # noqa: BLE001 - a damaged file of a stranger's package
        return "?", "?"


def _damaged(dist: Distribution) -> list[EntryPoint]:
    """A stand-in for entry points that can't be read, when they are ours."""
    try:
        ours = f"[{GROUP}" in (dist.read_text("entry_points.txt") or "")
    except Exception:  # noqa: BLE001 - not even text
        ours = False
    return [EntryPoint(_identity(dist)[0], "", GROUP)] if ours else []
