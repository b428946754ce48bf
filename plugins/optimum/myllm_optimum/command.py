"""``myllm convert``: an installed model in another format."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from myllm_core.errors import InvalidRequest


def convert(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="An installed safetensors model.")],
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="The format to convert to: onnx.")] = "onnx",
    name: Annotated[
        str | None, typer.Option("--name", help="What to call the result; the model's name with -onnx behind it.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an installed model of that name.")] = False,
) -> None:
    """Convert an installed model to ONNX, and install the result under a name of its own."""
    if to != "onnx":
        raise InvalidRequest(f"models can be converted to onnx, not to {to[:60]}; say --to onnx")
    from myllm_optimum.convert import convert_model

    store = ctx.obj.models
    made = convert_model(store, store.get(model), name, force=force, tell=lambda text: print(text, file=sys.stderr))
    print(f"Installed {made.name} ({made.manifest.size / 1e6:.0f} MB). Try it: myllm run {made.name}")
