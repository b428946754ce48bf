"""``run``: chat with a model, or get one answer."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from myllm_cli.context import Cli
from myllm_cli.terminal import say
from myllm_core.errors import InvalidRequest, SessionNotFound

if TYPE_CHECKING:
    from myllm_cli.reply import Reply
    from myllm_cli.views import Look
    from myllm_core.options import Options
    from myllm_core.runtime.runtime import Runtime
    from myllm_core.types import Image


_PATIENCE = 2.0  # seconds


@dataclass(frozen=True, slots=True)
class Wishes:
    """What ``run`` was asked for; ``session_id`` None keeps nothing (one answer) or begins a session (a chat)."""

    model: str
    options: Options
    look: Look
    system: str | None = None
    session_id: str | None = None
    resume_last: bool = False
    engine: str | None = None
    load_options: dict[str, Any] = field(default_factory=dict)
    stats: bool = False
    images: tuple[Image, ...] = ()


def run(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="An installed model, or a name of the catalogue.")],
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="Answer this once; what is piped in is added to it.")
    ] = None,
    image: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="An image to go with the prompt (repeatable).")
    ] = None,
    pull: Annotated[bool, typer.Option("--pull", help="Pull a missing model without asking.")] = False,
    session: Annotated[
        str | None, typer.Option("--session", metavar="ID", help="Go on with this session, or begin it.")
    ] = None,
    resume_last: Annotated[bool, typer.Option("--continue", help="Go on with the last session.")] = False,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="How the model is to behave.")] = None,
    temperature: Annotated[
        float | None, typer.Option(metavar="X", help="0 picks the likeliest token; higher is freer, to 2.")
    ] = None,
    top_p: Annotated[float | None, typer.Option(metavar="X", help="Only tokens of this probability together.")] = None,
    top_k: Annotated[int | None, typer.Option(metavar="N", help="Only the N likeliest tokens; 0 is off.")] = None,
    min_p: Annotated[
        float | None, typer.Option(metavar="X", help="Only tokens of this share of the likeliest one's probability.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(metavar="N", help="The longest answer, in tokens.")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Make the answer repeatable.")] = None,
    stop: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="End the answer at TEXT (repeatable).")] = None,
    repeat_penalty: Annotated[
        float | None, typer.Option(metavar="X", help="Make recent tokens less likely; 1 is off.")
    ] = None,
    context: Annotated[int | None, typer.Option("--ctx", metavar="N", help="Context size in tokens (n_ctx).")] = None,
    engine: Annotated[str | None, typer.Option(metavar="NAME", help="Run it with this engine.")] = None,
    load_option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="An option of the engine's (repeatable).")
    ] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Show speed and token counts after each answer.")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print one answer with all that is known of it as JSON.")
    ] = False,
    no_markdown: Annotated[bool, typer.Option("--no-markdown", help="Show the text as it is written.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Let terminal control characters of the model through.")] = False,
) -> None:
    """Chat with a model, or get one answer when a PROMPT is given or piped in."""
    cli: Cli = ctx.obj
    from myllm_cli.views import Look
    from myllm_core.options import parse_options

    question = _question(prompt)
    _check(question, json, session, resume_last)
    given = {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "max_tokens": max_tokens,
        "seed": seed,
        "stop": stop or None,
        "repeat_penalty": repeat_penalty,
    }
    options = parse_options({name: value for name, value in given.items() if value is not None})
    load_options = parsed_load_options(load_option or [], context)
    chatting = question is None
    look = Look(
        markdown=not no_markdown,
        raw=raw,
        label="Assistant: " if chatting else "",
        reasoning_to=sys.stdout if chatting else sys.stderr,
    )
    from myllm_cli.missing import installed_name
    from myllm_cli.pictures import read_image

    images = tuple(read_image(name, cli.settings) for name in image or ())
    wishes = Wishes(
        installed_name(cli, model, pull),
        options,
        look,
        system,
        session,
        resume_last,
        engine,
        load_options,
        stats or cli.verbose,
        images,
    )
    if question is None:
        from myllm_cli.chat import chat

        chat(cli, wishes)
    else:
        _answer_once(cli, wishes, question, json)


def _check(question: str | None, json: bool, session: str | None, resume_last: bool) -> None:
    if session is not None and resume_last:
        raise InvalidRequest("--session and --continue exclude each other; --continue is the last session")
    if question is None and json:
        raise InvalidRequest("--json is for one answer; give a prompt")
    if question is None and not sys.stdout.isatty():
        raise InvalidRequest("a chat needs a terminal; give a prompt to get one answer")


def _question(prompt: str | None) -> str | None:
    """The one thing to answer: the argument, then what is piped in. None on a terminal without an argument."""
    if sys.stdin.isatty() and prompt is None:
        return None
    parts = [prompt or ""]
    if not sys.stdin.isatty():
        if prompt is not None:
            _warn_of_waiting()
        try:
            parts.append(sys.stdin.buffer.read().decode("utf-8-sig").rstrip("\r\n"))
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"standard input is no UTF-8 text: {error.reason} at byte {error.start}") from None
    text = "\n\n".join(part for part in parts if part.strip())
    if not text:
        raise InvalidRequest("there is no prompt; give one as an argument or on standard input")
    return text


def _warn_of_waiting() -> None:
    """Say what is waited for when nothing is piped in at once: a pipe that nobody closes would look like a hang."""
    import select

    try:
        ready, _, _ = select.select([sys.stdin], [], [], _PATIENCE)
    except (OSError, ValueError):  # Windows waits for sockets only
        return
    if not ready:
        say("Reading standard input to its end, to add it to the prompt (no input: myllm run … </dev/null) …")


def parsed_load_options(assignments: list[str], context: int | None = None) -> dict[str, Any]:
    """The load options that ``NAME=VALUE`` and ``--ctx`` give. Raises ``InvalidRequest``."""
    found: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not name:
            raise InvalidRequest(f"--load-option {assignment}: write NAME=VALUE, such as n_threads=4")
        found[name] = parsed_value(value)
    if context is not None:
        found["n_ctx"] = context
    return found


def parsed_value(text: str) -> Any:
    """A number, boolean or list where the text is one in JSON, else the text."""
    import json

    try:
        return json.loads(text)
    except ValueError:
        return text


async def session_of(runtime: Runtime, wishes: Wishes) -> str | None:
    """The session that is to go on. Raises ``SessionNotFound`` when there is none to continue."""
    if not wishes.resume_last:
        return wishes.session_id
    last = await runtime.sessions(lambda store: store.list_sessions(limit=1))
    if not last:
        raise SessionNotFound("there is no session to continue yet; leave --continue away to begin one")
    return last[0].id


def _answer_once(cli: Cli, wishes: Wishes, question: str, json: bool) -> None:
    import asyncio

    from myllm_cli.tables import print_json

    session_id, reply = asyncio.run(_take_answer(cli, wishes, question, json))
    if json:
        print_json(_answer_json(wishes.model, session_id, reply))
    if wishes.stats:
        say(reply.stats())


async def _take_answer(cli: Cli, wishes: Wishes, question: str, silent: bool) -> tuple[str | None, Reply]:
    from myllm_cli.reply import Reply, take_reply
    from myllm_cli.turns import Conversation
    from myllm_cli.views import SilentView
    from myllm_core.runtime.runtime import Runtime

    reply = Reply()
    async with Runtime(cli.settings, cli.plugins) as runtime:
        session_id = await session_of(runtime, wishes)
        conversation = Conversation(runtime, session_id)
        await conversation.start(wishes.system)
        events = runtime.chat(
            wishes.model,
            conversation.messages(question, wishes.images),
            options=wishes.options,
            session_id=session_id,
            engine=wishes.engine,
            load_options=wishes.load_options or None,
        )
        await take_reply(events, SilentView() if silent else wishes.look.view(), wishes.model, reply)
    return session_id, reply


def _answer_json(model: str, session_id: str | None, reply: Reply) -> dict[str, Any]:
    finish = reply.finish
    assert finish is not None, "a reply that was stopped or failed doesn't come here"
    context = finish.context
    return {
        "model": model,
        "engine": finish.engine,
        "session_id": session_id,
        "content": reply.content,
        "reasoning": reply.reasoning,
        "finish_reason": finish.reason,
        "seed": finish.seed,
        "usage": {
            "prompt_tokens": finish.usage.prompt_tokens,
            "completion_tokens": finish.usage.completion_tokens,
            "total_tokens": finish.usage.total_tokens,
            "cached_tokens": finish.usage.cached_tokens,
        },
        "timings": {
            "queue": finish.timings.queue,
            "prompt": finish.timings.prompt,
            "generation": finish.timings.generation,
            "first_token": reply.first,
            "total": reply.total,
        },
        "context": {
            "size": context.context_size if context else None,
            "dropped": list(context.dropped) if context else [],
            "dropped_tokens": context.dropped_tokens if context else 0,
            "shifted_tokens": context.shifted_tokens if context else 0,
        },
    }
