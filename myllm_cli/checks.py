"""The checks of ``doctor``, one function each."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from myllm_cli.context import Cli
from myllm_cli.plugins import quiet_plugins
from myllm_cli.running import ask_server
from myllm_cli.sessions import session_store
from myllm_cli.tables import size_text
from myllm_core import __version__
from myllm_core.errors import ConfigError, EngineMissing, MyllmError, NetworkError

if TYPE_CHECKING:
    from myllm_core.discovery import Plugin
    from myllm_core.plugins import Plugins

_LITTLE_DISK = 2 * 10**9
_LITTLE_MEMORY = 10**9
_STRANGERS_MAJOR = 4  # the project named myllm on the public index counts from 4


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found; ``fix`` is what to do about it."""

    check: str
    status: Literal["ok", "warning", "problem"]
    message: str
    fix: str = ""

    def to_json(self) -> dict[str, str]:
        """The finding as JSON values."""
        return asdict(self)


def examine(cli: Cli, online: bool, begin: Callable[[str], None]) -> Iterator[Finding]:
    """All findings, as they come; ``begin`` is told what is checked next."""
    yield from _python()
    yield from _distribution()
    try:
        yield _config(cli)
    except ConfigError as error:
        yield Finding("settings", "problem", error.message, "correct it there; the other checks need the settings")
        return
    begin("plugins")
    plugins = quiet_plugins(cli)
    checks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("plugins", lambda: _plugins(plugins)),
        ("engines", lambda: _engines(plugins)),
        ("folders", lambda: _folders(cli)),
        ("memory", _memory),
        ("models", lambda: _models(cli, plugins)),
        ("sessions", lambda: _sessions(cli)),
        ("port", lambda: _port(cli)),
    ]
    if online:
        checks.append(("catalogue", lambda: _catalog(plugins)))
    for name, check in checks:
        begin(name)
        yield from check()


def _python() -> Iterator[Finding]:
    text = f"{platform.python_implementation()} {platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.maxsize < 2**32:
        yield Finding("python", "problem", f"{text}: 32 bit can't hold a model", "install a 64-bit Python")
    else:
        yield Finding("python", "ok", f"{text}, {sys.prefix}")


def _distribution() -> Iterator[Finding]:
    found = {str(dist.metadata["Version"]) for dist in distributions(name="myllm")}
    strange = sorted(
        number for number in found if number.split(".")[0].isdigit() and _major(number) >= _STRANGERS_MAJOR
    )
    if strange:
        yield Finding(
            "myllm",
            "problem",
            f"the distribution myllm {strange[0]} that is installed here is another project of that name",
            "pip uninstall myllm, then install this one by its path or file: pip install ./myllm",
        )
    elif len(found) > 1:
        yield Finding(
            "myllm",
            "problem",
            f"it is installed {len(found)} times: {', '.join(sorted(found))}",
            "pip uninstall myllm, until it says there is none",
        )
    elif not found:
        yield Finding("myllm", "warning", f"{__version__}, run from a folder, not installed", "pip install that folder")
    elif importlib.util.find_spec("myllm") is not None:
        yield Finding(
            "myllm",
            "warning",
            "a package named myllm can be imported; it is none of ours",
            "pip uninstall what brought it",
        )
    else:
        yield Finding("myllm", "ok", __version__)


def _major(number: str) -> int:
    return int(number.split(".")[0])


def _config(cli: Cli) -> Finding:
    from myllm_core.settings import config_file

    settings, path = cli.settings, config_file()
    if not path.exists():
        return Finding("settings", "ok", f"no config file (it would be {path}); defaults and MYLLM_ variables apply")
    return Finding(
        "settings",
        "ok",
        f"{path} is read; not at their defaults: {', '.join(sorted(settings.model_fields_set)) or 'none'}",
    )


def _plugins(plugins: Plugins) -> Iterator[Finding]:
    for plugin in plugins.broken():
        yield Finding("plugins", "problem", f"{plugin.label} is broken: {plugin.error}", plugin.fix)
    working = [plugin.name for plugin in plugins.entries() if not plugin.error]
    yield Finding("plugins", "ok", f"{len(working)} usable: {', '.join(working)}")


def _engines(plugins: Plugins) -> Iterator[Finding]:
    engines = plugins.engines()
    if not engines:
        yield Finding("engines", "problem", "no engine is installed, so no model can run", 'pip install "myllm[all]"')
    for name, (plugin, cls) in sorted(engines.items()):
        formats = ", ".join(sorted(cls.formats))
        if plugin.missing:
            yield Finding(
                "engines",
                "problem",
                f"{name} needs {', '.join(plugin.missing)}, which isn't installed",
                f"pip install --upgrade {plugin.distribution}",
            )
        else:
            yield Finding(
                "engines", "ok", f"{name} for {formats} ({plugin.distribution} {plugin.version}{_below(plugin)})"
            )


def _below(plugin: Plugin) -> str:
    """The versions of what an engine's distribution stands on: that is what people are asked for."""
    import re

    requires = (plugin.entry_point.dist.requires if plugin.entry_point.dist else None) or []
    found = []
    for text in requires:
        name = re.match(r"[\w.-]+", text)
        if name and name[0] != "myllm" and ";" not in text:
            try:
                found.append(f"{name[0]} {version(name[0])}")
            except PackageNotFoundError:
                continue
    return f"; {', '.join(found)}" if found else ""


def _folders(cli: Cli) -> Iterator[Finding]:
    settings = cli.settings
    for name, folder, setting in (
        ("models", settings.models_dir, "MYLLM_MODELS_DIR"),
        ("data", settings.data_dir, "MYLLM_DATA_DIR"),
    ):
        place = _existing(folder)
        try:
            with tempfile.TemporaryFile(dir=place):
                pass
        except OSError as error:
            yield Finding(
                "folders",
                "problem",
                f"the {name} folder {folder} can't be written: {error.strerror}",
                f"make {place} a folder that you can write, or choose another with {setting}",
            )
            continue
        free = shutil.disk_usage(place).free
        text = f"the {name} folder {folder}: {size_text(free)} free"
        if free < _LITTLE_DISK:
            yield Finding(
                "folders", "warning", text, "make room (myllm remove NAME), or choose another disk with " + setting
            )
        else:
            yield Finding("folders", "ok", text)


def _existing(folder: Path) -> Path:
    """The folder, or the one above it that is there already."""
    return next((place for place in (folder, *folder.absolute().parents) if place.exists()), folder)


def _memory() -> Iterator[Finding]:
    from myllm_core.machine import free_memory

    free = free_memory()
    if free < _LITTLE_MEMORY:
        yield Finding("memory", "warning", f"only {size_text(free)} free", "close programs, or run small models")
    else:
        yield Finding("memory", "ok", f"{size_text(free)} free")


def _models(cli: Cli, plugins: Plugins) -> Iterator[Finding]:
    from myllm_core.runtime.choose import choose_engine

    try:
        models, broken = cli.models.list_models(), cli.models.broken()
    except MyllmError as error:
        yield Finding("models", "problem", error.message, "make the folder readable, or choose another")
        return
    for folder, problem in broken:
        name = folder.replace("@", ":")
        mend = f"myllm verify {name} --repair, or myllm remove {name}"
        yield Finding("models", "problem", f"{name}: {problem}", mend)
    runnable = 0
    for model in models:
        try:
            choose_engine(model, plugins)
            runnable += 1
        except EngineMissing as error:
            yield Finding("models", "problem", f"{model.name} can't run: {error.message}", "install what it names")
    yield Finding("models", "ok", f"{runnable} of {len(models) + len(broken)} installed models can run")


def _sessions(cli: Cli) -> Iterator[Finding]:
    try:
        with session_store(cli) as store:
            store.list_sessions(limit=1)
    except MyllmError as error:
        yield Finding("sessions", "problem", error.message, "mend that, or choose another store with MYLLM_SESSION_URL")
    else:
        yield Finding("sessions", "ok", f"the {cli.settings.session_store} store opens")


def _port(cli: Cli) -> Iterator[Finding]:
    settings = cli.settings
    place = f"{settings.host} port {settings.port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        yield _taken(cli, place, error)
    else:
        yield Finding("port", "ok", f"{place} is free for serve")


def _taken(cli: Cli, place: str, error: OSError) -> Finding:
    try:
        ask_server(cli.settings, "GET", "/api/ps", lambda answer: answer["models"])
    except (NetworkError, ConfigError):
        return Finding(
            "port", "warning", f"serve can't bind {place}: {error.strerror}", "myllm serve --port 0, or MYLLM_PORT"
        )
    except MyllmError:  # one that may not or can't say what it has loaded
        pass
    return Finding("port", "ok", f"a myllm server runs on {place}")


def _catalog(plugins: Plugins) -> Iterator[Finding]:
    """Ask one source of each scheme that the catalogue uses for its metadata."""
    from myllm_core.models.reference import parse_reference

    downloaders = plugins.downloaders()
    first: dict[str, Any] = {}
    for entry in plugins.catalog():
        for source in entry.sources:
            first.setdefault(source.reference.partition(":")[0], source.reference)
    for scheme, reference in first.items():
        if scheme not in downloaders:
            yield Finding(
                "catalogue", "warning", f"no installed downloader knows {scheme}:", 'pip install "myllm[all]"'
            )
            continue
        try:
            downloaders[scheme].resolve(parse_reference(reference, frozenset(downloaders)))
        except MyllmError as error:
            yield Finding("catalogue", "warning", f"{reference}: {error.message}", "check the network or the proxy")
        else:
            yield Finding("catalogue", "ok", f"{reference} answers")
