"""``bench``: how fast a model is on this machine, and how fast it could be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from myllm_cli.context import Cli
from myllm_cli.models import JsonOption
from myllm_cli.tables import print_fields, print_json, size_text
from myllm_cli.terminal import StatusLine

if TYPE_CHECKING:
    from myllm_cli.trial import Findings, Speed
    from myllm_core.models.manifest import Model


def bench(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="MODEL", help="An installed model, such as smollm2.")],
    engine: Annotated[str | None, typer.Option(metavar="NAME", help="Run it with this engine.")] = None,
    load_option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="An option of the engine's (repeatable).")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Measure how fast a model is on this machine, beside what its memory allows."""
    cli: Cli = ctx.obj
    import asyncio

    from myllm_cli.bandwidth import bytes_per_token, read_bandwidth
    from myllm_cli.run import parsed_load_options

    load_options = parsed_load_options(load_option or [])
    model = cli.models.get(name)
    status = StatusLine()
    try:
        status.show("Measuring the memory's speed …")
        bandwidth = read_bandwidth()
        findings = asyncio.run(_findings(cli, model, status, engine, load_options))
    finally:
        status.clear()
    limit = bandwidth / max(bytes_per_token(model), 1)
    if json:
        print_json(_json(model, findings, bandwidth, limit))
    else:
        print_fields(_fields(model, findings, bandwidth, limit))


async def _findings(
    cli: Cli, model: Model, status: StatusLine, engine: str | None, load_options: dict[str, Any]
) -> Findings:
    from myllm_cli.reply import show_progress
    from myllm_cli.trial import Trial
    from myllm_core.runtime.runtime import Runtime

    async with Runtime(cli.settings, cli.plugins) as runtime:
        trial = Trial(runtime, model.name, lambda text: status.show(f"{text} …"), engine, load_options or None)
        return await trial.run(lambda progress: show_progress(status, progress, model.name))


def _fields(model: Model, found: Findings, bandwidth: float, limit: float) -> list[tuple[str, object]]:
    about = " ".join(filter(None, (model.name, model.manifest.quantization, f"({size_text(model.manifest.size)})")))
    alone = found.writing[1].middle
    return [
        ("model", f"{about} on {found.engine}"),
        ("load", f"{found.load:.2f} s"),
        ("memory", size_text(found.memory) if found.memory else ""),
        ("first token", f"{found.first_token * 1000:.0f} ms"),
        *((f"reading {speed.tokens} tokens", _speed(speed)) for speed in found.reading),
        *((f"writing, {count} at a time", _speed(speed)) for count, speed in found.writing.items()),
        ("memory bandwidth", f"{size_text(bandwidth)}/s"),
        ("limit by memory", f"{limit:.0f} tokens/s: {size_text(bandwidth / limit)} are read for each token"),
        ("reached of it", f"{100 * alone / limit:.0f} %"),
    ]


def _speed(speed: Speed) -> str:
    return f"{speed.middle:.1f} tokens/s ({speed.least:.1f} to {speed.most:.1f})"


def _json(model: Model, found: Findings, bandwidth: float, limit: float) -> dict[str, Any]:
    return {
        "model": model.name,
        "engine": found.engine,
        "quantization": model.manifest.quantization,
        "size_bytes": model.manifest.size,
        "load_seconds": found.load,
        "memory_bytes": found.memory,
        "first_token_seconds": found.first_token,
        "reading": [_speed_json(speed) for speed in found.reading],
        "writing": [{"parallel": count, **_speed_json(speed)} for count, speed in found.writing.items()],
        "bandwidth_bytes_per_second": bandwidth,
        "bytes_per_token": bandwidth / limit,
        "limit_tokens_per_second": limit,
        "reached": found.writing[1].middle / limit,
    }


def _speed_json(speed: Speed) -> dict[str, float]:
    return {
        "tokens": speed.tokens,
        "tokens_per_second": speed.middle,
        "least": speed.least,
        "most": speed.most,
    }
