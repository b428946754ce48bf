"""Who owns an unfinished file, and what becomes of it. Row G11 of the threats."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from myllm_core.transfer.partial import Partial, bytes_kept, partial_key, sweep
from myllm_core.transfer.sink import check_space, size_text

KEY = partial_key("m:latest", "odd:x", "m.gguf")


def write(partial: Partial, data: bytes = b"bytes") -> None:
    partial.data.write_bytes(data)
    partial.state.synced = len(data)
    partial.save()


def test_what_is_released_is_found_again(tmp_path: Path) -> None:
    first = Partial.claim(tmp_path, KEY)
    write(first)
    first.release()
    second = Partial.claim(tmp_path, KEY)
    assert second.data.read_bytes() == b"bytes"
    assert second.state.synced == 5
    assert Partial.claim(tmp_path, partial_key("m:latest", "odd:y", "m.gguf")).state.synced == 0


def test_two_owners_never_share_one(tmp_path: Path) -> None:
    first, second = Partial.claim(tmp_path, KEY), Partial.claim(tmp_path, KEY)
    assert first.folder != second.folder
    write(first, b"first")
    write(second, b"second")
    second.release()
    first.release()  # the place is taken
    assert Partial.claim(tmp_path, KEY).data.read_bytes() == b"second"
    assert len(list(tmp_path.iterdir())) == 1


def test_what_a_dead_process_left_is_taken_over(tmp_path: Path) -> None:
    code = f"""
import os
from pathlib import Path
from myllm_core.transfer.partial import Partial
partial = Partial.claim(Path({str(tmp_path)!r}), {KEY!r})
partial.data.write_bytes(b"left")
partial.state.synced = 4
partial.save()
os._exit(1)
"""
    subprocess.run([sys.executable, "-c", code], timeout=30)
    assert bytes_kept(tmp_path, KEY) == 4
    assert Partial.claim(tmp_path, KEY).data.read_bytes() == b"left"


def test_a_process_of_another_machine_is_trusted_to_live_for_ten_minutes(tmp_path: Path) -> None:
    foreign = tmp_path / f"{KEY}~0badcafe~1~1~abcd"
    foreign.mkdir()
    (foreign / "data.part").write_bytes(b"theirs")
    assert not Partial.claim(tmp_path, KEY).data.exists()
    os.utime(foreign, (0, time.time() - 700))
    assert Partial.claim(tmp_path, KEY).data.read_bytes() == b"theirs"


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"size": 1}', '{"revision": 5}', "\xff", "[" * 100_000])
def test_a_state_that_cannot_be_read_counts_for_nothing(tmp_path: Path, text: str) -> None:
    partial = Partial.claim(tmp_path, KEY)
    write(partial)
    (partial.folder / "state.json").write_text(text, "latin-1")
    partial.release()
    assert Partial.claim(tmp_path, KEY).state.synced == 0


@pytest.mark.parametrize("change", [{"synced": -5}, {"size": "5"}, {"validator": "a\r\nX: y"}, {"sha256": None}])
def test_a_state_with_wrong_values_counts_for_nothing(tmp_path: Path, change: dict[str, object]) -> None:
    partial = Partial.claim(tmp_path, KEY)
    write(partial)
    file = partial.folder / "state.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    partial.release()
    assert Partial.claim(tmp_path, KEY).state.synced == 0


def test_sweeping(tmp_path: Path) -> None:
    keys = {name: partial_key(name, "odd:x", "m.gguf") for name in ("done:latest", "other:latest", "old:latest")}
    for key in keys.values():
        partial = Partial.claim(tmp_path, key)
        write(partial)
        partial.release()
    live = Partial.claim(tmp_path, partial_key("done:latest", "odd:y", "m.gguf"))
    os.utime(tmp_path / keys["old:latest"], (0, time.time() - 15 * 24 * 3600))
    sweep(tmp_path, "done:latest")
    assert {path.name for path in tmp_path.iterdir()} == {keys["other:latest"], live.folder.name}
    sweep(tmp_path / "missing", "done:latest")


def test_sizes_for_people() -> None:
    sizes = [size_text(n) for n in (0, 999, 1000, 97_900_000, 999_600_000, 1_500_000_000, 5 * 10**15)]
    assert sizes == ["0 bytes", "999 bytes", "1.0 kB", "97.9 MB", "1.0 GB", "1.5 GB", "5000 TB"]


def test_space_is_checked_with_both_numbers(tmp_path: Path) -> None:
    check_space(tmp_path, 1, "x")
    with pytest.raises(Exception, match="1000000 TB more are needed"):
        check_space(tmp_path, 10**18, "x")
