"""A pull with short times, and what it tells."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from myllm_core.models.manifest import Model
from myllm_core.models.store import ModelStore
from myllm_core.plugins import Plugins
from myllm_core.transfer.client import HttpClient
from myllm_core.transfer.fetch import Retry
from myllm_core.transfer.pull import pull
from support.wild_server import Handler, WildServer

QUICK = Retry(first=0.01, longest=0.02, cap=0.3, progress_bytes=1024)


@dataclass
class Told:
    """The progress of a pull, as it was told."""

    messages: list[str] = field(default_factory=list)
    files: list[tuple[str, int, int | None]] = field(default_factory=list)

    def message(self, text: str) -> None:
        self.messages.append(text)

    def file(self, path: str, done: int, total: int | None) -> None:
        self.files.append((path, done, total))

    @property
    def text(self) -> str:
        return "\n".join(self.messages)


@dataclass
class Puller:
    """``puller(reference)`` pulls into ``store`` with short time-outs; ``told`` is what it said."""

    store: ModelStore
    plugins: Plugins
    told: Told = field(default_factory=Told)

    def __call__(self, reference: str, **choices: Any) -> Model:
        choices.setdefault("client", HttpClient(connect_timeout=2.0, stall_timeout=0.4))
        choices.setdefault("retry", QUICK)
        return pull(reference, plugins=self.plugins, store=self.store, progress=self.told, **choices)

    def bytes_of(self, model: Model) -> bytes:
        return model.paths[0].read_bytes()

    @property
    def partial_bytes(self) -> int:
        """How many bytes wait for the next try."""
        return sum(path.stat().st_size for path in self.store.partials_dir.glob("*/data.part"))

    def assert_nothing_installed(self) -> None:
        assert self.store.list_models() == []
        assert self.store.broken() == []


class StartServer(Protocol):
    def __call__(self, handler: Handler, **choices: Any) -> WildServer: ...
