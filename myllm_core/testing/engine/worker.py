"""An engine in a process of its own, as the runtime runs it: answering, dying, ending."""

# ruff: noqa: D102 - a test's name says what it tests

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from myllm_core.engine import Engine
from myllm_core.errors import MyllmError, UnsupportedError, WorkerDied
from myllm_core.options import parse_options
from myllm_core.runtime.runtime import Runtime
from myllm_core.runtime.slot import Loaded
from myllm_core.testing.alone import plugin_of
from myllm_core.testing.engine.given import EngineCase, EngineFixtures, Reply
from myllm_core.testing.engine.working import installed_copy, runtime_for
from myllm_core.types import Finish, TextDelta

_PARENT = """
import asyncio, json, sys
from pathlib import Path
from myllm_core import Runtime, load_settings
models, data, name, engine, options = json.loads(sys.argv[1])
async def main():
    runtime = Runtime(load_settings(models_dir=Path(models), data_dir=Path(data)))
    loaded = await runtime.load(name, engine=engine, load_options=options)
    print("\\nworker", loaded.pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""
_GONE = 15.0  # seconds
_CLOSE = 5.0  # seconds that the runtime gives a worker to close its engine, before it kills it
_DAMAGED = b"this is no model at all\n" * 20


@dataclass(frozen=True)
class Work:
    """A running runtime that knows the case's model."""

    case: EngineCase
    runtime: Runtime

    async def load(self) -> Loaded:
        """The model, loaded in a worker."""
        case = self.case
        return await self.runtime.load(case.model.name, engine=case.engine.name, load_options=case.load_options)

    async def chat(self) -> Reply:
        """A reply of the model."""
        events = self.runtime.chat(self.case.model.name, "Say hello.", options=parse_options({"max_tokens": 8}))
        return Reply([event async for event in events])


Act = Callable[[Work], Awaitable[None]]


class WorkerTests(EngineFixtures):
    """Worker processes: each test has its own."""

    @pytest.fixture
    def act(self, case: EngineCase, tmp_path: Path) -> Callable[[Act], None]:
        """Runs a coroutine with a runtime; whatever happens, no worker is left."""
        plugin_of("engines", case.engine)

        def run(test: Act) -> None:
            async def main() -> None:
                async with runtime_for(case, tmp_path) as runtime:
                    await test(Work(case, runtime))

            asyncio.run(main())

        return run

    def test_a_worker_answers(self, act: Callable[[Act], None], talker: Engine) -> None:
        async def test(work: Work) -> None:
            loaded = await work.load()
            assert loaded.engine == work.case.engine.name and loaded.context_size > 0
            reply = await work.chat()
            assert reply.ended_well() and reply.written

        act(test)

    def test_a_worker_refuses_what_isnt_claimed(self, act: Callable[[Act], None], engine: Engine) -> None:
        missing = {"embed", "logprobs", "grammar"} - engine.facts.capabilities
        if not missing:
            pytest.skip("the engine claims everything")
        options = {"logprobs": parse_options({"logprobs": 1}), "grammar": parse_options({"regex": "a+"})}

        async def test(work: Work) -> None:
            await work.load()
            name = work.case.model.name
            for claim in missing:
                with pytest.raises(UnsupportedError):
                    if claim == "embed":
                        await work.runtime.embed(name, ["text"])
                    else:
                        await anext(work.runtime.chat(name, "x", options=options[claim]))

        act(test)

    def test_a_worker_that_died_is_replaced(self, act: Callable[[Act], None], talker: Engine) -> None:
        async def test(work: Work) -> None:
            process = psutil.Process((await work.load()).pid)
            process.kill()
            await _until_gone([process])
            await _until_noticed(work.runtime)
            assert (await work.load()).pid != process.pid
            assert (await work.chat()).ended_well()

        act(test)

    def test_a_worker_goes_on_after_replies_were_cancelled(self, act: Callable[[Act], None], talker: Engine) -> None:
        async def test(work: Work) -> None:
            await work.load()
            for _ in range(3):
                events = work.runtime.chat(work.case.model.name, "Count to one thousand.")
                async for event in events:
                    if isinstance(event, TextDelta | Finish):
                        break
                await events.aclose()
            assert (await work.chat()).ended_well()
            assert [loaded.running for loaded in work.runtime.loaded()] == [0]

        act(test)

    def test_a_worker_and_its_children_end_with_the_model(self, act: Callable[[Act], None]) -> None:
        async def test(work: Work) -> None:
            family = _family((await work.load()).pid)
            began = time.monotonic()
            await work.runtime.unload(work.case.model.name)
            took = time.monotonic() - began
            await _until_gone(family)
            assert took < _CLOSE, "close takes so long that the worker had to be killed"

        act(test)

    def test_a_worker_and_its_children_end_with_the_parent(self, case: EngineCase, tmp_path: Path) -> None:
        installed_copy(case, tmp_path / "models")
        places = [str(tmp_path / "models"), str(tmp_path / "data")]
        order = json.dumps([*places, case.model.name, case.engine.name, dict(case.load_options)])
        family: list[psutil.Process] = []
        with subprocess.Popen([sys.executable, "-c", _PARENT, order], stdout=subprocess.PIPE, text=True) as parent:
            assert parent.stdout is not None
            line = next((line for line in parent.stdout if line.startswith("worker ")), "")
            if line:
                family = _family(int(line.split()[1]))
            parent.kill()
        assert family, "the model couldn't be loaded"
        asyncio.run(_until_gone(family))

    def test_a_worker_survives_a_damaged_model(self, case: EngineCase, tmp_path: Path) -> None:
        if not case.model.paths:
            pytest.skip("the model has no files")
        files = []
        for number, path in enumerate(case.model.paths):
            copy = tmp_path / f"{number}" / path.name
            copy.parent.mkdir()
            copy.write_bytes(_DAMAGED)
            files.append(replace(case.model.manifest.files[number], path=str(copy), size=len(_DAMAGED)))
        damaged = replace(case.model, manifest=replace(case.model.manifest, files=tuple(files)))

        async def test() -> None:
            async with runtime_for(replace(case, model=damaged), tmp_path) as runtime:
                try:
                    await Work(case, runtime).load()  # an engine that reads no file loads it
                except WorkerDied as error:
                    pytest.fail(f"a damaged file ends the process: {error}")
                except MyllmError as error:
                    assert error.message

        plugin_of("engines", case.engine)
        asyncio.run(test())


async def _until_noticed(runtime: Runtime) -> None:
    deadline = time.monotonic() + _GONE
    while runtime.loaded() and not await runtime.dead_models(1.0):
        assert time.monotonic() < deadline, "the runtime doesn't notice that its worker died"


def _family(pid: int | None) -> list[psutil.Process]:
    """A process and all that it started."""
    worker = psutil.Process(pid)
    return [worker, *worker.children(recursive=True)]


async def _until_gone(processes: list[psutil.Process]) -> None:
    deadline = time.monotonic() + _GONE
    left = processes
    while left := [process for process in left if _alive(process)]:
        if time.monotonic() > deadline:
            for process in left:
                process.kill()
            pytest.fail(f"still running after {_GONE:g} s: {', '.join(str(process.pid) for process in left)}")
        await asyncio.sleep(0.05)


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
