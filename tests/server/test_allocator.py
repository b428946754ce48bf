"""Threads of the server share one heap, so that memory that one of them gave back serves the others."""

import subprocess
import sys

import pytest

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
