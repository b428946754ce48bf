"""Workers that stop, die, flood and outgrow memory, under a server that goes on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path

import pytest

from soaking.http import Call
from soaking.server import Server
from support.faults import Start, chat, eventually, get

LONG = " ".join(f"w{number}" for number in range(400))  # 20 s with the model slow


async def first_token(call: Call, model: str, text: str = LONG) -> None:
    """Ask for a stream and read it until a token has come."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": text}]}).encode()
    await call.send("POST", "/api/chat", body)
    assert await call.head() == 200
    async for data in call.data():
        if b'"token":"w' in data or b'"token":"one' in data:
            return


async def last_frame(call: Call) -> dict:
    rest = await call.body()
    return json.loads(rest.split(b"data: ")[-1])


def stream_and_stop(server: Server) -> dict:
    """The last frame of a stream whose worker is stopped (SIGSTOP) when its first token has come."""

    async def go() -> dict:
        async with Call(server.port) as call:
            await first_token(call, "slow")
            for worker in server.workers():
                worker.send_signal(signal.SIGSTOP)
            return await last_frame(call)

    return asyncio.run(go())


def test_a_stopped_worker_is_ended_and_the_next_request_answered(server: Server) -> None:
    began = time.monotonic()
    last = stream_and_stop(server)
    assert last["error"]["code"] == "engine_died" and "said nothing for 2 s" in last["error"]["message"]
    assert time.monotonic() - began < 12
    assert chat(server, "slow", "back again")[1]["message"]["content"] == "back again"
    assert get(server, "/health")[0] == 200


def test_health_tells_of_a_stopped_worker_and_sigterm_still_ends_the_server(models: Path, start: Start) -> None:
    server = start(models, hang_timeout="60s", shutdown_grace="1s")
    assert chat(server, "echo")[0] == 200
    [worker] = server.workers()
    worker.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    assert get(server, "/health") == (503, {"status": "unhealthy"})
    assert get(server, "/api/models")[0] == 200
    assert time.monotonic() - began < 8
    assert server.stop(15) == 0
    assert not worker.is_running()


def test_a_model_that_keeps_dying_rests_and_the_others_go_on(server: Server) -> None:
    for _ in range(3):
        status, values = chat(server, "killed")
        assert (status, values["error"]["code"]) == (502, "engine_died")
        assert "SIGKILL" in values["error"]["message"]
    status, values = chat(server, "killed")
    assert (status, values["error"]["code"]) == (503, "overloaded")
    assert 1 <= values["error"]["data"]["retry_after"] <= 30
    assert chat(server, "echo")[0] == 200
    assert get(server, "/health")[0] == 200


def test_a_worker_that_floods_its_log_costs_no_memory_and_no_answer(server: Server) -> None:
    assert chat(server, "echo")[0] == 200
    before = server.sample(0).memory
    status, values = chat(server, "floods")
    assert (status, values["message"]["content"]) == (200, "one ")
    assert server.sample(0).memory - before < 10 * 2**20
    assert server.log.stat().st_size < 2**20


def test_a_worker_without_memory_says_so_and_goes_on(server: Server) -> None:
    for _ in range(2):
        status, values = chat(server, "hog")
        assert (status, values["error"]["code"]) == (507, "out_of_memory")
        assert "smaller model" in values["error"]["message"]
    assert "hog:latest" in [model["name"] for model in get(server, "/api/ps")[1]["models"]]


def test_a_model_too_large_is_refused_at_once_with_the_numbers(server: Server) -> None:
    assert chat(server, "echo")[0] == 200
    loaded = get(server, "/api/ps")[1]["models"]
    began = time.monotonic()
    status, values = chat(server, "huge")
    assert time.monotonic() - began < 1
    error = values["error"]
    assert (status, error["code"], error["data"]["needed"]) == (507, "out_of_memory", 10**15)
    assert 0 < error["data"]["free"] < 10**15 and "TB" in error["message"]
    names = [model["name"] for model in get(server, "/api/ps")[1]["models"]]
    assert names == [model["name"] for model in loaded], "nothing made room"


def test_two_models_of_which_one_fits_are_swapped_without_a_failed_request(models: Path, start: Start) -> None:
    server = start(models, max_loaded_models=1, queue_size=100)

    async def crowd() -> list[tuple[int, bytes]]:
        async def ask(number: int) -> tuple[int, bytes]:
            await asyncio.sleep(number * 0.05)
            body = {"model": ["echo", "slow"][number % 2], "messages": [{"role": "user", "content": f"n{number}"}]}
            async with Call(server.port) as call:
                await call.send("POST", "/api/chat", json.dumps({**body, "stream": False}).encode())
                return await call.head(), await call.body()

        return await asyncio.gather(*map(ask, range(40)))

    answers = asyncio.run(crowd())
    assert [status for status, _ in answers] == [200] * 40
    assert [json.loads(body)["message"]["content"] for _, body in answers] == [f"n{n}" for n in range(40)]
    assert len(server.workers()) == 1
    assert server.sample(0).zombies == 0


def test_a_server_that_was_killed_starts_again_at_once_on_the_same_folders(models: Path, start: Start) -> None:
    first = start(models)
    assert chat(first, "echo", "one", session_id="s")[0] == 200
    workers = first.workers()
    os.kill(first.process.pid, signal.SIGKILL)
    second = start(models, first.home)
    assert chat(second, "echo", "two", session_id="s")[0] == 200
    messages = get(second, "/api/sessions/s")[1]["messages"]
    assert [message["content"] for message in messages] == ["one", "one", "two", "two"]
    eventually(lambda: not any(worker.is_running() for worker in workers), 15)
    first.process.wait()


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_sigterm_in_the_middle_of_a_stream_ends_it_properly_and_leaves_the_turn(models: Path, start: Start) -> None:
    server = start(models, shutdown_grace="1s")

    async def go() -> dict:
        async with Call(server.port) as call:
            body = {"model": "slow", "messages": [{"role": "user", "content": LONG}], "session_id": "s"}
            await call.send("POST", "/api/chat", json.dumps(body).encode())
            await call.head()
            async for data in call.data():
                if b'"token":"w' in data:
                    break
            server.process.send_signal(signal.SIGTERM)
            return await last_frame(call)

    last = asyncio.run(go())
    assert last["done"] is True and last["error"]["code"] == "stopping"
    assert server.process.wait(10) == 0
    again = start(models, server.home)
    messages = get(again, "/api/sessions/s")[1]["messages"]
    assert [(message["role"], message["status"]) for message in messages] == [
        ("user", "complete"),
        ("assistant", "cancelled"),
    ]
    assert messages[1]["content"].startswith("w0 w1")


def test_a_service_manager_that_signals_every_process_lets_replies_end(models: Path, start: Start) -> None:
    server = start(models, shutdown_grace="10s")

    async def go() -> dict:
        async with Call(server.port) as call:
            await first_token(call, "slow", " ".join(f"w{number}" for number in range(30)))
            for process in (*server.workers(), server.process):
                process.send_signal(signal.SIGTERM)
            return await last_frame(call)

    last = asyncio.run(go())
    assert (last["finish_reason"], last["full_text"].split()[-1]) == ("stop", "w29")
    assert server.process.wait(10) == 0


@pytest.mark.skipif(not Path("/proc/self/oom_score_adj").exists(), reason="Linux's")
def test_the_kernel_ends_a_worker_before_the_server_when_memory_runs_out(server: Server) -> None:
    chat(server, "echo")
    scores = [int(Path(f"/proc/{one.pid}/oom_score").read_text()) for one in (*server.workers(), server.process)]
    assert min(scores[:-1]) > scores[-1]
