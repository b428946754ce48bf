"""The commands inside a chat: one table, which ``/help`` prints."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from myllm_cli.chat import Leave
from myllm_cli.pictures import counted, read_image, size_of
from myllm_cli.run import parsed_value
from myllm_cli.sessions import new_session_id, print_conversation, with_images
from myllm_cli.terminal import clean, clean_line
from myllm_cli.turns import last_question
from myllm_core.errors import InvalidRequest

if TYPE_CHECKING:
    from myllm_cli.chat import Chat
    from myllm_core.session_store import StoredMessage

Action = Callable[["Chat", str], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Command:
    """A command of the chat: how it is written, what it does, and the function that does it."""

    usage: str
    help: str
    action: Action


async def _exit(chat: Chat, argument: str) -> None:
    raise Leave


async def _clear(chat: Chat, argument: str) -> None:
    await chat.switch(new_session_id())
    print("History cleared. Starting new session.")


async def _help(chat: Chat, argument: str) -> None:
    width = max(len(command.usage) for command in COMMANDS.values())
    print("Commands:")
    for command in COMMANDS.values():
        print(f"  {command.usage:<{width}}  {command.help}")
    print('\nWrite several lines between """ and """. Ctrl+C stops a reply, twice leaves; Ctrl+D leaves.')


async def _system(chat: Chat, argument: str) -> None:
    conversation = chat.conversation
    if not argument:
        print(clean(conversation.system or "There is no system message."))
        return
    system = None if argument == "off" else argument
    await conversation.set_system(system)
    print("The model has no system message now." if system is None else "The model is told this from now on.")


async def _set(chat: Chat, argument: str) -> None:
    from myllm_core.options import parse_options

    given = chat.options.model_dump(exclude_none=True)
    name, _, value = argument.partition(" ")
    if not name:
        print("\n".join(f"{option} = {value}" for option, value in given.items()) or "All options have their defaults.")
        return
    changed = {option: old for option, old in given.items() if option != name}
    if value.strip():
        changed[name] = parsed_value(value.strip())
    elif name not in given:
        parse_options({name: None})  # an unknown name is an error, not a default
    chat.set_options(parse_options(changed))
    print(f"{clean_line(name)} = {clean_line(changed.get(name, 'its default'))}")


async def _image(chat: Chat, argument: str) -> None:
    if argument == "off":
        chat.images.clear()
    elif argument:
        image = read_image(_unquoted(argument), chat.settings)
        chat.images.append(image)
        print(f"{size_of(image)}; it goes with your next message.")
        return
    waiting = counted(chat.images)
    print(f"{waiting} for your next message." if waiting else "No image waits for your next message.")


def _unquoted(path: str) -> str:
    """A path as terminals paste one that was dropped on them: it may be in quotes."""
    return path[1:-1] if len(path) > 2 and path[0] == path[-1] and path[0] in "'\"" else path


async def _regenerate(chat: Chat, argument: str) -> None:
    if not await chat.regenerate():
        print("There is no reply yet.")


async def _undo(chat: Chat, argument: str) -> None:
    question = last_question(await chat.conversation.path())
    if question is None:
        print("There is nothing to take back.")
        return
    await chat.conversation.set_tip(question.parent_id)
    print(f"Taken back: {clean_line(question.message.content)[:70]}")


async def _stats(chat: Chat, argument: str) -> None:
    print(chat.last.stats() if chat.last else "There is no reply yet.")
    print(f"This chat: {chat.prompt_tokens} prompt tokens, {chat.completion_tokens} completion tokens.")


async def _session(chat: Chat, argument: str) -> None:
    if argument:
        from myllm_core.session_store import check_session_id

        check_session_id(argument)
        await chat.switch(argument)
    path = await chat.conversation.path()
    print(f"Session {chat.session_id}: {len(path)} messages. Later: myllm run {chat.model} --session {chat.session_id}")


async def _history(chat: Chat, argument: str) -> None:
    path = await chat.conversation.path()
    if path:
        print_conversation(path)
    else:
        print("Nothing has been said yet.")


async def _save(chat: Chat, argument: str) -> None:
    if not argument:
        raise InvalidRequest("say where to: /save chat.md (or chat.json, which myllm sessions import takes)")
    session_id = chat.session_id
    path = await chat.conversation.path()
    if not path:
        raise InvalidRequest("there is nothing to save yet")
    text = _as_markdown(path)
    if argument.endswith(".json"):
        text = json.dumps(await chat.runtime.sessions(lambda store: store.export(session_id)), indent=2)
    print(f"Saved to {clean_line(_write_new(argument, text))}")


def _write_new(name: str, text: str) -> Path:
    file = Path(name).expanduser()
    try:
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        raise InvalidRequest(f"can't write {file}: {error.strerror}; choose another name") from None
    return file


def _as_markdown(path: list[StoredMessage]) -> str:
    return "".join(f"## {item.message.role}\n\n{with_images(item.message).strip()}\n\n" for item in path)


async def _markdown(chat: Chat, argument: str) -> None:
    if argument not in ("on", "off"):
        raise InvalidRequest("write /markdown on or /markdown off")
    chat.set_look(markdown=argument == "on")
    print(f"Markdown is {argument}.")


COMMANDS = {
    "help": Command("/help", "List these commands.", _help),
    "clear": Command("/clear", "Forget what was said, and begin a new session.", _clear),
    "regen": Command("/regen", "Let the model answer the last question again.", _regenerate),
    "image": Command("/image FILE|off", "Send an image with your next message, or none.", _image),
    "undo": Command("/undo", "Take the last question and its answer back.", _undo),
    "system": Command("/system [TEXT|off]", "Show, set or remove the system message.", _system),
    "set": Command("/set [NAME [VALUE]]", "Show, set or reset an option, such as temperature 0.2.", _set),
    "stats": Command("/stats", "Show the speed and tokens of the last reply.", _stats),
    "session": Command("/session [ID]", "Show this session, or go on with another.", _session),
    "history": Command("/history", "Show what was said in this session.", _history),
    "save": Command("/save FILE", "Save this session as Markdown, or as JSON for FILE.json.", _save),
    "markdown": Command("/markdown on|off", "Render replies as Markdown, or show them as written.", _markdown),
    "exit": Command("/exit", "Leave (/quit and /bye too).", _exit),
}
_ALIASES = {"quit": "exit", "bye": "exit", "?": "help"}


def names() -> list[str]:
    """All commands as they are typed, for completion."""
    return [f"/{name}" for name in COMMANDS]


async def obey(chat: Chat, line: str) -> None:
    """Do what a line that begins with ``/`` says. Raises ``Leave``, ``MyllmError``."""
    word, _, argument = line[1:].partition(" ")
    name = _ALIASES.get(word, word)
    command = COMMANDS.get(name)
    if command is None:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        meant = f" Did you mean /{close[0]}?" if close else ""
        print(f"There is no command /{clean_line(name)}.{meant} /help lists them.")
        return
    await command.action(chat, argument.strip())
