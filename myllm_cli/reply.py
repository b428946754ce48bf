"""Taking a reply from the runtime: showing it as it comes, and counting."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from myllm_cli.terminal import StatusLine, say
from myllm_cli.views import View
from myllm_core.types import Event, Finish, Progress, ReasoningDelta, TextDelta, ToolCallDelta

STAGES = {"queue": "Waiting for a free place", "load": "Loading", "prompt": "Reading the prompt"}


@dataclass(slots=True)
class Reply:
    """A reply as far as it came. ``first`` and ``total`` are seconds; ``finish`` None means it was stopped."""

    content: str = ""
    reasoning: str = ""
    first: float | None = None
    total: float = 0.0
    finish: Finish | None = None
    tool_calls: list[str] = field(default_factory=list)

    def stats(self) -> str:
        """One line: time to the first token, tokens per second, prompt and completion tokens."""
        if self.finish is None:
            return "stopped before it was finished"
        usage, timings = self.finish.usage, self.finish.timings
        seconds = timings.generation or self.total - (self.first or 0.0)
        speed = f"{usage.completion_tokens / seconds:.1f} tokens/s, " if seconds > 0 else ""
        first = f"first token after {self.first:.2f} s, " if self.first is not None else ""
        engine = f", engine {self.finish.engine}" if self.finish.engine else ""
        cached = f" ({usage.cached_tokens} cached)" if usage.cached_tokens else ""
        return (
            f"{speed}{first}{usage.prompt_tokens} prompt tokens{cached}, "
            f"{usage.completion_tokens} completion tokens, {self.total:.2f} s in all{engine}"
        )


def show_progress(status: StatusLine, progress: Progress, model: str) -> None:
    """Show what a reply waits for."""
    stage = STAGES.get(progress.stage, progress.stage)
    if progress.stage == "load":
        stage = f"{stage} {model}"
    share = f"{100 * progress.fraction:.0f} %" if progress.fraction is not None else ""
    status.show(f"{stage} …", f"{share} {progress.detail}".strip())


async def take_reply(events: AsyncGenerator[Event, None], view: View, model: str, reply: Reply) -> None:
    """Show a reply as it comes, and fill ``reply``, which holds what came also when this is cancelled.

    Raises the error that a reply ended with.
    """
    status = StatusLine()
    started = time.monotonic()
    try:
        async with aclosing(events):
            async for event in events:
                reply.total = time.monotonic() - started
                if isinstance(event, Progress):
                    if reply.first is None:  # later it would stand in the middle of the text
                        show_progress(status, event, model)
                    continue
                status.clear()
                _take(event, view, reply)
    finally:
        status.clear()
        view.finish()
    if reply.finish is not None and reply.finish.error is not None:
        raise reply.finish.error
    warn_of(reply)


def _take(event: Event, view: View, reply: Reply) -> None:
    if reply.first is None and not isinstance(event, Finish):
        reply.first = reply.total
    match event:
        case TextDelta():
            reply.content += event.text
            view.text(event.text)
        case ReasoningDelta():
            reply.reasoning += event.text
            view.reasoning(event.text)
        case ToolCallDelta():
            if event.name is not None:
                reply.tool_calls.append(event.name)
        case Finish():
            reply.finish = event


def warn_of(reply: Reply) -> None:
    """Say what the reader of an answer should know of it: what was left out, and whether it was cut short."""
    finish = reply.finish
    if finish is None:
        return
    context = finish.context
    if context is not None and context.dropped:
        say(
            f"Note: the conversation is longer than the context of {context.context_size} tokens; "
            f"{len(context.dropped)} older messages ({context.dropped_tokens} tokens) were left out."
        )
    if context is not None and context.shifted_tokens:
        say(f"Note: {context.shifted_tokens} tokens were forgotten on the way, since the context was full.")
    if finish.reason == "length":
        say(f"Note: the answer was cut after {finish.usage.completion_tokens} tokens (--max-tokens, or the context).")
    if reply.tool_calls:
        say(f"Note: the model called functions, which a chat can't run: {', '.join(reply.tool_calls)}")
