"""What Prometheus reads at ``/metrics``: counts and times of requests, models and workers since the server started."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import prometheus_client
from fastapi import APIRouter, Request
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.responses import Response
from starlette.routing import compile_path
from starlette.types import Scope

from myllm_core.errors import MyllmError, WorkerDied
from myllm_core.runtime.observe import Ended, Observer
from myllm_core.runtime.runtime import Runtime
from myllm_server import examples
from myllm_server.gate import Gate

router = APIRouter(tags=["server"])

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_WAITS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_TOKEN_TIMES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Routes:
    """Templates of paths, so that a label has as many values as there are routes and no more."""

    def __init__(self, templates: Iterable[str]) -> None:
        self._plain = frozenset(template for template in templates if "{" not in template)
        self._patterns: list[tuple[re.Pattern[str], str]] = [
            (compile_path(template)[0], template) for template in templates if "{" in template
        ]

    def name(self, path: str) -> str:
        """The template that ``path`` fits, or ``other``."""
        if path in self._plain:
            return path
        return next((template for pattern, template in self._patterns if pattern.match(path)), "other")


class Metrics(Observer):
    """Counts what the runtime and the server tell. Labels are names of installed models, routes and codes only."""

    def __init__(self, runtime: Runtime, gate: Gate, routes: Routes) -> None:
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        self._routes = routes
        self._died: set[str] = set()
        self._http = Counter(
            "myllm_http_requests", "HTTP requests that ended", ["method", "route", "status"], registry=registry
        )
        self._http_seconds = Histogram(
            "myllm_http_request_seconds",
            "From an HTTP request's head to the end of its answer",
            ["route"],
            buckets=_WAITS,
            registry=registry,
        )
        self._requests = Counter(
            "myllm_model_requests", "Requests to a model that ended", ["model", "kind", "outcome"], registry=registry
        )
        self._wait = _times(registry, "myllm_queue_wait_seconds", "Waiting for the model to load and for a turn")
        self._first = _times(registry, "myllm_time_to_first_token_seconds", "From the request to its first token")
        self._each = Histogram(
            "myllm_time_per_output_token_seconds",
            "Between two tokens, as the mean of a reply",
            ["model"],
            buckets=_TOKEN_TIMES,
            registry=registry,
        )
        self._prompt = Counter("myllm_prompt_tokens", "Tokens read", ["model"], registry=registry)
        self._cached = Counter(
            "myllm_cached_tokens", "Tokens of prompts that weren't computed again", ["model"], registry=registry
        )
        self._completion = Counter("myllm_completion_tokens", "Tokens written", ["model"], registry=registry)
        self._loads = Counter("myllm_model_loads", "Loads that ended", ["model", "outcome"], registry=registry)
        self._load_seconds = _times(registry, "myllm_model_load_seconds", "Loading a model")
        self._crashes = Counter(
            "myllm_worker_crashes", "Workers that ended by themselves", ["model"], registry=registry
        )
        self._restarts = Counter("myllm_worker_restarts", "Loads after a crash", ["model"], registry=registry)
        registry.register(_Now(runtime, gate))
        prometheus_client.ProcessCollector(registry=registry)

    def http_ended(self, scope: Scope, status: int, seconds: float) -> None:
        """An HTTP request has ended."""
        method = scope["method"] if scope["method"] in _METHODS else "other"
        route = self._routes.name(scope["path"])
        self._http.labels(method, route, str(status)).inc()
        self._http_seconds.labels(route).observe(seconds)

    def request_ended(self, ended: Ended) -> None:
        """A request to a model has ended."""
        model, usage = ended.model, ended.usage
        self._requests.labels(model, ended.kind, ended.outcome).inc()
        self._prompt.labels(model).inc(usage.prompt_tokens)
        self._cached.labels(model).inc(usage.cached_tokens)
        self._completion.labels(model).inc(usage.completion_tokens)
        if ended.admitted is not None:
            self._wait.labels(model).observe(ended.admitted)
        if ended.first is not None:
            self._first.labels(model).observe(ended.first)
            if usage.completion_tokens > 1:
                self._each.labels(model).observe((ended.seconds - ended.first) / (usage.completion_tokens - 1))

    def load_ended(self, model: str, engine: str, began: float, seconds: float, error: BaseException | None) -> None:
        """A model was loaded, or failed to load."""
        self._loads.labels(model, "error" if error else "ok").inc()
        if isinstance(error, WorkerDied):
            self.worker_died(model, error)
        elif error is None:
            self._load_seconds.labels(model).observe(seconds)
            if model in self._died:
                self._died.discard(model)
                self._restarts.labels(model).inc()

    def worker_died(self, model: str, error: MyllmError) -> None:
        """The process of a model ended by itself."""
        self._died.add(model)
        self._crashes.labels(model).inc()


def _times(registry: CollectorRegistry, name: str, text: str) -> Histogram:
    return Histogram(name, text, ["model"], buckets=_WAITS, registry=registry)


class _Now(Collector):
    """What is true at the moment of asking."""

    def __init__(self, runtime: Runtime, gate: Gate) -> None:
        self._runtime = runtime
        self._gate = gate

    def collect(self) -> Iterator[GaugeMetricFamily]:
        loaded = self._runtime.loaded()
        yield GaugeMetricFamily("myllm_models_loaded", "Models that are loaded", len(loaded))
        yield GaugeMetricFamily("myllm_http_requests_running", "HTTP requests that run", len(self._gate.running))
        gauges = [
            ("myllm_model_requests_running", "Requests that a model runs", [one.running for one in loaded]),
            ("myllm_model_requests_queued", "Requests that wait for a model", [one.queued for one in loaded]),
            ("myllm_worker_memory_bytes", "Resident memory of a model's process", [one.memory for one in loaded]),
        ]
        for name, text, values in gauges:
            gauge = GaugeMetricFamily(name, text, labels=["model"])
            for one, value in zip(loaded, values, strict=True):
                gauge.add_metric([one.name], value)
            yield gauge


@router.get("/metrics", responses=examples.METRICS, response_class=Response)
async def metrics(request: Request) -> Response:
    """Give counts and times since the server started, as Prometheus reads them."""
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(request.app.state.metrics.registry), media_type=content_type)
