"""``run`` with a prompt: the answer alone on standard output."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from myllm_core.testing.pictures import png

from .conftest import Myllm


def test_the_answer_alone_is_on_standard_output(with_echo: Myllm) -> None:
    done = with_echo("run", "echo", "hello there", "--stats")
    assert (done.returncode, done.stdout) == (0, "hello there\n")
    assert "tokens/s" in done.stderr
    assert "2 completion tokens" in done.stderr


def test_the_prompt_and_what_is_piped_in(with_echo: Myllm) -> None:
    assert with_echo("run", "echo", input="piped in\n").stdout == "piped in\n"
    assert with_echo("run", "echo", "Look:", input="piped\nin\n").stdout == "Look:\n\npiped\nin\n"
    done = with_echo("run", "echo", input=b"\xff\xfe")
    assert done.returncode == 2
    assert "UTF-8" in done.stderr


def test_json_says_all_that_is_known(with_echo: Myllm) -> None:
    done = with_echo("run", "echo", "hello there", "--json", "--max-tokens", "1", "--session", "mine")
    answer = json.loads(done.stdout)
    assert answer["content"] == "hello"
    assert answer["finish_reason"] == "length"
    assert answer["model"] == "echo:latest"
    assert answer["engine"] == "echo"
    assert answer["session_id"] == "mine"
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3, "cached_tokens": 0}
    assert "cut after 1 tokens" in done.stderr


def test_sessions_are_kept_only_when_one_is_named(with_echo: Myllm) -> None:
    with_echo("run", "echo", "forgotten")
    assert json.loads(with_echo("sessions", "list", "--json").stdout) == []
    with_echo("run", "echo", "first", "--session", "mine", "--system", "Be kind.")
    with_echo("run", "echo", "second", "--continue", "--system", "Be brief.")
    path = json.loads(with_echo("sessions", "show", "mine", "--json").stdout)["path"]
    assert [message["content"] for message in path] == ["Be brief.", "first", "first", "second", "second"]


def test_a_missing_model_needs_pull_off_a_terminal(myllm: Myllm) -> None:
    done = myllm("run", "echo", "hello")
    assert done.returncode == 3
    assert "--pull" in done.stderr
    assert "myllm pull echo" in done.stderr
    done = myllm("run", "echo", "hello", "--pull")
    assert (done.returncode, done.stdout) == (0, "hello\n")
    done = myllm("run", "ecko", "hello", "--pull")
    assert done.returncode == 3
    assert "did you mean echo" in done.stderr


def test_control_c_ends_with_130_and_keeps_what_came(with_echo: Myllm) -> None:
    arguments = ("run", "echo", "word " * 500, "--load-option", "delay_ms=20", "--session", "mine")
    process = with_echo.start(*arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert os.read(process.stdout.fileno(), 4) == b"word"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert b"Traceback" not in errors
    path = json.loads(with_echo("sessions", "show", "mine", "--json").stdout)["path"]
    assert [message["status"] for message in path] == ["complete", "cancelled"]


def test_a_pipe_that_nobody_closes_is_said_to_be_waited_for(with_echo: Myllm) -> None:
    ours, theirs = os.pipe()
    process = with_echo.start("run", "echo", "x", stdin=ours, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    os.close(ours)
    assert process.stderr is not None
    assert b"Reading standard input" in process.stderr.readline()
    os.write(theirs, b"late")
    os.close(theirs)
    out, _ = process.communicate(timeout=30)
    assert out == b"x\n\nlate\n"


@pytest.mark.model
def test_the_real_model_answers_in_a_pipe(myllm: Myllm, smollm2_gguf: Path) -> None:
    pytest.importorskip("myllm_llamacpp")
    assert myllm("pull", str(smollm2_gguf), "--name", "smollm2").returncode == 0
    arguments = ("run", "smollm2", "Say hello.", "--seed", "1", "--max-tokens", "8")
    first, again = myllm(*arguments), myllm(*arguments)
    assert first.returncode == 0, first.stderr
    assert len(first.stdout.split()) > 2
    assert first.stdout == again.stdout
    assert "\x1b" not in first.stdout


def test_images_go_with_the_prompt(with_echo: Myllm, tmp_path: Path) -> None:
    for name, color in (("red.png", (200, 30, 60)), ("blue picture.png", (0, 0, 255))):
        (tmp_path / name).write_bytes(png(20, 10, color))
    images = ["--image", str(tmp_path / "red.png"), "--image", str(tmp_path / "blue picture.png")]
    done = with_echo("run", "echo", "what are these?", *images, "--session", "seen")
    assert (done.returncode, done.stdout) == (0, "[20x10 #c81e3c][20x10 #0000ff]what are these?\n")
    assert "(2 images)\nwhat are these?" in with_echo("sessions", "show", "seen").stdout
    path = json.loads(with_echo("sessions", "show", "seen", "--json").stdout)["path"]
    assert [len(message.get("images", [])) for message in path] == [2, 0]
    exported = with_echo("sessions", "export", "seen").stdout
    assert json.loads(exported)["messages"][0]["images"] == path[0]["images"]


def test_an_image_that_cant_be_sent_is_named_in_one_line(with_echo: Myllm, tmp_path: Path) -> None:
    text, broken, large = (tmp_path / name for name in ("notes.txt", "broken.png", "large.png"))
    text.write_text("no picture")
    broken.write_bytes(png(20, 10, (0, 0, 0))[:50])
    large.write_bytes(png(20, 10, (0, 0, 0)) + bytes(2000))
    for file, why in (
        (tmp_path / "missing.png", "can't read the image"),
        (tmp_path, "can't read the image"),
        (text, "notes.txt: this isn't a PNG, JPEG, GIF or WebP file"),
        (broken, "can't be read"),
        (large, "large.png is too large"),
    ):
        with_echo.extra["MYLLM_MAX_IMAGE_BYTES"] = "1500"
        done = with_echo("run", "echo", "what is this?", "--image", str(file))
        assert done.returncode == 2 and done.stdout == ""
        assert why in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr, done.stderr
    blind = with_echo("run", "echo", "x", "--image", str(broken), "--load-option", "sees=false")
    assert blind.returncode == 2 and "reads no images" in blind.stderr
