"""``explain`` and ``set``: which engine runs a model and why, and which one it prefers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from myllm_cli.context import Cli
from myllm_cli.models import JsonOption, NameArgument
from myllm_cli.tables import print_fields, print_json, print_table, size_text
from myllm_cli.terminal import clean_line

if TYPE_CHECKING:
    from myllm_core.runtime.explain import Explanation, Opinion

AUTO = "auto"


def explain(ctx: typer.Context, name: NameArgument, json: JsonOption = False) -> None:
    """Say which engine runs a model and why, and what every other one says of it."""
    cli: Cli = ctx.obj
    from dataclasses import asdict

    from myllm_core.runtime.explain import explain as explain_model

    found = explain_model(cli.models.get(name), cli.plugins, cli.settings)
    if json:
        print_json(asdict(found))
    else:
        _print(found)


def _print(found: Explanation) -> None:
    print_fields(
        [
            ("model", f"{found.model} ({found.format})"),
            ("engine", found.engine or "none can run it"),
            ("why", found.why),
            ("preferred", found.preferred),
            ("free memory", size_text(found.free_memory)),
            *(("broken plugin", text) for text in found.broken),
        ]
    )
    if not found.engines:
        return
    print()
    print_table(
        ("", "ENGINE", "SCORE", "MEMORY", "REASON"),
        [("*" if one.chosen else "", one.engine, one.score, _memory(one), _reason(one)) for one in found.engines],
    )


def _memory(one: Opinion) -> str:
    if one.memory is None:
        return "-"
    device = f" + {size_text(one.device_memory)} on the GPU" if one.device_memory else ""
    return size_text(one.memory) + device


def _reason(one: Opinion) -> str:
    lacking = f"needs {one.missing}: {one.install}" if one.missing else ""
    return "; ".join(filter(None, (one.reason, one.problem, lacking)))


def set_model(
    ctx: typer.Context,
    name: NameArgument,
    engine: Annotated[
        str, typer.Option(metavar="NAME", help="Run it with this engine from now on; auto takes the best one again.")
    ],
) -> None:
    """Change what is kept of an installed model: the engine that it prefers."""
    cli: Cli = ctx.obj
    from myllm_core.runtime.choose import choose_engine

    model = cli.models.get(name)
    if engine != AUTO:
        choose_engine(model, cli.plugins, engine)
    changed = cli.models.prefer_engine(model.name, "" if engine == AUTO else engine)
    preferred = changed.manifest.engine
    print(f"{clean_line(model.name)} {f'prefers the engine {preferred}' if preferred else 'takes the best engine'}.")
