"""The server's memory stays small: its threads share one heap, and what connections leave is soon collected."""

import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from support.serve import Served, served

PROGRAM = """
import re, sys, threading
from pathlib import Path
if "one" in sys.argv:
    from myllm_server.allocator import share_one_heap
    share_one_heap()
ready, end = threading.Barrier(9), threading.Event()
def work():
    kept = [bytes(600) for _ in range(2000)]
    ready.wait()
    end.wait()
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads:
    thread.start()
ready.wait()
heap = "^[0-9a-f]+000000-[0-9a-f]+ rw-p 00000000 00:00 0 *\\n[0-9a-f]+-[0-9a-f]+000000 ---p"
heaps = re.findall(heap, Path("/proc/self/maps").read_text(), re.M)
end.set()
print(len(heaps))
"""


def heaps(*args):
    return int(
        subprocess.run([sys.executable, "-c", PROGRAM, *args], check=True, capture_output=True, text=True).stdout
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the GNU C library's allocator")
def test_threads_share_one_heap():
    assert heaps() > 0
    assert heaps("one") == 0


def test_what_connections_leave_is_soon_collected(home: Path, tmp_path: Path) -> None:
    with served(home, tmp_path) as server:
        process = psutil.Process(server.process.pid)
        refuse(server, 200)
        before = process.memory_info().rss
        refuse(server, 1500)
        grown = process.memory_info().rss - before
    assert grown < 4 * 2**20  # 12 MiB with the command line's thresholds, which put the collector off


def refuse(server: Served, times: int) -> None:
    for _ in range(times):
        with server.send_chat("x", wrong=1) as connection:
            connection.shutdown(socket.SHUT_WR)
            assert connection.makefile("rb").read().startswith(b"HTTP/1.1 422 ")
