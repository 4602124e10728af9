"""Who is told what this process counts and traces: a collector by OTLP, Prometheus on a port.

Set up after the fork, in every process for itself: an exporter's threads do not live on in a child. Nothing is imported
of the SDK where nobody is to be told.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from threading import Thread
from typing import Final, Protocol

from msgspec import structs

from domain.errors import Misconfigured
from domain.telemetry import LATENCIES, Metric
from workers.metrics import CONTENT_TYPE, Told, text
from workers.serving import GuardedServer, as_json
from workers.settings import ServeSettings, Settings, TelemetrySettings
from workers.telemetry import counting
from workers.telemetry.counting import Counting, Series

logger = logging.getLogger(__name__)

#: How long one sending may take, and how long the last one is waited for when the process ends, in seconds.
SEND_S: Final = 5.0
LAST_WORD_S: Final = 3.0


class Closing(Protocol):
    """What is ended when the process ends."""

    def shutdown(self) -> None: ...


class Telemetry:
    """Who is told, until it is closed."""

    def __init__(self, *told: Closing) -> None:
        self._told = told

    @classmethod
    def begin(cls, settings: Settings, who: str) -> Telemetry:
        """As the settings say; `who` tells processes apart where what they count comes together."""
        told = settings.telemetry
        if told.otlp_endpoint is None and not told.port:
            return cls()
        counted = Counting()
        counting.begin(counted)
        closing: list[Closing] = []
        if told.otlp_endpoint is not None:
            closing += send(told, told.otlp_endpoint, counted, who)
        if told.port and (server := serve(settings, counted)) is not None:
            closing.append(server)
        return cls(*closing)

    def close(self) -> None:
        """Sends what was not sent yet, and ends. A collector that does not answer holds nobody up."""
        closing = [Thread(target=one.shutdown, name="telemetry", daemon=True) for one in self._told]
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join(LAST_WORD_S)


def send(told: TelemetrySettings, endpoint: str, counted: Counting, who: str) -> list[Closing]:
    """Sends traces and metrics to a collector; whatever this process traces, with any tracer, is sent with it."""
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from workers.telemetry.otlp import MetricsSender
    from workers.telemetry.sampling import sampler

    base = endpoint.rstrip("/")
    resource = Resource.create({"service.name": "muster-worker", "service.instance.id": who})
    tracers = TracerProvider(sampler(told.sample), resource, shutdown_on_exit=False)
    tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{base}/v1/traces", timeout=SEND_S)))
    trace.set_tracer_provider(tracers)
    exporter = OTLPMetricExporter(f"{base}/v1/metrics", timeout=SEND_S)
    return [tracers, MetricsSender(counted, exporter, resource, told.send_every_s)]


class MetricsServer(GuardedServer):
    """Tells Prometheus what this process counted: /metrics."""

    def __init__(self, serve: ServeSettings, counted: Counting) -> None:
        super().__init__(serve, section="telemetry")
        self._counted = counted

    def answer(self, path: str) -> tuple[int, str, str]:
        if path == "/metrics":
            return 200, CONTENT_TYPE, exposition(self._counted)
        return as_json(404, {"schema": "muster.error/1", "code": "USAGE", "cause": f"there is nothing at {path}"})


def serve(settings: Settings, counted: Counting) -> MetricsServer | None:
    """Tells Prometheus on the first port that is free; None, and an error in the log, if none is."""
    told = settings.telemetry
    refused: Misconfigured | None = None
    for port in range(told.port, min(told.port + settings.worker.processes, 65_536)):
        try:
            server = MetricsServer(structs.replace(settings.serve, host=told.host, port=port), counted)
        except Misconfigured as error:
            refused = error
            continue
        Thread(target=server.serve_forever, name="metrics-port", daemon=True).start()
        logger.info("metrics at %s/metrics", server.url, extra={"action": "worker.metrics", "port": server.server_port})
        return server
    # Work is more than being watched.
    logger.error("nobody can be told metrics: %s", refused, extra={"action": "worker.metrics_untold"})
    return None


def exposition(counted: Counting) -> str:
    """What this process counted, as Prometheus reads it."""
    return text((metric, [line for one in found for line in _lines(metric, one)]) for metric, found in counted.told())


def _lines(metric: Metric, one: Series) -> Iterator[Told]:
    if metric.kind != "histogram":
        yield Told(one.value, one.labels)
        return
    below = 0
    for bound, inside in zip([*(f"{bound:g}" for bound in LATENCIES), "+Inf"], one.inside, strict=True):
        below += inside
        yield Told(below, (*one.labels, ("le", bound)), "_bucket")
    yield Told(one.value, one.labels, "_sum")
    yield Told(below, one.labels, "_count")
