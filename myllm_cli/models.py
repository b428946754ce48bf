"""``list``, ``show``, ``copy`` and ``remove``: what is installed."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from myllm_cli.context import Cli
from myllm_cli.tables import count_text, print_fields, print_json, print_table, size_text
from myllm_cli.terminal import ask, clean_line, say
from myllm_core.errors import InvalidRequest
from myllm_core.models.manifest import Model

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The model's name, such as smollm2.")]


def model_json(model: Model) -> dict[str, Any]:
    """What ``list --json`` says of a model. The keys are stable."""
    manifest = model.manifest
    return {
        "name": manifest.name,
        "family": manifest.family,
        "format": manifest.format,
        "quantization": manifest.quantization,
        "parameters": manifest.parameters,
        "context_size": manifest.context_size,
        "size_bytes": manifest.size,
        "licence": manifest.licence,
        "source": manifest.source,
        "pulled_at": manifest.pulled_at,
    }


def _warn_broken(cli: Cli) -> None:
    for folder, problem in cli.models.broken():
        say(f"warning: {clean_line(folder)}: {clean_line(problem)}")


def list_models(ctx: typer.Context, json: JsonOption = False) -> None:
    """List the installed models."""
    cli: Cli = ctx.obj
    models = cli.models.list_models()
    _warn_broken(cli)
    if json:
        print_json([model_json(model) for model in models])
        return
    if not models:
        say("No model is installed. See what there is: myllm pull --list")
        return
    print_table(
        ("NAME", "FAMILY", "FORMAT", "QUANT", "CONTEXT", "SIZE", "PULLED", "SOURCE"),
        [
            (
                model.name,
                model.manifest.family or "-",
                model.format,
                model.manifest.quantization or "-",
                model.manifest.context_size or "-",
                size_text(model.manifest.size),
                model.manifest.pulled_at[:10] or "-",
                model.manifest.source or "-",
            )
            for model in models
        ],
    )


def show(ctx: typer.Context, name: NameArgument, json: JsonOption = False) -> None:
    """Show what is known of an installed model."""
    cli: Cli = ctx.obj
    model = cli.models.get(name)
    manifest = model.manifest
    files = [{"path": str(f.path), "size_bytes": f.size, "sha256": f.sha256} for f in manifest.files]
    if json:
        extra = {
            "aliases": list(manifest.aliases),
            "revision": manifest.revision,
            "engine": manifest.engine,
            "options": manifest.options,
            "load_options": manifest.load_options,
            "system": manifest.system,
            "folder": str(model.folder),
            "files": files,
        }
        print_json(model_json(model) | extra)
        return
    print_fields(
        [
            ("name", manifest.name),
            ("aliases", ", ".join(manifest.aliases)),
            ("family", manifest.family),
            ("format", manifest.format),
            ("quantization", manifest.quantization),
            ("parameters", count_text(manifest.parameters) if manifest.parameters else ""),
            ("context", f"{manifest.context_size} tokens" if manifest.context_size else ""),
            ("size", size_text(manifest.size)),
            ("licence", manifest.licence),
            ("source", manifest.source),
            ("revision", manifest.revision),
            ("engine", manifest.engine),
            ("system", manifest.system),
            *((f"option {name}", str(value)) for name, value in manifest.options.items()),
            *((f"load option {name}", str(value)) for name, value in manifest.load_options.items()),
            ("pulled", manifest.pulled_at),
            ("folder", model.folder),
            *(("file", f"{file['path']}  {file['size_bytes']} bytes  sha256 {file['sha256']}") for file in files),
        ]
    )


def copy(
    ctx: typer.Context,
    name: NameArgument,
    new_name: Annotated[str, typer.Argument(metavar="NEW_NAME", help="The second name.")],
) -> None:
    """Install a model under a second name. The weights are on the disk once, until both are removed."""
    cli: Cli = ctx.obj
    model = cli.models.copy(name, new_name)
    print(f"Copied to {clean_line(model.name)}.")


def remove(
    ctx: typer.Context,
    name: NameArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
) -> None:
    """Delete an installed model. Asks first on a terminal; off one, --yes is needed."""
    cli: Cli = ctx.obj
    if not yes:
        confirm(f"Remove {_installed_name(cli, name)}?", "--yes")
    model = cli.models.remove(name)
    print(f"Removed {clean_line(model.name)} ({size_text(model.manifest.size)}).")


def _installed_name(cli: Cli, name: str) -> str:
    from myllm_core.errors import IntegrityError
    from myllm_core.models.reference import model_name

    try:
        return cli.models.get(name).name
    except IntegrityError:  # a damaged model can be removed too
        return model_name(name)


def confirm(question: str, option: str) -> None:
    """Go on only after a yes. Raises ``InvalidRequest`` where nobody can be asked, ``typer.Exit`` after a no."""
    answer = ask(question, default=False)
    if answer is None:
        raise InvalidRequest(f"{question.rstrip('?')}: nobody can be asked here; say {option} to do it")
    if not answer:
        say("Nothing was changed.")
        raise typer.Exit(1)


def check_json_asks(json: bool, dry_run: bool, yes: bool) -> None:
    """Refuse a command that would print JSON and ask. Raises ``InvalidRequest``."""
    if json and not dry_run and not yes:
        raise InvalidRequest("--json can't ask; say --dry-run or --yes with it")


def seconds_of(text: str, option: str) -> float:
    """The seconds that an option gives, such as ``30d``. Raises ``InvalidRequest``."""
    from myllm_core.settings import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise InvalidRequest(f"{option}: {error}") from None
