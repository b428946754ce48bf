"""What the tests of pulling share: wild servers, and a pull with short times."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from myllm_core.models.store import ModelStore
from myllm_core.plugins import Plugin, Plugins, load_plugins
from support.pulling import Puller, StartServer
from support.wild_server import WildServer


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def serve() -> Iterator[StartServer]:
    """``serve(handler)`` starts a server that lives as long as the test."""
    with ExitStack() as stack:
        yield lambda handler, **choices: stack.enter_context(WildServer(handler, **choices))


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


@pytest.fixture
def puller(store: ModelStore) -> Puller:
    return Puller(store, load_plugins())


@pytest.fixture
def add_plugin(puller: Puller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """``add_plugin(source)`` gives ``puller`` one more plugin: a module of this text."""
    added: list[EntryPoint] = []

    def add(source: str) -> None:
        name = f"plugin_{abs(hash((source, tmp_path)))}"
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        added.append(EntryPoint(name, name, "myllm"))
        mine = [Plugin(point, "test", "1") for point in added]
        puller.plugins = Plugins([*load_plugins().entries(), *mine], [], puller.told.message)

    return add
