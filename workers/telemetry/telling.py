"""Sets up OpenTelemetry in this process, and tells others what it comes to: by OTLP, and on a port for Prometheus.

After the fork, in every process for itself: an exporter's threads do not live on in a child. Nothing is imported of the
SDK, and nothing set up, where nobody is to be told.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from threading import Thread
from typing import TYPE_CHECKING, Any, Final

from msgspec import structs

from domain.errors import Misconfigured
from domain.telemetry import METRICS, SCOPE, Metric
from workers.metrics import CONTENT_TYPE, Told, text
from workers.serving import GuardedServer, as_json
from workers.settings import ServeSettings, Settings
from workers.telemetry import counting

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

logger = logging.getLogger(__name__)

#: How long one sending may take, and how long the last one is waited for when the process ends, in seconds.
SEND_S: Final = 5.0
LAST_WORD_S: Final = 3.0


class Telemetry:
    """Who is told what this process counts and traces."""

    def __init__(self) -> None:
        self._providers: list[Any] = []
        self._server: MetricsServer | None = None

    @classmethod
    def begin(cls, settings: Settings, who: str) -> Telemetry:
        """As the settings say; `who` tells processes apart where what they count comes together."""
        telemetry = cls()
        told = settings.telemetry
        if told.otlp_endpoint is not None or told.port:
            telemetry._begin(settings, who)
        return telemetry

    def close(self) -> None:
        """Sends what was not sent yet, and ends. A collector that does not answer holds nobody up."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        closing = [Thread(target=provider.shutdown, name="telemetry", daemon=True) for provider in self._providers]
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join(LAST_WORD_S)

    def _begin(self, settings: Settings, who: str) -> None:
        from opentelemetry import metrics, trace
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricReader, PeriodicExportingMetricReader
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        told = settings.telemetry
        resource = Resource.create({"service.name": "muster-worker", "service.instance.id": who})
        readers: list[MetricReader] = []
        if told.otlp_endpoint is not None:
            from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            from workers.telemetry.sampling import sampler

            base = told.otlp_endpoint.rstrip("/")
            metric_exporter = OTLPMetricExporter(f"{base}/v1/metrics", timeout=SEND_S)
            readers.append(PeriodicExportingMetricReader(metric_exporter, told.send_every_s * 1000))
            tracers = TracerProvider(sampler(told.sample), resource, shutdown_on_exit=False)
            tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{base}/v1/traces", timeout=SEND_S)))
            trace.set_tracer_provider(tracers)
            self._providers.append(tracers)
        scraped = InMemoryMetricReader() if told.port else None
        if scraped is not None:
            readers.append(scraped)
        meters = MeterProvider(readers, resource, shutdown_on_exit=False)
        metrics.set_meter_provider(meters)
        self._providers.append(meters)
        counting.begin()
        if scraped is not None:
            self._server = serve(settings, scraped)


class MetricsServer(GuardedServer):
    """Tells Prometheus what this process counted: /metrics."""

    def __init__(self, serve: ServeSettings, reader: InMemoryMetricReader) -> None:
        super().__init__(serve, section="telemetry")
        self._reader = reader

    def answer(self, path: str) -> tuple[int, str, str]:
        if path == "/metrics":
            return 200, CONTENT_TYPE, exposition(self._reader)
        return as_json(404, {"schema": "muster.error/1", "code": "USAGE", "cause": f"there is nothing at {path}"})


def serve(settings: Settings, reader: InMemoryMetricReader) -> MetricsServer | None:
    """Tells Prometheus on the first port that is free; None, and an error in the log, if none is."""
    told = settings.telemetry
    refused: Misconfigured | None = None
    for port in range(told.port, min(told.port + settings.worker.processes, 65_536)):
        try:
            server = MetricsServer(structs.replace(settings.serve, host=told.host, port=port), reader)
        except Misconfigured as error:
            refused = error
            continue
        Thread(target=server.serve_forever, name="metrics", daemon=True).start()
        logger.info("metrics at %s/metrics", server.url, extra={"action": "worker.metrics", "port": server.server_port})
        return server
    # Work is more than being watched.
    logger.error("nobody can be told metrics: %s", refused, extra={"action": "worker.metrics_untold"})
    return None


def exposition(reader: InMemoryMetricReader) -> str:
    """What this process counted, as Prometheus reads it."""
    declared = {metric.name: metric for metric in METRICS}
    found: dict[str, list[Told]] = {}
    data = reader.get_metrics_data()
    for resource in data.resource_metrics if data is not None else ():
        for scope in resource.scope_metrics:
            if scope.scope.name == SCOPE:  # what libraries count is theirs to tell
                for one in scope.metrics:
                    found[one.name] = [
                        line for point in one.data.data_points for line in _told(declared[one.name], point)
                    ]
    return text((metric, found.get(metric.name, [])) for metric in METRICS)


def _told(metric: Metric, point: Any) -> Iterator[Told]:
    labels = tuple((name, str(value)) for name, value in sorted((point.attributes or {}).items()))
    if metric.kind != "histogram":
        yield Told(point.value, labels)
        return
    below = 0
    for bound, inside in zip([*point.explicit_bounds, float("inf")], point.bucket_counts, strict=True):
        below += inside
        yield Told(below, (*labels, ("le", "+Inf" if bound == float("inf") else f"{bound:g}")), "_bucket")
    yield Told(point.sum, labels, "_sum")
    yield Told(point.count, labels, "_count")
