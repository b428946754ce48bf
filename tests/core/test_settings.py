"""Settings: where they come from, in which order, and what is said about wrong ones."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from myllm_core.errors import ConfigError
from myllm_core.settings import Settings, load_settings, parse_duration


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The config file of this test: not there yet, and nothing in the environment."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"MYLLM_{name.upper()}", raising=False)
    path = tmp_path / "config.toml"
    monkeypatch.setenv("MYLLM_CONFIG", str(path))
    return path


def test_each_source_wins_over_the_one_before(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().port == 8000
    config.write_text("port = 1111")
    assert load_settings().port == 1111
    monkeypatch.setenv("MYLLM_PORT", "2222")
    assert load_settings().port == 2222
    assert load_settings(port=3333).port == 3333
    assert load_settings(port=None).port == 2222


def test_lists_and_tables_from_the_file_and_the_environment(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text('disabled_plugins = ["a", "b"]\n[engine_options.llamacpp]\nn_ctx = 1024')
    monkeypatch.setenv("MYLLM_CORS_ORIGINS", '["https://one.example"]')
    settings = load_settings()
    assert settings.disabled_plugins == ["a", "b"]
    assert settings.cors_origins == ["https://one.example"]
    assert settings.engine_options == {"llamacpp": {"n_ctx": 1024}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("port = 70000", "setting port: input should be less than or equal to 65535"),
        ("port = 'x'", "setting port: "),
        ("keep_alive = 'soon'", "setting keep_alive: 'soon' is no duration; write 300, 5m, 1h or forever"),
        ("isolation = 'none'", "setting isolation: "),
        ("prot = 80", "there is no setting prot"),
        ("port = = 1", "config.toml"),
        ("\x00", "config.toml"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_the_file(config: Path, text: str, said: str) -> None:
    config.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_settings()
    assert said.lower() in str(caught.value).lower()
    assert str(config) in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_in_the_files_place_is_said(config: Path) -> None:
    config.mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        load_settings()


@pytest.mark.parametrize("content", [b"\xff\xfeport", b"port = 1\r\n\xe9 = 2"])
def test_a_file_that_isnt_text_is_one_line_too(config: Path, content: bytes) -> None:
    config.write_bytes(content)
    with pytest.raises(ConfigError, match="config"):
        load_settings()


@pytest.mark.parametrize(("name", "value"), [("PORT", "x"), ("CORS_ORIGINS", "no json"), ("MAX_LOADED_MODELS", "0")])
def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"MYLLM_{name}", value)
    with pytest.raises(ConfigError, match=rf"(?i)myllm_{name}|{name}"):
        load_settings()


def test_secrets_arent_shown() -> None:
    shown = repr(load_settings(api_key="s3cret", session_url="redis://u:s3cret@host/0"))
    assert "s3cret" not in shown


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5m", 300),
        ("1.5h", 5400),
        ("90s", 90),
        ("250ms", 0.25),
        ("2d", 172800),
        ("300", 300),
        (0, 0),
        (2.5, 2.5),
        ("0", 0),
    ],
)
def test_durations(text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["forever", "inf", -1, "-1", " Forever ", 10**400])
def test_a_duration_without_end(text: object) -> None:
    assert parse_duration(text) == math.inf


@pytest.mark.parametrize("text", ["", "m", "5 minutes", "1h30m", "nan", float("nan"), True, None, [], "1e3", "٣m"])
def test_what_is_no_duration(text: object) -> None:
    with pytest.raises(ValueError, match="is no duration"):
        parse_duration(text)


@given(st.text() | st.floats() | st.integers())
def test_any_duration_is_a_time_or_an_error(value: object) -> None:
    with contextlib.suppress(ValueError):
        assert parse_duration(value) >= 0
