"""Plugins of other people: written outside this repository, built, installed, used. Nothing here knows them."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import threading
import urllib.request
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from support.gguf import small_gguf
from support.packages import ROOT, Environment, build
from support.program import serving


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def parrot(environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugin that docs/PLUGINS.md writes, built from the page's own text and installed."""
    folder = tmp_path_factory.mktemp("parrot")
    page = (ROOT / "docs" / "PLUGINS.md").read_text(encoding="utf-8")
    files = re.findall(r"`([\w/.]+)`:\n\n```\w+\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert [name for name, _ in files] == ["pyproject.toml", "myllm_parrot/__init__.py"]
    for name, text in files:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    environment.install("--no-deps", build(folder, folder / "dist").path)
    return folder


@pytest.fixture(scope="module")
def echo(environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example with one of everything, from a copy outside the repository."""
    folder = tmp_path_factory.mktemp("echo") / "myllm-echo"
    shutil.copytree(ROOT / "docs" / "examples" / "myllm-echo", folder)
    environment.install("--no-deps", build(folder, folder / "dist").path)
    return folder


@pytest.fixture(scope="module")
def one_of_each(environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The examples of one kind each, from copies outside the repository, all installed in one call."""
    folder = tmp_path_factory.mktemp("examples")
    names = ["mirror", "jsonfiles", "team", "disk"]
    wheels = []
    for name in names:
        shutil.copytree(ROOT / "docs" / "examples" / f"myllm-{name}", folder / name)
        wheels.append(build(folder / name, folder / name / "dist").path)
    environment.install("--no-deps", *wheels)
    return names


def serve(environment: Environment, **settings: str) -> contextlib.AbstractContextManager[str]:
    return serving([environment.folder / "bin" / "myllm"], environment.environ() | settings, environment.home)


def post(address: str, body: dict[str, object]) -> dict[str, object]:
    data = json.dumps(body | {"stream": False}).encode()
    request = urllib.request.Request(f"{address}/api/chat", data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return dict(json.load(answer))


def test_the_engine_of_the_page_is_short(parrot: Path) -> None:
    text = (parrot / "myllm_parrot" / "__init__.py").read_text()
    engine = re.search(r"^class ParrotEngine.*?(?=^class )", text, re.MULTILINE | re.DOTALL)
    assert engine and len(engine[0].splitlines()) < 60


def test_the_plugin_of_the_page_is_used_by_the_command_line(environment: Environment, parrot: Path) -> None:
    plugins = {plugin["name"]: plugin for plugin in json.loads(environment.run("myllm", "plugins", "--json").stdout)}
    assert plugins["parrot"]["status"] == "ok"
    environment.run("myllm", "pull", "polly")
    assert "polly" in environment.run("myllm", "list").stdout
    assert environment.run("myllm", "run", "polly", "Hello  there, bird").stdout.rstrip("\n") == "Hello  there, bird"
    environment.run("myllm", "pull", "parrot:jacko")
    assert environment.run("myllm", "run", "jacko", "hi").stdout.rstrip("\n") == "hi"


def test_the_plugin_of_the_page_is_used_by_the_server(environment: Environment, parrot: Path) -> None:
    environment.run("myllm", "pull", "polly")
    with serve(environment) as address:
        answer = post(address, {"model": "polly", "messages": [{"role": "user", "content": "one two"}]})
    assert answer["message"] == {"role": "assistant", "content": "one two"}
    assert answer["usage"]["completion_tokens"] == 2  # type: ignore[index]


def test_a_command_and_a_catalogue_name_of_a_plugin_are_there(environment: Environment, echo: Path) -> None:
    assert re.search(r"^ +shout\b", environment.run("myllm", "--help").stdout, re.MULTILINE)
    assert environment.run("myllm", "shout", "hello").stdout == "HELLO\n"
    assert re.search(r"^echo\b", environment.run("myllm", "pull", "--list").stdout, re.MULTILINE)


def test_a_session_store_and_a_route_of_a_plugin_are_used_by_the_server(
    environment: Environment, echo: Path, tmp_path: Path
) -> None:
    environment.run("myllm", "pull", "echo")
    with serve(environment, MYLLM_SESSION_STORE="memory", MYLLM_DATA_DIR=str(tmp_path)) as address:
        say = {"role": "user", "content": "remember me"}
        first = post(address, {"model": "echo", "messages": [say], "session_id": "s1"})
        post(address, {"model": "echo", "messages": [say], "session_id": "s1"})
        assert first["session_id"] == "s1"
        with urllib.request.urlopen(f"{address}/api/sessions/s1", timeout=30) as answer:
            assert len(json.load(answer)["messages"]) == 4
        with urllib.request.urlopen(f"{address}/echo/ping", timeout=30) as answer:
            assert json.load(answer) == {"ping": "pong"}
    assert not list(tmp_path.glob("*.db*")), "nothing was written by the store that wasn't chosen"


def test_the_examples_of_one_kind_each_are_found(environment: Environment, one_of_each: list[str]) -> None:
    plugins = {plugin["name"]: plugin for plugin in json.loads(environment.run("myllm", "plugins", "--json").stdout)}
    assert {plugins[name]["status"] for name in one_of_each if name != "disk"} == {"ok"}
    assert re.search(r"^ +disk\b", environment.run("myllm", "--help").stdout, re.MULTILINE)
    assert re.search(r"^team-helper\b", environment.run("myllm", "pull", "--list").stdout, re.MULTILINE)


def test_a_downloader_and_a_command_of_a_plugin_are_used(
    environment: Environment, one_of_each: list[str], tmp_path: Path
) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "tiny.gguf").write_bytes(small_gguf(2_000_000))
    (tmp_path / "index.json").write_text(json.dumps({"tiny": {"files": [{"path": "tiny.gguf"}]}}))
    handler = partial(QuietHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            environment.run("myllm", "pull", f"mirror:http://127.0.0.1:{server.server_port}#tiny")
        finally:
            server.shutdown()
            thread.join()
    told = environment.run("myllm", "disk", "--over", "1").stdout
    assert re.search(r"2\.0 MB  tiny:latest", told) and "in 1 models" in told


def test_a_store_of_files_and_a_teams_routes_are_used_by_the_server(
    environment: Environment, echo: Path, one_of_each: list[str], tmp_path: Path
) -> None:
    environment.run("myllm", "pull", "echo")
    with serve(environment, MYLLM_SESSION_STORE="jsonfiles", MYLLM_DATA_DIR=str(tmp_path)) as address:
        post(address, {"model": "echo", "messages": [{"role": "user", "content": "keep me"}], "session_id": "s1"})
        with urllib.request.urlopen(f"{address}/team/models", timeout=30) as answer:
            assert json.load(answer)["models"][0]["installed"] is False
    [file] = (tmp_path / "json-sessions").glob("*.json")
    assert [item["message"]["content"] for _, item in json.loads(file.read_text())["messages"]] == ["keep me"] * 2


def test_a_plugin_that_is_removed_is_gone_and_what_it_ran_says_so(environment: Environment, parrot: Path) -> None:
    environment.run("myllm", "pull", "polly")
    environment.uninstall("myllm-parrot")
    assert "parrot" not in environment.run("myllm", "plugins").stdout
    assert "polly" in environment.run("myllm", "list").stdout
    done = environment.run("myllm", "run", "polly", "hi", check=False)
    assert done.returncode == 7
    assert "parrot" in done.stderr and "Traceback" not in done.stderr
