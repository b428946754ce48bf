"""``plugins``: what is installed, what it offers, what is broken and why; and the author's commands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import typer

from myllm_cli.context import Cli
from myllm_cli.lazy import STYLE, LazyGroup
from myllm_cli.models import JsonOption
from myllm_cli.tables import print_json, print_table
from myllm_cli.terminal import clean_line

if TYPE_CHECKING:
    from myllm_core.discovery import Plugin
    from myllm_core.plugins import Plugins

_SHOWN_OFFERS = 6


class PluginCommands(LazyGroup):
    """What can be done with plugins beside listing them."""

    table: ClassVar[dict[str, tuple[str, str]]] = {
        "check": ("myllm_cli.plugin_check:check", "Test a plugin against the contracts of what it offers."),
        "new": ("myllm_cli.plugin_new:new", "Write a new plugin: a package that works, with tests."),
    }
    plugins_may_add = False


app = typer.Typer(
    cls=PluginCommands, invoke_without_command=True, help="List the installed plugins and what they offer.", **STYLE
)


def quiet_plugins(cli: Cli) -> Plugins:
    """All plugins, imported; nothing is said of broken ones, for the caller shows them."""
    from myllm_core.plugins import load_plugins

    plugins = load_plugins(cli.settings.disabled_plugins, lambda _: None)
    plugins.entries(load=True)
    return plugins


def _commands_by_owner(plugins: Plugins) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for point in plugins.commands():
        found.setdefault(point.dist.name if point.dist else "", []).append(point.name)
    return found


def _plugin_json(plugin: Plugin, commands: dict[str, list[str]]) -> dict[str, Any]:
    return {
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "status": "broken" if plugin.error else "incomplete" if plugin.missing else "ok",
        "error": plugin.error,
        "fix": plugin.fix,
        "missing": plugin.missing,
        "offers": plugin.offers
        | ({"commands": sorted(commands[name])} if (name := plugin.distribution) in commands else {}),
    }


def _offers_text(offers: dict[str, list[str]]) -> str:
    parts = []
    for kind, names in offers.items():
        if names:
            more = f", … ({len(names)})" if len(names) > _SHOWN_OFFERS else ""
            parts.append(f"{kind.replace('_', ' ')}: {', '.join(names[:_SHOWN_OFFERS])}{more}")
    return "; ".join(parts)


@app.callback()
def plugins(ctx: typer.Context, json: JsonOption = False) -> None:
    """List the installed plugins and what they offer; a broken one with the cause and the fix."""
    if ctx.invoked_subcommand is not None:
        return
    cli: Cli = ctx.obj
    found = quiet_plugins(cli)
    commands = _commands_by_owner(found)
    described = [_plugin_json(plugin, commands) for plugin in found.entries()]
    if json:
        print_json(described)
        return
    print_table(
        ("NAME", "DISTRIBUTION", "VERSION", "STATUS", "OFFERS"),
        [(p["name"], p["distribution"], p["version"], p["status"], _offers_text(p["offers"])) for p in described],
    )
    for plugin in described:
        if plugin["error"]:
            print(f"\n{clean_line(plugin['name'])} is broken: {clean_line(plugin['error'])}")
            print(f"  fix: {clean_line(plugin['fix'])}")
        elif plugin["missing"]:
            print(f"\n{clean_line(plugin['name'])} needs packages that aren't installed")
            print(f"  fix: pip install {clean_line(' '.join(map(repr, plugin['missing'])))}")
    disabled = cli.settings.disabled_plugins
    if disabled:
        print(f"\nDisabled by the settings: {clean_line(', '.join(disabled))}")
