"""``compare``: the same prompts on several models, formats or engines."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from myllm_cli.context import Cli
from myllm_cli.models import JsonOption
from myllm_cli.tables import print_json, print_table, size_text
from myllm_cli.terminal import StatusLine, clean_line
from myllm_core.errors import InvalidRequest

if TYPE_CHECKING:
    from myllm_cli.comparison import Case, Difference, Measured

_PICTURES = (".png", ".svg", ".pdf")


def compare(
    ctx: typer.Context,
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL…", help="Installed models; the first is the reference.")
    ],
    engine: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Run each on this engine (repeatable, for several).")
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Ask this (repeatable); else ten short questions.")
    ] = None,
    tokens: Annotated[int, typer.Option(metavar="N", min=2, max=4096, help="Tokens of each answer.")] = 32,
    load_option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A load option of all of them (repeatable).")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw a picture too: FILE.png, .svg or .pdf.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Put the same prompts to several models or engines, and say how fast they are and how far they agree."""
    cli: Cli = ctx.obj
    import asyncio

    from myllm_cli.comparison import PROMPTS, differences
    from myllm_cli.run import parsed_load_options

    if plot is not None:
        _check_plot(plot)
    cases = _cases(cli, models, engine or [])
    prompts = prompt or list(PROMPTS)
    options = parsed_load_options(load_option or [])
    status = StatusLine()
    try:
        measured = asyncio.run(_measured(cli, cases, prompts, tokens, options, status))
    finally:
        status.clear()
    found = [differences(measured[0], other) for other in measured]
    if plot is not None:
        from myllm_cli.plot import draw

        draw(plot, measured, found)
    if json:
        print_json(_json(prompts, measured, found))
    else:
        _print(prompts, measured, found)


def _check_plot(path: Path) -> None:
    """Before anything is measured. Raises ``InvalidRequest``."""
    if path.suffix.lower() not in _PICTURES:
        raise InvalidRequest(f"--plot {path}: name a file that ends with {', '.join(_PICTURES)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise InvalidRequest('--plot needs matplotlib; install it: pip install "myllm[plot]"')
    if not os.access(path.parent, os.W_OK) or path.is_dir():
        raise InvalidRequest(f"--plot {path}: no file can be written there")


def _cases(cli: Cli, models: list[str], engines: list[str]) -> list[Case]:
    from myllm_cli.comparison import Case
    from myllm_core.runtime.choose import choose_engine

    cases = []
    wanted: list[str | None] = [*engines] or [None]
    for name in models:
        model = cli.models.get(name)
        for engine in wanted:
            choose_engine(model, cli.plugins, engine)  # all are checked before the first is loaded
            cases.append(Case(model.name, engine))
    if len(cases) < 2:
        raise InvalidRequest("there is nothing to compare with; name two models, or --engine twice")
    return cases


async def _measured(
    cli: Cli, cases: list[Case], prompts: list[str], tokens: int, options: dict[str, Any], status: StatusLine
) -> list[Measured]:
    from myllm_cli.comparison import Comparison
    from myllm_core.runtime.runtime import Runtime

    async with Runtime(cli.settings, cli.plugins) as runtime:
        comparison = Comparison(runtime, prompts, tokens, lambda text: status.show(f"{text} …"))
        return [await comparison.measure(case, options or None) for case in cases]


def _print(prompts: list[str], measured: list[Measured], found: list[list[Difference]]) -> None:
    print_table(
        ("MODEL", "ENGINE", "QUANT", "LOAD", "MEMORY", "FIRST TOKEN", "TOKENS/S", "PROMPTS", "AGREES", "LOGPROB GAP"),
        [
            (
                one.model,
                one.engine,
                one.quantization or one.format,
                f"{one.load:.1f} s",
                size_text(one.memory) if one.memory else "-",
                f"{one.first_token * 1000:.0f} ms",
                f"{one.speed:.1f}",
                _same_prompts(those) if number else "(reference)",
                _agreement(those) if number else "",
                _gap(those) if number else "",
            )
            for number, (one, those) in enumerate(zip(measured, found, strict=True))
        ],
    )
    for one, those in zip(measured[1:], found[1:], strict=True):
        for difference in those:
            if not difference.whole:
                print(_told(one, difference, prompts))


def _same_prompts(found: list[Difference]) -> str:
    known = [one.same_prompt for one in found if one.same_prompt is not None]
    return f"{sum(known)} of {len(known)} same" if known else "not shown"


def _agreement(found: list[Difference]) -> str:
    whole = sum(one.whole for one in found)
    return f"{whole} of {len(found)}, least {min(one.agreed for one in found)} tokens"


def _gaps(found: list[Difference]) -> list[float]:
    return [gap for one in found for gap in one.logprobs]


def _gap(found: list[Difference]) -> str:
    gaps = _gaps(found)
    return f"{sum(gaps) / len(gaps):.4f}, most {max(gaps):.4f}" if gaps else "-"


def _told(one: Measured, difference: Difference, prompts: list[str]) -> str:
    margin = f"; the reference preferred its choice by {difference.margin:.3f}" if difference.margin is not None else ""
    return clean_line(
        f"{one.label}: {prompts[difference.prompt][:60]!r} differs after {difference.agreed} tokens: "
        f"{difference.found!r}, not {difference.expected!r}{margin}"
    )


def _json(prompts: list[str], measured: list[Measured], found: list[list[Difference]]) -> dict[str, Any]:
    return {"prompts": prompts, "cases": [_case_json(*pair) for pair in zip(measured, found, strict=True)]}


def _case_json(one: Measured, found: list[Difference]) -> dict[str, Any]:
    gaps = _gaps(found)
    return {
        "model": one.model,
        "engine": one.engine,
        "format": one.format,
        "quantization": one.quantization,
        "load_seconds": one.load,
        "memory_bytes": one.memory,
        "first_token_seconds": one.first_token,
        "tokens_per_second": one.speed,
        "logprob_gap": {"mean": sum(gaps) / len(gaps), "most": max(gaps)} if gaps else None,
        "answers": [
            {
                "text": answer.text,
                "prompt_tokens": answer.prompt,
                "same_prompt": difference.same_prompt,
                "agreed": difference.agreed,
                "length": difference.length,
                "expected": difference.expected or None,
                "found": difference.found or None,
                "margin": difference.margin,
            }
            for answer, difference in zip(one.answers, found, strict=True)
        ],
    }
