"""`/metrics`: what the server did, counted exactly."""

from __future__ import annotations

import os
import signal
import time
from collections import defaultdict
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from myllm_server.metrics import Routes
from support.patient import install_patient
from support.server import LiveServer, StartServer, eventually, install_echo, read_until

HELLO = [{"role": "user", "content": "one two three"}]
LONG = " ".join(f"w{i}" for i in range(400))


class Counts:
    """The samples of one scrape."""

    def __init__(self, server: LiveServer) -> None:
        answer = server.get("/metrics")
        assert answer.status == 200 and answer.headers["content-type"].startswith("text/plain")
        self.families = list(text_string_to_metric_families(answer.body.decode()))
        self.samples = [sample for family in self.families for sample in family.samples]

    def __call__(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        found = [one.value for one in self.samples if one.name == name and labels.items() <= one.labels.items()]
        return sum(found)

    def by(self, name: str, label: str) -> dict[str, float]:
        sums: dict[str, float] = defaultdict(float)
        for one in self.samples:
            if one.name == name:
                sums[one.labels[label]] += one.value
        return dict(sums)


def test_tokens_and_requests_are_counted_exactly(start: StartServer) -> None:
    with start() as server:
        for stream in (True, False, True):
            server.post("/api/chat", {"model": "echo", "messages": HELLO, "stream": stream})
        server.post("/api/generate", {"model": "slow", "prompt": "a b c d", "options": {"max_tokens": 3}})
        server.post("/v1/chat/completions", {"model": "echo", "messages": HELLO, "max_tokens": 1})
        server.post("/api/embeddings", {"model": "echo", "input": ["one two", "three"]})
        assert server.post("/api/chat", {"model": "nope", "messages": HELLO}).status == 404
        assert server.post("/api/chat", {"model": "echo"}).status == 422
        server.get("/api/models/echo")
        server.get("/api/models/slow")
        server.get("/c4nary/1")
        server.request("PROPFIND", "/c4nary/2")
        eventually(lambda: Counts(server)("myllm_http_requests_total", route="other") == 2)
        count = Counts(server)
        echo = {"model": "echo:latest"}
        requests = "myllm_model_requests_total"
        assert count(requests, kind="chat", outcome="stop", **echo) == 3
        assert count(requests, kind="chat", outcome="length", **echo) == 1
        assert count(requests, kind="embed", outcome="stop", **echo) == 1
        assert count(requests, kind="generate", outcome="length", model="slow:latest") == 1
        assert count(requests) == 6
        assert count("myllm_prompt_tokens_total", **echo) == 3 * 4 + 3
        assert count("myllm_completion_tokens_total", **echo) == 3 * 3 + 1
        assert count("myllm_completion_tokens_total", model="slow:latest") == 3
        assert count("myllm_time_to_first_token_seconds_count", **echo) == 4
        assert count("myllm_time_per_output_token_seconds_count", **echo) == 3
        assert count("myllm_queue_wait_seconds_count") == 6
        assert 0.05 < count("myllm_time_to_first_token_seconds_sum", model="slow:latest") < 2
        assert 0.04 < count("myllm_time_per_output_token_seconds_sum", model="slow:latest") < 1
        assert (
            count("myllm_model_loads_total", outcome="ok", **echo)
            == count("myllm_model_load_seconds_count", **echo)
            == 1
        )
        assert count("myllm_models_loaded") == 2 and count("myllm_model_requests_running") == 0
        http = "myllm_http_requests_total"
        assert count(http, method="POST", route="/api/chat", status="200") == 3
        assert count(http, route="/api/chat", status="404") == count(http, route="/api/chat", status="422") == 1
        assert count(http, route="/api/models/{name}", method="GET", status="200") == 2
        assert count(http, route="other", method="GET", status="404") == 1
        assert count(http, route="other", method="other") == 1
        assert count("myllm_http_request_seconds_count", route="/api/chat") == 5
        assert "c4nary" not in server.get("/metrics").body.decode()


def test_cached_tokens(start: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_patient(tmp_path / "site", monkeypatch)
    install_echo(tmp_path / "models", "patient:latest", format="patient")
    with start(models_dir=tmp_path / "models") as server:
        server.chat("a b c d e f g", model="patient")
        assert Counts(server)("myllm_cached_tokens_total", model="patient:latest") == 3


def test_what_was_refused_and_who_left(start: StartServer) -> None:
    with start(max_requests=2, rate_limit=8) as server:
        running = server.send_chat(LONG, model="slow")
        other = server.send_chat(LONG, model="slow", stream=False)
        read_until(running, b'"token"')
        eventually(lambda: len(server.gate.running) == 2)
        count = Counts(server)
        assert count("myllm_model_requests_running", model="slow:latest") == 2
        assert count("myllm_http_requests_running") == 3  # and this one
        assert [server.chat("hi").status for _ in range(7)] == [503] * 6 + [429]
        running.close()
        other.close()
        eventually(lambda: not server.gate.running)
        count = Counts(server)
        http = "myllm_http_requests_total"
        assert count.by(http, "status") == {"200": 1, "503": 6, "429": 1, "499": 2}
        assert count(http, route="/api/chat", status="503") == 6
        assert count("myllm_model_requests_total", model="slow:latest", outcome="cancelled") == 2
        assert count("myllm_model_requests_total") == 2


def test_the_queue_and_who_it_sends_away(start: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_patient(tmp_path / "site", monkeypatch)
    install_echo(tmp_path / "models", "patient:latest", format="patient", load_options={"delay_ms": 50})
    with start(models_dir=tmp_path / "models", queue_size=2) as server:
        server.post("/api/models/patient/load")
        held = [server.send_chat(LONG, model="patient") for _ in range(3)]
        eventually(lambda: server.running() == 3)
        assert server.chat("too much", model="patient").status == 503
        count = Counts(server)
        assert count("myllm_model_requests_running") == 1 and count("myllm_model_requests_queued") == 2
        assert count("myllm_model_requests_total", outcome="refused") == 1
        for connection in held:
            connection.close()


def test_workers_that_die_and_come_back(start: StartServer) -> None:
    with start(isolation="process") as server:
        for crashes in (0, 1):  # a third in a minute, and the model would rest
            pid = server.post("/api/models/echo/load").json["pid"]
            assert server.chat("hi").status == 200
            count = Counts(server)
            assert count("myllm_worker_crashes_total") == count("myllm_worker_restarts_total") == crashes
            assert count("myllm_worker_memory_bytes", model="echo:latest") > 10_000_000
            os.kill(pid, signal.SIGKILL)
            eventually(lambda: server.get("/api/ps").json["models"] == [])
        server.chat("hi")
        server.post("/api/models/echo/unload")
        count = Counts(server)
        assert count("myllm_worker_crashes_total", model="echo:latest") == 2, "to be unloaded is no crash"
        assert count("myllm_worker_restarts_total", model="echo:latest") == 2
        assert count("myllm_model_loads_total", outcome="ok") == 3 and count("myllm_models_loaded") == 0


def test_loads_and_requests_that_fail(start: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_patient(tmp_path / "site", monkeypatch)
    install_echo(tmp_path / "models", "patient:latest", format="patient", load_options={"fails": True})
    with start(models_dir=tmp_path / "models") as server:
        assert server.chat("hi", model="patient").status == 500
        count = Counts(server)
        assert count("myllm_model_loads_total", outcome="error", model="patient:latest") == 1
        assert count("myllm_model_requests_total", outcome="error", kind="chat") == 1
        assert count("myllm_model_load_seconds_count") == 0


def test_it_wants_the_key_and_is_answered_when_all_places_are_taken(start: StartServer) -> None:
    with start(api_key="k") as server:
        assert server.get("/metrics").status == 401
        assert server.get("/metrics", headers={"authorization": "Bearer k"}).status == 200
    with start(max_requests=1) as server, server.send_chat(LONG, model="slow") as running:
        read_until(running, b'"token"')
        assert server.get("/api/ps").status == 503 and server.get("/metrics").status == 200


def test_names_follow_the_conventions(live: LiveServer) -> None:
    live.chat("hi")
    families = [family for family in Counts(live).families if family.name.startswith("myllm_")]
    assert len(families) >= 18
    for family in families:
        assert family.documentation
        units = {"histogram": ("_seconds",), "counter": ("",)}.get(
            family.type, ("_loaded", "_running", "_queued", "_bytes")
        )
        assert family.name.endswith(units), family.name
        names = {sample.name for sample in family.samples}
        assert family.type != "counter" or all(name.endswith("_total") for name in names), names
    assert any(sample.name == "process_resident_memory_bytes" for sample in Counts(live).samples)


def test_every_metric_is_documented(live: LiveServer) -> None:
    live.chat("hi")
    text = (Path(__file__).parents[2] / "docs/OPERATIONS.md").read_text(encoding="utf-8")
    for family in Counts(live).families:
        if family.name.startswith("myllm_"):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            labels = {label for sample in family.samples for label in sample.labels} - {"le"}
            (row,) = (line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
            assert all(f"`{label}`" in row.split("|")[2] for label in labels), name


def test_openmetrics_when_asked(live: LiveServer) -> None:
    answer = live.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.body.endswith(b"# EOF\n")


def test_names_of_routes_are_as_many_as_the_routes() -> None:
    routes = Routes(["/api/models", "/api/models/{name}", "/api/models/{name}/load"])
    assert routes.name("/api/models") == "/api/models"
    assert routes.name("/api/models/x") == "/api/models/{name}"
    assert routes.name("/api/models/x/load") == "/api/models/{name}/load"
    began = time.monotonic()
    for path in ("/api/models/x/y", "/", "", "/api/models/\n", "x" * 1_000_000, "/api/models/" + "x/" * 500_000):
        assert routes.name(path) in ("other", "/api/models/{name}")
    assert time.monotonic() - began < 1
