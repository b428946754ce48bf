"""``explain`` and ``set``: the engine of a model, told and chosen."""

from __future__ import annotations

import json

from .conftest import Myllm


def test_explain_says_which_engine_runs_a_model(with_echo: Myllm) -> None:
    done = with_echo("explain", "echo")
    assert done.returncode == 0, done.stderr
    assert "engine" in done.stdout and "only engine here that can run it" in done.stdout
    [chosen] = [line for line in done.stdout.splitlines() if line.startswith("*")]
    assert chosen.split()[1:3] == ["echo", "100"] and "made for this format" in chosen
    assert any("llamacpp" in line and "gguf" in line for line in done.stdout.splitlines())


def test_explain_as_json(with_echo: Myllm) -> None:
    found = json.loads(with_echo("explain", "echo", "--json").stdout)
    assert set(found) == {"model", "format", "engine", "why", "preferred", "free_memory", "engines", "broken"}
    assert found["engine"] == "echo" and found["engines"][0]["memory"] == 2**20


def test_a_model_that_isnt_there_is_not_explained(with_echo: Myllm) -> None:
    done = with_echo("explain", "nobody")
    assert (done.returncode, done.stdout) == (3, "") and "myllm pull" in done.stderr


def test_set_makes_a_model_prefer_an_engine(with_echo: Myllm) -> None:
    assert with_echo("set", "echo", "--engine", "echo").stdout == "echo:latest prefers the engine echo.\n"
    assert json.loads(with_echo("show", "echo", "--json").stdout)["engine"] == "echo"
    assert "prefers" in with_echo("explain", "echo").stdout
    assert with_echo("run", "echo", "still here").stdout == "still here\n"
    assert "best engine" in with_echo("set", "echo", "--engine", "auto").stdout
    assert json.loads(with_echo("show", "echo", "--json").stdout)["engine"] == ""


def test_an_engine_that_cannot_run_it_is_not_preferred(with_echo: Myllm) -> None:
    for engine, said in (("llamacpp", "can't load echo models"), ("nobody", "no engine named nobody")):
        done = with_echo("set", "echo", "--engine", engine)
        assert done.returncode == 7 and said in done.stderr
    assert json.loads(with_echo("show", "echo", "--json").stdout)["engine"] == ""


def test_verbose_and_stats_name_the_engine(with_echo: Myllm) -> None:
    assert "engine echo" in with_echo("--verbose", "run", "echo", "hi").stderr
    assert "engine echo" in with_echo("run", "echo", "hi", "--stats", "--engine", "echo").stderr
