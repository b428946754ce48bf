"""The chat on a terminal: reading what the user types, and taking turns."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import shutil
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from myllm_cli.context import Cli
from myllm_cli.interrupts import Interrupts
from myllm_cli.reply import Reply, show_progress, take_reply
from myllm_cli.run import Wishes, session_of
from myllm_cli.sessions import new_session_id
from myllm_cli.terminal import StatusLine, clean, clean_line, say
from myllm_cli.turns import Conversation, last_question
from myllm_cli.views import dim
from myllm_core.errors import MyllmError

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

    from myllm_core.options import Options
    from myllm_core.runtime.runtime import Runtime
    from myllm_core.types import Image

PROMPT, MORE = "You: ", "...: "
PROMPT_STYLE = "bold fg:ansicyan"
BLOCK = '"""'
LEAVE_HINT = "(press Ctrl+C again, or Ctrl+D, to leave)"


def chat(cli: Cli, wishes: Wishes) -> None:
    """Chat until the user leaves."""
    asyncio.run(_chat(cli, wishes))


async def _chat(cli: Cli, wishes: Wishes) -> None:
    from myllm_core.runtime.runtime import Runtime

    async with Runtime(cli.settings, cli.plugins) as runtime:
        given = await session_of(runtime, wishes)
        status = StatusLine()
        try:
            loaded = await runtime.load(
                wishes.model,
                on_progress=lambda progress: show_progress(status, progress, wishes.model),
                engine=wishes.engine,
                load_options=wishes.load_options or None,
                keep_alive=math.inf,
            )
        finally:
            status.clear()
        with Interrupts() as interrupts:
            chat = Chat(cli, runtime, wishes, given or new_session_id(), interrupts)
            await chat.conversation.start(wishes.system)
            print(f"{loaded.name} on {loaded.engine}, a context of {loaded.context_size} tokens.", end=" ")
            print("/help lists the commands, Ctrl+D leaves.")
            await chat.greet()
            await chat.loop()
    print("Goodbye!")


class Leave(Exception):
    """The user leaves the chat."""


class Chat:
    """One chat: the session that it keeps, the options in force, and how its next line is read."""

    def __init__(self, cli: Cli, runtime: Runtime, wishes: Wishes, session_id: str, interrupts: Interrupts) -> None:
        self.runtime = runtime
        self.model = wishes.model
        self.options: Options = wishes.options
        self.conversation = Conversation(runtime, session_id)
        self.images: list[Image] = list(wishes.images)  # they go with the next message
        self.last: Reply | None = None
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self._wishes = wishes
        self.settings = cli.settings
        self._verbose = cli.verbose
        self._input = _input(cli.settings.data_dir)
        self._interrupts = interrupts

    @property
    def session_id(self) -> str:
        """The session that is kept now."""
        assert self.conversation.session_id is not None, "a chat always has one"
        return self.conversation.session_id

    async def switch(self, session_id: str) -> None:
        """Go on with another session, with the system message of that one, else with the present one."""
        system = self.conversation.system
        self.conversation = Conversation(self.runtime, session_id)
        await self.conversation.start(None)
        if self.conversation.system is None and not await self.conversation.path():
            self.conversation.system = system

    async def greet(self) -> None:
        """Say what is gone on with, when there is something."""
        path = await self.conversation.path()
        question = last_question(path)
        if question is not None:
            print(f"Going on with session {self.session_id} ({len(path)} messages); the last question was:")
            print(dim(clean_line(question.message.content)[:200], sys.stdout))

    async def loop(self) -> None:
        """Read and answer until the user leaves."""
        with contextlib.suppress(Leave):
            while True:
                text = await self._read()
                try:
                    await self._handle(text)
                except MyllmError as error:
                    self._show_error(error)

    async def _read(self) -> str:
        """The next line or block. Raises ``Leave``."""
        while self._interrupts.presses < 2:
            try:
                text = await self._interrupts.reading(self._read_block())
            except EOFError:
                break
            if text is None:
                self._interrupts.presses += 1
                if self._interrupts.presses == 1:
                    print(LEAVE_HINT)
            elif text.strip():
                self._interrupts.presses = 0
                return text
        raise Leave

    async def _read_block(self) -> str | None:
        """A line, or a block with its mark before it; None when Ctrl+C was pressed on an empty line."""
        try:
            line = await self._input.prompt_async([(PROMPT_STYLE, PROMPT)])
            if not line.lstrip().startswith(BLOCK):
                return line
            text = line.lstrip()[len(BLOCK) :]
            while not text.rstrip().endswith(BLOCK):
                text += "\n" + await self._input.prompt_async([(PROMPT_STYLE, MORE)])
        except KeyboardInterrupt:  # it may not leave a task: it would end the event loop
            return None
        return BLOCK + text.rstrip()[: -len(BLOCK)].strip("\n")

    async def _handle(self, text: str) -> None:
        if text.startswith(BLOCK):
            await self.answer(text[len(BLOCK) :])
        elif text.startswith("/"):
            from myllm_cli.slash import obey

            await obey(self, text)
        else:
            await self.answer(text)

    async def answer(self, text: str) -> None:
        """Send a user's text with the images that wait, and show the reply."""
        images, self.images = self.images, []
        await self._turn(self.conversation.messages(text, images))

    async def regenerate(self) -> bool:
        """Ask for another reply to the last question; False when there is none yet."""
        path = await self.conversation.path()
        question = last_question(path)
        if question is None:
            return False
        await self.conversation.set_tip(question.id)
        try:
            await self._turn([])
        finally:
            now = await self.conversation.path()
            if now and now[-1].id == question.id:  # no reply came: keep the one that there was
                await self.conversation.set_tip(path[-1].id)
        return True

    async def _turn(self, messages: list[Any]) -> None:
        reply = Reply()
        events = self.runtime.chat(
            self.model,
            messages,
            options=self.options,
            session_id=self.session_id,
            engine=self._wishes.engine,
            load_options=self._wishes.load_options or None,
            keep_alive=math.inf,
        )
        view = self._wishes.look.view()
        try:
            if await self._interrupts.stoppable(take_reply(events, view, self.model, reply)):
                say("(stopped)")
        finally:
            self._count(reply)
            print(dim("─" * min(shutil.get_terminal_size().columns - 1, 60), sys.stdout))

    def _count(self, reply: Reply) -> None:
        self.last = reply
        if reply.finish is not None:
            self.prompt_tokens += reply.finish.usage.prompt_tokens
            self.completion_tokens += reply.finish.usage.completion_tokens
            if self._wishes.stats:
                say(reply.stats())

    def set_options(self, options: Options) -> None:
        """Use other options from now on."""
        self.options = options

    def set_look(self, **changes: Any) -> None:
        """Show replies another way from now on."""
        self._wishes = replace(self._wishes, look=replace(self._wishes.look, **changes))

    def _show_error(self, error: MyllmError) -> None:
        if self._verbose:
            print(clean("".join(traceback.format_exception(error))), file=sys.stderr)
        say(f"Error: {clean_line(error.message)}")


def _input(data_dir: Path) -> PromptSession[str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
    from prompt_toolkit.shortcuts import CompleteStyle

    from myllm_cli.slash import names

    history: History
    path = data_dir / "chat_history"
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
        history = FileHistory(str(path))
    except OSError as error:
        say(f"Note: what you type isn't kept for next time: {path}: {error.strerror}")
        history = InMemoryHistory()
    keys = KeyBindings()

    @keys.add("c-c")
    def _interrupt(event: KeyPressEvent) -> None:
        """Empty a line that holds something; on an empty one, interrupt."""
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt, style="class:aborting")

    return PromptSession(
        history=history,
        key_bindings=keys,
        completer=WordCompleter(names(), sentence=True),
        complete_while_typing=False,
        complete_style=CompleteStyle.READLINE_LIKE,
    )
