"""Every distribution builds, holds what it should, and works where nothing else is installed."""

from __future__ import annotations

import configparser
import json
import re

from support.packages import Environment, Wheel, development

HEAVY = {"torch", "transformers", "llama-cpp-python", "huggingface-hub", "numpy", "onnxruntime", "ctransformers", "ray"}


def packages(wheel: Wheel) -> set[str]:
    return {name.split("/")[0] for name in wheel.files() if ".dist-info/" not in name}


def entry_points(wheel: Wheel) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(delimiters=("=",))
    parser.read_string(wheel.read("entry_points.txt"))
    return parser


def test_a_wheel_holds_its_packages_and_nothing_that_runs_by_itself(wheel: Wheel) -> None:
    is_core = wheel.name == "myllm"
    assert packages(wheel) == ({"myllm_core", "myllm_cli", "myllm_server"} if is_core else {wheel.name})
    odd = [
        name
        for name in wheel.files()
        if re.search(r"\.pth$|\.pyc$|(^|/)(tests?/|test_|conftest\.py|sitecustomize)", name)
    ]
    assert odd == []
    assert ".data/" not in "".join(wheel.files())


def test_a_wheel_is_typed_and_carries_its_licence(wheel: Wheel) -> None:
    for package in packages(wheel):
        assert f"{package}/py.typed" in wheel.files()
    assert wheel.metadata()["License-Expression"] == "MIT"
    assert "Permission is hereby granted, free of charge" in wheel.read("licenses/LICENSE")
    assert wheel.metadata()["Requires-Python"] == ">=3.11"
    assert str(wheel.metadata().get_payload()).strip(), "the README is the description"


def test_the_wheels_point_at_what_they_offer(wheels: dict[str, Wheel]) -> None:
    assert dict(entry_points(wheels["myllm"])["console_scripts"]) == {"myllm": "myllm_cli.main:main"}
    for name, wheel in wheels.items():
        if name != "myllm":
            short = name.removeprefix("myllm_")
            assert dict(entry_points(wheel)["myllm"]) == {short: name}


def test_the_base_is_light_and_the_extras_pull_the_plugins(wheels: dict[str, Wheel]) -> None:
    requires = wheels["myllm"].metadata().get_all("Requires-Dist") or []
    base = {re.split(r"[^\w.-]", text)[0].lower() for text in requires if "extra ==" not in text}
    assert base & HEAVY == set()
    plugins = {name.replace("_", "-") for name in wheels if name != "myllm"}
    everything = {re.split(r"[^\w.-]", text)[0] for text in requires if "extra == 'all'" in text}
    assert everything == {name for name in plugins if development(wheels[name.replace("-", "_")].project) != "alone"}
    for plugin in plugins:
        extra = plugin.removeprefix("myllm-")
        assert any(text.startswith(plugin) and f"extra == '{extra}'" in text for text in requires)


def test_a_plugin_depends_on_this_contract_only(wheels: dict[str, Wheel]) -> None:
    for name, wheel in wheels.items():
        if name != "myllm":
            requires = wheel.metadata().get_all("Requires-Dist") or []
            (core,) = (text for text in requires if re.match(r"myllm\b(?!-)", text))
            assert core.replace(" ", "") in ("myllm<1,>=0.1", "myllm>=0.1,<1")


def test_the_program_runs_where_nothing_else_is_installed(environment: Environment, wheels: dict[str, Wheel]) -> None:
    version = wheels["myllm"].metadata()["Version"]
    assert version in environment.run("myllm", "--version").stdout
    assert "run" in environment.run("myllm", "--help").stdout
    assert environment.run("myllm", "list").returncode == 0
    where = environment.run("python", "-c", "import myllm_core; print(myllm_core.__file__)").stdout
    assert where.startswith(str(environment.folder))


def test_the_plugins_are_found_and_what_one_lacks_is_told(environment: Environment) -> None:
    done = environment.run("myllm", "plugins", "--json")
    found = {plugin["name"]: plugin for plugin in json.loads(done.stdout)}
    assert {"builtin", "llamacpp", "huggingface", "pypi"} <= found.keys()
    text = environment.run("myllm", "plugins")
    assert "llama-cpp-python" in text.stdout + text.stderr
    assert "Traceback" not in text.stdout + text.stderr


def test_the_installed_packages_fit_together(environment: Environment) -> None:
    code = "import importlib.metadata as m; print(sorted(d.name for d in m.distributions()))"
    installed = environment.run("python", "-c", code).stdout
    assert "'myllm'" in installed and "'myllm-pypi'" in installed
    for unwanted in ("torch", "numpy", "pytest"):
        assert f"'{unwanted}'" not in installed


def test_a_new_plugin_can_be_written_by_an_installed_myllm(environment: Environment) -> None:
    environment.run("myllm", "plugins", "new", "mine", "--dir", str(environment.home / "mine"))
    assert (environment.home / "mine" / "myllm_mine" / "engine.py").exists()


def test_a_check_says_how_to_get_pytest(environment: Environment) -> None:
    done = environment.run("myllm", "plugins", "check", "builtin", check=False)
    assert done.returncode == 1
    assert 'pip install "myllm[test]"' in done.stderr
    assert len(done.stderr.splitlines()) == 1
