"""What a reader is told of an answer besides its text."""

from __future__ import annotations

from myllm_cli.reply import Reply, warn_of
from myllm_core.types import ContextReport, Finish


def told(capsys, **report) -> str:
    reply = Reply()
    reply.finish = Finish("stop", context=ContextReport(256, **report))
    warn_of(reply)
    return capsys.readouterr().err


def test_what_was_left_out_or_forgotten_is_said(capsys):
    assert told(capsys) == ""
    assert "3 older messages (90 tokens) were left out" in told(capsys, dropped=(0, 1, 2), dropped_tokens=90)
    assert "126 tokens were forgotten on the way" in told(capsys, shifted_tokens=126)
