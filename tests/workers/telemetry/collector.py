"""A server that takes traces and metrics as a collector does: OTLP over HTTP, protobuf."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any, Final

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

_TRACES: Final = "/v1/traces"
_METRICS: Final = "/v1/metrics"


class Collector(ThreadingHTTPServer):
    """Keeps what it is sent: every span, and of every metric the last points each process sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self._lock = Lock()
        self._spans: list[Any] = []
        self._points: dict[tuple[str, str], list[Any]] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def spans(self, name: str) -> list[Any]:
        """The spans of a name, as the protocol has them."""
        with self._lock:
            return [span for span in self._spans if span.name == name]

    def points(self, name: str) -> list[Any]:
        """The points of a metric, of all processes."""
        with self._lock:
            return [point for (_, metric), points in self._points.items() if metric == name for point in points]

    def total(self, name: str, **labels: str) -> int:
        """A counter, added up over the processes; of a histogram, how often something was recorded."""
        found = 0
        for point in self.points(name):
            has = {pair.key: pair.value.string_value for pair in point.attributes}
            if labels.items() <= has.items():
                found += point.count if hasattr(point, "bucket_counts") else point.as_int
        return found

    def take(self, path: str, body: bytes) -> bytes:
        """What is answered to what was sent."""
        if path == _TRACES:
            traces = ExportTraceServiceRequest.FromString(body)
            with self._lock:
                self._spans += [s for r in traces.resource_spans for scope in r.scope_spans for s in scope.spans]
            return bytes(ExportTraceServiceResponse().SerializeToString())
        metrics = ExportMetricsServiceRequest.FromString(body)
        with self._lock:
            for resource in metrics.resource_metrics:
                who = str(resource.resource.attributes)
                for metric in (one for scope in resource.scope_metrics for one in scope.metrics):
                    kind = metric.WhichOneof("data")
                    self._points[who, metric.name] = list(getattr(metric, kind).data_points)
        return bytes(ExportMetricsServiceResponse().SerializeToString())


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        known = self.path in (_TRACES, _METRICS) and self.headers["Content-Type"] == "application/x-protobuf"
        answer = self.server.take(self.path, body) if known else b""
        self.send_response(200 if known else 404)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector that listens meanwhile."""
    with Collector() as collector:
        thread = Thread(target=collector.serve_forever, daemon=True)
        thread.start()
        try:
            yield collector
        finally:
            collector.shutdown()
            thread.join()
