"""What is logged of appends, and that nothing of them is counted or traced where nobody asked for it."""

from __future__ import annotations

import logging
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, use_span

from domain import Append, Conflict, OutcomeUnknown, SessionLog
from domain.log import Connecting, create_store, observing
from domain.log.grouping import IN_FLIGHT
from domain.log.observing import Observer
from tests.conftest import Store
from tests.domain.log.logs import note
from tests.own_server import OwnServer
from tests.waiting import wait_until

#: An append that takes so long is slow, in these tests: every one.
NOTHING: Final = 1e-9


def slow(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """The lines about slow appends, with their fields, the newest last."""
    lines = [record for record in caplog.records if getattr(record, "action", "") == "log.slow_append"]
    return [{**vars(record), "text": record.getMessage()} for record in lines]


def test_a_slow_append_says_how_long_it_waited_was_sent_and_waited_for_the_reply(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """In words, and as fields that add up."""
    store.open(slow_append_s=NOTHING).append("s-1", note())
    told = slow(caplog)[-1]
    assert (told["sessions"], told["levelname"]) == ("s-1", "WARNING")
    assert re.match(r"an append to s-1 took \d+\.", told["text"])
    assert told["wait_s"] + told["send_s"] + told["reply_s"] == pytest.approx(told["took_s"], abs=1e-5)
    assert min(told["wait_s"], told["send_s"], told["reply_s"]) >= 0


def test_of_many_sessions_the_first_are_named(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """A line stays a line, however many commits travelled together."""
    store.open(slow_append_s=NOTHING).append_many([Append(f"s-{number}", (note(),)) for number in range(5)])
    assert "an append to s-0, s-1, s-2 and 2 more took" in slow(caplog)[-1]["text"]


async def test_an_asyncio_log_says_the_same(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """By the same fields."""
    async with await store.open_async(slow_append_s=NOTHING) as log:
        await log.append("s-1", note())
    told = slow(caplog)[-1]
    assert told["wait_s"] + told["send_s"] + told["reply_s"] == pytest.approx(told["took_s"], abs=1e-5)


def test_whoever_waits_for_others_to_send_says_for_how_long(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """Each caller of a group has a wait of its own, and the rest in common with the others."""
    log = store.open(slow_append_s=NOTHING)
    log.append("s", note())  # so that there is a connection
    caplog.clear()
    client: Any = store.client
    client.client_pause(60_000, all=False)  # no write is answered
    with ThreadPoolExecutor(16) as pool:
        appends = [pool.submit(log.append, f"s-{number}", note()) for number in range(16)]
        try:
            wait_until(lambda: len(log._appends._waiting) == 16 - IN_FLIGHT, message="all wait for those under way")
        finally:
            client.client_unpause()
        for append in appends:
            append.result()
    told = slow(caplog)
    assert min(line["wait_s"] for line in told) >= 0
    assert len({line["send_s"] for line in told}) < len(told), "some travelled together"
    assert len({line["wait_s"] for line in told}) > len({line["send_s"] for line in told})


def test_an_append_that_fails_says_with_what(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """By its code."""
    log = store.open(slow_append_s=NOTHING)
    log.append("s-1", note())
    with pytest.raises(Conflict):
        log.append("s-1", note(), expected=7)
    assert slow(caplog)[-1]["code"] == "SEQ_CONFLICT"
    assert slow(caplog)[-1]["text"].endswith("; it failed with SEQ_CONFLICT")


def test_an_append_without_an_answer_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It has no phases: nobody knows how far it came."""
    server = OwnServer(tmp_path / "server")
    server.start()
    try:
        with server.client() as client:
            create_store(client, environment="dev", namespace="main", partitions=2)
        with SessionLog.open(Connecting(server.url, timeout_s=1.0, retry_for_s=0, slow_append_s=NOTHING)) as log:
            log.append("s-1", note())
            server.pause()
            with pytest.raises(OutcomeUnknown):
                log.append("s-1", note())
    finally:
        server.stop()
    answered, told = slow(caplog)
    assert "reply_s" in answered
    assert told["code"] == "OUTCOME_UNKNOWN"
    assert "reply_s" not in told


def test_what_is_quick_is_told_only_in_detail(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """With the same fields, for whoever switched the topic on."""
    log = store.open(slow_append_s=3600)
    log.append("s-1", note())
    assert not caplog.records
    with caplog.at_level(logging.DEBUG, "domain.log.observing"):
        log.append("s-1", note())
    (record,) = caplog.records
    assert (record.levelname, vars(record)["action"], vars(record)["sessions"]) == ("DEBUG", "log.append", "s-1")


@pytest.mark.parametrize(("roots", "flags", "spans"), [(1, None, 1), (0, None, 0), (0, 1, 1), (1, 0, 0)])
def test_an_append_is_traced_as_its_producers_work_is(
    monkeypatch: pytest.MonkeyPatch, store: Store, roots: float, flags: int | None, spans: int
) -> None:
    """In a trace that is sampled; where there is none, a few begin one. The span's context travels with the commit."""
    monkeypatch.setattr(observing, "ROOTS", roots)
    exported = InMemorySpanExporter()
    tracers = TracerProvider(ALWAYS_ON, shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(exported))
    log = store.open()
    log._observer = Observer(1.0, tracers)
    with ExitStack() as work:
        if flags is not None:
            current = NonRecordingSpan(SpanContext(7, 8, False, TraceFlags(flags)))
            work.enter_context(use_span(current))
        log.append("s-1", note())
        log.append_many([Append("s-2", (note(), note()))])

    found = exported.get_finished_spans()
    assert [span.name for span in found] == ["muster.append"] * 2 * spans
    for span, session, events in zip(found, ("s-1", "s-2"), (1, 2), strict=False):
        (commit,) = log.read(session)
        assert span.context is not None
        assert f"{span.context.span_id:016x}" in str(commit.traceparent)
        assert dict(span.attributes or {}) == {"muster.session": session, "muster.commits": 1, "muster.events": events}
        assert (span.parent.trace_id if span.parent else None) == (None if flags is None else 7)


def test_what_is_measured_is_bounded_and_what_is_counted_exact(monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    """Of more calls than are kept between two looks, as many as are kept; commits, events and errors all."""
    monkeypatch.setattr(observing, "TIMES", 8)
    reader = InMemoryMetricReader()
    log = store.open()
    log._observer = Observer(1.0, None, MeterProvider([reader], shutdown_on_exit=False))

    def looked() -> dict[str, Any]:
        data = reader.get_metrics_data()
        assert data is not None
        (scope,) = data.resource_metrics[0].scope_metrics
        return {metric.name: metric.data.data_points[0] for metric in scope.metrics if metric.data.data_points}

    for number in range(5):
        log.append("s", note(), expected=number)
    first = looked()
    for number in range(5, 25):
        log.append("s", [note(), note()], expected=5 + 2 * (number - 5))
    with pytest.raises(Conflict):
        log.append("s", note(), expected=1)
    second = looked()
    assert (first["muster_producer_append_seconds"].count, first["muster_producer_commits_total"].value) == (5, 5)
    assert second["muster_producer_append_seconds"].count == 5 + 8
    assert second["muster_producer_commits_total"].value == 25
    assert second["muster_producer_events_total"].value == 45
    errors = second["muster_producer_errors_total"]
    assert (errors.value, dict(errors.attributes)) == (1, {"code": "SEQ_CONFLICT"})


def test_without_a_provider_nothing_is_traced_or_counted() -> None:
    """The API's own providers do nothing, and are not asked."""
    observer = Observer(1.0)
    assert observer.tracer is None
    assert observer._measures is None
