"""Wheels of every distribution, and one environment that holds nothing but them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from support.packages import PROJECTS, Environment, Wheel, build


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Wheel]:
    """A wheel of every distribution, by its name with underscores."""
    into = tmp_path_factory.mktemp("dist")
    built = [build(project, into) for project in PROJECTS]
    return {wheel.name: wheel for wheel in built}


@pytest.fixture(scope="session")
def environment(wheels: dict[str, Wheel], tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """All wheels in an environment without anything else.

    llama-cpp-python is left out, since it may have to be compiled: its plugin must bear that.
    """
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True, timeout=60)
    (folder / "home").mkdir()
    environment = Environment(folder / "venv", folder / "home")
    environment.install(*(wheel.path for name, wheel in wheels.items() if name != "myllm_llamacpp"))
    environment.install("--no-deps", wheels["myllm_llamacpp"].path)
    return environment


@pytest.fixture(params=PROJECTS, ids=lambda project: project.name)
def wheel(request: pytest.FixtureRequest, wheels: dict[str, Wheel]) -> Wheel:
    """Each wheel in turn."""
    (found,) = (wheel for wheel in wheels.values() if wheel.project == request.param)
    return found
