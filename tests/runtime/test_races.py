"""What may happen at the same time in the pool: loading, leaving, dying, closing. Nothing is stuck, nothing is left."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import psutil
import pytest

from myllm_core import Finish, Options, TextDelta
from myllm_core.errors import (
    DeadlineExceeded,
    EngineError,
    InvalidRequest,
    MyllmError,
    OutOfMemory,
    UnsupportedError,
    WorkerDied,
)


async def collect(events):
    got = [event async for event in events]
    assert isinstance(got[-1], Finish)
    return "".join(e.text for e in got if isinstance(e, TextDelta)), got[-1]


BEFORE = set()


@pytest.fixture(autouse=True)
def servers_of_other_tests():
    """Their workers aren't counted."""
    BEFORE.clear()
    BEFORE.update(child.pid for child in psutil.Process().children())


def workers():
    """The worker processes of this one that a test has made; zombies count."""
    found = []
    for child in psutil.Process().children():
        if child.pid in BEFORE:
            continue
        try:
            if child.status() == psutil.STATUS_ZOMBIE or "myllm_core.runtime.worker" in child.cmdline():
                found.append(child.pid)
        except psutil.NoSuchProcess:
            pass
    return found


async def until(condition):
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it didn't come true in time")


async def until_text(events):
    async for event in events:
        if isinstance(event, TextDelta):
            return


async def none_left(seconds=5.0):
    for _ in range(int(seconds * 20)):
        if not workers():
            return True
        await asyncio.sleep(0.05)
    return False


def test_unloading_a_model_that_waits_to_be_loaded_stops_nobody(settings, run, faulty):
    faulty("load-slow", "faulty:slow")

    async def test(runtime):
        first = asyncio.create_task(collect(runtime.chat("faulty:slow", "x")))
        await asyncio.sleep(0.1)
        second = asyncio.create_task(collect(runtime.chat("echo", "x")))  # waits for the other one to load
        await asyncio.sleep(0.1)
        unloading = asyncio.create_task(runtime.unload("echo"))
        async with asyncio.timeout(10):
            assert (await second)[0] == "x"
            assert (await first)[0] == "one "
            assert await unloading is True
            assert (await collect(runtime.chat("echo", "again")))[0] == "again"

    run(settings(), test)


def test_other_load_options_while_a_model_waits_to_be_loaded(settings, run, faulty):
    faulty("load-slow", "faulty:slow")

    async def test(runtime):
        first = asyncio.create_task(collect(runtime.chat("faulty:slow", "x")))
        await asyncio.sleep(0.1)
        others = [
            asyncio.create_task(collect(runtime.chat("echo", f"w{delay}", load_options={"delay_ms": delay})))
            for delay in (1, 2, 3, 1)
        ]
        async with asyncio.timeout(15):
            assert [text for text, _ in await asyncio.gather(*others)] == ["w1", "w2", "w3", "w1"]
            assert (await first)[0] == "one "
        assert len(workers()) == 2

    run(settings(), test)


def test_nobody_left_to_load_for_leaves_no_worker(settings, run, faulty):
    faulty("load-slow")

    async def test(runtime):
        task = asyncio.create_task(collect(runtime.chat("faulty", "x")))
        await until(workers)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await none_left()
        assert runtime.loaded() == []

    run(settings(keep_alive=0), test)


def test_closing_ends_a_worker_that_was_already_leaving(settings, run):
    async def test(runtime):
        words = " ".join(["w"] * 1000)
        reading = asyncio.create_task(collect(runtime.chat("echo", words, load_options={"delay_ms": 20})))
        await until(lambda: runtime.loaded() and runtime.loaded()[0].running)
        unloading = asyncio.create_task(runtime.unload("echo"))
        await asyncio.sleep(0.1)
        await runtime.close()
        assert await none_left(1)
        _, finish = await reading
        assert isinstance(finish.error, MyllmError)
        await unloading

    run(settings(), test)


def test_whoever_waits_for_a_load_when_the_runtime_closes_gets_an_error(settings, run, faulty):
    faulty("load-hangs")

    async def test(runtime):
        task = asyncio.create_task(collect(runtime.chat("faulty", "x")))
        await asyncio.sleep(0.5)
        await runtime.close()
        with pytest.raises(MyllmError):
            await task

    run(settings(), test)


def test_a_child_of_the_worker_that_outlives_it_holds_nobody_up(settings, run, faulty):
    faulty("child")

    async def test(runtime):
        reading = runtime.chat("faulty", "x")
        async for event in reading:
            if isinstance(event, TextDelta):
                os.kill(runtime.loaded()[0].pid, signal.SIGKILL)
                break
        async with asyncio.timeout(5):
            rest = [event async for event in reading]
            assert isinstance(rest[-1].error, WorkerDied)
            await runtime.load("faulty")
            assert await runtime.unload("faulty")
        assert await none_left()

    try:
        run(settings(), test)
    finally:
        for process in psutil.process_iter(["cmdline"]):
            if process.info["cmdline"] == ["sleep", "61.3"]:
                process.kill()


def test_embedding_tells_when_the_worker_dies(settings, run, faulty):
    faulty("embed-dies")

    async def test(runtime):
        with pytest.raises(WorkerDied, match="SIGKILL"):
            await runtime.embed("faulty", ["x"])

    run(settings(), test)


def test_embedding_has_a_deadline(settings, run, faulty):
    faulty("embed-hangs")

    async def test(runtime):
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await runtime.embed("faulty", ["x"])
        assert time.monotonic() - began < 4

    run(settings(request_timeout=1.5), test)


def test_waiting_for_a_session_counts_towards_the_deadline(settings, run):
    async def test(runtime):
        slow = {"delay_ms": 40}
        await runtime.load("echo", load_options=slow)
        words = " ".join(["w"] * 10)
        turns = [collect(runtime.chat("echo", words, session_id="s", load_options=slow)) for _ in range(6)]
        first, *_, last = await asyncio.gather(*turns, return_exceptions=True)
        assert first[1].error is None
        assert isinstance(last, DeadlineExceeded)  # its turn would have come after 5 times 0.4 s

    run(settings(request_timeout=1.9), test)


def test_a_model_that_can_never_fit_unloads_nothing(settings, run, faulty):
    faulty("fine", size=10**15)

    async def test(runtime):
        await collect(runtime.chat("echo", "x"))
        busy = runtime.chat("echo:two", " ".join(["w"] * 200), load_options={"delay_ms": 20})
        await anext(busy)
        began = time.monotonic()
        with pytest.raises(OutOfMemory, match="needs about"):
            await runtime.load("faulty")
        assert time.monotonic() - began < 1
        assert [loaded.name for loaded in runtime.loaded()] == ["echo:latest", "echo:two"]
        await busy.aclose()

    run(settings(), test)


def test_loading_and_unloading_at_the_same_time_are_both_answered(settings, run):
    async def test(runtime):
        for _ in range(3):
            loading = [asyncio.create_task(runtime.load("echo")) for _ in range(3)]
            await until(runtime.loaded)
            unloading = asyncio.create_task(runtime.unload("echo"))
            results = await asyncio.gather(*loading, unloading, return_exceptions=True)
            assert [type(result).__name__ for result in results] == ["Loaded"] * 3 + ["bool"]

    run(settings(), test)


def test_an_interrupted_reply_is_stored_before_the_next_request_of_its_session(settings, run):
    async def test(runtime):
        slow = {"delay_ms": 5}
        await runtime.load("echo", load_options=slow)
        for number in range(25):
            task = asyncio.create_task(collect(runtime.chat("echo", f"q{number}", session_id="s", load_options=slow)))
            await asyncio.sleep(0.004 + 0.0007 * number)  # around the moment when the turn is stored
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await collect(runtime.chat("echo", f"next{number}", session_id="s", load_options=slow))
        path = [stored.message for stored in await runtime.sessions(lambda store: store.path("s"))]
        assert [message.role for message in path] == ["user", "assistant"] * (len(path) // 2)
        stored = await runtime.sessions(lambda store: store.get("s").message_count)
        assert stored == len(path), "a turn was put on a branch"

    run(settings(), test)


def test_a_request_that_an_engine_cannot_take_on_harms_no_other(settings, run, faulty):
    faulty("picky", "tokens:latest", format="tokens")

    async def test(runtime):
        good = asyncio.create_task(collect(runtime.generate("tokens", "good", options=Options(max_tokens=60))))
        await until(lambda: runtime.loaded() and runtime.loaded()[0].running)
        pid = runtime.loaded()[0].pid
        _, finish = await collect(runtime.generate("tokens", "bad"))
        assert isinstance(finish.error, UnsupportedError) and "not this one" in finish.error.message
        assert (await good)[1].error is None
        assert runtime.loaded()[0].pid == pid

    run(settings(), test)


def test_a_worker_that_was_idle_for_long_is_not_taken_for_a_hanging_one(settings, run):
    async def test(runtime):
        slow = {"delay_ms": 400}
        await collect(runtime.chat("echo", "x", load_options=slow))
        await asyncio.sleep(1.5)  # three times as long as a busy worker may be silent
        text, finish = await collect(runtime.chat("echo", "a b c", load_options=slow))
        assert (text, finish.error) == ("a b c", None)

    run(settings(hang_timeout=0.5), test)


def test_many_embeddings_hold_up_neither_text_nor_pings(settings, run, faulty):
    faulty("slow-embed", "tokens:latest", format="tokens")

    async def test(runtime):
        texts = ["x" * (1000 + n) for n in range(40)]
        embedding = asyncio.create_task(runtime.embed("tokens", texts))
        await asyncio.sleep(0.3)
        began = time.monotonic()
        text, finish = await collect(runtime.generate("tokens", "good day", options=Options(max_tokens=20)))
        assert finish.error is None and time.monotonic() - began < 1.5
        assert await runtime.dead_models(1.0) == []
        assert not embedding.done()
        vectors = (await embedding).vectors
        assert vectors == [[float(len(text))] for text in texts]
        again = asyncio.create_task(runtime.embed("tokens", ["x" * 1000] * 1000))
        await asyncio.sleep(0.3)
        again.cancel()
        await asyncio.gather(again, return_exceptions=True)
        began = time.monotonic()
        await runtime.embed("tokens", ["x"])
        assert time.monotonic() - began < 1, "embeddings that nobody waits for are still made"

    run(settings(hang_timeout=1.0), test)


def test_whoever_only_waited_when_the_worker_died_is_answered_by_the_next(settings, run, faulty):
    faulty("waits")

    async def test(runtime):
        running = runtime.chat("faulty", "first")
        await until_text(running)
        waiting = [asyncio.create_task(collect(runtime.chat("faulty", f"w{n}"))) for n in range(5)]
        await until(lambda: runtime.loaded()[0].queued == 5)
        os.kill(runtime.loaded()[0].pid, signal.SIGKILL)
        rest = [event async for event in running]
        assert isinstance(rest[-1].error, WorkerDied)
        ends = [finish.error for _, finish in await asyncio.gather(*waiting)]
        assert sum(error is None for error in ends) >= 4  # one was with the worker already, to be prepared

    run(settings(), test)


def test_a_worker_that_answered_is_started_again_at_once_however_often_it_dies(settings, run):
    async def test(runtime):
        for number in range(5):
            assert (await collect(runtime.chat("echo", f"t{number}")))[0] == f"t{number}"
            os.kill(runtime.loaded()[0].pid, signal.SIGKILL)
            await until(lambda: not runtime.loaded())

    run(settings(), test)


def test_a_retry_gets_the_reply_that_was_stored(settings, run):
    async def test(runtime):
        async def ask(text, key, **more):
            return await collect(runtime.chat("echo", text, session_id="s", turn_key=key, **more))

        await ask("one", "k1")
        await ask("two", "k2")
        await runtime.unload("echo")
        text, finish = await ask("one", "k1")
        assert (text, finish.reason, finish.usage.completion_tokens, finish.engine) == ("one", "stop", 1, "echo")
        assert runtime.loaded() == [], "nothing is generated for it"
        with pytest.raises(InvalidRequest, match="another message"):
            await ask("three", "k1")
        path = await runtime.sessions(lambda store: store.path("s"))
        assert [stored.message.content for stored in path] == ["one", "one", "two", "two"]

    run(settings(), test)


def test_a_retry_of_an_interrupted_turn_gets_a_whole_reply_to_the_same_message(settings, run):
    async def test(runtime):
        words = " ".join(f"w{n}" for n in range(12))
        slow = {"delay_ms": 20}

        def ask():
            return runtime.chat("echo", words, session_id="s", turn_key="k", load_options=slow)

        for _ in range(2):
            events = ask()
            await until_text(events)
            await events.aclose()
        for _ in range(2):
            assert (await collect(ask()))[0] == words
        path = await runtime.sessions(lambda store: store.path("s"))
        assert [(stored.message.role, stored.status) for stored in path] == [
            ("user", "complete"),
            ("assistant", "complete"),
        ]
        assert await runtime.sessions(lambda store: store.get("s").message_count) == 4  # two replies were interrupted

    run(settings(), test)


def test_a_refused_request_leaves_no_empty_session(settings, run):
    async def test(runtime):
        with pytest.raises(UnsupportedError):
            await collect(runtime.chat("echo", "x", session_id="s", options=Options(top_k=1)))
        assert await runtime.sessions(lambda store: store.list_sessions()) == []

    run(settings(), test)


def test_an_estimate_that_hangs_holds_up_no_other_model_for_ever(settings, run, faulty):
    faulty("estimate-hangs")

    async def test(runtime):
        hanging = asyncio.create_task(collect(runtime.chat("faulty", "x")))
        await asyncio.sleep(0.2)
        assert (await collect(runtime.chat("echo", "on")))[0] == "on"
        with pytest.raises(EngineError, match="how much memory"):
            await hanging

    run(settings(load_timeout=3), test)


def test_a_dead_worker_takes_no_live_ones_place(settings, run):
    async def test(runtime):
        await collect(runtime.chat("echo:latest", "x"))
        os.kill(runtime.loaded()[0].pid, signal.SIGKILL)
        await until(lambda: not runtime.loaded())
        await collect(runtime.chat("echo:two", "x"))
        pid = runtime.loaded()[0].pid
        await runtime.load("echo:three")
        assert {loaded.name: loaded.pid for loaded in runtime.loaded()}["echo:two"] == pid

    run(settings(max_loaded_models=2), test)
