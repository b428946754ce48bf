"""The documents keep up: whatever a person can type, set, call or receive is written down."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import myllm_core
from myllm_cli.main import app
from myllm_core import hookspecs
from myllm_core.errors import ERRORS
from myllm_core.options import Options
from myllm_core.settings import Settings

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("plugins/*/README.md")])
COMMAND: Any = typer.main.get_command(app)


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def section(text: str, heading: str) -> str:
    """What stands below a heading, up to the next one of its level or higher."""
    found = re.search(rf"^(#+) {re.escape(heading)}$(.*?)(?=^#{{1,6}} |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"there is no heading {heading}"
    level = len(found[1])
    end = re.compile(rf"^#{{1,{level}}} ", re.MULTILINE).search(text, found.start(2))
    return text[found.start(2) : end.start() if end else None]


def commands(group: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every built-in command with its full name."""
    table = getattr(group, "table", None)
    for name in table or group.commands:
        command, full = group.commands[name], f"{path} {name}".strip()
        yield full, command
        if hasattr(command, "commands"):
            yield from commands(command, full)


ALL_COMMANDS = dict(commands(COMMAND))


def options(command: Any) -> list[str]:
    """The options of a command, by their longest names."""
    names = [p.opts for p in command.params if p.param_type_name == "option"]
    return [max(opts, key=len) for opts in names if "--help" not in opts]


def blocks(text: str, *languages: str) -> Iterator[str]:
    for language, code in re.findall(r"^```(\w*)[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if language in languages:
            yield code


@pytest.mark.parametrize("name", ALL_COMMANDS)
def test_every_command_and_its_options_are_documented(name: str) -> None:
    text = section(page("docs/CLI.md"), f"myllm {name}")
    assert [option for option in options(ALL_COMMANDS[name]) if not re.search(rf"`{option}\b", text)] == []


def test_the_global_options_are_documented() -> None:
    text = section(page("docs/CLI.md"), "Global options")
    assert [option for option in options(COMMAND) if f"`{option}" not in text] == []


def test_no_command_is_documented_that_isnt_there() -> None:
    headings = re.findall(r"^#+ myllm (.+)$", page("docs/CLI.md"), re.MULTILINE)
    assert sorted(headings) == sorted(ALL_COMMANDS)


def test_every_exit_code_is_documented() -> None:
    text = section(page("docs/CLI.md"), "Exit codes")
    for code in {0, 130, 141, *(error.exit_code for error in ERRORS.values())}:
        assert re.search(rf"^\| {code} \|", text, re.MULTILINE), f"exit code {code}"


def test_every_command_of_the_chat_is_documented() -> None:
    from myllm_cli import slash

    text = section(page("docs/CLI.md"), "myllm run")
    assert [name for name in slash.names() if f"`{name}" not in text] == []


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_documented(name: str) -> None:
    assert f"`{name}`" in section(page("docs/CLI.md"), "Settings")


@pytest.mark.parametrize("name", Options.model_fields)
def test_every_generation_option_is_documented(name: str) -> None:
    assert f"`{name}`" in section(page("docs/API.md"), "Options")


def codes_of_the_server() -> set[str]:
    """Codes that only the server gives: the second argument of each ``HttpError(…)`` in its source."""
    found = set()
    for path in (ROOT / "myllm_server").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "HttpError" and len(node.args) > 1:
                code = node.args[1]
                found |= {code.value} if isinstance(code, ast.Constant) else set()
    return found


def test_every_error_code_of_the_server_is_documented() -> None:
    text = section(page("docs/API.md"), "Errors")
    codes = codes_of_the_server()
    assert len(codes) > 8
    assert sorted(code for code in codes if f"`{code}`" not in text) == []


@pytest.mark.parametrize("code", ERRORS)
def test_every_error_code_is_documented_with_its_status(code: str) -> None:
    text = section(page("docs/API.md"), "Errors")
    assert re.search(rf"^\| `{code}` \| {ERRORS[code].http_status} \|", text, re.MULTILINE)


def hooks() -> list[str]:
    return [name for name in vars(hookspecs) if name.startswith("myllm_")]


@pytest.mark.parametrize("name", hooks())
def test_every_hook_is_documented(name: str) -> None:
    assert f"`{name}`" in section(page("docs/PLUGINS.md"), "The hooks")


@pytest.mark.parametrize("name", ["Engine", "TokenEngine", "Downloader", "SessionStore"])
def test_every_method_of_a_contract_is_documented(name: str) -> None:
    text = page("docs/PLUGINS.md")
    methods = [m for m in vars(getattr(myllm_core, name)) if not m.startswith("_")]
    assert [method for method in methods if not re.search(rf"`{method}\b", text)] == []


@pytest.mark.parametrize("name", myllm_core.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    text = page("docs/PLUGINS.md") + page("docs/ARCHITECTURE.md")
    assert re.search(rf"\b{name}\b", text)


def make_targets() -> list[str]:
    return re.search(r"^\.PHONY: (.+)$", page("Makefile"), re.MULTILINE)[1].split()  # type: ignore[index]


@pytest.mark.parametrize("target", [target for target in make_targets() if target != "all"])
def test_every_make_target_is_documented(target: str) -> None:
    assert f"`make {target}" in page("docs/TESTING.md") + page("CONTRIBUTING.md")
    assert re.search(rf"^# make {target}\b", page("Makefile"), re.MULTILINE)


def test_every_folder_of_tests_is_documented() -> None:
    text = page("docs/TESTING.md")
    folders = {path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("tests/*/test_*.py")}
    assert [folder for folder in sorted(folders | {"tests/support"}) if f"`{folder}`" not in text] == []


def test_every_route_is_documented() -> None:
    from myllm_core import Runtime
    from myllm_core.plugins import Plugins
    from myllm_server.app import create_app

    settings = Settings()
    plugins = Plugins([], [], print)
    schema = create_app(Runtime(settings, plugins), settings, plugins).openapi()
    text = page("docs/API.md")
    routes = [f"{method.upper()} {path}" for path, methods in schema["paths"].items() for method in methods]
    assert len(routes) > 5
    assert [route for route in routes if f"`{route}`" not in text] == []


def commands_of(name: str) -> Iterator[list[str]]:
    """The words of each ``myllm`` and ``make`` command in a page's code blocks."""
    shell = "\n".join(blocks(page(name), "sh", "console")).replace("\\\n", " ")
    for line in shell.splitlines():
        for part in re.split(r" (?:&&|\|\||\||;) ", line.removeprefix("$ ")):
            if re.match(r"(myllm|make)\b", part):
                yield shlex.split(part, comments=True)


@pytest.mark.parametrize("name", [str(path.relative_to(ROOT)) for path in PAGES])
def test_commands_in_code_blocks_exist(name: str) -> None:
    for program, *words in commands_of(name):
        if program == "make":
            assert {word for word in words if "=" not in word} <= set(make_targets()), words
        else:
            check_command(COMMAND, words, shlex.join(words))


def check_command(command: Any, words: list[str], line: str) -> None:
    known = {opt for p in command.params for opt in (*p.opts, *p.secondary_opts)} | {"--help", "-h"}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word.startswith("-") and word not in ("-", "--"):
            assert word.split("=")[0] in known, f"{line!r}: no option {word}"
            takes_value = any(word in p.opts and not getattr(p, "is_flag", False) for p in command.params)
            rest = rest[1:] if takes_value else rest
        elif hasattr(command, "commands"):
            assert word in command.commands, f"{line!r}: no command {word}"
            return check_command(command.commands[word], rest, line)
    return None


@pytest.mark.parametrize("name", [str(path.relative_to(ROOT)) for path in PAGES])
def test_python_in_code_blocks_is_python(name: str) -> None:
    for code in blocks(page(name), "python"):
        ast.parse(code)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    local = [target for target in targets if not re.match(r"[a-z]+:", target)]
    assert [target for target in local if not (path.parent / target).exists()] == []


def test_tests_that_are_named_exist() -> None:
    names = re.findall(r"`([\w/.]*(?:\.py)?::test_\w+)`", page("docs/THREATS.md"))
    assert len(names) > 100
    file = ""
    missing = []
    for name in names:
        path, test = name.split("::")
        file = path or file
        if not re.search(rf"^(async )?def {test}\(", page(file), re.MULTILINE):
            missing.append(f"{file}::{test}")
    assert missing == []


def test_the_hooks_have_a_sentence_each() -> None:
    assert [name for name in hooks() if not inspect.getdoc(getattr(hookspecs, name))] == []
