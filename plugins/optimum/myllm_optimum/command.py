"""``myllm convert``: an installed model in another format."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from myllm_core.errors import InvalidRequest


def convert(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="An installed safetensors or GGUF model.")],
    to: Annotated[
        str, typer.Option("--to", metavar="FORMAT", help="The format to convert to: onnx or safetensors.")
    ] = "onnx",
    name: Annotated[
        str | None,
        typer.Option("--name", help="What to call the result; the model's name with -onnx or -st behind it."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an installed model of that name.")] = False,
) -> None:
    """Convert an installed model to another format, and install the result under a name of its own."""
    from myllm_optimum.convert import FORMATS, convert_model

    if to not in FORMATS:
        raise InvalidRequest(f"models can be converted to onnx or safetensors, not to {to[:60]}; say --to onnx")
    store = ctx.obj.models

    def tell(text: str) -> None:
        print(text, file=sys.stderr)

    made = convert_model(store, store.get(model), name, to=to, force=force, tell=tell)
    print(f"Installed {made.name} ({made.manifest.size / 1e6:.0f} MB). Try it: myllm run {made.name}")
