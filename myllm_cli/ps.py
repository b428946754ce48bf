"""``ps``, ``load`` and ``unload``: what a running server has loaded, and changing that."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer

from myllm_cli.context import Cli
from myllm_cli.models import JsonOption, NameArgument
from myllm_cli.running import PATIENCE, ask_server
from myllm_cli.tables import print_json, print_table, size_text
from myllm_cli.terminal import say
from myllm_core.models.reference import model_name

_FIELDS = ("name", "engine", "context_size", "memory", "running", "queued", "expires_in")


def ps(ctx: typer.Context, json: JsonOption = False) -> None:
    """List the models that a running server has loaded."""
    cli: Cli = ctx.obj
    loaded = ask_server(cli.settings, "GET", "/api/ps", lambda answer: [_loaded(model) for model in answer["models"]])
    if json:
        print_json(loaded)
        return
    if not loaded:
        say("The server has no model loaded.")
        return
    print_table(
        ("NAME", "ENGINE", "CONTEXT", "MEMORY", "RUNNING", "WAITING", "EXPIRES"),
        [
            (
                model["name"],
                model["engine"],
                model["context_size"],
                size_text(model["memory"]) if model["memory"] else "-",
                model["running"],
                model["queued"],
                _expiry(model),
            )
            for model in loaded
        ],
    )


def load(
    ctx: typer.Context,
    name: NameArgument,
    keep_alive: Annotated[
        str | None, typer.Option(metavar="TIME", help="How long it stays without use: 5m, 0, forever.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Have a running server load a model before it is needed."""
    cli: Cli = ctx.obj
    body = {} if keep_alive is None else {"keep_alive": keep_alive}
    model = ask_server(cli.settings, "POST", _path(name, "load"), _loaded, _patience(cli), **body)
    if json:
        print_json(model)
        return
    size = f", {size_text(model['memory'])}" if model["memory"] else ""
    print(f"{model['name']} is loaded ({model['engine']}{size}); expires: {_expiry(model)}")


def unload(ctx: typer.Context, name: NameArgument) -> None:
    """Have a running server unload a model when its requests have ended."""
    cli: Cli = ctx.obj
    unloaded = ask_server(
        cli.settings, "POST", _path(name, "unload"), lambda answer: str(answer["name"]), _patience(cli)
    )
    print(f"{unloaded} isn't loaded any more")


def _path(name: str, what: str) -> str:
    model_name(name)  # what is no name would lead to another route
    return f"/api/models/{quote(name, safe='')}/{what}"


def _patience(cli: Cli) -> float:
    return cli.settings.request_timeout + PATIENCE


def _loaded(values: Any) -> dict[str, Any]:
    """A loaded model as the server tells of it. Raises ``KeyError`` for another program's answer."""
    return {name: values[name] for name in _FIELDS} | dict(values)


def _expiry(model: dict[str, Any]) -> str:
    left = model["expires_in"]
    if left is not None:
        return f"in {left:.0f} s"
    return "when idle" if model["running"] else "never"
