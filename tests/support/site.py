"""Plugins as pip would leave them: a module and a ``dist-info`` folder on ``sys.path``."""

from __future__ import annotations

import textwrap
from pathlib import Path

from myllm_core.plugins import Plugins, load_plugins

GOOD_ENGINE = """
    from myllm_core import Engine, hookimpl

    class Good(Engine):
        name = "NAME"
        formats = frozenset({"NAME"})
        probe = estimate = load = classmethod(lambda cls, *args: None)
        facts = property(lambda self: None)
        def chat(self, request): ...

    @hookimpl
    def myllm_engines():
        return [Good]
"""


class Site:
    """A folder on ``sys.path`` that plugins are installed in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.warnings: list[str] = []

    def install(self, name: str, code: str, *, dist: str = "", entry_points: str = "", requires: str = "") -> None:
        """``name`` is the plugin's name; its module is called after its distribution."""
        dist = dist or f"dist-{name}"
        module = dist.replace("-", "_")
        (self.folder / f"{module}.py").write_text(textwrap.dedent(code.replace("NAME", name)), encoding="utf-8")
        info = self.folder / f"{module}-1.2.dist-info"
        info.mkdir()
        required = f"Requires-Dist: {requires}\n" if requires else ""
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.2\n{required}")
        (info / "entry_points.txt").write_text(entry_points or f"[myllm]\n{name} = {module}\n")

    def load(self, disabled: tuple[str, ...] = ()) -> Plugins:
        return load_plugins(disabled, self.warnings.append)

    def about(self, name: str) -> list[str]:
        return [text for text in self.warnings if f"plugin {name} " in text]
