"""``run`` with a prompt: the answer alone on standard output."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

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
