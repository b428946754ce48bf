"""``sessions``: what is kept of conversations, and changes to it."""

from __future__ import annotations

import json as json_module
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from myllm_cli.context import Cli
from myllm_cli.lazy import STYLE
from myllm_cli.models import JsonOption, check_json_asks, confirm, seconds_of
from myllm_cli.pictures import counted
from myllm_cli.tables import print_json, print_table
from myllm_cli.terminal import clean, clean_line, say
from myllm_core.errors import InvalidRequest, StorageError
from myllm_core.images import write_images

if TYPE_CHECKING:
    from myllm_core.session_store import Session, SessionStore, StoredMessage
    from myllm_core.types import Message

app = typer.Typer(help="List, search, export and change stored conversations.", no_args_is_help=True, **STYLE)

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The session's id (see: myllm sessions list).")]
LimitOption = Annotated[int, typer.Option("--limit", metavar="N", min=1, help="Show at most N.")]


def new_session_id() -> str:
    """An id for a session that is begun here: short enough to type, and never the same twice."""
    return f"s-{secrets.token_hex(5)}"


@contextmanager
def session_store(cli: Cli) -> Iterator[SessionStore]:
    """The configured session store, open inside ``with``. Raises ``StoreError``, ``PluginError``."""
    settings = cli.settings
    store = cli.plugins.session_store(settings.session_store).open(settings.session_url, settings.data_dir)
    try:
        yield store
    finally:
        store.close()


def _checked(session_id: str) -> str:
    from myllm_core.session_store import check_session_id

    check_session_id(session_id)
    return session_id


def _session_json(session: Session) -> dict[str, Any]:
    return {
        "id": session.id,
        "title": session.title,
        "model": session.model,
        "messages": session.message_count,
        "created_at": session.created_at,
        "updated_at": session.updated_at,
    }


def _message_json(stored: StoredMessage) -> dict[str, Any]:
    return {
        "id": stored.id,
        "role": stored.message.role,
        "content": stored.message.content,
        "reasoning": stored.message.reasoning,
        "status": stored.status,
        "created_at": stored.created_at,
        "meta": stored.meta,
        **({"images": write_images(stored.message.images)} if stored.message.images else {}),
    }


def print_conversation(path: list[StoredMessage]) -> None:
    """Print messages with their numbers, which ``fork --at`` takes."""
    for number, stored in enumerate(path, start=1):
        mark = "" if stored.status == "complete" else f" ({stored.status})"
        print(f"[{number}] {clean_line(stored.message.role)}{mark}\n{clean(with_images(stored.message)).rstrip()}\n")


def with_images(message: Message) -> str:
    """The text of a message, and how many images are in it."""
    images = counted(message.images)
    return f"({images})\n{message.content}" if images else message.content


@app.command("list")
def list_sessions(ctx: typer.Context, limit: LimitOption = 50, json: JsonOption = False) -> None:
    """List the sessions, the last changed first."""
    with session_store(ctx.obj) as store:
        sessions = store.list_sessions(limit=limit)
    if json:
        print_json([_session_json(session) for session in sessions])
    else:
        _print_sessions(sessions, "There is no session yet; myllm run MODEL begins one.")


def _print_sessions(sessions: list[Session], otherwise: str) -> None:
    if not sessions:
        say(otherwise)
        return
    print_table(
        ("ID", "UPDATED", "MODEL", "MESSAGES", "TITLE"),
        [(s.id, s.updated_at[:16].replace("T", " "), s.model or "-", s.message_count, s.title) for s in sessions],
    )


@app.command()
def show(ctx: typer.Context, session_id: IdArgument, json: JsonOption = False) -> None:
    """Show the conversation of a session."""
    with session_store(ctx.obj) as store:
        session = store.get(_checked(session_id))
        path = store.path(session_id)
    if json:
        print_json(_session_json(session) | {"path": [_message_json(stored) for stored in path]})
    else:
        print_conversation(path)


@app.command()
def search(
    ctx: typer.Context,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="Words that must all be there.")],
    limit: LimitOption = 50,
    json: JsonOption = False,
) -> None:
    """Find sessions by the words in them."""
    with session_store(ctx.obj) as store:
        found = store.search(text, limit=limit)
    if json:
        print_json([_session_json(session) | {"excerpt": excerpt} for session, excerpt in found])
    elif not found:
        say("No session holds these words.")
    else:
        print_table(("ID", "TITLE", "EXCERPT"), [(s.id, s.title[:40], excerpt) for s, excerpt in found])


@app.command()
def rename(ctx: typer.Context, session_id: IdArgument, title: Annotated[str, typer.Argument(metavar="TITLE")]) -> None:
    """Give a session another title."""
    with session_store(ctx.obj) as store:
        session = store.update(_checked(session_id), title=title)
    print(f"{session.id} is now: {clean_line(session.title)}")


@app.command()
def fork(
    ctx: typer.Context,
    session_id: IdArgument,
    at: Annotated[
        int | None, typer.Option("--at", metavar="N", min=1, help="Go on after message N (see: sessions show).")
    ] = None,
    new_id: Annotated[str | None, typer.Option("--id", metavar="ID", help="The copy's id.")] = None,
) -> None:
    """Copy a session, to go on from there another way."""
    from myllm_core.sessions.fork import fork_session

    target = _checked(new_id or new_session_id())
    with session_store(ctx.obj) as store:
        fork_session(store, _checked(session_id), target, at)
    print(target)


@app.command()
def delete(
    ctx: typer.Context,
    session_ids: Annotated[list[str], typer.Argument(metavar="ID...", help="The sessions' ids.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
) -> None:
    """Delete sessions with all their messages. Asks first on a terminal; off one, --yes is needed."""
    with session_store(ctx.obj) as store:
        titles = [store.get(_checked(session_id)).title for session_id in session_ids]
        if not yes:
            confirm(f"Delete {', '.join(session_ids)} ({', '.join(title or 'no title' for title in titles)})?", "--yes")
        for session_id in session_ids:
            store.delete(session_id)
            print(f"Deleted {session_id}.")


@app.command()
def prune(
    ctx: typer.Context,
    older_than: Annotated[
        str, typer.Option("--older-than", metavar="TIME", help="What nobody went on with for so long, such as 30d.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be deleted.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    json: JsonOption = False,
) -> None:
    """Delete old sessions, and show them first. Asks on a terminal; off one, --yes is needed."""
    from myllm_core.sessions.age import delete_idle, idle_sessions

    check_json_asks(json, dry_run, yes)
    age = seconds_of(older_than, "--older-than")
    with session_store(ctx.obj) as store:
        found = idle_sessions(store, age)
        if not json:
            _print_sessions(found, "There is no session that old.")
            if found and not dry_run and not yes:
                confirm(f"Delete these sessions ({len(found)})?", "--yes")
        deleted = [] if dry_run else [session for session in found if delete_idle(store, session.id, age)]
    if json:
        print_json([_session_json(session) for session in (found if dry_run else deleted)])
    elif found:
        print(f"{len(found)} would be deleted." if dry_run else f"Deleted {len(deleted)}.")


@app.command()
def export(
    ctx: typer.Context,
    session_id: IdArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write there, not to standard output.")
    ] = None,
) -> None:
    """Write a session with all its branches as JSON."""
    with session_store(ctx.obj) as store:
        document = store.export(_checked(session_id))
    if output is None:
        print_json(document)
        return
    try:
        # only for its owner, as the store itself is
        with open(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            json_module.dump(document, file, indent=2)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise InvalidRequest(f"can't write {output}: {error.strerror}") from None
    except OSError as error:
        raise StorageError(f"can't write {output}: {error.strerror}; make room there, or choose another file") from None
    say(f"Wrote {output}")


@app.command("import")
def import_(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What export wrote; - is standard input.")],
    new_id: Annotated[str | None, typer.Option("--id", metavar="ID", help="Another id than the file's.")] = None,
) -> None:
    """Read a session that export wrote."""
    from myllm_core.sessions.fork import import_document

    document = _read_json(file)
    with session_store(ctx.obj) as store:
        session = import_document(store, document, _checked(new_id) if new_id else None)
    print(session.id)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        text = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        document = json_module.loads(text)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise InvalidRequest(f"can't read {file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{file} holds no JSON: {error}") from None
    if not isinstance(document, dict):
        raise InvalidRequest(f"{file} is no export of a session")
    return document
