"""``verify``: are the files of models still what was pulled?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from myllm_cli.context import Cli
from myllm_cli.models import JsonOption
from myllm_cli.tables import print_json
from myllm_cli.terminal import StatusLine, clean_line
from myllm_core.errors import IntegrityError, InvalidRequest, MyllmError

if TYPE_CHECKING:
    from myllm_core.models.manifest import Model


def verify(
    ctx: typer.Context,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The model's name.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Check every installed model.")] = False,
    json: JsonOption = False,
) -> None:
    """Check the files of models against their hashes; exit code 5 when one has changed."""
    cli: Cli = ctx.obj
    if (name is None) != all_:
        raise InvalidRequest("say which model, or --all: myllm verify NAME")
    results = [*_broken(cli), *map(_verified, cli.models.list_models())] if name is None else [_named(cli, name)]
    if json:
        print_json(results)
    else:
        for result in results:
            print(f"{clean_line(result['name'])}: {'ok' if result['ok'] else 'damaged'}")
            for problem in result["problems"]:
                print(f"  {clean_line(problem['message'])}")
    damaged = [result["name"] for result in results if not result["ok"]]
    if damaged:
        raise IntegrityError(f"damaged: {', '.join(damaged)}; mend with: myllm pull NAME --force")


def _named(cli: Cli, name: str) -> dict[str, Any]:
    try:
        return _verified(cli.models.get(name))
    except IntegrityError as error:
        return _result(str(error.data.get("model", name)), [{"path": "", "message": error.message}])


def _broken(cli: Cli) -> list[dict[str, Any]]:
    return [_result(folder, [{"path": "", "message": problem}]) for folder, problem in cli.models.broken()]


def _result(name: str, problems: list[dict[str, str]]) -> dict[str, Any]:
    return {"name": name, "ok": not problems, "problems": problems}


def _verified(model: Model) -> dict[str, Any]:
    from myllm_core.models.verify import verify as verify_

    status = StatusLine()

    def progress(path: str, done: int, size: int) -> None:
        status.show(f"Checking {model.name} …", f"{path} {100 * done // max(size, 1)} %")

    try:
        problems = verify_(model, progress)
    except MyllmError as error:
        return _result(model.name, [{"path": "", "message": error.message}])
    finally:
        status.clear()
    return _result(model.name, [{"path": problem.path, "message": problem.message} for problem in problems])
