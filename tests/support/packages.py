"""Building distributions, and environments to try them in."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import dataclass
from email.message import Message
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECTS = [ROOT, *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))]


def development(project: Path) -> str:
    """Who installs a plugin in a checkout: ``tests``, ``alone`` or empty; see the Makefile."""
    about = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
    return str(about.get("tool", {}).get("myllm", {}).get("development", ""))


@dataclass(frozen=True)
class Wheel:
    """A built wheel and the project it was built from."""

    path: Path
    project: Path

    @property
    def name(self) -> str:
        return self.path.name.split("-")[0]

    def files(self) -> list[str]:
        with zipfile.ZipFile(self.path) as archive:
            return archive.namelist()

    def read(self, name: str) -> str:
        """A file of the ``.dist-info`` folder."""
        with zipfile.ZipFile(self.path) as archive:
            (found,) = (member for member in archive.namelist() if member.endswith(f".dist-info/{name}"))
            return archive.read(found).decode()

    def metadata(self) -> Message:
        return Parser().parsestr(self.read("METADATA"))


def build(project: Path, into: Path) -> Wheel:
    """Build a source distribution, and the wheel from that: what an index would get."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(into), str(project)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    name = tomllib.loads((project / "pyproject.toml").read_text())["project"]["name"].replace("-", "_")
    (wheel,) = into.glob(f"{name}-*.whl")
    return Wheel(wheel, project)


@dataclass(frozen=True)
class Environment:
    """A virtual environment, and folders that it keeps its data in."""

    folder: Path
    home: Path

    def install(self, *what: str | Path) -> None:
        """Into this environment by the pip of ours. Local wheels are named by path, so no stranger's can come."""
        self._pip("install", "--no-warn-conflicts", *map(str, what))

    def uninstall(self, name: str) -> None:
        self._pip("uninstall", "--yes", name)

    def _pip(self, command: str, *arguments: str) -> None:
        pip = [sys.executable, "-m", "pip", "--python", str(self.folder), command, "--quiet", *arguments]
        done = subprocess.run(pip, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stdout + done.stderr

    def environ(self) -> dict[str, str]:
        data = {"MYLLM_DATA_DIR": str(self.home), "MYLLM_MODELS_DIR": str(self.home / "models")}
        config = {"MYLLM_CONFIG": str(self.home / "config.toml"), "HOME": str(self.home)}
        return {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "NO_COLOR": "1", **data, **config}

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        program = str(self.folder / "bin" / command[0])
        done = subprocess.run(
            [program, *command[1:]], env=self.environ(), cwd=self.home, capture_output=True, text=True, timeout=120,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0 or not check, f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done
