"""``prune``: delete what no model needs any more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from myllm_cli.context import Cli
from myllm_cli.models import JsonOption, check_json_asks, confirm, seconds_of
from myllm_cli.tables import print_json, print_table, size_text
from myllm_cli.terminal import clean_line, say

if TYPE_CHECKING:
    from myllm_core.models.leftovers import Leftover

_UNITS = (("d", 86400), ("h", 3600), ("min", 60))


def prune(
    ctx: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be deleted.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    older_than: Annotated[
        str, typer.Option("--older-than", metavar="TIME", help="Only what hasn't changed for so long, such as 7d.")
    ] = "0",
    json: JsonOption = False,
) -> None:
    """Delete unfinished downloads, and files that no model needs. Asks first on a terminal; elsewhere say --yes."""
    from myllm_core.transfer.prune import find
    from myllm_core.transfer.prune import prune as prune_

    cli: Cli = ctx.obj
    check_json_asks(json, dry_run, yes)
    found = find(cli.models, seconds_of(older_than, "--older-than"))
    total = size_text(sum(each.size for each in found))
    if not json:
        _show(found)
        if found and not dry_run and not yes:
            confirm(f"Delete these ({total})?", "--yes")
    failed = [] if dry_run else prune_(cli.models, found)
    freed = 0 if dry_run else sum(each.size for each in found) - sum(each.size for each, _ in failed)
    if json:
        print_json({"leftovers": [_to_json(each) for each in found], "freed_bytes": freed})
    elif found:
        print(f"{total} could be freed." if dry_run else f"Freed {size_text(freed)}.")
    for each, error in failed:
        say(f"{clean_line(each.path)}: {clean_line(error.message)}")
    if failed:
        raise failed[0][1]


def _show(found: list[Leftover]) -> None:
    if not found:
        say("There is nothing to delete.")
        return
    print_table(
        ("KIND", "MODEL", "SIZE", "AGE", "WHAT"),
        [(each.kind, each.model or "-", size_text(each.size), _age(each.age), each.what) for each in found],
    )


def _age(seconds: float) -> str:
    for unit, length in _UNITS:
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _to_json(each: Leftover) -> dict[str, Any]:
    return {
        "kind": each.kind,
        "model": each.model,
        "path": str(each.path),
        "what": each.what,
        "size_bytes": each.size,
        "age_seconds": round(each.age),
    }
