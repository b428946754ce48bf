"""The runtime with real worker processes: loading, cancelling, crashing, unloading, sessions."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from myllm_core import Finish, Message, Options, Progress, TextDelta
from myllm_core.errors import (
    DeadlineExceeded,
    EngineError,
    EngineMissing,
    InvalidOption,
    InvalidRequest,
    ModelNotFound,
    MyllmError,
    OutOfMemory,
    Overloaded,
    UnsupportedError,
    WorkerDied,
)


async def collect(events):
    got = [event async for event in events]
    assert isinstance(got[-1], Finish) and sum(isinstance(e, Finish) for e in got) == 1
    return "".join(e.text for e in got if isinstance(e, TextDelta)), got[-1], got


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def gone(pid, seconds=5.0):
    for _ in range(int(seconds * 50)):
        if not alive(pid):
            return True
        await asyncio.sleep(0.02)
    return False


@pytest.mark.parametrize("isolation", ["process", "thread"])
def test_an_answer_an_embedding_and_a_completion(settings, run, isolation):
    async def test(runtime):
        text, finish, events = await collect(runtime.chat("echo", "Hello  there"))
        assert (text, finish.reason, finish.engine) == ("Hello  there", "stop", "echo")
        assert isinstance(events[0], Progress)
        assert (await collect(runtime.generate("echo", "raw prompt")))[0] == "raw prompt"
        assert (await runtime.embed("echo", ["abc", ""])).vectors == [[3.0, 1.0], [0.0, 1.0]]
        [loaded] = runtime.loaded()
        assert (loaded.name, loaded.running, loaded.context_size) == ("echo:latest", 0, 4096)

    run(settings(isolation=isolation), test)


def test_the_worker_is_gone_after_close(settings, run):
    pids = []

    async def test(runtime):
        pids.append((await runtime.load("echo")).pid)
        assert alive(pids[0])

    run(settings(), test)
    assert not alive(pids[0])


def test_many_ask_and_one_load_happens(settings, run):
    async def test(runtime):
        results = await asyncio.gather(*(collect(runtime.chat("echo", f"n{i}")) for i in range(20)))
        assert [text for text, _, _ in results] == [f"n{i}" for i in range(20)]
        assert len(runtime.loaded()) == 1

    run(settings(), test)


def test_closing_the_stream_cancels_within_two_tokens(settings, run):
    async def test(runtime):
        words = " ".join(["w"] * 1000)
        events = runtime.chat("echo", words, load_options={"delay_ms": 20}, session_id="s")
        seen = 0
        async for event in events:
            seen += isinstance(event, TextDelta)
            if seen == 3:
                break
        await events.aclose()
        assert runtime.loaded()[0].running == 0
        path = await runtime.sessions(lambda store: store.path("s"))
        assert [(m.message.role, m.status) for m in path] == [("user", "complete"), ("assistant", "cancelled")]
        assert 1 <= len(path[1].message.content.split()) <= 5
        assert (await collect(runtime.chat("echo", "again", load_options={"delay_ms": 20})))[0] == "again"

    run(settings(), test)


@pytest.mark.parametrize(
    ("mode", "says"),
    [("aborts", "SIGABRT"), ("killed", "SIGKILL"), ("exits", "exit code 3")],
)
def test_a_crash_ends_the_stream_with_an_error_and_the_next_request_works(settings, run, faulty, mode, says):
    faulty(mode)

    async def test(runtime):
        text, finish, _ = await collect(runtime.chat("faulty", "x"))
        assert (text, finish.reason) == ("one ", "error")
        assert isinstance(finish.error, WorkerDied) and says in finish.error.message
        assert "noise" in finish.error.message  # what the worker said last
        text, finish, _ = await collect(runtime.chat("echo", "still here"))
        assert text == "still here"
        _, finish, _ = await collect(runtime.chat("faulty", "x"))  # started again, dies again
        assert isinstance(finish.error, WorkerDied)

    run(settings(), test)


def test_a_model_that_keeps_dying_rests(settings, run, faulty):
    faulty("killed")

    async def test(runtime):
        for _ in range(3):
            await collect(runtime.chat("faulty", "x"))
        with pytest.raises(Overloaded, match="died 3 times") as error:
            await collect(runtime.chat("faulty", "x"))
        assert 0 < error.value.data["retry_after"] <= 30
        await runtime.unload("faulty")
        _, finish, _ = await collect(runtime.chat("faulty", "x"))  # whoever looks after it wants it tried
        assert isinstance(finish.error, WorkerDied)

    run(settings(), test)


def test_a_worker_killed_from_outside_is_replaced(settings, run):
    async def test(runtime):
        events = runtime.chat("echo", "a b c d e f", load_options={"delay_ms": 50})
        async for event in events:
            if isinstance(event, TextDelta):
                os.kill(runtime.loaded()[0].pid, signal.SIGKILL)
                break
        rest = [event async for event in events]
        assert isinstance(rest[-1], Finish) and isinstance(rest[-1].error, WorkerDied)
        assert (await collect(runtime.chat("echo", "new", load_options={"delay_ms": 50})))[0] == "new"

    run(settings(), test)


@pytest.mark.parametrize(
    ("mode", "text", "says"),
    [
        ("raises", "one ", "ValueError: bad matrix"),
        ("no-finish", "one ", "without a Finish"),
        ("not-an-event", "one ", "yielded a bytes"),
    ],
)
def test_an_engine_that_breaks_the_contract_gives_an_error_and_lives_on(settings, run, faulty, mode, text, says):
    faulty(mode)

    async def test(runtime):
        for _ in range(2):
            got, finish, _ = await collect(runtime.chat("faulty", "x"))
            assert (got, finish.reason) == (text, "error")
            assert says in finish.error.message
        assert len(runtime.loaded()) == 1

    run(settings(), test)


def test_an_endless_engine_is_cut_at_max_tokens(settings, run, faulty):
    faulty("endless")

    async def test(runtime):
        text, finish, _ = await collect(runtime.chat("faulty", "x", options=Options(max_tokens=50)))
        assert finish.reason == "length" and len(text.split()) <= 50

    run(settings(), test)


def test_a_reply_past_its_deadline_ends_with_an_error(settings, run, faulty):
    faulty("endless")

    async def test(runtime):
        _, finish, _ = await collect(runtime.chat("faulty", "x"))
        assert isinstance(finish.error, DeadlineExceeded)

    run(settings(request_timeout=2), test)


@pytest.mark.parametrize(("mode", "says"), [("load-raises", "no such tensor"), ("load-aborts", "SIGABRT")])
def test_a_model_that_cannot_be_loaded_says_why_each_time(settings, run, faulty, mode, says):
    faulty(mode)

    async def test(runtime):
        for _ in range(2):
            with pytest.raises(EngineError, match=says):
                await collect(runtime.chat("faulty", "x"))
        assert runtime.loaded() == []

    run(settings(), test)


def test_loading_that_makes_no_progress_is_given_up(settings, run, faulty):
    faulty("load-hangs")

    async def test(runtime):
        with pytest.raises(EngineError, match="no progress for 0.5 s"):
            await runtime.load("faulty")

    run(settings(load_timeout=0.5), test)


def test_closing_while_a_model_loads_leaves_nothing(settings, run, faulty):
    faulty("load-hangs")

    async def test(runtime):
        task = asyncio.create_task(collect(runtime.chat("faulty", "x")))
        await asyncio.sleep(0.5)
        await runtime.close()
        with pytest.raises((MyllmError, asyncio.CancelledError)):
            await task

    before = set(psutil.Process().children())
    started = time.monotonic()
    run(settings(), test)
    assert time.monotonic() - started < 12
    left = [child.cmdline() for child in psutil.Process().children() if child not in before]
    assert not [command for command in left if "myllm_core.runtime.worker" in command]


def test_errors_come_before_anything_is_loaded(settings, run):
    async def test(runtime):
        with pytest.raises(ModelNotFound):
            await collect(runtime.chat("nonesuch", "x"))
        with pytest.raises(UnsupportedError, match="no option top_k"):
            await collect(runtime.chat("echo", "x", options=Options(top_k=3)))
        with pytest.raises(InvalidOption, match="no load option n_ctx; known: delay_ms"):
            await collect(runtime.chat("echo", "x", load_options={"n_ctx": 5}))
        with pytest.raises(InvalidOption, match="must be a int"):
            await collect(runtime.chat("echo", "x", load_options={"delay_ms": "5"}))
        with pytest.raises(EngineMissing, match="no engine named nonesuch"):
            await collect(runtime.chat("echo", "x", engine="nonesuch"))
        with pytest.raises(InvalidRequest):
            await runtime.embed("echo", [])
        assert runtime.loaded() == []

    run(settings(), test)


def test_logprobs_and_embeddings_are_refused_where_there_are_none(settings, run, faulty):
    faulty("fine")

    async def test(runtime):
        with pytest.raises(UnsupportedError, match="no log probabilities"):
            await collect(runtime.chat("faulty", "x", options=Options(logprobs=1)))
        with pytest.raises(UnsupportedError, match="makes no embeddings"):
            await runtime.embed("faulty", ["x"])

    run(settings(), test)


def test_an_idle_model_is_unloaded_after_keep_alive(settings, run):
    async def test(runtime):
        await collect(runtime.chat("echo", "x"))
        [loaded] = runtime.loaded()
        assert loaded.expires_in is not None and loaded.expires_in <= 0.4
        assert await gone(loaded.pid)
        assert runtime.loaded() == []
        await collect(runtime.chat("echo", "x", keep_alive=100))
        assert runtime.loaded()[0].expires_in > 90
        assert await runtime.unload("echo") is True
        assert await runtime.unload("echo") is False

    run(settings(keep_alive=0.4), test)


def test_the_least_recently_used_idle_model_makes_room(settings, run):
    async def test(runtime):
        await collect(runtime.chat("echo:latest", "x"))
        await collect(runtime.chat("echo:two", "x"))
        assert [loaded.name for loaded in runtime.loaded()] == ["echo:two"]
        slow = asyncio.create_task(collect(runtime.chat("echo:two", "a b c d e", load_options={"delay_ms": 60})))
        await asyncio.sleep(0.7)
        text, _, _ = await collect(runtime.chat("echo:latest", "waited"))  # waits for the busy one to end
        assert text == "waited"
        assert slow.done() and (await slow)[0] == "a b c d e"

    run(settings(max_loaded_models=1), test)


def test_a_model_that_needs_too_much_memory_is_refused_at_once_with_the_numbers(settings, run, faulty):
    faulty("fine", size=10**15)

    async def test(runtime):
        started = time.monotonic()
        with pytest.raises(OutOfMemory, match="needs about 1e\\+03 TB|needs about 1000 TB") as error:
            await runtime.load("faulty")
        assert time.monotonic() - started < 1
        assert error.value.data["needed"] == 10**15 > error.value.data["free"]

    run(settings(), test)


def test_a_full_queue_refuses_and_says_when_to_come_back(settings, run, faulty):
    faulty("slow-close")

    async def test(runtime):
        await runtime.load("faulty")
        running = [runtime.chat("faulty", "x") for _ in range(3)]
        for events in running[:1]:
            await anext(events)
        waiting = [asyncio.create_task(anext(events)) for events in running[1:]]
        await asyncio.sleep(0.1)
        assert [loaded.queued for loaded in runtime.loaded()] == [2]
        with pytest.raises(Overloaded) as error:
            await anext(runtime.chat("faulty", "x"))
        assert error.value.data["retry_after"] > 0
        await running[0].aclose()
        for task, events in zip(waiting, running[1:], strict=True):
            await task
            await events.aclose()
        assert runtime.loaded()[0].running == 0

    run(settings(queue_size=2), test)


def test_a_session_remembers_and_a_client_that_resends_everything_adds_only_what_is_new(settings, run):
    async def test(runtime):
        await collect(runtime.chat("echo", [Message("system", "be kind"), Message("user", "one")], session_id="s"))
        await collect(runtime.chat("echo", "two", session_id="s"))
        whole = await runtime.sessions(lambda store: [m.message for m in store.path("s")])
        assert [(m.role, m.content) for m in whole] == [
            ("system", "be kind"), ("user", "one"), ("assistant", "one"), ("user", "two"), ("assistant", "two"),
        ]  # fmt: skip
        await collect(runtime.chat("echo", [*whole, Message("user", "three")], session_id="s"))
        path = await runtime.sessions(lambda store: store.path("s"))
        assert len(path) == 7
        with pytest.raises(InvalidRequest, match="nothing to answer"):
            await collect(runtime.chat("echo", [], session_id="s"))
        await runtime.sessions(lambda store: store.set_tip("s", path[-2].id))
        assert (await collect(runtime.chat("echo", [], session_id="s")))[
            0
        ] == "three"  # a new reply to the same message
        again = await runtime.sessions(lambda store: store.path("s"))
        assert len(again) == 7 and again[-1].id != path[-1].id

    run(settings(), test)


def test_two_requests_to_one_session_take_turns(settings, run):
    async def test(runtime):
        slow = {"delay_ms": 10}
        await asyncio.gather(
            *(collect(runtime.chat("echo", f"m{i} x y", session_id="s", load_options=slow)) for i in range(8))
        )
        path = await runtime.sessions(lambda store: store.path("s"))
        assert [m.message.role for m in path] == ["user", "assistant"] * 8
        assert all(path[i].message.content == path[i + 1].message.content for i in range(0, 16, 2))

    run(settings(), test)


def test_a_failed_turn_without_text_is_not_stored(settings, run):
    async def test(runtime):
        with pytest.raises(UnsupportedError):
            await collect(runtime.chat("echo", "x", session_id="s", options=Options(top_k=1)))
        assert await runtime.sessions(lambda store: store.list_sessions()) == []

    run(settings(), test)


def test_a_retry_with_the_same_key_is_stored_once(settings, run):
    async def test(runtime):
        for _ in range(2):
            await collect(runtime.chat("echo", "x", session_id="s", turn_key="k"))
        path = await runtime.sessions(lambda store: store.path("s"))
        assert len(path) == 2

    run(settings(), test)


def test_health_finds_a_stopped_worker(settings, run):
    async def test(runtime):
        loaded = await runtime.load("echo")
        assert await runtime.dead_models(2.0) == []
        os.kill(loaded.pid, signal.SIGSTOP)
        assert await runtime.dead_models(0.3) == ["echo:latest"]
        os.kill(loaded.pid, signal.SIGCONT)

    run(settings(), test)


def test_workers_end_when_their_parent_is_killed(settings, models_dir, tmp_path):
    script = (
        "import asyncio, sys\n"
        "from myllm_core import Runtime, load_settings\n"
        "async def main():\n"
        "    rt = Runtime(load_settings(models_dir=sys.argv[1], data_dir=sys.argv[2]))\n"
        "    print((await rt.load('echo')).pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-c", script, str(models_dir), str(tmp_path / "data")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.kill()
    assert asyncio.run(gone(pid, 15))


def test_a_worker_that_hangs_is_ended_and_its_request_with_it(settings, run):
    async def test(runtime):
        events = runtime.chat("echo", "a b c d e f", load_options={"delay_ms": 30})
        async for event in events:
            if isinstance(event, TextDelta):
                os.kill(runtime.loaded()[0].pid, signal.SIGSTOP)
                break
        rest = [event async for event in events]
        assert "said nothing for 0.6 s" in rest[-1].error.message
        assert (await collect(runtime.chat("echo", "back", load_options={"delay_ms": 30})))[0] == "back"

    run(settings(hang_timeout=0.6), test)


def test_a_request_that_waits_past_its_deadline_is_refused(settings, run, faulty):
    faulty("slow-close")

    async def test(runtime):
        await runtime.load("faulty")
        running = [runtime.chat("faulty", "x") for _ in range(2)]
        await anext(running[0])
        blocked = asyncio.create_task(anext(running[1]))
        await asyncio.sleep(0.1)
        with pytest.raises(DeadlineExceeded):
            await collect(runtime.chat("faulty", "x"))
        blocked.cancel()
        await asyncio.gather(blocked, return_exceptions=True)
        await running[0].aclose()

    run(settings(request_timeout=1.5), test)


def test_a_pinned_model_is_not_unloaded_for_another(settings, run):
    async def test(runtime):
        await runtime.load("echo:latest")
        assert runtime.loaded()[0].expires_in is None
        with pytest.raises(Overloaded, match="pinned"):
            await runtime.load("echo:two")
        assert [loaded.name for loaded in runtime.loaded()] == ["echo:latest"]

    run(settings(pinned_models=["echo:latest"], max_loaded_models=1), test)


def test_clients_take_turns_when_a_model_is_busy():
    from myllm_core.runtime.slot import Line

    async def main():
        line, order = Line(lambda: 1), []

        async def request(client):
            await line.enter(client)
            order.append(client)
            await asyncio.sleep(0)
            line.leave()

        names = ["greedy"] * 5 + ["modest"] * 2 + ["third"]
        await line.enter("first")
        tasks = [asyncio.create_task(request(name)) for name in names]
        await asyncio.sleep(0)
        tasks[4].cancel()  # one goes away while it waits
        await asyncio.sleep(0)
        line.leave()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order == ["greedy", "modest", "third", "greedy", "modest", "greedy", "greedy"]
        assert (line.inside, line.waiting) == (0, 0)

    asyncio.run(main())
