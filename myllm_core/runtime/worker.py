"""The worker process: loads one model and serves it. Started as ``python -m myllm_core.runtime.worker``.

Commands come in on standard input and events go out on standard output, as frames (see ``wire``). Both are
moved to private descriptors first, so that what native code or a plugin prints can't get between them: it goes
to standard error, which the parent keeps as a log.
The worker ends when its parent does: standard input closes, and the parent's process id changes.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from importlib import import_module
from importlib.metadata import EntryPoint
from typing import Any, BinaryIO, NoReturn

from myllm_core.runtime.wire import frame, pack_facts, read_command, read_frame, unpack_model

_PARENT_POLL = 2.0
_SWITCH_INTERVAL = 0.0005  # the engine's thread waits no longer for the one that prepares prompts


def _private_streams() -> tuple[BinaryIO, BinaryIO]:
    commands = os.fdopen(os.dup(0), "rb", buffering=2**16)
    events = os.fdopen(os.dup(1), "wb", buffering=0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return commands, events


def _ask_kernel_to_end_us() -> None:
    """Linux kills this process when the thread that started it ends; elsewhere the poll below has to do."""
    if sys.platform != "linux":
        return
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0)


def _offer_to_oom_killer() -> None:
    """When Linux runs out of memory it shall end a worker, which is started again, not the server."""
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("500")


def _die_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_PARENT_POLL)
    os._exit(1)


def _load(order: dict[str, Any], emit: Any) -> Any:
    from myllm_core.discovery import Plugin
    from myllm_core.plugins import Plugins

    point = EntryPoint(*order["plugin"])
    plugins = Plugins([Plugin(point)], [], lambda text: print(text, file=sys.stderr))
    engine = plugins.engine(order["engine"])
    last = [-1.0]

    def progress(fraction: float) -> None:
        if fraction >= 1.0 or fraction - last[0] >= 0.01:
            last[0] = fraction
            emit([[0, "p", "load", fraction, ""]])

    # what runs the engine is imported while native code, which needs no GIL, reads the weights
    threading.Thread(target=import_module, args=("myllm_core.runtime.hosts",), daemon=True, name="import").start()
    made = engine.load(unpack_model(order["model"]), order["options"], progress)
    from myllm_core.runtime.failures import checked

    return checked(made, order["engine"])


def main() -> None:
    """Serve one model until told to close, or until the parent is gone."""
    # Ctrl+C reaches the whole group, and a service manager's stop every process of a service: the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _offer_to_oom_killer()
    sys.setswitchinterval(_SWITCH_INTERVAL)
    commands, events = _private_streams()
    lock = threading.Lock()

    def emit(batch: list[list[Any]]) -> None:
        data = memoryview(frame(batch))
        try:
            with lock:
                while data:
                    data = data[events.write(data) :]
        except (BrokenPipeError, OSError):
            os._exit(1)

    order = read_frame(commands)
    _ask_kernel_to_end_us()
    threading.Thread(target=_die_with_parent, args=(order["parent"],), daemon=True, name="parent").start()
    try:
        engine = _load(order, emit)
        from myllm_core.runtime.hosts import host_for

        facts = pack_facts(engine.facts)
        manifest = order["model"]["manifest"]
        host = host_for(engine, emit, f"{manifest['name']} {manifest['family']}")
    except Exception as error:  # noqa: BLE001 - a stranger's engine may raise anything
        from myllm_core.runtime.failures import as_error

        failure = as_error(error, "loading the model")
        emit([[0, "failed", failure.to_dict()]])
        _leave(1)
    emit([[0, "ready", {**facts, "max_sequences": getattr(engine, "max_sequences", engine.max_concurrency)}]])

    def read() -> None:
        try:
            while True:
                host.post(read_command(commands))
        except (EOFError, OSError):
            os._exit(0)

    threading.Thread(target=read, daemon=True, name="commands").start()
    gc.collect()
    gc.freeze()  # what loading made stays: no collection has to walk it between two tokens
    try:
        host.run()
        emit([[0, "closed"]])
    except Exception:  # noqa: BLE001 - a stranger's engine may raise anything
        traceback.print_exc()
        _leave(1)
    _leave(0)


def _leave(code: int) -> NoReturn:
    """End at once: no thread of a plugin or of native code can keep the process alive."""
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
