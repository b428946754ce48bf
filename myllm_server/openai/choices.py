"""Several generations of one request, each a choice of its answer, read as one stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from myllm_core.errors import EngineError
from myllm_core.types import Event, Finish, Progress, Usage

_AT_ONCE = 16  # the others of one request wait here, so that it can't fill a model's line

Generation = AsyncGenerator[Event, None]


@dataclass(slots=True)
class Of:
    """An event of the choice with this index."""

    index: int
    event: Event


Item = Of | Progress | Finish
"""What a request of several choices comes to: progress belongs to all, and the last ``Finish`` too."""


async def together(generations: Sequence[Generation], per_prompt: int) -> AsyncGenerator[Item, None]:
    """The events of all, as they come, then one ``Finish`` with the usage of all together.

    Each prompt has ``per_prompt`` generations, one after the other, and its tokens are counted once. What one raises
    ends all; so does closing this.
    """
    finishes: dict[int, Finish] = {}
    merged = _only(generations[0]) if len(generations) == 1 else _merged(generations)
    async with aclosing(merged):
        async for item in merged:
            if isinstance(item.event, Finish):
                finishes[item.index] = item.event
            yield item.event if isinstance(item.event, Progress) else item
    if len(finishes) < len(generations):
        raise EngineError("the generation ended without saying why")
    yield Finish("stop", _sum([finishes[index].usage for index in sorted(finishes)], per_prompt))


async def _only(events: Generation) -> AsyncGenerator[Of, None]:
    async with aclosing(events):
        async for event in events:
            yield Of(0, event)


async def _merged(generations: Sequence[Generation]) -> AsyncGenerator[Of, None]:
    queue: asyncio.Queue[Of | Exception | None] = asyncio.Queue(1)
    places = asyncio.Semaphore(_AT_ONCE)

    async def pump(index: int, events: Generation) -> None:
        try:
            async with places, aclosing(events):
                async for event in events:
                    await queue.put(Of(index, event))
            await queue.put(None)
        except Exception as error:  # noqa: BLE001 - raised where the stream is read
            await queue.put(error)

    tasks = [asyncio.create_task(pump(index, events)) for index, events in enumerate(generations)]
    left = len(tasks)
    try:
        while left:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _sum(usages: list[Usage], per_prompt: int) -> Usage:
    prompts = usages[::per_prompt]
    return Usage(
        sum(usage.prompt_tokens for usage in prompts),
        sum(usage.completion_tokens for usage in usages),
        sum(usage.cached_tokens for usage in prompts),
    )


async def read_all(items: AsyncGenerator[Item, None]) -> tuple[list[list[Event]], Finish]:
    """Each choice's events by index, and the last one of all. Raises the error of a generation that failed."""
    choices: dict[int, list[Event]] = {}
    async with aclosing(items):
        async for item in items:
            match item:
                case Finish():
                    return [choices[index] for index in sorted(choices)], item
                case Of(_, Finish(error=error)) if error:
                    raise error
                case Of(index, event):
                    choices.setdefault(index, []).append(event)
    raise EngineError("the generation ended without saying why")
