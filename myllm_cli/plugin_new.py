"""``plugins new``: a plugin to begin with, which works, has tests and passes the contract."""

from __future__ import annotations

import re
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from myllm_cli.context import Cli
from myllm_cli.terminal import say
from myllm_core.errors import InvalidRequest, StorageError

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", re.ASCII)


class Kind(StrEnum):
    """What the plugin adds."""

    ENGINE = "engine"
    DOWNLOADER = "downloader"
    STORE = "store"


_WHAT = {
    Kind.ENGINE: "an engine that repeats what it is told",
    Kind.DOWNLOADER: "a downloader for {name}: references",
    Kind.STORE: "a session store in memory",
}
# The modules of each kind's package, besides the one that has the hooks.
_MODULES = {Kind.ENGINE: ("engine", "downloader"), Kind.DOWNLOADER: ("downloader",), Kind.STORE: ("store",)}


def new(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The plugin's name; the package is called myllm-NAME.")],
    kind: Annotated[Kind, typer.Option(help="What it adds.")] = Kind.ENGINE,
    directory: Annotated[
        Path | None, typer.Option("--dir", metavar="DIR", help="Write it there, not to myllm-NAME.")
    ] = None,
) -> None:
    """Write a new plugin: a package that works, with tests."""
    if not _NAME.fullmatch(name) or len(name) > 30:
        raise InvalidRequest(f"{name[:60]!r} can't be a plugin's name; use small letters, digits and dashes")
    target = directory or Path(f"myllm-{name}")
    cli: Cli = ctx.obj
    for plugin in cli.plugins.entries():
        if plugin.name == name:
            raise InvalidRequest(
                f"a plugin named {name} is installed already ({plugin.distribution}); choose another name"
            )
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InvalidRequest(f"{target} is there already; give another place with --dir")
    for path, text in _package(name, kind).items():
        _write(target / path, text)
        print(target / path)
    say(f'Next: cd {target}, pip install -e ".[test]", pytest, myllm plugins check {name}')


def _package(name: str, kind: Kind) -> dict[str, str]:
    """The files of a new plugin by their paths."""
    package = f"myllm_{name.replace('-', '_')}"
    values = {
        "name": name,
        "package": package,
        "title": "".join(word.capitalize() for word in name.split("-")),
        "what": _WHAT[kind].format(name=name),
    }
    templates = {
        "pyproject.toml": "pyproject",
        "README.md": "readme",
        f"{package}/__init__.py": f"{kind}_init",
        **{f"{package}/{module}.py": module for module in _MODULES[kind]},
        "tests/test_contract.py": f"{kind}_contract",
    }
    return {path: _filled(template, values) for path, template in templates.items()}


def _filled(template: str, values: dict[str, str]) -> str:
    text = (files("myllm_cli") / "templates" / f"{template}.txt").read_text(encoding="utf-8")
    return re.sub(r"@(\w+)@", lambda match: values[match[1]], text)


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path} can't be written: {error.strerror}") from None
