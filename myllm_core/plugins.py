"""Finding plugins: entry points, imported lazily, one by one, each behind its own guard.

``load_plugins()`` only reads package metadata. A plugin's module is imported when something that it
could offer is asked for; one that fails is recorded with the cause and the fix, and the rest goes on.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from myllm_core import hookspecs
from myllm_core.catalog import CatalogEntry
from myllm_core.downloader import Downloader
from myllm_core.engine import Engine
from myllm_core.errors import EngineMissing, MyllmError, PluginError
from myllm_core.session_store import SessionStore

BUILTIN = EntryPoint("builtin", "myllm_core.builtin", hookspecs.GROUP)
_MAX_CAUSE = 500
_SLOW_IMPORT = 3.0


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


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send what a stranger's code prints, by Python or by native code, to standard error for a while."""
    sys.stdout.flush()
    try:
        saved = os.dup(1)
    except OSError:  # standard output is closed
        yield
        return
    try:
        os.dup2(2, 1)
        yield
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)


def _cause(error: BaseException) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= _MAX_CAUSE else text[:_MAX_CAUSE] + "…"


class Plugins:
    """The installed plugins and what they offer. Made by ``load_plugins``, passed to whoever needs it."""

    def __init__(self, entries: Iterable[Plugin], commands: Iterable[EntryPoint], warn: Callable[[str], None]) -> None:
        self._manager = pluggy.PluginManager("myllm")
        self._manager.add_hookspecs(hookspecs)
        self._entries = list(entries)
        self._commands = list(commands)
        self._warn = warn
        self._found: dict[str, list[tuple[Plugin, Any]]] = {}

    def entries(self, load: bool = False) -> list[Plugin]:
        """Every plugin found; with ``load`` each is imported and asked for all that it offers."""
        if load:
            for hook in ("engines", "downloaders", "session_stores", "catalog", "routes"):
                self._offers(hook)
        return list(self._entries)

    def commands(self) -> list[EntryPoint]:
        """The commands that plugins add: entry points, not imported."""
        return list(self._commands)

    def engines(self) -> dict[str, tuple[Plugin, type[Engine]]]:
        """Engine classes by name."""
        return self._named("engines", Engine)

    def engine(self, name: str) -> type[Engine]:
        """The engine class of this name. Raises ``EngineMissing``."""
        engines = self.engines()
        if name not in engines:
            raise EngineMissing(
                f"no engine named {name} is installed; there is: {', '.join(sorted(engines)) or 'none'}. "
                f'Try: pip install "myllm[{name}]"' + self._broken_hint()
            )
        return engines[name][1]

    def downloaders(self) -> dict[str, Downloader]:
        """A downloader for each claimed scheme."""
        by_scheme: dict[str, Downloader] = {}
        owners: dict[str, str] = {}
        for plugin, cls in self._named("downloaders", Downloader).values():
            for scheme in sorted(cls.schemes):
                if scheme in owners:
                    self._fail(plugin, f"the scheme {scheme}: is claimed by {owners[scheme]} too", "uninstall one")
                    continue
                try:
                    by_scheme[scheme] = cls()
                except Exception as error:  # noqa: BLE001 - a stranger's constructor
                    self._fail(plugin, _cause(error), f"report this to the authors of {plugin.distribution}")
                    break
                owners[scheme] = plugin.label
        return by_scheme

    def session_store(self, name: str) -> type[SessionStore]:
        """The session store class of this name. Raises ``PluginError``."""
        stores = self._named("session_stores", SessionStore)
        if name not in stores:
            raise PluginError(
                f"no session store named {name} is installed; there is: {', '.join(sorted(stores))}"
                + self._broken_hint()
            )
        return stores[name][1]

    def catalog(self) -> list[CatalogEntry]:
        """All catalogue entries, the built-in ones first; a name that is taken isn't taken over."""
        entries: dict[str, CatalogEntry] = {}
        taken: dict[str, str] = {}
        for plugin, entry in self._offers("catalog"):
            if not isinstance(entry, CatalogEntry):
                self._fail(plugin, f"myllm_catalog gave a {type(entry).__name__}, not a CatalogEntry", "update it")
                continue
            names = {entry.name, *entry.aliases}
            clash = sorted(names & taken.keys())
            if clash:
                self._fail(plugin, f"the catalogue name {clash[0]} belongs to {taken[clash[0]]}", "uninstall one")
                continue
            entries[entry.name] = entry
            taken.update(dict.fromkeys(names, plugin.label))
        return list(entries.values())

    def routes(self) -> list[Any]:
        """All FastAPI routers that plugins add."""
        return [router for _, router in self._offers("routes")]

    def broken(self) -> list[Plugin]:
        """The plugins found broken so far."""
        return [plugin for plugin in self._entries if plugin.error]

    def _broken_hint(self) -> str:
        broken = self.broken()
        if not broken:
            return ""
        return "; broken plugins (see: myllm plugins): " + ", ".join(f"{p.label}: {p.error}" for p in broken)

    def _named(self, hook: str, base: type[Any]) -> dict[str, tuple[Plugin, type[Any]]]:
        named: dict[str, tuple[Plugin, type[Any]]] = {}
        for plugin, cls in self._offers(hook):
            if not (isinstance(cls, type) and issubclass(cls, base)):
                self._fail(plugin, f"myllm_{hook} gave {_shown(cls)}, not a {base.__name__} class", "update it")
                continue
            name = getattr(cls, "name", None)
            if not isinstance(name, str):
                self._fail(plugin, f"{cls.__name__} has no name", "update it")
            elif name in named:
                owner = named[name][0].label
                self._fail(plugin, f"the name {name} is taken by {owner}", "uninstall one of the two")
            else:
                named[name] = (plugin, cls)
        return named

    def _offers(self, hook: str) -> list[tuple[Plugin, Any]]:
        if hook in self._found:
            return self._found[hook]
        for plugin in self._entries:
            self._import(plugin)
        found: list[tuple[Plugin, Any]] = []
        implementations = {
            impl.plugin_name: impl for impl in getattr(self._manager.hook, f"myllm_{hook}").get_hookimpls()
        }
        for plugin in self._entries:
            impl = implementations.get(plugin.name)
            if impl is None:
                continue
            try:
                with stdout_to_stderr():
                    values = list(impl.function())
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001 - a stranger's code may raise anything, SystemExit too
                self._fail(plugin, f"myllm_{hook}: {_cause(error)}", f"update or uninstall {plugin.distribution}")
                continue
            plugin.offers[hook] = [_shown(value) for value in values]
            found += [(plugin, value) for value in values]
        self._found[hook] = found
        return found

    def _import(self, plugin: Plugin) -> None:
        if plugin.loaded or plugin.error:
            return
        slow = threading.Timer(_SLOW_IMPORT, self._warn, [f"still importing the plugin {plugin.label} …"])
        slow.daemon = True
        slow.start()
        try:
            with stdout_to_stderr():
                module = plugin.entry_point.load()
            wanted = getattr(module, "MYLLM_API", hookspecs.API_VERSION)
            if wanted != hookspecs.API_VERSION:
                raise PluginError(f"it speaks plugin contract {wanted}, this myllm speaks {hookspecs.API_VERSION}")
            self._register(module, plugin)
            plugin.loaded = True
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - a stranger's module may raise anything, SystemExit too
            cause = error.message if isinstance(error, MyllmError) else _cause(error)
            self._fail(plugin, cause, f"pip install --upgrade {plugin.distribution}, or uninstall it")
        finally:
            slow.cancel()

    def _register(self, module: Any, plugin: Plugin) -> None:
        self._manager.register(module, plugin.name)
        try:
            self._manager.check_pending()
        except pluggy.PluginValidationError:
            self._manager.unregister(module)
            raise

    def _fail(self, plugin: Plugin, error: str, fix: str) -> None:
        if plugin.error:
            return
        plugin.error, plugin.fix = error, fix
        self._warn(f"plugin {plugin.label} can't be used: {error} (fix: {fix})")


def _shown(value: object) -> str:
    name = getattr(value, "name", None)
    if isinstance(name, str):
        return name[:100]
    return getattr(value, "__name__", type(value).__name__)[:100]


def _to_stderr(text: str) -> None:
    print(f"myllm: {text}", file=sys.stderr)


def load_plugins(disabled: Iterable[str] = (), warn: Callable[[str], None] = _to_stderr) -> Plugins:
    """Find the installed plugins by their metadata, importing none. ``warn`` is told of each broken one, once."""
    skip = set(disabled)
    entries = [Plugin(BUILTIN, "myllm", "built in")]
    seen = {BUILTIN.name: entries[0]}
    for point in sorted(
        entry_points(group=hookspecs.GROUP), key=lambda point: (point.name, str(point.dist and point.dist.name))
    ):
        if point.name in skip:
            continue
        plugin = Plugin(point, point.dist.name if point.dist else "", point.dist.version if point.dist else "")
        if point.name in seen:
            if (
                seen[point.name].entry_point.value == point.value
                and seen[point.name].distribution == plugin.distribution
            ):
                continue  # the same distribution found twice on the path
            plugin.error = f"the plugin name {point.name} is taken by {seen[point.name].label}"
            plugin.fix = "uninstall one of the two"
        else:
            seen[point.name] = plugin
        entries.append(plugin)
    return Plugins(entries, entry_points(group=hookspecs.COMMAND_GROUP), warn)
