"""OpenTelemetry spans of requests, loads and generations. Imported only when the setting ``otel`` is on.

Names and attributes follow the semantic conventions for HTTP and for generative AI. No prompt and no reply is in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from myllm_core.errors import MyllmError
from myllm_core.runtime.observe import Ended, Observer
from myllm_server.metrics import Routes

_OPERATIONS = {"chat": "chat", "generate": "text_completion", "embed": "embeddings"}
_FAILED = 500


@contextmanager
def exporting() -> Iterator[Tracer]:
    """A tracer that sends to where the ``OTEL_*`` variables say, until the block ends."""
    named = Resource({SERVICE_NAME: "myllm"}).merge(Resource.create())  # OTEL_SERVICE_NAME wins
    provider = TracerProvider(resource=named)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    try:
        yield provider.get_tracer("myllm")
    finally:
        provider.shutdown()


class TraceRequests:
    """ASGI middleware: a span for each HTTP request, below the caller's when it sends ``traceparent``."""

    def __init__(self, app: ASGIApp, tracer: Tracer, routes: Routes) -> None:
        self.app = app
        self.tracer = tracer
        self.routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        route = self.routes.name(scope["path"])
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        attributes = {
            "http.request.method": scope["method"],
            "http.route": route,
            "myllm.request_id": scope["state"]["request_id"],
        }
        with self.tracer.start_as_current_span(
            f"{scope['method']} {route}", propagate.extract(headers), SpanKind.SERVER, attributes
        ) as span:

            async def watch(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= _FAILED:
                        span.set_status(Status(StatusCode.ERROR))
                await send(message)

            await self.app(scope, receive, watch)


class Tracing(Observer):
    """Makes spans of what the runtime tells, below the span of the HTTP request that caused it."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def request_ended(self, ended: Ended) -> None:
        """A span for the request, and in it one for waiting and one for generating."""
        end = ended.began + ended.seconds
        span = self._span(f"{_OPERATIONS[ended.kind]} {ended.model}", ended.began)
        span.set_attributes(
            {
                "gen_ai.operation.name": _OPERATIONS[ended.kind],
                "gen_ai.request.model": ended.model,
                "gen_ai.provider.name": ended.engine,
                "gen_ai.usage.input_tokens": ended.usage.prompt_tokens,
                "gen_ai.usage.output_tokens": ended.usage.completion_tokens,
                "gen_ai.response.finish_reasons": [ended.outcome],
            }
        )
        _fail(span, ended.error)
        within = trace.set_span_in_context(span)
        admitted = end if ended.admitted is None else ended.began + ended.admitted
        self._span("queue", ended.began, within).end(_ns(admitted))
        if ended.admitted is not None:
            generation = self._span("generation", admitted, within)
            if ended.first is not None:
                generation.add_event("first token", timestamp=_ns(ended.began + ended.first))
            generation.end(_ns(end))
        span.end(_ns(end))

    def load_ended(self, model: str, engine: str, began: float, seconds: float, error: BaseException | None) -> None:
        """A span for the load, below the request that it was begun for."""
        span = self._span(f"load {model}", began)
        span.set_attributes({"gen_ai.request.model": model, "gen_ai.provider.name": engine})
        _fail(span, error)
        span.end(_ns(began + seconds))

    def _span(self, name: str, began: float, context: Context | None = None) -> Span:
        return self._tracer.start_span(name, context, start_time=_ns(began))


def _fail(span: Span, error: BaseException | None) -> None:
    if error is not None:  # the code only: a message may quote what was asked
        code = error.code if isinstance(error, MyllmError) else type(error).__name__
        span.set_attribute("error.type", code)
        span.set_status(Status(StatusCode.ERROR))


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
