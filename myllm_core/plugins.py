"""What the installed plugins offer: imported lazily, one by one, each behind its own guard.

``load_plugins()`` only reads package metadata. A plugin's module is imported when something that it
could offer is asked for; one that fails is recorded with the cause and the fix, and the rest goes on.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint
from typing import Any

import pluggy

from myllm_core import hookspecs
from myllm_core.catalog import CatalogEntry
from myllm_core.discovery import Plugin, extras, find_plugins
from myllm_core.downloader import Downloader
from myllm_core.engine import Engine
from myllm_core.errors import EngineMissing, PluginError
from myllm_core.guard import guarded, one_line, shown
from myllm_core.offers import CHECKS, claims
from myllm_core.session_store import SessionStore

_SLOW_IMPORT = 3.0  # seconds until a word is said about it
_HOOKS = tuple(name for name in vars(hookspecs) if name.startswith("myllm_"))
_MOST_OFFERS = 1000  # of one plugin's hook: a generator without an end must not hang us


class Plugins:
    """The installed plugins and what they offer. Made by ``load_plugins``, passed to whoever needs it.

    May be used from several threads.
    """

    def __init__(self, entries: Iterable[Plugin], commands: Iterable[EntryPoint], warn: Callable[[str], None]) -> None:
        self._manager = pluggy.PluginManager("myllm")
        self._manager.add_hookspecs(hookspecs)
        self._entries = list(entries)
        self._commands = list(commands)
        self._warn = warn
        self._warned: set[int] = set()
        self._found: dict[str, list[tuple[Plugin, Any]]] = {}
        self._lock = threading.RLock()

    def entries(self, load: bool = False) -> list[Plugin]:
        """Every plugin found; with ``load`` each is imported and asked for all that it offers."""
        if load:
            for hook in CHECKS:
                self._offers(hook)
        return list(self._entries)

    def commands(self) -> list[EntryPoint]:
        """The commands that plugins add: entry points, not imported."""
        return list(self._commands)

    def engines(self) -> dict[str, tuple[Plugin, type[Engine]]]:
        """Engine classes by name."""
        return {cls.name: (plugin, cls) for plugin, cls in self._offers("engines")}

    def engine(self, name: str) -> type[Engine]:
        """The engine class of this name. Raises ``EngineMissing``."""
        engines = self.engines()
        if name not in engines:
            raise EngineMissing(
                f"no engine named {name} is installed; there is: {', '.join(sorted(engines)) or 'none'}"
                + (f'. Try: pip install "myllm[{name}]"' if name in extras() else "")
                + self.broken_hint()
            )
        return engines[name][1]

    def downloaders(self) -> dict[str, Downloader]:
        """A downloader for each claimed scheme."""
        by_scheme: dict[str, Downloader] = {}
        for plugin, cls in self._offers("downloaders"):
            try:
                with guarded():
                    downloader = cls()
            except PluginError as error:
                self._fail(plugin, f"{cls.__name__}(): {error}", _update(plugin))
            else:
                by_scheme |= dict.fromkeys(cls.schemes, downloader)
        return by_scheme

    def session_store(self, name: str) -> type[SessionStore]:
        """The session store class of this name. Raises ``PluginError``."""
        stores: dict[str, type[SessionStore]] = {cls.name: cls for _, cls in self._offers("session_stores")}
        if name not in stores:
            raise PluginError(
                f"no session store named {name} is installed; there is: {', '.join(sorted(stores))}"
                + self.broken_hint()
            )
        return stores[name]

    def catalog(self) -> list[CatalogEntry]:
        """All catalogue entries, the built-in ones first."""
        return [entry for _, entry in self._offers("catalog")]

    def routes(self) -> list[Any]:
        """All FastAPI routers that plugins add."""
        return [router for _, router in self._offers("routes")]

    def broken(self) -> list[Plugin]:
        """The plugins found broken so far."""
        return [plugin for plugin in self._entries if plugin.error]

    def broken_hint(self) -> str:
        """A half-sentence that names the broken plugins, for messages; empty when there are none."""
        broken = self.broken()
        if not broken:
            return ""
        return "; broken plugins (see: myllm plugins): " + ", ".join(f"{p.label}: {p.error}" for p in broken)

    def _offers(self, hook: str) -> list[tuple[Plugin, Any]]:
        """What all plugins give for a hook, checked, each with its plugin. The first to claim a name has it."""
        with self._lock:
            if hook not in self._found:
                owners: dict[str, Plugin] = {}
                self._found[hook] = [
                    (plugin, value)
                    for plugin in self._entries
                    for value in self._values(plugin, hook)
                    if self._acceptable(plugin, hook, value, owners)
                ]
            return self._found[hook]

    def _values(self, plugin: Plugin, hook: str) -> list[Any]:
        """What one plugin gives for a hook, not checked yet; nothing when it fails."""
        self._import(plugin)
        impls = getattr(self._manager.hook, f"myllm_{hook}").get_hookimpls()
        impl = next((impl for impl in impls if impl.plugin_name == plugin.name and plugin.loaded), None)
        if impl is None:
            return []
        try:
            with guarded():
                given = impl.function()
                if not isinstance(given, Iterable):
                    raise PluginError(f"gave {shown(given)}, not a list of what it offers")
                values = list(itertools.islice(given, _MOST_OFFERS + 1))
            if len(values) > _MOST_OFFERS:
                raise PluginError(f"gave more than {_MOST_OFFERS} values")
        except PluginError as error:
            self._fail(plugin, f"myllm_{hook}: {error}", _update(plugin))
            return []
        return values

    def _acceptable(self, plugin: Plugin, hook: str, value: Any, owners: dict[str, Plugin]) -> bool:
        try:
            with guarded():  # a metaclass or a property may run a stranger's code
                wrong = CHECKS[hook](value)
        except PluginError as error:
            wrong = error.message
        if wrong:
            self._fail(plugin, f"myllm_{hook}: {wrong}", _update(plugin))
            return False
        names = claims(hook, value)
        taken = next((name for name in names if name in owners), None)
        if taken is not None:
            owner = owners[taken].label
            self._fail(plugin, f"myllm_{hook}: the name {taken} is taken by {owner}", "uninstall one of the two")
            return False
        owners |= dict.fromkeys(names, plugin)
        plugin.offers.setdefault(hook, []).append(shown(value))
        return True

    def _import(self, plugin: Plugin) -> None:
        if plugin.error:
            self._warn_once(plugin)
        if plugin.loaded or plugin.error:
            return
        slow = threading.Timer(_SLOW_IMPORT, self._warn, [f"still importing the plugin {plugin.label} …"])
        slow.daemon = True
        slow.start()
        try:
            with guarded():
                module = plugin.entry_point.load()
                self._register(module, plugin)
            plugin.loaded = True
        except PluginError as error:
            self._fail(plugin, error.message, _update(plugin))
        finally:
            slow.cancel()

    def _register(self, module: Any, plugin: Plugin) -> None:
        speaks = getattr(module, "MYLLM_API", hookspecs.API_VERSION)
        if speaks != hookspecs.API_VERSION:
            raise PluginError(f"it speaks plugin contract {speaks!r}, this myllm speaks {hookspecs.API_VERSION}")
        self._manager.register(module, plugin.name)
        try:
            self._manager.check_pending()
            unmarked = [name for name in _HOOKS if self._lacks_mark(module, name)]
            if unmarked:
                raise PluginError(f"{unmarked[0]} isn't marked with @hookimpl, so nobody would ask it")
            if not self._manager.get_hookcallers(module):
                raise PluginError(f"{plugin.entry_point.value} has no function marked @hookimpl")
        except BaseException:
            self._manager.unregister(module)
            raise

    def _lacks_mark(self, module: Any, hook: str) -> bool:
        return callable(getattr(module, hook, None)) and self._manager.parse_hookimpl_opts(module, hook) is None

    def _fail(self, plugin: Plugin, error: str, fix: str) -> None:
        if not plugin.error:
            plugin.error, plugin.fix = one_line(error), fix
            self._warn_once(plugin)

    def _warn_once(self, plugin: Plugin) -> None:
        if id(plugin) not in self._warned:
            self._warned.add(id(plugin))
            self._warn(f"plugin {plugin.label} is broken: {plugin.error} (fix: {plugin.fix})")


def _update(plugin: Plugin) -> str:
    return f"update or uninstall {plugin.distribution or plugin.name}"


def _to_stderr(text: str) -> None:
    print(f"myllm: {text}", file=sys.stderr)


def load_plugins(disabled: Iterable[str] = (), warn: Callable[[str], None] = _to_stderr) -> Plugins:
    """Find the installed plugins by their metadata, importing none. ``warn`` is told of each broken one, once."""
    plugins, commands = find_plugins(frozenset(disabled))
    return Plugins(plugins, commands, warn)
