"""What this process counts, as OpenTelemetry's data, sent by its exporter now and then."""

from __future__ import annotations

import time
from threading import Event, Thread

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from domain import telemetry
from domain.telemetry import LATENCIES, SCOPE
from workers.telemetry.counting import Counting, Series

#: Units as OpenTelemetry writes them.
_UNITS = {"": "", "seconds": "s", "bytes": "By", "ratio": "1"}
_CUMULATIVE = AggregationTemporality.CUMULATIVE


class MetricsSender:
    """Sends all that is counted, every so many seconds and once more in the end."""

    def __init__(self, counting: Counting, exporter: OTLPMetricExporter, resource: Resource, every_s: float) -> None:
        self._counting = counting
        self._exporter = exporter
        self._resource = resource
        self._every_s = every_s
        self._began_ns = time.time_ns()
        self._stop = Event()
        self._thread = Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def shutdown(self) -> None:
        """Sends the last word, and ends."""
        self._stop.set()
        self._thread.join()
        self._exporter.shutdown()

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            self._send()
        self._send()

    def _send(self) -> None:
        self._exporter.export(data_of(self._counting, self._resource, self._began_ns, time.time_ns()))


def data_of(counting: Counting, resource: Resource, began_ns: int, now_ns: int) -> MetricsData:
    """All that is counted, since the beginning."""
    metrics = [
        Metric(metric.name, metric.meaning, _UNITS[metric.unit], _points(metric, found, began_ns, now_ns))
        for metric, found in counting.told()
    ]
    scope = ScopeMetrics(InstrumentationScope(SCOPE), metrics, "")
    return MetricsData([ResourceMetrics(resource, [scope], "")])


def _points(metric: telemetry.Metric, found: list[Series], began_ns: int, now_ns: int) -> Sum | Gauge | Histogram:
    if metric.kind == "histogram":
        points = [
            HistogramDataPoint(
                dict(one.labels),
                began_ns,
                now_ns,
                sum(one.inside),
                one.value,
                one.inside,
                LATENCIES,
                one.least,
                one.most,
            )
            for one in found
        ]
        return Histogram(points, _CUMULATIVE)
    numbers = [NumberDataPoint(dict(one.labels), began_ns, now_ns, one.value) for one in found]
    return Sum(numbers, _CUMULATIVE, True) if metric.kind == "counter" else Gauge(numbers)
