"""``plugins check``: the contracts of what a plugin offers, run by pytest in a process of their own."""

from __future__ import annotations

import importlib.util
import json as json_module
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from myllm_cli.context import Cli
from myllm_cli.models import JsonOption
from myllm_cli.tables import print_json
from myllm_cli.terminal import clean_line, say
from myllm_core.errors import InvalidRequest, NotFound, PluginError

if TYPE_CHECKING:
    from myllm_core.discovery import Plugin
    from myllm_core.engine import Engine
    from myllm_core.models.manifest import Model
    from myllm_core.plugins import Plugins

_COLLECTED = """
import json
from pathlib import Path
from myllm_core.testing.installed import contracts
globals().update(contracts(json.loads(Path(__file__).with_name("order.json").read_text(encoding="utf-8"))))
"""
_SEVERITY = ("skipped", "ok", "failed")
_OUTCOMES = {"failure": "failed", "error": "failed", "skipped": "skipped"}


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report: ``outcome`` is ``ok``, ``failed`` or ``skipped``, ``reason`` why it isn't ok."""

    subject: str
    check: str
    outcome: str
    reason: str = ""


def check(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The plugin's name (see: myllm plugins).")],
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Test its engines with this installed model.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(metavar="REF", help="Test its downloader with this reference; it is fetched.")
    ] = None,
    load_option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A load option of its engines (repeatable), such as n_ctx=512."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Test a plugin against the contracts of what it offers; exit code 1 when a check fails."""
    from myllm_cli.run import parsed_load_options

    cli: Cli = ctx.obj
    if importlib.util.find_spec("pytest") is None:
        raise PluginError('checking a plugin needs pytest; install it: pip install "myllm[test]"')
    plugins, plugin = _find(cli, name)
    checks = _report(cli, plugins, plugin, _Wishes(model, reference, parsed_load_options(load_option or [])))
    failed = any(item.outcome == "failed" for item in checks)
    if json:
        listed = [asdict(item) for item in checks]
        print_json({"plugin": plugin.name, "version": plugin.version, "ok": not failed, "checks": listed})
    else:
        _print(plugin, checks)
    if failed:
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class _Wishes:
    """What a plugin is to be tested with, where the user said so."""

    model: str | None
    reference: str | None
    load_options: dict[str, Any]


def _find(cli: Cli, name: str) -> tuple[Plugins, Plugin]:
    from myllm_core.plugins import load_plugins

    plugins = load_plugins(cli.settings.disabled_plugins, lambda _: None)
    for plugin in plugins.entries(load=True):
        if name in (plugin.name, plugin.distribution):
            return plugins, plugin
    raise NotFound(f"no plugin named {name} is installed; see: myllm plugins")


def _report(cli: Cli, plugins: Plugins, plugin: Plugin, wishes: _Wishes) -> list[Check]:
    if plugin.error:
        return [Check("plugin", "it can be used", "failed", f"{plugin.error} (fix: {plugin.fix})")]
    checks = [Check("plugin", "it can be used", "ok")]
    models, unchecked = _models(cli, plugins, plugin, wishes.model)
    _know(plugins, models, wishes.load_options)
    references = _references(plugins, plugin, wishes.reference)
    if models or plugin.offers.keys() & {"downloaders", "session_stores"}:
        say(f"Checking {plugin.name}; this takes a minute or two …")
        checks += _run(plugin, models, references, wishes.load_options)
    return checks + unchecked


def _models(cli: Cli, plugins: Plugins, plugin: Plugin, wanted: str | None) -> tuple[dict[str, Model], list[Check]]:
    """A model for each engine of the plugin, and a line for each engine that there is none for."""
    engines = [cls for owner, cls in plugins.engines().values() if owner is plugin]
    if wanted is not None:
        chosen = cli.models.get(wanted)
        fits = {engine.name: chosen for engine in engines if chosen.format in engine.formats}
        if not fits:
            raise InvalidRequest(f"the plugin {plugin.name} has no engine for {chosen.format} models")
        return fits, []
    found = {engine.name: model for engine in engines if (model := _smallest(cli, engine)) is not None}
    reason = "no model of its formats ({}) is installed; pull one, or give --model"
    missing = [engine for engine in engines if engine.name not in found]
    lines = [Check(f"engine {e.name}", "all", "skipped", reason.format(", ".join(sorted(e.formats)))) for e in missing]
    return found, lines


def _smallest(cli: Cli, engine: type[Engine]) -> Model | None:
    models = [model for model in cli.models.list_models() if model.format in engine.formats]
    return min(models, key=lambda model: model.manifest.size, default=None)


def _references(plugins: Plugins, plugin: Plugin, wanted: str | None) -> dict[str, str]:
    """A reference for each downloader of the plugin: the one given, else one that its own catalogue names."""
    own = set(plugin.offers.get("catalog", []))
    sources = [source.reference for entry in plugins.catalog() if entry.name in own for source in entry.sources]
    found: dict[str, str] = {}
    for scheme, downloader in plugins.downloaders().items():
        if downloader.name not in plugin.offers.get("downloaders", []):
            continue
        given = [wanted] if wanted else sources
        fitting = [text for text in given if _has_scheme(text, scheme)]
        if fitting:
            found.setdefault(downloader.name, fitting[0])
    if wanted and not found:
        raise InvalidRequest(f"no downloader of the plugin {plugin.name} takes {wanted}")
    return found


def _has_scheme(text: str, scheme: str) -> bool:
    from myllm_core.errors import InvalidReference
    from myllm_core.models.reference import parse_reference

    try:
        return parse_reference(text, frozenset({scheme})).scheme == scheme
    except InvalidReference:  # another plugin's: a catalogue may name those
        return False


def _know(plugins: Plugins, models: dict[str, Model], options: dict[str, Any]) -> None:
    """Raises ``InvalidOption`` for load options that the engines of ``models`` don't take."""
    from myllm_core.runtime.choose import load_options

    if options and not models:
        raise InvalidRequest("--load-option: none of the plugin's engines is tested; pull a model for one")
    for name, model in models.items():
        load_options(plugins.engines()[name][1], model.manifest.load_options, options)


def _run(
    plugin: Plugin, models: dict[str, Model], references: dict[str, str], load_options: dict[str, Any]
) -> list[Check]:
    from myllm_core.runtime.wire import pack_model

    point = plugin.entry_point
    order = {
        "plugin": [point.name, point.value, point.group],
        "models": {name: pack_model(model) for name, model in models.items()},
        "references": references,
        "load_options": load_options,
    }
    with tempfile.TemporaryDirectory(prefix="myllm-check-", ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        (home / "order.json").write_text(json_module.dumps(order), encoding="utf-8")
        (home / "test_plugin.py").write_text(_COLLECTED, encoding="utf-8")
        (home / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
        report = home / "report.xml"
        options = ["-q", "-p", "no:cacheprovider", "--basetemp", str(home / "tmp"), f"--junitxml={report}"]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-c", str(home / "pytest.ini"), *options, str(home / "test_plugin.py")],
            # as in a worker: threads that spin while they wait would slow each other down
            env={"GOMP_SPINCOUNT": "1000"} | os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode not in (0, 1) or not report.exists():
            tail = " ".join((done.stdout + done.stderr).split())[-1500:]
            raise PluginError(f"the checks of {plugin.name} couldn't be run: {tail}")
        package = point.module.partition(".")[0]
        return _merged(_line(case, package) for case in ET.parse(report).iter("testcase"))


def _merged(lines: Iterable[Check]) -> list[Check]:
    """A line for each check: of those that run with several values the worst, else the first that was skipped."""
    found: dict[tuple[str, str], Check] = {}
    for line in lines:
        known = found.setdefault((line.subject, line.check), line)
        if _SEVERITY.index(line.outcome) > _SEVERITY.index(known.outcome):
            found[line.subject, line.check] = line
    return list(found.values())


def _line(case: ET.Element, package: str) -> Check:
    result = next((child for child in case if child.tag in _OUTCOMES), None)
    subject = case.get("classname", "").rpartition(".Test_")[2].replace("_", " ", 1)
    name, _, value = case.get("name", "").removeprefix("test_").rstrip("]").partition("[")
    check = name.replace("_", " ")
    if result is None:
        return Check(subject, check, "ok")
    reason = " ".join((result.get("message") or "").split())[:500]
    outcome = _OUTCOMES[result.tag]
    if outcome == "failed":
        reason += _place(result.text or "", package)
    return Check(subject, check, outcome, f"[{value}] {reason}" if value and outcome == "failed" else reason)


def _place(traceback: str, package: str) -> str:
    """Where in the plugin's own code a check failed; empty when it didn't fail there."""
    found = re.findall(r"^(\S.*?\.py):(\d+): ", traceback, re.MULTILINE)
    own = [(Path(path).parts, line) for path, line in found if package in (*Path(path).parts[:-1], Path(path).stem)]
    if not own:
        return ""
    parts, line = own[-1]
    inside = parts[parts.index(package) :] if package in parts else parts[-1:]
    return f" (at {'/'.join(inside)}:{line})"


def _print(plugin: Plugin, checks: list[Check]) -> None:
    for subject in dict.fromkeys(item.subject for item in checks):
        print(clean_line(subject if subject != "plugin" else f"plugin {plugin.label}"))
        own = [item for item in checks if item.subject == subject]
        for item in own:
            if item.outcome != "skipped":
                mark = "FAILED" if item.outcome == "failed" else item.outcome
                print(f"  {mark:<8}{clean_line(item.check + (f': {item.reason}' if item.reason else ''))}")
        skipped = [item for item in own if item.outcome == "skipped"]
        for reason in dict.fromkeys(item.reason for item in skipped):  # an engine lacks what many checks need
            same = [item.check for item in skipped if item.reason == reason]
            which = same[0] if len(same) == 1 else f"{len(same)} checks"
            print(f"  {'skipped':<8}{clean_line(f'{which}: {reason}')}")
    counts = Counter(item.outcome for item in checks)
    print(f"\n{counts['ok']} ok, {counts['skipped']} skipped, {counts['failed']} failed")
