"""Plugins that misbehave: each is recorded with a cause and a fix, and the rest goes on.

Every plugin here is a module and a ``dist-info`` folder on ``sys.path``, as pip would leave them.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from myllm_core.discovery import Plugin
from myllm_core.errors import EngineMissing, PluginError
from myllm_core.plugins import Plugins
from support.site import GOOD_ENGINE, Site

GOOD_DOWNLOADER = """
    from myllm_core import Downloader, hookimpl

    class Good(Downloader):
        name = "NAME"
        schemes = frozenset({"SCHEME"})
        def resolve(self, reference): ...

    @hookimpl
    def myllm_downloaders():
        return [Good]
"""


def plugin(plugins: Plugins, name: str) -> Plugin:
    (found,) = (entry for entry in plugins.entries() if entry.name == name)
    return found


def test_a_good_plugin_is_found_and_imported_only_when_asked_for(site: Site) -> None:
    site.install("good", GOOD_ENGINE)
    plugins = site.load()
    assert "dist_good" not in sys.modules
    assert plugin(plugins, "good").label == "good (dist-good 1.2)"
    assert plugins.engine("good").name == "good"
    assert plugin(plugins, "good").loaded
    assert site.about("good") == []


def test_what_all_plugins_offer_is_told(site: Site) -> None:
    site.install("good", GOOD_ENGINE)
    plugins = site.load()
    assert plugin(plugins, "good").offers == {}
    plugins.entries(load=True)
    assert plugin(plugins, "good").offers == {"engines": ["good"]}
    assert "sqlite" in plugin(plugins, "builtin").offers["session_stores"]


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("import no_such_module_at_all", "ModuleNotFoundError: No module named 'no_such_module_at_all'"),
        ("def broken(:", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("class Odd(BaseException): pass\nraise Odd('odd')", "Odd: odd"),
        (
            "class Mute(Exception):\n  def __str__(self): raise ValueError\nraise Mute",
            "Mute: an error that can't be shown",
        ),
        ("raise ValueError('x' * 10_000_000)", "ValueError: xxx"),
        ("raise ValueError('a\\nb\\x1b]0;title\\x07')", "ValueError: a b?]0;title?"),
        ("MYLLM_API = 0", "it speaks plugin contract 0, this myllm speaks 1"),
        ("MYLLM_API = 'one'", "it speaks plugin contract 'one', this myllm speaks 1"),
        ("x = 1", "has no function marked @hookimpl"),
        ("from myllm_core import hookimpl\n@hookimpl\ndef myllm_engine(): ...", "unknown hook 'myllm_engine'"),
        (
            "from myllm_core import hookimpl\n@hookimpl\ndef myllm_catalog(): ...\ndef myllm_engines(): ...",
            "myllm_engines isn't marked with @hookimpl",
        ),
        ("from myllm_core import hookimpl\n@hookimpl\ndef myllm_engines(registry): ...", "Argument(s) {'registry'}"),
    ],
)
def test_a_module_that_cant_be_used_is_recorded_once_and_the_rest_goes_on(site: Site, code: str, cause: str) -> None:
    site.install("bad", code)
    site.install("good", GOOD_ENGINE)
    plugins = site.load()
    assert "good" in plugins.engines()
    assert "file" in plugins.downloaders()
    bad = plugin(plugins, "bad")
    assert not bad.loaded
    assert cause in bad.error
    assert len(bad.error) <= 500 and bad.error.isprintable()
    assert "dist-bad" in bad.fix
    (warning,) = site.about("bad")
    assert "dist-bad 1.2" in warning and cause in warning and "\n" not in warning


@pytest.mark.parametrize("hook", ["engines", "downloaders", "session_stores", "catalog", "routes"])
@pytest.mark.parametrize(
    ("value", "cause"),
    [
        ("None", "gave NoneType object, not a list"),
        ("7", "gave int object, not a list"),
        ("type('Mine', (), {})", "gave Mine, not a list"),
        ("'text'", "str object is no"),
        ("[None]", "NoneType object is no"),
        ("[int]", "int is no"),
        ("[object()]", "object object is no"),
        ("iter(int, 1)", "gave more than 1000 values"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("exit(0)", "SystemExit: 0"),
        ("[type('Nasty', (), {'name': property(lambda self: 1 / 0)})()]", "Nasty object is no"),
    ],
)
def test_a_hook_that_gives_nonsense_is_named(site: Site, hook: str, value: str, cause: str) -> None:
    site.install("bad", f"from myllm_core import hookimpl\n@hookimpl\ndef myllm_{hook}(): return {value}")
    plugins = site.load()
    plugins.entries(load=True)
    assert f"myllm_{hook}: " in plugin(plugins, "bad").error
    assert cause in plugin(plugins, "bad").error
    assert len(site.about("bad")) == 1
    assert plugins.session_store("sqlite").name == "sqlite"


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (("def chat(self, request): ...", ""), "Good doesn't implement chat"),
        (('name = "NAME"', ""), "Good.name must be"),
        (('name = "NAME"', 'name = "../x"'), "Good.name must be"),
        (('frozenset({"NAME"})', '"gguf"'), "Good.formats must be a set of texts"),
        (('formats = frozenset({"NAME"})', ""), "Good.formats must be a set of texts"),
        (("formats", 'sampling = frozenset({"heat"}); formats'), "Good.sampling must be a set of names among"),
        (("formats", "load_options = ('n_ctx',); formats"), "Good.load_options must be a tuple of LoadOption"),
    ],
)
def test_an_engine_class_that_isnt_whole_is_named(site: Site, change: tuple[str, str], cause: str) -> None:
    site.install("bad", GOOD_ENGINE.replace(*change))
    plugins = site.load()
    assert "bad" not in plugins.engines()
    assert cause in plugin(plugins, "bad").error
    with pytest.raises(EngineMissing, match=r"no engine named bad.*bad \(dist-bad 1\.2\): myllm_engines: Good"):
        plugins.engine("bad")


@pytest.mark.parametrize("schemes", ["'hf'", "frozenset()", "{'HF'}", "{'a b'}", "{7}", "None"])
def test_a_downloader_without_proper_schemes_is_named(site: Site, schemes: str) -> None:
    site.install("bad", GOOD_DOWNLOADER.replace('frozenset({"SCHEME"})', schemes))
    assert "file" in site.load().downloaders()
    assert "Good.schemes must be" in site.about("bad")[0]


def test_a_downloader_whose_constructor_fails_is_named(site: Site) -> None:
    site.install(
        "bad",
        GOOD_DOWNLOADER.replace("SCHEME", "bad").replace(
            "    def resolve", "    def __init__(self): exit()\n        def resolve"
        ),
    )
    plugins = site.load()
    assert "bad" not in plugins.downloaders()
    assert "Good(): SystemExit" in plugin(plugins, "bad").error


@pytest.mark.parametrize(
    ("entry", "cause"),
    [
        ("CatalogEntry('../up', (Source('x:y'),))", "must be model names"),
        ("CatalogEntry(7, (Source('x:y'),))", "must be model names"),
        ("CatalogEntry('fine', ())", "at least one Source"),
        ("CatalogEntry('fine', 'hf:owner/repo')", "at least one Source"),
        ("CatalogEntry('smollm2:latest', (Source('x:y'),))", "the name smollm2:latest is taken by builtin"),
        ("CatalogEntry('mine', (Source('x:y'),), aliases=('smollm2',))", "is taken by builtin"),
    ],
)
def test_a_catalogue_entry_is_checked_and_takes_no_name_over(site: Site, entry: str, cause: str) -> None:
    own = "CatalogEntry('own', (Source('x:y'),))"
    code = f"from myllm_core import *\n@hookimpl\ndef myllm_catalog(): return [{entry}, {own}]"
    site.install("bad", code)
    plugins = site.load()
    names = [entry.name for entry in plugins.catalog()]
    assert "own" in names and len(names) == len(set(names))
    assert cause in plugin(plugins, "bad").error


def test_two_plugins_of_one_name_are_both_named_and_the_first_distribution_has_it(site: Site) -> None:
    site.install("twin", GOOD_ENGINE, dist="dist-b")
    site.install("twin", GOOD_ENGINE, dist="dist-a")
    plugins = site.load()
    assert site.warnings == []
    plugins.engines()
    first, second = (entry for entry in plugins.entries() if entry.name == "twin")
    assert (first.distribution, first.error) == ("dist-a", "")
    assert second.error == "its name is taken by twin (dist-a 1.2)"
    assert site.about("twin") == [
        "plugin twin (dist-b 1.2) is broken: its name is taken by twin (dist-a 1.2) (fix: uninstall one of the two)"
    ]


def test_one_name_claimed_by_two_plugins_goes_to_the_first_and_both_are_named(site: Site) -> None:
    site.install("aaa", GOOD_ENGINE.replace("NAME", "same"))
    site.install("bbb", GOOD_ENGINE.replace("NAME", "same"))
    plugins = site.load()
    assert plugins.engine("same").__module__ == "dist_aaa"
    assert plugin(plugins, "bbb").error == "myllm_engines: the name same is taken by aaa (dist-aaa 1.2)"


@pytest.mark.parametrize("scheme", ["https", "file"])
def test_a_plugin_cant_take_a_built_in_scheme_over(site: Site, scheme: str) -> None:
    site.install("aaa", GOOD_DOWNLOADER.replace("SCHEME", scheme))
    plugins = site.load()
    assert type(plugins.downloaders()[scheme]).__module__.startswith("myllm_core.")
    assert f"the name {scheme}: is taken by builtin" in plugin(plugins, "aaa").error


def test_a_plugin_cant_take_the_built_in_store_over(site: Site) -> None:
    code = """
        from myllm_core import hookimpl
        from myllm_core.sessions.sqlite import SQLiteStore
        class Mine(SQLiteStore): ...
        @hookimpl
        def myllm_session_stores(): return [Mine]
    """
    site.install("aaa", code)
    plugins = site.load()
    assert plugins.session_store("sqlite").__module__.startswith("myllm_core.")
    with pytest.raises(PluginError, match=r"no session store named other.*the name sqlite is taken"):
        plugins.session_store("other")


def test_a_disabled_plugin_is_not_there_at_all(site: Site) -> None:
    site.install("bad", "raise ValueError")
    plugins = site.load(("bad",))
    plugins.engines()
    assert "bad" not in {entry.name for entry in plugins.entries()}
    assert site.about("bad") == []


@pytest.mark.parametrize("text", ["[myllm]\nnonsense\n", "[myllm\n=", "nonsense", "\x00\x01"])
def test_damaged_metadata_of_one_package_hide_no_other(site: Site, text: str) -> None:
    site.install("good", GOOD_ENGINE)
    site.install("bad", "", entry_points=text)
    plugins = site.load()
    assert "good" in plugins.engines()
    if text.startswith("[myllm]"):
        assert plugin(plugins, "dist-bad").error == "its entry_points.txt is damaged"


def test_metadata_that_arent_text_or_have_no_name_do_no_harm(site: Site) -> None:
    site.install("good", GOOD_ENGINE)
    site.install("bad", "", dist="dist-bytes")
    (site.folder / "dist_bytes-1.2.dist-info" / "entry_points.txt").write_bytes(b"\xff\xfe[myllm]")
    site.install("nameless", "raise ValueError")
    (site.folder / "dist_nameless-1.2.dist-info" / "METADATA").unlink()
    plugins = site.load()
    assert "good" in plugins.engines()
    assert plugin(plugins, "nameless").label == "nameless (? ?)"


def test_the_same_distribution_twice_on_the_path_is_one(site: Site, tmp_path: Path) -> None:
    site.install("good", GOOD_ENGINE)
    second = Site(tmp_path / "second")
    second.folder.mkdir()
    second.install("good", GOOD_ENGINE)
    sys.path.append(str(second.folder))
    try:
        plugins = site.load()
    finally:
        sys.path.remove(str(second.folder))
    assert plugin(plugins, "good").error == ""


def test_a_requirement_that_isnt_installed_is_told(site: Site) -> None:
    site.install("needs", GOOD_ENGINE, requires="no-such-distribution>=2")
    site.install("fine", GOOD_ENGINE, requires="pluggy>=1")
    site.install("extra", GOOD_ENGINE, requires='no-such-distribution; extra == "x"')
    plugins = site.load()
    assert plugin(plugins, "needs").missing == ["no-such-distribution>=2"]
    assert plugin(plugins, "fine").missing == plugin(plugins, "extra").missing == []
    assert plugin(plugins, "builtin").missing == []


def test_a_slow_import_is_told_while_it_goes_on(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("myllm_core.plugins._SLOW_IMPORT", 0.05)
    site.install("slow", "import time; time.sleep(0.5)\n" + textwrap.dedent(GOOD_ENGINE))
    assert "slow" in site.load().engines()
    assert "still importing the plugin slow (dist-slow 1.2) …" in site.warnings


def test_many_threads_load_a_plugin_once(site: Site) -> None:
    site.install("good", "import time; time.sleep(0.2)\n" + textwrap.dedent(GOOD_ENGINE))
    plugins = site.load()
    found: list[bool] = []
    threads = [threading.Thread(target=lambda: found.append("good" in plugins.engines())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 8
    assert plugin(plugins, "good").offers["engines"] == ["good"]


NOISE = """
    import os, subprocess, sys
    print("noise by print")
    sys.__stdout__.write("noise by the original\\n")
    os.write(1, b"noise by the descriptor\\n")
    subprocess.run(["echo", "noise by a child"])
"""
USE = "from myllm_core.plugins import load_plugins; print('clean', 'noisy' in load_plugins().engines())"


def use_in_a_process(site: Site, command: str = USE, **how: object) -> subprocess.CompletedProcess[str]:
    path = {"PYTHONPATH": str(site.folder), "PATH": "/usr/bin:/bin"}
    return subprocess.run([sys.executable, "-c", command], env=path, capture_output=True, text=True, timeout=60, **how)


def test_what_a_plugin_prints_stays_off_standard_output(site: Site) -> None:
    hook = GOOD_ENGINE.replace("return [Good]", "print('noise by the hook'); return [Good]")
    site.install("noisy", textwrap.dedent(NOISE) + textwrap.dedent(hook))
    done = use_in_a_process(site)
    assert done.stdout == "clean True\n"
    for source in ("print", "the original", "the descriptor", "a child", "the hook"):
        assert f"noise by {source}" in done.stderr


@pytest.mark.parametrize("closed", [1, 2])
def test_a_closed_output_breaks_no_plugin(site: Site, closed: int) -> None:
    site.install("noisy", textwrap.dedent(GOOD_ENGINE))
    use = "from myllm_core.plugins import load_plugins; os._exit(7 if 'noisy' in load_plugins().engines() else 1)"
    assert use_in_a_process(site, f"import os; os.close({closed}); {use}").returncode == 7


def test_finding_plugins_imports_none_however_slow_or_broken_they_are(site: Site) -> None:
    site.install("slow", "import time; time.sleep(30)")
    site.install("bad", "raise SystemExit")
    start = time.monotonic()
    done = use_in_a_process(site, "from myllm_core.plugins import load_plugins; print(len(load_plugins().entries()))")
    assert time.monotonic() - start < 10
    assert int(done.stdout) >= 3 and done.stderr == ""
