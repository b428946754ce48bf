"""How commands end: exit codes, one line for a user's mistake, and quiet ends of pipes."""

from __future__ import annotations

import hashlib
import os
import pty
import subprocess
from pathlib import Path

import pexpect
import pytest

from .conftest import COMMAND, Myllm


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["nonsense"], 2),
        (["show"], 2),
        (["show", "unknown-model"], 3),
        (["run", "unknown-model", "hello"], 3),
        (["show", "../etc"], 2),
        (["sessions", "show", "unknown"], 3),
        (["pull"], 2),
        (["pull", "no-such-model-in-the-catalogue"], 3),
        (["pull", "gopher://example.org/x"], 2),
        (["pull", "file:/no/such/file.gguf"], 3),
        (["verify"], 2),
        (["run", "echo", "x", "--temperature", "9"], 2),
        (["run", "echo", "x", "--load-option", "nonsense=1"], 2),
        (["run", "echo", "x", "--engine", "nonsense"], 7),
        (["run", "echo", "x", "--continue"], 3),
        (["run", "echo"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_an_exit_code(with_echo: Myllm, arguments: list[str], code: int) -> None:
    done = with_echo(*arguments)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert [line for line in done.stderr.splitlines() if line.startswith("Error: ")] == [done.stderr.splitlines()[-1]]
    assert "Traceback" not in done.stderr


def test_verbose_shows_the_traceback(myllm: Myllm) -> None:
    done = myllm("--verbose", "show", "unknown-model")
    assert done.returncode == 3
    assert "Traceback" in done.stderr
    assert "ModelNotFound" in done.stderr


def test_a_wrong_setting_names_the_file(myllm: Myllm) -> None:
    (myllm.home / "config.toml").write_text("prot = 1\n")
    done = myllm("list")
    assert done.returncode == 2
    assert "config.toml" in done.stderr
    assert "prot" in done.stderr


def test_names_from_outside_are_shown_without_escapes(myllm: Myllm) -> None:
    for arguments in (["show", "\x1b[31mred\x1b[0m"], ["pull", "\x1b]0;x\x07"], ["\x1b[2J"], ["run", "a", "--\x1b[2J"]):
        done = myllm(*arguments)
        assert done.returncode in (2, 3)
        assert "\x1b" not in done.stderr
        assert "\x07" not in done.stderr


def _tree(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(str(path.relative_to(folder)).encode())
        if path.is_file() and ".locks" not in path.parts:
            digest.update(path.read_bytes())
    return digest.hexdigest()


@pytest.mark.parametrize("name", ["..", "*", "-rf", "/", "", "../models", "echo@latest", "echo\n"])
def test_remove_deletes_nothing_for_what_is_no_name(with_echo: Myllm, name: str) -> None:
    before = _tree(with_echo.home)
    done = with_echo("remove", "--yes", name)
    assert done.returncode in (2, 3)
    assert _tree(with_echo.home) == before


def test_remove_asks_and_off_a_terminal_wants_yes(with_echo: Myllm) -> None:
    done = with_echo("remove", "echo")
    assert done.returncode == 2
    assert "--yes" in done.stderr
    terminal = with_echo.terminal("remove", "echo")
    terminal.expect("Remove echo:latest")
    terminal.sendline("n")
    terminal.expect("Nothing was changed")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert "echo:latest" in with_echo("list").stdout
    assert with_echo("remove", "--yes", "echo").stdout.startswith("Removed echo:latest")
    assert with_echo("list", "--json").stdout == "[]\n"


@pytest.mark.parametrize("arguments", [["--help"], ["list", "--json"], ["run", "echo", "word " * 20_000]], ids=str)
def test_a_reader_that_goes_away_is_no_error(with_echo: Myllm, arguments: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*COMMAND, *arguments], env=with_echo.env, stdin=subprocess.DEVNULL, stdout=write, stderr=subprocess.PIPE
    )
    os.close(write)
    assert done.returncode in (0, 141)
    assert b"Traceback" not in done.stderr
    assert b"BrokenPipe" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "closed"),
    [
        ("list", ">&-"),
        ("run echo hello", ">&-"),
        ("run echo hello", "2>&- <&-"),
        ("run echo hello", ">&- 2>&- <&-"),
        ("plugins", ">&- 2>&- <&-"),
    ],
)
def test_closed_streams_are_no_error(with_echo: Myllm, arguments: str, closed: str) -> None:
    command = f"{' '.join(COMMAND)} {arguments} {closed}"
    done = subprocess.run(["sh", "-c", command], env=with_echo.env, capture_output=True, input=b"", timeout=60)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["--version"], ["list", "--json"], ["run", "echo", "hello"]], ids=str)
def test_a_full_disk_behind_standard_output_is_an_error(with_echo: Myllm, arguments: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        done = with_echo(*arguments, stdout=full)
    assert done.returncode == 6
    said = done.stderr.splitlines()[-1]
    assert said == "Error: can't write: No space left on device; make room where the output goes, then try again"


def _on_a_terminal(myllm: Myllm, *arguments: str) -> str:
    """What a command writes to a terminal that it was given as output and error, but not as input."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, *arguments], env=myllm.env, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 65536):
            shown += piece
    except OSError:  # the other side is closed
        pass
    os.close(ours)
    assert process.wait(60) == 0
    return shown.decode()


def test_escape_codes_only_on_a_terminal_that_wants_them(with_echo: Myllm) -> None:
    assert "\x1b[1m" in _on_a_terminal(with_echo, "run", "echo", "**bold**")
    assert "\x1b" not in with_echo("run", "echo", "**bold**").stdout
    with_echo.extra["NO_COLOR"] = "1"
    assert "\x1b" not in _on_a_terminal(with_echo, "run", "echo", "**bold**")
    with_echo.extra = {"TERM": "dumb"}
    assert "\x1b" not in _on_a_terminal(with_echo, "run", "echo", "**bold**")


def test_what_a_model_writes_cannot_command_the_terminal(with_echo: Myllm) -> None:
    evil = "\x1b]52;c;cm0=\x07\x1b[2J\x9b31m\u202eend [red]x[/red]"
    for shown in (_on_a_terminal(with_echo, "run", "echo", evil), with_echo("run", "echo", evil).stdout):
        for code in ("\x1b]52", "\x1b[2J", "\x9b", "\x07", "\u202e"):
            assert code not in shown
        assert "[red]x[/red]" in shown
    assert evil in with_echo("run", "echo", "--raw", evil).stdout
