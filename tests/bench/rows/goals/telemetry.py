"""What telemetry costs: one event in a hundred traced, everything counted, against none of it.

Both in turn on the same store, so that whatever the machine does falls on both. What is sent is encoded and thrown
away: a collector is somebody else's work. An event of a backlog is projected with many others in a batch; one that
comes alone is a batch of its own, and all that is noted of a batch falls on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from domain import Append, SessionLog
from domain.log.observing import ROOTS, Observer
from projections.catchup import Batch
from projections.lease import Leases
from tests.bench.arena import Arena, store_of
from tests.bench.events import event
from tests.bench.row import Contestant, Measure, Ratio, Row
from workers.feed import batch_of
from workers.partitions import HeldPartition
from workers.process import Projector
from workers.telemetry import counting
from workers.telemetry.batches import Batches
from workers.telemetry.counting import Counting

SESSIONS = 64
OFF, ON = "off", "on"
#: Neither is always the one that comes after the other.
TURNS = (OFF, ON, ON, OFF)


class Nowhere(SpanExporter):
    """Encodes what it is to send, and sends nothing."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        encode_spans(spans).SerializeToString()
        return SpanExportResult.SUCCESS


def providers(arena: Arena) -> tuple[TracerProvider, MeterProvider]:
    """As who tells everything sets them up. Of appends one in a hundred begins a trace, and each of those is told."""
    tracers = TracerProvider(ALWAYS_ON, shutdown_on_exit=False)
    tracers.add_span_processor(BatchSpanProcessor(Nowhere()))
    meters = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
    arena.at_end(tracers.shutdown)
    arena.at_end(meters.shutdown)
    return tracers, meters


def appending(arena: Arena) -> Measure:
    tracers, meters = providers(arena)
    log = arena.log()
    observers = {OFF: log._observer, ON: Observer(1.0, tracers, meters)}
    made, blocks = event(), arena.many(100, least=10)
    names = [f"s-{number}" for number in range(SESSIONS)]
    for name in names:
        log.append(name, made)

    def measure() -> dict[str, float]:
        taken: dict[str, list[float]] = {OFF: [], ON: []}
        for number in range(2 * blocks):
            which = TURNS[number % 4]
            log._observer = observers[which]
            began = time.perf_counter()
            for name in names:
                log.append(name, made)
            taken[which].append((time.perf_counter() - began) * 1e6 / SESSIONS)
        return {f"append, {which}": median(times) for which, times in taken.items()}

    return measure


def projecting(what: str, size: int) -> Callable[[Arena], Measure]:
    """Batches of so many commits."""

    def prepare(arena: Arena) -> Measure:
        tracers, _ = providers(arena)
        namespace = f"projecting-{size}"
        log = arena.log(namespace)
        log._observer = Observer(1.0, tracers)  # so that one commit in a hundred comes with a trace
        partition = log.keyspace.partition_of("s")
        names = [name for name in (f"s-{n}" for n in range(10_000)) if log.keyspace.partition_of(name) == partition]
        token = Leases(log.client, log.keyspace, "bench").claim(partition, ttl_ms=3_600_000)
        assert token is not None
        projector, batches = (
            Projector(store_of(log), log, "bench"),
            Batches("sessions", slow_s=1.0, sample=ROOTS, tracers=tracers),
        )
        counted = Counting()
        arena.at_end(lambda: counting.begin(None))
        rounds = arena.many(4_000 // size, least=10)
        projector.project(Batch(partition, token, None, None, []))

        def measure() -> dict[str, float]:
            taken: dict[str, list[float]] = {OFF: [], ON: []}
            for number in range(2 * rounds):
                which = TURNS[number % 4]
                counting.begin(counted if which == ON else None)
                for name in names[:size]:
                    log.append_many([Append(name, (event(),))])
                batch = next_batch(log, partition, token)
                began = time.perf_counter()
                batches.done(batch, projector.project(batch), log.clock.now())
                taken[which].append((time.perf_counter() - began) * 1e6 / size)
            return {f"{what}, {which}": median(times) for which, times in taken.items()}

        return measure

    return prepare


def next_batch(log: SessionLog, partition: int, token: str) -> Batch:
    """What a worker would do next."""
    store = store_of(log)
    position = store.cursor(partition).position
    assert position is not None
    return batch_of(partition, HeldPartition(token, position), store.feed_after(partition, position))


BACKLOG, ALONE = "projection of a backlog", "projection of one event alone"

ROW = Row(
    "telemetry on, 1 % traced, against off",
    "µs an event",
    [
        Contestant("append", appending),
        Contestant(BACKLOG, projecting(BACKLOG, 64)),
        Contestant(ALONE, projecting(ALONE, 1)),
    ],
    [
        Ratio("append, on", "append, off", at_most=1.05),
        Ratio(f"{BACKLOG}, on", f"{BACKLOG}, off", at_most=1.05),
        Ratio(f"{ALONE}, on", f"{ALONE}, off"),
    ],
    rounds=3,
)
