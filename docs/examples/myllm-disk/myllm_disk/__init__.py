"""A myllm plugin: the command ``myllm disk``."""

from typing import Annotated

import typer


def disk(
    ctx: typer.Context,
    over: Annotated[float, typer.Option(metavar="MB", help="Only models of more than so many MB.")] = 0.0,
) -> None:
    """Say what each installed model takes on the disk."""
    models = [model for model in ctx.obj.models.list_models() if model.manifest.size > over * 1e6]
    for model in sorted(models, key=lambda model: -model.manifest.size):
        print(f"{model.manifest.size / 1e6:10.1f} MB  {model.name}")
    print(f"{sum(model.manifest.size for model in models) / 1e6:10.1f} MB  in {len(models)} models")
