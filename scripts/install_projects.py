"""Install projects of this checkout into the environment that runs this, so that changes of theirs count at once.

First what they need from the package index, then themselves without a look at it: some of their names are other
people's there. pip's words, pages of them, go to a log; a line here says how far it is.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

BUILD = ["editables>=0.5", "hatchling>=1.27"]  # the projects' build system, once instead of anew for each
OURS = re.compile(r"myllm\b")
TELLING = re.compile(r"\s*((?:Collecting|Downloading|Building) .*)")
UNPACKING = re.compile(r"Installing collected packages: (.*)")
SILENCE = 20  # seconds between two lines where there is no terminal
TAIL = 40


def requirements(project: Path) -> list[str]:
    """What a project needs of other people."""
    about = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [one for one in about.get("dependencies", []) if not OURS.match(one)]


class Teller:
    """Says what pip does: on a terminal in one line that changes, elsewhere in a line now and then."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._told = time.monotonic()

    def tell(self, text: str, at_once: bool = False) -> None:
        """Take another thing that pip does."""
        if self._terminal:
            print("\r\x1b[K  " + text[: os.get_terminal_size().columns - 3], end="", flush=True)
        elif at_once or time.monotonic() - self._told > SILENCE:
            self._told = time.monotonic()
            print("  " + text, flush=True)

    def end(self) -> None:
        """Wipe the line that changes."""
        if self._terminal:
            print(end="\r\x1b[K", flush=True)


def pip_install(log: Path, *arguments: str) -> None:
    """Run pip. Exits with the end of what it said when it fails."""
    command = [sys.executable, "-u", "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off"]
    said: list[str] = []
    teller = Teller()
    with (
        log.open("a", encoding="utf-8") as kept,
        subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip,
    ):
        assert pip.stdout is not None
        for line in pip.stdout:
            kept.write(line)
            said.append(line)
            if found := UNPACKING.match(line):
                teller.tell(f"Unpacking {len(found[1].split(', '))} packages", at_once=True)
            elif found := TELLING.match(line):
                teller.tell(found[1])
    teller.end()
    if pip.returncode:
        sys.exit("".join(said[-TAIL:]) + f"pip failed (exit code {pip.returncode}); all that it said is in {log}")


def main() -> None:
    """Install what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("projects", nargs="+", type=Path)
    parser.add_argument("--group", help="a dependency group of the first project")
    parser.add_argument("--pip", action="append", default=[], help="an argument for pip, for what they need")
    given = parser.parse_args()
    log = Path(sys.prefix, "install.log")
    began = time.monotonic()
    print(f"Installing into {os.path.relpath(sys.prefix)}; what pip says is in {os.path.relpath(log)}", flush=True)
    needed = {one: None for project in given.projects for one in requirements(project)}
    groups = ["--group", f"{given.projects[0] / 'pyproject.toml'}:{given.group}"] if given.group else []
    pip_install(log, *given.pip, *groups, *BUILD, *needed)
    editable = [word for project in given.projects for word in ("-e", str(project))]
    pip_install(log, "--no-deps", "--no-build-isolation", *editable)
    print(f"Installed in {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
