"""Wheels of every distribution, and one environment that holds nothing but them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from support.packages import PROJECTS, Environment, Wheel, build, development


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Wheel]:
    """A wheel of every distribution, by its name with underscores."""
    into = tmp_path_factory.mktemp("dist")
    built = [build(project, into) for project in PROJECTS]
    return {wheel.name: wheel for wheel in built}


@pytest.fixture(scope="session")
def environment(wheels: dict[str, Wheel], tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """All wheels in an environment without anything else.

    What large plugins need is left out, and llama-cpp-python, which may have to be compiled: they must bear that.
    """
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True, timeout=280)
    (folder / "home").mkdir()
    environment = Environment(folder / "venv", folder / "home")
    bare = [wheel for name, wheel in wheels.items() if name == "myllm_llamacpp" or development(wheel.project)]
    environment.install(*(wheel.path for wheel in wheels.values() if wheel not in bare))
    environment.install("--no-deps", *(wheel.path for wheel in bare))
    return environment


@pytest.fixture(params=PROJECTS, ids=lambda project: project.name)
def wheel(request: pytest.FixtureRequest, wheels: dict[str, Wheel]) -> Wheel:
    """Each wheel in turn."""
    (found,) = (wheel for wheel in wheels.values() if wheel.project == request.param)
    return found
