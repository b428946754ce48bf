"""Settings: built-in defaults, then ``config.toml``, then ``MYLLM_*`` variables, then the command line.

The file lies in the user's config directory (``MYLLM_CONFIG`` names another one).
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from myllm_core.errors import ConfigError
from myllm_core.images import MAX_PIXELS, MOST_PIXELS
from myllm_core.sessions.age import LEAST_AGE

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "": 1.0}
_FOREVER = 1e12  # seconds; more than a float holds would fail


def parse_duration(value: object) -> float:
    """Seconds in ``"5m"``, ``"1h"``, ``"90s"``, ``300``, ``"forever"`` (or any negative). Raises ``ValueError``."""
    if isinstance(value, int | float) and not isinstance(value, bool) and value == value:  # nan isn't itself
        return float(value) if 0 <= value < _FOREVER else float("inf")
    text = str(value).strip().lower()
    if text in ("forever", "inf"):
        return float("inf")
    match = re.fullmatch(r"(-?\d+(?:\.\d+)?)(ms|s|m|h|d|)", text, re.ASCII)
    if not match:
        raise ValueError(f"{value!r} is no duration; write 300, 5m, 1h or forever")
    seconds = float(match[1]) * _UNITS[match[2]]
    return seconds if seconds >= 0 else float("inf")


Duration = Annotated[float, BeforeValidator(parse_duration)]


def config_file() -> Path:
    """Where the config file lies, whether it is there or not."""
    override = os.environ.get("MYLLM_CONFIG")
    return Path(override) if override else platformdirs.user_config_path("myllm") / "config.toml"


class Settings(BaseSettings):
    """All settings. The environment variable of each is its name in capitals after ``MYLLM_``."""

    model_config = SettingsConfigDict(env_prefix="MYLLM_", env_nested_delimiter="__", extra="forbid", frozen=True)

    models_dir: Path = Field(
        default_factory=lambda: platformdirs.user_data_path("myllm") / "models", description="where models are kept"
    )
    data_dir: Path = Field(
        default_factory=lambda: platformdirs.user_data_path("myllm"), description="where sessions and history are kept"
    )
    host: str = Field("127.0.0.1", description="address that serve binds")
    port: int = Field(8000, ge=0, le=65535, description="port that serve binds; 0 takes a free one")
    ollama_port: int | None = Field(
        None, ge=0, le=65535, description="port that has Ollama's API at its root, beside the other one; 0: a free one"
    )
    api_key: str = Field("", repr=False, description="key that HTTP clients must send; empty: none on loopback")
    no_auth: bool = Field(False, description="ask for no key, on any address")
    ssl_certfile: Path | None = Field(None, description="certificate (PEM, with its chain): serve by HTTPS")
    ssl_keyfile: Path | None = Field(None, description="private key of the certificate, when it is in another file")
    ssl_keyfile_password: str = Field("", repr=False, description="password of the private key")
    allowed_hosts: list[str] = Field(default_factory=list, description="further names for the Host header")
    cors_origins: list[str] = Field(default_factory=list, description="web origins that may call the server")
    max_body_bytes: int = Field(32 * 2**20, ge=1024, description="largest request body")
    max_messages: int = Field(10_000, ge=1, description="most messages of a request")
    max_images: int = Field(100, ge=0, description="most images of a request")
    max_image_bytes: int = Field(20 * 2**20, ge=1024, description="largest image file")
    max_image_pixels: int = Field(
        MAX_PIXELS, ge=1, le=MOST_PIXELS, description="most pixels of an image, which are decoded in memory"
    )
    max_json_depth: int = Field(64, ge=8, le=500, description="how deep a request body may be nested")
    max_tokens: int = Field(
        0, ge=0, le=2**20, description="most tokens of a reply, whether it asks for more or for none; 0: no limit"
    )
    rate_limit: int = Field(0, ge=0, description="HTTP requests a minute and client address; 0: no limit")
    wrong_keys: int = Field(10, ge=0, description="wrong keys a minute and client address; 0: no limit")
    read_timeout: Duration = Field(60.0, description="longest time to send a request's head, and then its body")
    max_requests: int = Field(256, ge=1, description="requests answered at the same time before others are refused")
    ping_interval: Duration = Field(10.0, description="how long a stream may be silent before a comment is sent")
    keep_alive: Duration = Field(300.0, description="how long an idle model stays loaded: 5m, 0, forever")
    model_keep_alive: dict[str, Duration] = Field(
        default_factory=dict, description="keep_alive by installed model name"
    )
    pinned_models: list[str] = Field(default_factory=list, description="models that are never unloaded for others")
    max_loaded_models: int = Field(3, ge=1, description="models loaded at the same time")
    queue_size: int = Field(64, ge=1, description="requests that wait per model before others are refused")
    request_timeout: Duration = Field(600.0, description="longest time that a request may take")
    load_timeout: Duration = Field(300.0, description="longest time without progress while a model loads")
    hang_timeout: Duration = Field(120.0, description="longest silence of a busy worker before it is ended")
    shutdown_grace: Duration = Field(20.0, description="how long running replies may go on after a stop signal")
    isolation: Literal["process", "thread"] = Field("process", description="where models run; thread is for tests")
    session_store: str = Field("sqlite", description="name of the session store")
    session_url: str = Field("", repr=False, description="where the session store is; empty: its own default")
    session_max_age: Duration = Field(
        float("inf"), ge=LEAST_AGE, description="how long a session is kept that nobody goes on with: 30d, forever"
    )
    disabled_plugins: list[str] = Field(default_factory=list, description="plugins that are not loaded")
    engine_options: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="load options by engine, such as engine_options.llamacpp.n_ctx"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="how much is logged")
    log_format: Literal["text", "json"] = Field("text", description="log lines for people, or JSON for programs")
    otel: bool = Field(False, description="send OpenTelemetry traces; the OTEL_* variables say where to")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The command line wins over the environment, the environment over the file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=config_file())


def load_settings(**overrides: Any) -> Settings:
    """Read the settings; ``overrides`` (from the command line) win, None means not given. Raises ``ConfigError``."""
    given = {name: value for name, value in overrides.items() if value is not None}
    if config_file().is_dir():
        raise ConfigError(f"{config_file()} is a folder, where the settings' file should be: move it aside")
    try:
        settings = Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = ", ".join(sorted(Settings.model_fields))
            raise ConfigError(f"there is no setting {name} (look in {config_file()}); known: {known}") from None
        raise ConfigError(
            f"setting {name}: {first['msg'].removeprefix('Value error, ')} "
            f"(set in {config_file()} or MYLLM_{name.upper()})"
        ) from None
    except (ValueError, OSError) as error:  # a TOML syntax error, JSON in a variable, a file that can't be read
        raise ConfigError(f"{config_file()}: {error}") from None
    return settings
