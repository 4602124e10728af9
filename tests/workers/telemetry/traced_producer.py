"""A producer as a user has it: OpenTelemetry set up, a span around its work, appends of all kinds.

    python -m tests.workers.telemetry.traced_producer COLLECTOR REDIS ENVIRONMENT NAMESPACE SAMPLE

It says the id of its trace, and those of the appends it made, one a line.
"""

from __future__ import annotations

import asyncio
import sys

from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

from domain import Append, Conflict, Event, SessionLog
from domain.log import AsyncSessionLog

collector, url, environment, namespace, sample = sys.argv[1:]
tracers = TracerProvider(sampler=ParentBasedTraceIdRatio(float(sample)))
tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{collector}/v1/traces")))
trace.set_tracer_provider(tracers)
meters = MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter(f"{collector}/v1/metrics"), 3_600_000)])
metrics.set_meter_provider(meters)


def made(number: int) -> Event:
    return Event.of("tool.called", actor="ann", data={"number": number})


async def append_async() -> None:
    async with await AsyncSessionLog.open(url, environment=environment, namespace=namespace) as log:
        await log.append("s-2", made(2))


with (
    SessionLog.open(url, environment=environment, namespace=namespace) as log,
    trace.get_tracer("the producer").start_as_current_span("work") as span,
):
    print(f"{span.get_span_context().trace_id:032x}")
    log.append("s-1", [made(0), made(1)])
    asyncio.run(append_async())
    log.append_many([Append("s-3", (made(3),)), Append("s-4", (made(4),))])
    try:
        log.append("s-1", made(5), expected=0)
    except Conflict:
        print("conflict")

tracers.shutdown()
meters.shutdown()
