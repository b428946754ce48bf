"""The chat on a real pseudo-terminal."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest

from myllm_core.testing.pictures import png

from .conftest import PROMPT, Myllm

Start = Callable[..., pexpect.spawn]
LONG = " ".join(f"word{i}" for i in range(200))


def _say(terminal: pexpect.spawn, line: str, *expected: str) -> str:
    """Type a line; everything up to the next prompt, after the ``expected`` came in order."""
    terminal.sendline(line)
    shown = ""
    for pattern in (*map(re.escape, expected), PROMPT):
        terminal.expect(pattern)
        shown += terminal.before + terminal.after
    return _plain(shown)


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def _leaves(terminal: pexpect.spawn) -> None:
    terminal.expect("Goodbye!")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0


def _stored(myllm: Myllm) -> list[dict[str, object]]:
    """The messages of the last session."""
    session = json.loads(myllm("sessions", "list", "--json").stdout)[0]["id"]
    path: list[dict[str, object]] = json.loads(myllm("sessions", "show", session, "--json").stdout)["path"]
    return path


def test_a_session_as_the_manual_has_it(chat: Start, with_echo: Myllm) -> None:
    terminal = chat()
    _say(terminal, "hello there", "Assistant: ", "hello there", "────")
    shown = _say(terminal, "/help", "Commands:")
    for command in ("exit", "clear", "help", "system", "set", "regen", "undo", "stats", "session", "history", "save"):
        assert f"/{command}" in shown
    assert "History cleared. Starting new session.\r\n" in _say(terminal, "/clear")
    assert "Nothing has been said yet." in _say(terminal, "/history")
    terminal.sendline("/exit")
    _leaves(terminal)
    history = with_echo.home / "data" / "chat_history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert "+hello there" in history.read_text()


def test_control_c_once_stops_the_reply_and_stays(chat: Start, with_echo: Myllm) -> None:
    terminal = chat(delay_ms=50)
    terminal.sendline(LONG)
    terminal.expect("Assistant: ")
    terminal.expect("word2")
    terminal.sendintr()
    terminal.expect(re.escape("(stopped)"))
    terminal.expect(PROMPT)
    assert "(cancelled)" in _say(terminal, "/history", "[2] assistant")
    _say(terminal, "short", "Assistant: ", "short", "────")
    terminal.sendeof()
    _leaves(terminal)
    path = _stored(with_echo)
    assert [message["status"] for message in path] == ["complete", "cancelled", "complete", "complete"]
    assert str(path[1]["content"]).startswith("word0 word1")
    assert path[3]["content"] == "short"


def test_control_c_twice_leaves_out_of_a_reply(chat: Start) -> None:
    terminal = chat(delay_ms=50)
    terminal.sendline(LONG)
    terminal.expect("Assistant: ")
    terminal.expect("word2")
    terminal.sendintr()
    terminal.expect(re.escape("(stopped)"))
    terminal.expect(PROMPT)
    terminal.sendintr()
    _leaves(terminal)


def test_control_c_twice_quickly_leaves_out_of_a_reply(chat: Start) -> None:
    terminal = chat(delay_ms=50)
    terminal.sendline(LONG)
    terminal.expect("Assistant: ")
    terminal.expect("word2")
    terminal.send("\x03")
    terminal.send("\x03")  # a twentieth of a second later: in the reply, between it and the prompt, or at the prompt
    _leaves(terminal)


def test_control_c_at_the_prompt(chat: Start) -> None:
    terminal = chat()
    terminal.send("unfinished")
    terminal.expect("unfinished")
    terminal.sendintr()  # empties the line
    _say(terminal, "hello", "Assistant: ", "hello", "────")
    terminal.sendintr()
    terminal.expect("press Ctrl\\+C again")
    _say(terminal, "still here", "Assistant: ", "still here", "────")  # which starts the count anew
    terminal.sendintr()
    terminal.expect("press Ctrl\\+C again")
    terminal.sendintr()
    _leaves(terminal)


def test_blocks_of_several_lines(chat: Start, with_echo: Myllm) -> None:
    terminal = chat("--no-markdown")
    terminal.sendline('"""first')
    terminal.expect(re.escape("...: "))
    terminal.sendline("/not a command")
    terminal.expect(re.escape("...: "))
    _say(terminal, 'third"""', "Assistant: ", "first\r\n/not a command\r\nthird\r\n")
    _say(terminal, '"""one line"""', "Assistant: ", "one line\r\n")
    terminal.sendeof()
    _leaves(terminal)
    assert _stored(with_echo)[0]["content"] == "first\n/not a command\nthird"


def test_the_commands_change_the_conversation(chat: Start, with_echo: Myllm, tmp_path: Path) -> None:
    terminal = chat()
    _say(terminal, "first question", "Assistant: ", "first question", "────")
    _say(terminal, "second question", "Assistant: ", "second question", "────")
    assert "Taken back: second question" in _say(terminal, "/undo")
    _say(terminal, "/system Be brief.", "from now on")
    shown = _say(terminal, "/history")
    assert "[1] system" in shown
    assert "[2] user" in shown
    assert "second question" not in shown
    _say(terminal, "/regen", "Assistant: ", "first question", "────")
    assert "temperature = 0.2" in _say(terminal, "/set temperature 0.2")
    assert "Error: option temperature" in _say(terminal, "/set temperature 9")
    assert "unknown option nonsense" in _say(terminal, "/set nonsense 1")
    assert "2 completion tokens" in _say(terminal, "/stats")
    assert "Did you mean /stats" in _say(terminal, "/stat")
    for name in ("chat.md", "chat.json"):
        _say(terminal, f"/save {tmp_path / name}", "Saved to")
    assert "Error: can't write" in _say(terminal, f"/save {tmp_path / 'chat.md'}")
    terminal.sendeof()
    _leaves(terminal)
    assert [message["role"] for message in _stored(with_echo)] == ["system", "user", "assistant"]
    assert "## user\n\nfirst question" in (tmp_path / "chat.md").read_text()
    assert with_echo("sessions", "import", str(tmp_path / "chat.json"), "--id", "copy").stdout == "copy\n"


def test_a_session_is_continued(chat: Start, with_echo: Myllm) -> None:
    terminal = chat("--session", "mine", "--system", "Be kind.")
    _say(terminal, "remember this", "Assistant: ", "────")
    terminal.sendeof()
    _leaves(terminal)
    terminal = chat("--continue")
    assert "remember this" in _plain(terminal.before)
    _say(terminal, "and that", "Assistant: ", "────")
    terminal.sendeof()
    _leaves(terminal)
    contents = [message["content"] for message in _stored(with_echo)]
    assert contents == ["Be kind.", "remember this", "remember this", "and that", "and that"]


def test_an_error_of_a_turn_leaves_the_chat_going(chat: Start, with_echo: Myllm) -> None:
    terminal = chat()
    assert "Error: " in _say(terminal, "/session not/an/id")
    _say(terminal, "hello", "Assistant: ", "hello", "────")
    terminal.sendeof()
    _leaves(terminal)


def test_a_missing_model_is_pulled_after_a_yes(myllm: Myllm) -> None:
    terminal = myllm.terminal("run", "echo")
    terminal.expect("echo isn't installed. Pull it now")
    terminal.sendline("")
    terminal.expect(PROMPT)
    terminal.sendeof()
    _leaves(terminal)
    terminal = myllm.terminal("run", "echo:other")
    terminal.expect("Error: ")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 3


@pytest.mark.model
def test_the_real_model_chats_and_remembers(myllm: Myllm, smollm2_gguf: Path) -> None:
    pytest.importorskip("myllm_llamacpp")
    assert myllm("pull", str(smollm2_gguf), "--name", "smollm2").returncode == 0
    terminal = myllm.terminal("run", "smollm2", "--seed", "1", "--max-tokens", "12", timeout=90)
    terminal.expect(PROMPT)
    counts = []
    for question in ("My name is Ada.", "What is my name?"):
        _say(terminal, question, "Assistant: ", "────")
        counts.append(int(re.search(r"(\d+) prompt tokens", _say(terminal, "/stats", "in all"))[1]))  # type: ignore[index]
    assert counts[1] > counts[0] + 10  # the second question brings the first one and its answer along
    _say(terminal, "/set max_tokens 2000", "max_tokens = 2000")
    terminal.sendline("Write a very long story about the sea.")
    terminal.expect("Assistant: ")
    terminal.sendintr()
    terminal.expect(re.escape("(stopped)"))
    terminal.expect(PROMPT)
    terminal.sendeof()
    _leaves(terminal)


def test_images_go_with_the_next_message(chat: Start, with_echo: Myllm, tmp_path: Path) -> None:
    for name, color in (("first.png", (9, 9, 9)), ("a second.png", (0, 0, 255))):
        (tmp_path / name).write_bytes(png(20, 10, color))
    terminal = chat("--image", str(tmp_path / "first.png"))
    _say(terminal, "what?", "Assistant: ", "[20x10 #090909]what?", "────")
    assert "No image waits" in _say(terminal, "/image")
    terminal.sendline(f"/image '{tmp_path}/a second.png'")
    terminal.expect("20 x 10 pixels; it goes with your next message")
    terminal.expect(PROMPT)
    assert "1 image for your next message." in _say(terminal, "/image")
    terminal.sendline("/image missing.png")
    terminal.expect("can't read the image missing.png")
    terminal.expect(PROMPT)
    _say(terminal, "and this?", "Assistant: ", "[20x10 #0000ff]and this?", "────")
    _say(terminal, "again", "Assistant: ", "again", "────")
    assert "(1 image)" in _say(terminal, "/history")
    terminal.sendeof()
    _leaves(terminal)
    assert [len(message.get("images", [])) for message in _stored(with_echo)] == [1, 0, 1, 0, 0, 0]  # type: ignore[arg-type]
