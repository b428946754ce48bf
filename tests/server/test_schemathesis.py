"""Every operation of the OpenAPI document against a live server: requests that fit it, and such that just don't."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode, checks

from myllm_core.plugins import Plugins
from myllm_core.runtime.runtime import Runtime
from myllm_core.settings import Settings
from myllm_server.app import create_app
from support.server import LiveServer, install_echo, live_server

EXAMPLES = int(os.environ.get("API_EXAMPLES") or 0)
"""How many requests of each kind (``make fuzz-api``), other ones each time; 0: few, and always the same."""
PATIENCE = 100  # seconds; a machine that is busy with other things must not fail a test
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
    checks.unsupported_method,
    checks.negative_data_rejection,
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server whose replies are short, with a model of the name that the document's examples use."""
    home = tmp_path_factory.mktemp("home")
    install_echo(home / "models", "smollm2:latest")
    with live_server(home, max_tokens=8) as live:
        yield live


@pytest.fixture(scope="module")
def described(served: LiveServer) -> Any:
    """The document, as schemathesis reads it."""
    schema = schemathesis.openapi.from_dict(served.app.openapi())
    schema.config.update(base_url=f"http://127.0.0.1:{served.port}")
    return schema


def operations() -> list[str]:
    """All operations that there are, as ``GET /path``."""
    settings, plugins = Settings(), Plugins([], [], print)
    paths = create_app(Runtime(settings, plugins), settings, plugins).openapi()["paths"]
    return [f"{method.upper()} {path}" for path, item in paths.items() for method in item]


@pytest.mark.parametrize("mode", GenerationMode)
@pytest.mark.parametrize("label", operations())
def test_the_server_does_as_its_document_says(described: Any, label: str, mode: GenerationMode) -> None:
    method, path = label.split()

    @given(case=described[path][method].as_strategy(generation_mode=mode))
    @settings(max_examples=EXAMPLES or 10, deadline=None, derandomize=not EXAMPLES, database=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    def check(case: Any) -> None:
        if mode == GenerationMode.POSITIVE:
            make_known(case)
        case.call_and_validate(checks=CHECKS, timeout=PATIENCE)

    with suppress(Unsatisfiable):  # there may be nothing to get wrong
        check()


def make_known(case: Any) -> None:
    """Let a good request be about a model that there is."""
    for place in (case.body, case.path_parameters, case.query):
        for name in ("model", "name"):
            if isinstance(place, dict) and name in place:
                place[name] = "smollm2"
