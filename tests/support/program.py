"""``myllm serve`` as a process of its own."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest


@contextlib.contextmanager
def serving(myllm: Sequence[str | Path], env: Mapping[str, str], cwd: Path) -> Iterator[str]:
    """A server on a free port: its address. It is stopped, and waited for, at the end."""
    process = subprocess.Popen(
        [*map(str, myllm), "serve", "--port", "0"], env=dict(env), cwd=cwd, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout is not None
    with process, process.stdout as output:
        try:
            said: list[str] = []
            for line in output:
                said.append(line)
                if address := re.search(r"http://127\.0\.0\.1:\d+", line):
                    yield address[0]
                    break
            else:
                pytest.fail("the server said no address:\n" + "".join(said))
        finally:
            process.terminate()
            output.read()
