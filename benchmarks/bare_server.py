"""The least that a streamed token can cost: a process that only hands on what another one says.

Started by ``bench_http.py``. Its child says a line for each token, every few milliseconds for each stream, as a worker
does; this process reads the lines from a pipe and writes a frame to the stream's socket, on the event loop that
uvicorn takes. No HTTP, no JSON, no myllm: what remains is the kernel's and the loop's.
"""

from __future__ import annotations

import asyncio
import sys

import uvloop

PACE = 0.004
FRAME = b'data: {"choices":[{"delta":{"content":"word"}}]}'.ljust(200) + b"\n\n"


async def speak(streams: int, words: int) -> None:
    """Say the number of a stream for each of its tokens."""

    async def stream(number: int) -> None:
        for _ in range(words):
            await asyncio.sleep(PACE)
            sys.stdout.buffer.write(b"%d\n" % number)
            sys.stdout.buffer.flush()

    await asyncio.gather(*(stream(number) for number in range(streams)))


async def serve() -> None:
    """Read a line ``STREAMS WORDS`` from each connection; stream to all when there are so many."""
    writers: list[asyncio.StreamWriter] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        streams, words = map(int, (await reader.readline()).split())
        writers.append(writer)
        if len(writers) == streams:
            await hand_on(streams, words)

    async def hand_on(streams: int, words: int) -> None:
        command = (sys.executable, __file__, "speak", str(streams), str(words))
        speaker = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        assert speaker.stdout is not None
        while said := await speaker.stdout.read(65536):
            for line in said.split():
                writers[int(line)].write(FRAME)
        await speaker.wait()
        for writer in writers:
            writer.close()
        writers.clear()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    print(f"listening on port:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    role, *sizes = sys.argv[1:]
    uvloop.run(speak(*map(int, sizes)) if role == "speak" else serve())
