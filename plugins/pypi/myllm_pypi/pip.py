"""Running pip as a child process and understanding what it says.

pip has no Python API; its command line is the supported way in (https://pip.pypa.io/en/stable/user_guide/#using-pip-from-your-program).
Its messages are English whatever the locale.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

from myllm_core.errors import IntegrityError, MyllmError, NetworkError, NotFound, PluginError, StorageError

_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")
_KEPT_LINES = 200
_NOISE = ("Found link", "Skipping link", "Looking up", "No cache entry")
_UNREACHABLE = re.compile(
    r"connection broken by|connection error|Max retries exceeded|timed out|TimeoutError|ConnectionError"
    r"|ConnectionReset|IncompleteRead|ProtocolError|SSLError|CERTIFICATE_VERIFY|confirming the ssl|5\d\d Server Error",
    re.I,
)
_LOGIN = re.compile(r"User for |40[137] Client Error")


def download(requirement: str, folder: Path, say: Callable[[str], None]) -> Path:
    """Download the wheel of ``distribution==version`` into ``folder``, which pip's temporary files go to as well.

    Returns the wheel's path. ``say`` is told how far it is. Interrupting ends pip too. Raises what
    ``PyPIDownloader.fetch`` raises.
    """
    if not sys.executable or importlib.util.find_spec("pip") is None:
        raise PluginError(
            "there is no pip in this Python environment, and pypi: references need it; run: python -m ensurepip"
        )
    target = folder / "wheel"
    # -P keeps the current folder off sys.path: a pip.py lying there must not be run. -vv because pip says only there
    # that an index can't be reached. There is no --no-input since it would switch pip's keyring off.
    command = [sys.executable, "-P", "-m", "pip", "download", "-vv", "--disable-pip-version-check"]
    command += ["--progress-bar", "raw", "--no-deps", "--only-binary", ":all:", "--dest", str(target), requirement]
    say(f"asking pip for {requirement}")
    status, lines = _run(command, folder, lambda progress: say(f"pip downloads {requirement}: {progress}"))
    wheels = list(target.glob("*.whl"))
    if status != 0 or len(wheels) != 1:
        raise failure(requirement, lines)
    return wheels[0]


def _run(command: list[str], folder: Path, progress: Callable[[str], None]) -> tuple[int, list[str]]:
    """Run pip to its end and return its exit status and what it said last."""
    told = ""
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder)) | {"PYTHONIOENCODING": "utf-8"}
    lines: deque[str] = deque(maxlen=_KEPT_LINES)
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,  # an index that wants a password fails instead of waiting for one
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,  # Ctrl+C reaches us alone; we end pip, so it prints no traceback of its own
    ) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if match := _PROGRESS.fullmatch(line.strip()):
                    if told != (told := _megabytes(int(match[1]), int(match[2]))):
                        progress(told)
                elif line.strip() and not line.strip().startswith(_NOISE):
                    lines.append(line.strip())
            return process.wait(), list(lines)
        except BaseException:
            process.kill()
            raise


def _megabytes(done: int, total: int) -> str:
    return f"{done / 1e6:.0f} of {total / 1e6:.0f} MB" if total else f"{done / 1e6:.0f} MB"


def failure(requirement: str, lines: list[str]) -> MyllmError:
    """The error behind pip's output, by the messages that pip has had for years."""
    text = "\n".join(lines)
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    reason = _shorten(errors[-1] if errors else lines[-1] if lines else "it said nothing")
    if "No space left on device" in text or "Disk quota exceeded" in text:
        return StorageError(f"the disk is full while pip downloads {requirement}; make room and pull again")
    if "DO NOT MATCH THE HASHES" in text or "has invalid wheel" in text:
        return IntegrityError(f"pip refuses the wheel of {requirement}: its hash isn't the index's; pull again later")
    if _LOGIN.search(text):
        return NetworkError(
            f"the package index wants a login for {requirement}; give pip one: a keyring, .netrc, or in the index's URL"
        )
    if sign := next((line for line in lines if _UNREACHABLE.search(line)), ""):
        return NetworkError(
            f"pip can't reach the package index for {requirement}; check the connection and: pip config list "
            f"(pip says: {_shorten(sign)})"
        )
    if "No matching distribution found" in text:
        return _no_such_wheel(requirement, text)
    return NetworkError(f"pip could not download {requirement}: {reason}")


def _no_such_wheel(requirement: str, text: str) -> NotFound:
    match = re.search(r"\(from versions: ([^)]*)\)", text)
    versions = [] if match is None or match[1] == "none" else match[1].split(", ")
    distribution = requirement.partition("==")[0]
    if not versions:
        return NotFound(
            f"the package index has no wheel of {distribution} for this Python; check the name, and: pip config list"
        )
    return NotFound(f"there is no wheel of {requirement}; the index has: {_shorten(', '.join(versions[-10:]))}")


def _shorten(text: str) -> str:
    return text if len(text) <= 300 else text[:299] + "…"
