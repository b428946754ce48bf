"""``verify``: are the files of models still what was pulled? And what isn't, made whole again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from myllm_cli.context import Cli
from myllm_cli.models import JsonOption
from myllm_cli.pull import pull_display
from myllm_cli.tables import print_json
from myllm_cli.terminal import clean_line
from myllm_core.errors import IntegrityError, InvalidRequest, MyllmError
from myllm_core.models.reference import name_of_folder

if TYPE_CHECKING:
    from myllm_core.models.manifest import Model
    from myllm_core.models.verify import Problem


@dataclass
class _Result:
    """How one model is; ``failed`` says why it couldn't be repaired."""

    name: str
    problems: list[Problem] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)
    failed: str = ""

    @property
    def state(self) -> str:
        return "damaged" if self.problems else "repaired" if self.repaired else "ok"

    def lines(self) -> list[str]:
        """What there is to say, a line each."""
        notes = [f"repaired {path}" for path in self.repaired]
        notes += [problem.message for problem in self.problems]
        notes += [f"can't be repaired: {self.failed}"] if self.failed else []
        return [f"{clean_line(self.name)}: {self.state}", *(f"  {clean_line(note)}" for note in notes)]

    def to_json(self) -> dict[str, Any]:
        """What ``--json`` says; byte ranges are those of HTTP, their last byte included. The keys are stable."""
        problems = [
            {
                "path": problem.path,
                "message": problem.message,
                "ranges": None if problem.ranges is None else [[start, end - 1] for start, end in problem.ranges],
            }
            for problem in self.problems
        ]
        state = {"name": self.name, "ok": not self.problems, "problems": problems}
        return {**state, "repaired": self.repaired, "error": self.failed or None}


def verify(
    ctx: typer.Context,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The model's name.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Check every installed model.")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Fetch what is damaged again from where the model came from.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Check the files of models against their hashes; exit code 5 when one has changed."""
    cli: Cli = ctx.obj
    if (name is None) != all_:
        raise InvalidRequest("say which model, or --all: myllm verify NAME")
    results = []
    for each in _wanted(cli, name):
        result = each if isinstance(each, _Result) else _checked(cli, each, repair)
        results.append(result)
        if not json:
            print(*result.lines(), sep="\n", flush=True)
    if json:
        print_json([result.to_json() for result in results])
    damaged = [result.name for result in results if result.problems]
    if damaged:
        how = "myllm pull NAME --force" if repair else "myllm verify NAME --repair"
        raise IntegrityError(f"{'still ' if repair else ''}damaged: {', '.join(damaged)}; mend with: {how}")


def _wanted(cli: Cli, name: str | None) -> list[Model | _Result]:
    """The model of that name, or all, damaged ones too; those without a manifest to check against as they are."""
    if name is not None:
        return [_named(cli, name, name)]
    broken = [_named(cli, name_of_folder(folder), folder, problem) for folder, problem in cli.models.broken()]
    return [*broken, *cli.models.list_models()]


def _named(cli: Cli, name: str | None, shown: str, problem: str = "") -> Model | _Result:
    from myllm_core.models.verify import Problem

    try:
        if name is not None:
            return cli.models.unchecked(name)
    except IntegrityError as error:
        problem = error.message
    except MyllmError:
        if not problem:
            raise
    return _Result(shown, [Problem("", problem)])


def _checked(cli: Cli, model: Model, repair: bool) -> _Result:
    result = _Result(model.name, _problems(model))
    if result.problems and repair:
        _repair(cli, model, result)
    return result


def _problems(model: Model) -> list[Problem]:
    from myllm_core.models.verify import Problem, verify

    try:
        with pull_display() as display:
            return verify(model, display.file)
    except MyllmError as error:
        return [Problem("", error.message)]


def _repair(cli: Cli, model: Model, result: _Result) -> None:
    from myllm_core.transfer.repair import repair

    try:
        with pull_display() as display:
            result.repaired = repair(model, result.problems, plugins=cli.plugins, store=cli.models, progress=display)
    except MyllmError as error:
        result.failed = error.message
        result.repaired = list(error.data.get("repaired", []))
        result.problems = [problem for problem in result.problems if problem.path not in result.repaired]
    else:
        result.problems = _problems(model)
