"""``serve``: the HTTP server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from myllm_cli.context import Cli


def serve(
    ctx: typer.Context,
    host: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Address to bind (default 127.0.0.1).")] = None,
    port: Annotated[
        int | None, typer.Option(metavar="PORT", min=0, max=65535, help="Port to bind (default 8000; 0: a free one).")
    ] = None,
    ollama_port: Annotated[
        int | None,
        typer.Option(metavar="PORT", min=0, max=65535, help="Port that has Ollama's API at its root (usual: 11434)."),
    ] = None,
    reload: Annotated[bool, typer.Option("--reload", help="Start again when the code changes.")] = False,
    no_auth: Annotated[bool, typer.Option("--no-auth", help="Ask for no key, on any address.")] = False,
    ssl_certfile: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Serve by HTTPS, with this certificate (PEM).")
    ] = None,
    ssl_keyfile: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The certificate's private key, when it is in another file.")
    ] = None,
    keep_alive: Annotated[
        str | None, typer.Option(metavar="TIME", help="How long an idle model stays loaded: 5m, 0, forever.")
    ] = None,
) -> None:
    """Offer the models over HTTP, until Ctrl+C. The API's pages are at /docs."""
    cli: Cli = ctx.obj
    cli.settings = cli.settings_with(
        host=host,
        port=port,
        ollama_port=ollama_port,
        no_auth=no_auth or None,
        ssl_certfile=ssl_certfile,
        ssl_keyfile=ssl_keyfile,
        keep_alive=keep_alive,
    )
    from myllm_server.run import serve as serve_

    raise typer.Exit(serve_(cli.settings, cli.plugins, reload=reload))
