"""A disk that is full when a turn is stored."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from soaking.http import Call
from soaking.server import Server
from support.faults import Start, chat, get


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    mount = shutil.which("mount")
    folder = tmp_path / "small"
    folder.mkdir()
    if mount is None or subprocess.run([mount, "-t", "tmpfs", "-o", "size=1m", "none", folder], check=False).returncode:
        pytest.skip("this user may not mount a tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def streamed(server: Server, text: str, session: str) -> list[dict]:
    async def go() -> list[dict]:
        body = {"model": "echo", "messages": [{"role": "user", "content": text}], "session_id": session}
        async with Call(server.port) as call:
            await call.send("POST", "/api/chat", json.dumps(body).encode())
            assert await call.head() == 200
            frames = (await call.body()).split(b"\n\n")
            return [json.loads(frame[6:]) for frame in frames if frame.startswith(b"data: ")]

    return asyncio.run(go())


def test_a_full_disk_is_told_of_and_heals(models: Path, start: Start, small_disk: Path) -> None:
    server = start(models, data_dir=small_disk)
    assert chat(server, "echo", "before", session_id="s")[0] == 200
    (small_disk / "ballast").write_bytes(b"")
    with (small_disk / "ballast").open("ab", buffering=0) as ballast, pytest.raises(OSError, match="No space"):
        while True:
            ballast.write(bytes(4096))
    text = " ".join(["word"] * 3000)
    frames = streamed(server, text, "s")
    assert "".join(frame.get("token", "") for frame in frames) == text
    assert frames[-1]["error"]["code"] == "storage_error" and frames[-1]["done"] is True
    status, values = chat(server, "echo", text, session_id="s")
    assert (status, values["error"]["code"]) == (507, "storage_error")
    assert "room" in values["error"]["message"]
    assert get(server, "/health")[0] == 200
    assert len(get(server, "/api/sessions/s")[1]["messages"]) == 2, "what was stored can be read"
    (small_disk / "ballast").unlink()
    assert chat(server, "echo", "after", session_id="s")[0] == 200
    stored = [message["content"] for message in get(server, "/api/sessions/s")[1]["messages"]]
    assert stored == ["before", "before", "after", "after"], "no half of a turn"
