"""Traces and metrics by OTLP, received by a server that speaks the protocol."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from msgspec import structs
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from domain.codec import Commit
from domain.stretch import Stretch
from domain.telemetry import METRICS, SPANS
from projections.own.store import DONE, OwnStore
from projections.projection import Definition
from tests.conftest import Store
from tests.projections.examples import SpentPerSession, spec
from tests.projections.world import World, did
from tests.waiting import wait_until
from tests.workers.telemetry.collector import Collector, collecting
from workers.child_process import ChildProcess, start_child
from workers.settings import Settings, TelemetrySettings
from workers.telemetry.batches import Brought, sampled_contexts
from workers.telemetry.sampling import sampler

ROOT: Final = Path(__file__).parents[3]
PHASES: Final = ("muster.batch.load", "muster.batch.fold", "muster.batch.write")
TRACE: Final = f"00-{'a' * 32}-{'b' * 16}"


@pytest.fixture
def world(server_url: str, make_store: Callable[..., Store]) -> World:
    return World(make_store(server_url, partitions=4))


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as made:
        yield made


def environ(settings: Settings) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MUSTER_", "OTEL_"))}
    return {**own, **settings.environ(), "PYTHONPATH": str(ROOT)}


def told(world: World, endpoint: str, **options: Any) -> Settings:
    """Settings of workers that send to a collector."""
    telemetry = TelemetrySettings(endpoint, send_every_s=0.2, **options)
    return structs.replace(world.settings(projections=spec(SpentPerSession)), telemetry=telemetry)


@contextmanager
def worker(settings: Settings) -> Iterator[ChildProcess]:
    child = start_child([sys.executable, "-m", "workers.process"], env=environ(settings))
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def wait_until_followed(world: World) -> None:
    """Returns when own and built-in views follow the feed and hold everything."""
    own = OwnStore(world.log.client, world.keyspace, Definition(SpentPerSession()))
    partitions = range(world.keyspace.count)

    def is_followed() -> bool:
        is_built = own.builds(partitions) == [DONE] * world.keyspace.count
        return is_built and all(position == total for position, total in own.standing(partitions).values())

    world.wait_until_caught_up()
    wait_until(is_followed, message="the own projection follows")


def stop(child: ChildProcess) -> int:
    child.send_signal(signal.SIGTERM)
    return child.wait(60)


def produce(world: World, collector: Collector, sample: float) -> list[str]:
    """Runs a producer with OpenTelemetry; returns what it said."""
    where = [collector.url, world.store.url, world.keyspace.environment, world.keyspace.namespace, str(sample)]
    command = [sys.executable, "-m", "tests.workers.telemetry.traced_producer", *where]
    ran = subprocess.run(command, env=environ(Settings()), capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.split()


def test_a_trace_leads_from_the_producers_work_to_the_view(world: World, collector: Collector) -> None:
    """Its span is the parent of each append's; the batch that made the view is linked to those, with a span a phase.

    However few of the other batches are told: the producer decided.
    """
    with worker(told(world, collector.url, sample=0)) as child:
        world.wait_until_shared([child])
        wait_until_followed(world)
        trace_id, conflict = produce(world, collector, 1)
        wait_until_followed(world)
        assert stop(child) == 0

    assert conflict == "conflict"
    (work,) = collector.spans("work")
    appends = collector.spans("muster.append")
    assert {span.trace_id.hex() for span in appends} == {trace_id}
    assert {span.parent_span_id for span in appends} == {work.span_id}
    attributes = [{pair.key: pair.value for pair in span.attributes} for span in appends]
    sessions = [found["muster.session"].string_value for found in attributes if "muster.session" in found]
    assert sorted(sessions) == ["s-1", "s-1", "s-2"]
    assert [span.status.message for span in appends if span.status.code == 2] == ["SEQ_CONFLICT"]

    batches = collector.spans("muster.batch")
    linked = {link.span_id for span in batches for link in span.links}
    assert linked == {span.span_id for span in appends if span.status.code != 2}
    assert {link.trace_id.hex() for span in batches for link in span.links} == {trace_id}
    labels = {
        pair.value.string_value for span in batches for pair in span.attributes if pair.key == "muster.projection"
    }
    assert labels == {"sessions@2", "spent@1"}
    for batch in batches:
        assert batch.trace_id.hex() != trace_id, "a batch has many producers, and so a trace of its own"
        parts = [part for name in PHASES for part in collector.spans(name) if part.parent_span_id == batch.span_id]
        assert [part.name for part in parts] == list(PHASES)
        assert parts[0].start_time_unix_nano == batch.start_time_unix_nano
        assert parts[-1].end_time_unix_nano == batch.end_time_unix_nano
    assert {"muster.append", "muster.batch", *PHASES} == {span.name for span in SPANS}


def test_what_the_producer_does_not_sample_is_not_traced(world: World, collector: Collector) -> None:
    """No span of an append, and none of its batch; its own context travels as it always did."""
    with worker(told(world, collector.url, sample=0)) as child:
        world.wait_until_shared([child])
        trace_id, _ = produce(world, collector, 0)
        world.wait_until_caught_up()
        wait_until(lambda: collector.total("muster_worker_commits_total"), message="metrics come all the same")
        assert stop(child) == 0
    assert [collector.spans(span.name) for span in SPANS] == [[]] * len(SPANS)
    (commit,) = world.log.read("s-1")
    assert str(commit.traceparent).startswith(f"00-{trace_id}-")
    assert not int(str(commit.traceparent)[-2:], 16) & TraceFlags.SAMPLED


def test_metrics_of_producers_and_workers_arrive(world: World, collector: Collector) -> None:
    """What was appended, what became of it, how long it took: by the names that are declared, and none by session."""
    with worker(told(world, collector.url)) as child:
        world.wait_until_shared([child])
        wait_until_followed(world)
        produce(world, collector, 1)
        world.log.append("s-9", did("start"))
        world.log.append("s-9", did("completed"))
        wait_until_followed(world)
        assert stop(child) == 0

    total = collector.total
    assert total("muster_producer_commits_total") == 4
    assert total("muster_producer_events_total") == 5
    assert total("muster_producer_errors_total", code="SEQ_CONFLICT") == 1
    assert total("muster_producer_errors_total") == 1
    assert total("muster_producer_append_seconds") >= 4
    for label in ("sessions@2", "spent@1"):
        assert total("muster_worker_commits_total", projection=label) == 6
        assert total("muster_worker_events_total", projection=label) == 7
        assert total("muster_worker_visible_seconds", projection=label) >= 1
        batches = total("muster_worker_batch_seconds", projection=label)
        assert total("muster_worker_phase_seconds", projection=label, phase="fold") == batches >= 1
    assert total("muster_worker_sessions_created_total") == 5
    assert total("muster_worker_sessions_completed_total") == 1
    assert total("muster_worker_memory_bytes") > 2**20
    declared = {metric.name for metric in METRICS}
    with collector._lock:
        sent = {name for _, name in collector._points}
        labels = {pair.key for points in collector._points.values() for point in points for pair in point.attributes}
    assert {name for name in sent if name.startswith("muster")} <= declared
    assert not {"session", "agent"} & labels


def test_a_collector_that_is_away_holds_nobody_up(world: World) -> None:
    """Work goes on, and the process ends as it should."""
    with worker(told(world, "http://127.0.0.1:9")) as child:
        world.wait_until_shared([child])
        world.log.append("s", did("start"))
        world.wait_until_caught_up()
        assert stop(child) == 0


def test_nothing_is_set_up_where_nobody_is_told() -> None:
    """No SDK is imported, and counting does nothing."""
    script = (
        "import sys\n"
        "from workers import process\n"
        "from workers.settings import Settings\n"
        "from workers.telemetry import counting\n"
        "from workers.telemetry.telling import Telemetry\n"
        "Telemetry.begin(Settings(), 'me').close()\n"
        "assert counting.now() is None\n"
        "sdk = ('opentelemetry.sdk.trace', 'opentelemetry.exporter')\n"
        "loaded = [name for name in sys.modules if name.startswith(sdk)]\n"
        "assert not loaded, loaded\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], env=environ(Settings()), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


# -- which batches are told ------------------------------------------------------------------------------------------


def test_batches_are_decided_on_before_and_all_else_by_chance_or_by_its_parent() -> None:
    """What the user's code in a worker traces is told in part too."""

    def is_told(part: float, name: str, parent: int | None = None) -> bool:
        span = NonRecordingSpan(SpanContext(1, 2, False, TraceFlags(parent or 0)))
        context = None if parent is None else set_span_in_context(span)
        return sampler(part).should_sample(context, 2**63, name).decision != Decision.DROP

    assert [is_told(0, "muster.batch"), is_told(0, "theirs"), is_told(1, "theirs")] == [True, False, True]
    assert [is_told(0, "theirs", parent=1), is_told(1, "theirs", parent=0)] == [True, False]


def test_commits_lead_to_the_spans_they_came_with_each_once() -> None:
    """Whatever a foreign producer wrote there: what is no trace context is none, and no trouble."""

    def commit(traceparent: str | None) -> Commit:
        return Commit("s", 1, 1, 0, "0" * 20, b"", traceparent)

    brought = Brought.by(
        [
            [
                commit(f"{TRACE}-01"),
                commit(None),
                commit(f"{TRACE}-01"),
                commit("what is this?"),
                commit("-".join("0000")),
            ],
            Stretch.of("s", [commit(f"{TRACE}-00"), commit(f"00-{'0' * 32}-{'b' * 16}-01")]),
            Stretch("s", [1], [1], [0], [b"0" * 20], [b""], [f"00-{'c' * 32}-{'d' * 16}-01".encode()]),
            Stretch("s", [1], [1], [0], [b"0" * 20], [b""]),
        ]
    )
    found = sampled_contexts(brought.traces)
    assert brought.commits == 9
    assert [f"{context.span_id:x}" for context in found] == ["b" * 16, "d" * 16]
