"""The command ``myllm``: its global options, its table of commands, and how a command ends."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from myllm_cli.context import Cli
from myllm_cli.lazy import STYLE, LazyGroup
from myllm_cli.terminal import clean, clean_line, prepare_streams
from myllm_core import __version__
from myllm_core.errors import MyllmError, StorageError

INTERRUPTED = 130
BROKEN_PIPE = 141
_STORAGE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


class Commands(LazyGroup):
    """All commands of myllm, and the one place where a command's errors become a line and an exit code."""

    table = {
        "pull": ("myllm_cli.pull:pull", "Download a model, or list those that can be (--list)."),
        "list": ("myllm_cli.models:list_models", "List the installed models."),
        "show": ("myllm_cli.models:show", "Show what is known of an installed model."),
        "explain": ("myllm_cli.explain:explain", "Say which engine runs a model, and why."),
        "set": ("myllm_cli.explain:set_model", "Change which engine a model prefers."),
        "run": ("myllm_cli.run:run", "Chat with a model, or get one answer."),
        "serve": ("myllm_cli.serve:serve", "Offer the models over HTTP."),
        "ps": ("myllm_cli.ps:ps", "List the models that a running server has loaded."),
        "load": ("myllm_cli.ps:load", "Have a running server load a model before it is needed."),
        "unload": ("myllm_cli.ps:unload", "Have a running server unload a model."),
        "bench": ("myllm_cli.bench:bench", "Measure how fast a model is on this machine."),
        "keys": ("myllm_cli.keys:app", "Make, list and revoke keys for the server."),
        "compare": ("myllm_cli.compare:compare", "Compare models, formats or engines on the same prompts."),
        "copy": ("myllm_cli.models:copy", "Install a model under a second name."),
        "remove": ("myllm_cli.models:remove", "Delete an installed model."),
        "sessions": ("myllm_cli.sessions:app", "List, search, export and change stored conversations."),
        "verify": ("myllm_cli.verify:verify", "Check the files of models against their hashes, and repair them."),
        "prune": ("myllm_cli.prune:prune", "Delete unfinished downloads, and files that no model needs."),
        "plugins": ("myllm_cli.plugins:app", "List the installed plugins and what they offer."),
        "doctor": ("myllm_cli.doctor:doctor", "Say what is wrong with this installation, and how to mend it."),
    }

    def make_context(self, *args: Any, **extra: Any) -> Any:
        """Read the command line; ``--help`` and ``--version`` print and end in here."""
        with _ending(verbose=False):
            return super().make_context(*args, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Run a command; its output is flushed when it returns."""
        with _ending(verbose=bool(ctx.params.get("verbose"))):
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result


@contextlib.contextmanager
def _ending(verbose: bool) -> Iterator[None]:
    """Turn what ends a command early into one line and an exit code; a bug keeps its traceback."""
    try:
        yield
    except MyllmError as error:
        raise typer.Exit(_report(error, verbose)) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        _discard_output()
        raise typer.Exit(BROKEN_PIPE) from None
    except OSError as error:
        if error.errno not in _STORAGE_ERRNOS:
            raise
        try:
            sys.stdout.flush()
        except OSError:
            _discard_output()
        unnamed = f"can't write: {error.strerror}; make room where the output goes, then try again"
        said = f"{error.filename}: {error.strerror}" if error.filename else unnamed
        raise typer.Exit(_report(StorageError(said), verbose)) from None


def _report(error: MyllmError, verbose: bool) -> int:
    if verbose:
        import traceback

        print(clean("".join(traceback.format_exception(error))), file=sys.stderr)
    print(f"Error: {clean_line(error.message)}", file=sys.stderr)
    return error.exit_code


def _discard_output() -> None:
    """Let the interpreter's own flush at exit go nowhere: nobody can receive our output."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def _print_version(value: bool) -> None:
    if value:
        print(f"myllm {__version__}")
        raise typer.Exit


app = typer.Typer(cls=Commands, no_args_is_help=True, **STYLE)


@app.callback()
def myllm(
    ctx: typer.Context,
    models_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where models are kept (MYLLM_MODELS_DIR does the same).")
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log more, and show the traceback of an error.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Run language models on this machine. Start with: myllm run smollm2"""
    if verbose:
        import logging

        # Other libraries' debugging isn't wanted: it may hold what people typed.
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
        logging.getLogger("myllm").setLevel(logging.DEBUG)
    if models_dir is not None:
        models_dir = models_dir.expanduser().absolute()
    ctx.obj = Cli(models_dir, verbose)


def main() -> None:
    """The entry point of the console script; ends the process with the command's exit code."""
    gc.set_threshold(100_000, 20, 20)  # the many small objects of importing are no garbage: 15 % of the start-up time
    prepare_streams()
    typer.main.get_command(app).main(prog_name="myllm")
