"""OpenTelemetry spans: what a request did and how long, and nothing of what was said."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from support.serve import environment, served
from support.server import LiveServer, StartServer, eventually, read_until

CANARY = "c4nary"


class Traces:
    """A server's spans, by name."""

    def __init__(self, start: StartServer, **settings: Any) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.server = start(tracer=provider.get_tracer("test"), **settings)

    def wait(self, name: str) -> dict[str, ReadableSpan]:
        """All spans so far, when the one that ends last is there."""
        eventually(lambda: any(span.name == name for span in self.exporter.get_finished_spans()))
        spans = {span.name: span for span in self.exporter.get_finished_spans()}
        self.exporter.clear()
        return spans


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_chat_from_head_to_end(start: StartServer, isolation: str) -> None:
    traces = Traces(start, isolation=isolation)
    with traces.server as server:
        answer = server.chat(f"{CANARY} two three", model="slow", stream=True)
        spans = traces.wait("POST /api/chat")
        assert spans.keys() == {"POST /api/chat", "chat slow:latest", "queue", "generation", "load slow:latest"}
        http, chat, load = spans["POST /api/chat"], spans["chat slow:latest"], spans["load slow:latest"]
        assert len({span.context.trace_id for span in spans.values()}) == 1 and http.parent is None
        assert chat.parent.span_id == load.parent.span_id == http.context.span_id
        assert spans["queue"].parent.span_id == spans["generation"].parent.span_id == chat.context.span_id
        assert attributes(http) == {
            "http.request.method": "POST",
            "http.route": "/api/chat",
            "http.response.status_code": 200,
            "myllm.request_id": answer.headers["x-request-id"],
        }
        assert attributes(chat) == {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": "slow:latest",
            "gen_ai.provider.name": "echo",
            "gen_ai.usage.input_tokens": 3,
            "gen_ai.usage.output_tokens": 3,
            "gen_ai.response.finish_reasons": ("stop",),
        }
        (first,) = spans["generation"].events
        assert first.name == "first token"
        times = [chat.start_time, spans["queue"].end_time, first.timestamp, spans["generation"].end_time]
        assert times == sorted(times) and spans["queue"].end_time == spans["generation"].start_time
        assert 0.14e9 < spans["generation"].end_time - spans["generation"].start_time < 2e9  # three words of 50 ms
        assert CANARY not in "".join(span.to_json() for span in spans.values())


def test_errors_and_clients_that_leave(start: StartServer) -> None:
    traces = Traces(start, queue_size=1, request_timeout="300ms")
    with traces.server as server:
        assert server.chat(CANARY, model="nope").status == 404
        spans = traces.wait("POST /api/chat")
        assert spans.keys() == {"POST /api/chat"} and spans["POST /api/chat"].status.status_code is StatusCode.UNSET
        assert server.chat(f"{CANARY} " * 50, model="slow").status == 504
        spans = traces.wait("POST /api/chat")
        assert spans["POST /api/chat"].status.status_code is StatusCode.ERROR
        assert attributes(spans["chat slow:latest"])["error.type"] == "deadline_exceeded"
        with server.send_chat("w " * 100, model="slow") as connection:
            read_until(connection, b'"token"')
        spans = traces.wait("POST /api/chat")
        assert attributes(spans["chat slow:latest"])["gen_ai.response.finish_reasons"] == ("cancelled",)
        server.post("/api/embeddings", {"model": "echo", "input": f"{CANARY} two"})
        spans = traces.wait("POST /api/embeddings")
        assert attributes(spans["embeddings echo:latest"])["gen_ai.usage.input_tokens"] == 2


def test_a_callers_trace_goes_on(start: StartServer) -> None:
    traces = Traces(start)
    with traces.server as server:
        server.get("/api/ps", headers={"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"})
        http = traces.wait("GET /api/ps")["GET /api/ps"]
        assert f"{http.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
        assert f"{http.parent.span_id:016x}" == "b7ad6b7169203331"
        server.get("/api/models/echo", headers={"traceparent": "nonsense"})
        assert traces.wait("GET /api/models/{name}")["GET /api/models/{name}"].parent is None


def test_nothing_is_traced_by_default(live: LiveServer) -> None:
    live.chat("hi")
    assert [type(observer).__name__ for observer in live.runtime.observers] == ["Metrics", "Quotas"]


@contextmanager
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """An OTLP/HTTP collector: its address and the bodies that came."""
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.path.encode() + self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", bodies
        finally:
            server.shutdown()
            thread.join()


def test_the_setting_sends_them_where_the_environment_says(home: Path, tmp_path: Path) -> None:
    with collector() as (address, bodies):
        otel = {"MYLLM_OTEL": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": address, "OTEL_EXPORTER_OTLP_COMPRESSION": "none"}
        with served(home, tmp_path, **otel) as server:
            with server.send_chat(f"{CANARY} bird", model="echo", stream=False) as connection:
                read_until(connection, rb'"message"')
            server.process.terminate()
            assert server.wait() == 0
        sent = b"".join(bodies)
        assert b"/v1/traces" in sent and b"chat echo:latest" in sent and b"myllm" in sent
        assert CANARY.encode() not in sent


def test_a_collector_that_is_away_disturbs_nobody(home: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    otel = {"MYLLM_OTEL": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}"}
    with served(home, tmp_path, **otel, OTEL_EXPORTER_OTLP_TIMEOUT="1") as server:
        assert server.get("/api/ps")[0] == 200
        server.process.terminate()
        assert server.wait(20) == 0


def test_without_the_package_it_says_what_to_install(home: Path, tmp_path: Path) -> None:
    code = "import sys; sys.modules['opentelemetry.sdk'] = None; from myllm_cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "serve", "--port", "0"],
        env=environment(home, tmp_path, MYLLM_OTEL="true"),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert 'pip install "myllm[otel]"' in done.stderr
    assert done.stdout == ""
