"""A home folder with the real model pulled into it, and `myllm serve` as a person starts it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

MYLLM = [sys.executable, "-m", "myllm_cli"]


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """Environment of a user with an empty home, who has pulled smollm2 as the manual says."""
    folder = tmp_path_factory.mktemp("home")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MYLLM_", "XDG_", "HF_"))}
    # The hub is out of reach on purpose: the first run must work all the same.
    environment |= {"HOME": str(folder), "HF_ENDPOINT": "http://127.0.0.1:9", "NO_COLOR": "1"}
    environment |= {"PIP_CACHE_DIR": subprocess.run(
        [sys.executable, "-m", "pip", "cache", "dir"], capture_output=True, text=True, check=True
    ).stdout.strip()}  # fmt: skip
    subprocess.run([*MYLLM, "pull", "smollm2"], env=environment, check=True, timeout=300, stderr=subprocess.PIPE)
    return environment


@pytest.fixture(scope="session")
def myllm(home):
    """Runs `myllm …` and gives back the finished process."""

    def run(*arguments, input=None, timeout=100):
        return subprocess.run(
            [*MYLLM, *arguments], env=home, input=input, capture_output=True, text=True, timeout=timeout
        )

    return run


@contextmanager
def serving(environment):
    """A server on a free port; gives its URL and its process, and stops it gracefully."""
    command = [*MYLLM, "serve", "--port", "0"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        try:
            url = re.search(r"http://\S+", server.stdout.readline())[0]
            yield url, server
        finally:
            server.send_signal(signal.SIGTERM)
            assert server.wait(30) == 0


@pytest.fixture(scope="module")
def server(home):
    with serving(home) as (url, _):
        yield url
