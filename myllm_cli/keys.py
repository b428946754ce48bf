"""``keys``: who may use the server, for what, and how much."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from myllm_cli.context import Cli
from myllm_cli.lazy import STYLE
from myllm_cli.models import JsonOption
from myllm_cli.tables import print_json, print_table
from myllm_cli.terminal import say
from myllm_core.errors import InvalidRequest

if TYPE_CHECKING:
    from myllm_core.keys import ApiKey, Scope

app = typer.Typer(help="Make, list and revoke keys for the server.", no_args_is_help=True, **STYLE)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The key's name: who or what it is for.")]


@app.command()
def create(
    ctx: typer.Context,
    name: NameArgument,
    scope: Annotated[
        list[str] | None, typer.Option("--scope", metavar="SCOPE", help="chat (the default) or manage, or both.")
    ] = None,
    requests_per_minute: Annotated[
        int, typer.Option("--requests-per-minute", metavar="N", min=0, help="Most requests a minute (0: no limit).")
    ] = 0,
    tokens_per_minute: Annotated[
        int, typer.Option("--tokens-per-minute", metavar="N", min=0, help="Most tokens a minute (0: no limit).")
    ] = 0,
    tokens_per_day: Annotated[
        int, typer.Option("--tokens-per-day", metavar="N", min=0, help="Most tokens a day, UTC (0: no limit).")
    ] = 0,
) -> None:
    """Make a key and print it. It is shown this once: only its hash is kept. A running server takes it at once."""
    from myllm_core.keys import KeyFile

    cli: Cli = ctx.obj
    secret = KeyFile(cli.settings.data_dir).create(
        name,
        _scopes(scope or ["chat"]),
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        tokens_per_day=tokens_per_day,
    )
    print(secret)
    say("Keep it: it can't be shown again. From now on the server asks everybody for a key.")


@app.command("list")
def list_keys(ctx: typer.Context, json: JsonOption = False) -> None:
    """List the keys: what each may do, and how many tokens it has used today."""
    from myllm_core.keys import DayUse, KeyFile, today

    cli: Cli = ctx.obj
    keys = KeyFile(cli.settings.data_dir).read()
    used = DayUse(cli.settings.data_dir).read(today())
    if json:
        print_json([_to_json(key, used.get(key.name, 0)) for key in keys])
    elif not keys:
        say("There is no key yet; myllm keys create NAME makes one.")
    else:
        print_table(
            ("NAME", "SCOPES", "CREATED", "REQUESTS/MIN", "TOKENS/MIN", "TOKENS/DAY", "TODAY"),
            [
                (
                    key.name,
                    ", ".join(key.scopes),
                    key.created_at[:10],
                    key.requests_per_minute or "-",
                    key.tokens_per_minute or "-",
                    key.tokens_per_day or "-",
                    used.get(key.name, 0),
                )
                for key in keys
            ],
        )


@app.command()
def revoke(ctx: typer.Context, name: NameArgument) -> None:
    """Take a key away. A running server refuses it at once."""
    from myllm_core.keys import KeyFile

    cli: Cli = ctx.obj
    left = KeyFile(cli.settings.data_dir).revoke(name)
    print(f"Revoked {name}.")
    if not left and not cli.settings.api_key:
        say("No key is left: a server on loopback asks for none when it is started again.")


def _scopes(given: list[str]) -> list[Scope]:
    from myllm_core.keys import SCOPES

    if unknown := set(given) - set(SCOPES):
        raise InvalidRequest(f"there is no scope {sorted(unknown)[0]}; known: {', '.join(SCOPES)}")
    return [scope for scope in SCOPES if scope in given]


def _to_json(key: ApiKey, used: int) -> dict[str, Any]:
    return key.model_dump(mode="json", exclude={"sha256"}) | {"tokens_today": used}
