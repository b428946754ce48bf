"""The file of API keys: hashes only, for its owner only, whole whoever writes it."""

from __future__ import annotations

import json
import multiprocessing
import stat
from pathlib import Path

import pytest

from myllm_core.errors import ConfigError, InvalidRequest, NotFound, StorageError
from myllm_core.keys import DayUse, KeyFile, hash_key


def test_a_key_is_shown_once_and_kept_as_a_hash(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "data")
    assert file.read() == () and file.stamp() is None
    secret = file.create("alice", tokens_per_day=5)
    (key,) = file.read()
    assert len(secret) > 40 and key.sha256 == hash_key(secret.encode())
    assert (key.name, key.scopes, key.tokens_per_day) == ("alice", ("chat",), 5)
    assert secret not in file.path.read_text() and key.sha256 not in repr(key)
    assert secret != KeyFile(tmp_path).create("alice")


def test_the_file_is_for_its_owner_only(tmp_path: Path) -> None:
    file = KeyFile(tmp_path)
    file.create("a")
    file.path.chmod(0o644)
    file.create("b")
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600


def test_changes_show(tmp_path: Path) -> None:
    file = KeyFile(tmp_path)
    stamps = [file.stamp()]
    file.create("a")
    stamps.append(file.stamp())
    file.create("b", ["chat", "manage"])
    stamps.append(file.stamp())
    assert [key.name for key in file.revoke("a")] == ["b"]
    stamps.append(file.stamp())
    assert len(set(stamps)) == 4


@pytest.mark.parametrize("name", ["", "a b", "a.b", "../a", "ä", "-a", "_a", "a" * 33, "a\n", "a/b"])
def test_names_that_cant_be(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidRequest, match="can't be a key's name"):
        KeyFile(tmp_path).create(name)
    assert KeyFile(tmp_path).read() == ()


def test_a_name_is_taken_until_it_is_revoked(tmp_path: Path) -> None:
    file = KeyFile(tmp_path)
    first = file.create("a")
    with pytest.raises(InvalidRequest, match="already"):
        file.create("a")
    file.revoke("a")
    with pytest.raises(NotFound, match="no key a"):
        file.revoke("a")
    assert file.create("a") != first


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"version": 2, "keys": []}', '{"version": 1, "keys": [{"name": "a", "power": 9}]}',
     '{"version": 1, "keys": [{"name": "a", "sha256": "plain"}]}', '{"version": 1, "keys": [{"name": "a.b"}]}'],
)  # fmt: skip
def test_a_damaged_file_is_an_error_and_stays(tmp_path: Path, text: str) -> None:
    file = KeyFile(tmp_path)
    file.path.write_text(text)
    for use in (file.read, lambda: file.create("b"), lambda: file.revoke("b")):
        with pytest.raises(ConfigError, match="keys.json can't be used"):
            use()
    assert file.path.read_text() == text


def test_a_folder_that_cant_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="keys.json"):
        KeyFile(tmp_path / "file" / "data").create("a")
    (tmp_path / "keys.json").mkdir()
    with pytest.raises(StorageError, match="keys.json"):
        KeyFile(tmp_path).read()


def _make(folder: Path, start: int) -> None:
    for number in range(start, start + 5):
        KeyFile(folder).create(f"k{number}")
        DayUse(folder).add("2026-01-01", {"all": 1, f"k{number}": 2})


def test_processes_lose_nothing_of_each_others(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_make, args=(tmp_path, start)) for start in (0, 5, 10)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert {key.name for key in KeyFile(tmp_path).read()} == {f"k{number}" for number in range(15)}
    assert DayUse(tmp_path).read("2026-01-01") == {"all": 15} | {f"k{number}": 2 for number in range(15)}


def test_the_use_of_another_day_counts_no_more(tmp_path: Path) -> None:
    use = DayUse(tmp_path)
    assert use.add("2026-01-01", {"a": 3}) == {"a": 3}
    assert use.add("2026-01-01", {"a": 4, "b": 1}) == {"a": 7, "b": 1}
    assert use.read("2026-01-02") == {}
    assert use.add("2026-01-02", {"b": 1}) == {"b": 1}
    assert stat.S_IMODE(use.path.stat().st_mode) == 0o600


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"day": "2026-01-01", "tokens": []}', '{"day": "2026-01-01"}'])
def test_a_damaged_use_is_none(tmp_path: Path, text: str) -> None:
    use = DayUse(tmp_path)
    use.path.write_text(text)
    assert use.read("2026-01-01") == {}
    assert json.loads(json.dumps(use.add("2026-01-01", {"a": 1}))) == {"a": 1}
