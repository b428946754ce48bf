"""`myllm keys`: made once, listed with what they use, revoked."""

from __future__ import annotations

import json
import re
from typing import Any

from myllm_core.keys import DayUse, KeyFile, today


def test_a_key_from_its_making_to_its_end(myllm: Any) -> None:
    assert "no key yet" in myllm("keys", "list").stderr
    made = myllm("keys", "create", "alice", "--tokens-per-day", "1000", "--requests-per-minute", "20")
    assert made.returncode == 0 and re.fullmatch(r"myllm-[A-Za-z0-9_-]{43}\n", made.stdout)
    assert myllm("keys", "create", "ops", "--scope", "manage", "--scope", "chat").returncode == 0
    DayUse(myllm.home / "data").add(today(), {"alice": 12})
    table = myllm("keys", "list").stdout.splitlines()
    assert re.split(r"\s\s+", table[1])[:2] == ["alice", "chat"] and table[1].split()[-4:] == ["20", "-", "1000", "12"]
    alice, ops = json.loads(myllm("keys", "list", "--json").stdout)
    assert (alice["name"], alice["tokens_today"], alice["tokens_per_day"]) == ("alice", 12, 1000)
    assert ops["scopes"] == ["chat", "manage"] and "sha256" not in ops
    assert "asks for none" not in myllm("keys", "revoke", "alice").stderr
    assert "asks for none" in myllm("keys", "revoke", "ops").stderr
    assert KeyFile(myllm.home / "data").read() == ()


def test_what_cant_be_is_one_line(myllm: Any) -> None:
    for arguments, code, said in (
        (["create", "a b"], 2, "can't be a key's name"),
        (["create", "a", "--scope", "root"], 2, "no scope root; known: chat, manage"),
        (["revoke", "a"], 3, "no key a"),
    ):
        done = myllm("keys", *arguments)
        assert (done.returncode, done.stdout) == (code, "") and said in done.stderr
        assert done.stderr.count("\n") == 1
    myllm("keys", "create", "a")
    assert myllm("keys", "create", "a").returncode == 2
    (myllm.home / "data/keys.json").write_text("{")
    assert myllm("keys", "list").returncode == 2
