"""A group of commands that imports a command's module only when that command is invoked.

``--help`` lists every command, those of plugins too, from a table and from package metadata: nothing of a plugin
is imported for it.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING, Any, ClassVar

import typer
from typer.core import TyperGroup

from myllm_cli.terminal import clean_line
from myllm_core.errors import PluginError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

STYLE: dict[str, Any] = {
    "rich_markup_mode": None,  # help is plain text: rich would take longer to import than the help to show
    "pretty_exceptions_enable": False,
    "add_completion": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}


def as_command(value: Any, name: str, help_text: str | None = None) -> Any:
    """A command out of a function or a ``typer.Typer`` app."""
    app = value
    if not isinstance(value, typer.Typer):
        if not callable(value):
            raise TypeError(f"{type(value).__name__} is neither a function nor a typer.Typer app")
        app = typer.Typer(**STYLE)
        app.command(name, help=help_text)(value)
    command = typer.main.get_command(app)
    command.name = name
    return command


def _plugin_points() -> dict[str, list[EntryPoint]]:
    from myllm_core.discovery import find_plugins

    found: dict[str, list[EntryPoint]] = {}
    for point in find_plugins()[1]:
        found.setdefault(point.name, []).append(point)
    return found


def _provider(point: EntryPoint) -> str:
    return clean_line(point.dist.name) if point.dist else "an unknown distribution"


def _plugin_command(name: str, points: list[EntryPoint]) -> Any:
    from myllm_core.guard import guarded

    owners = ", ".join(sorted(_provider(point) for point in points))
    if len(points) > 1:
        raise PluginError(f"the command {name} is claimed by {owners}; uninstall all but one of them")
    try:
        with guarded():
            return as_command(points[0].load(), name)
    except PluginError as error:
        raise PluginError(
            f"the command {name} (from {owners}) can't be used: {error} (fix: update or uninstall {owners})"
        ) from error


class LazyCommands(MutableMapping[str, Any]):
    """Commands by name, imported by ``[]``: the built-in ones first, a plugin never replaces one of them."""

    def __init__(self, table: dict[str, tuple[str, str]], plugins_may_add: bool = True) -> None:
        self.table = table
        self._loaded: dict[str, Any] = {}
        self._points: dict[str, list[EntryPoint]] | None = None if plugins_may_add else {}

    @property
    def points(self) -> dict[str, list[EntryPoint]]:
        """Entry points of the commands that plugins add."""
        if self._points is None:
            self._points = {name: points for name, points in _plugin_points().items() if name not in self.table}
        return self._points

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def _load(self, name: str) -> Any:
        if name in self.table:
            module, _, attribute = self.table[name][0].partition(":")
            return as_command(getattr(importlib.import_module(module), attribute), name)
        return _plugin_command(name, self.points[name])

    def __setitem__(self, name: str, command: Any) -> None:
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        del self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter([*self.table, *sorted(self.points)])

    def __len__(self) -> int:
        return len(self.table) + len(self.points)


class LazyGroup(TyperGroup):
    """A command group whose commands are named in ``table``: name -> (``module:attribute``, help)."""

    table: ClassVar[dict[str, tuple[str, str]]] = {}
    plugins_may_add: ClassVar[bool] = True

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.lazy = LazyCommands(self.table, self.plugins_may_add)
        self.commands = self.lazy

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands and their help without importing one."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self.table.items()])
        if self.lazy.points:
            with formatter.section("Commands of plugins"):
                formatter.write_dl(
                    [
                        (name, f"(from {', '.join(map(_provider, points))})")
                        for name, points in sorted(self.lazy.points.items())
                    ]
                )
