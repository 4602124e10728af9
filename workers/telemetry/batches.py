"""What is counted, traced and logged of the batches of one projection.

Spans are made when a batch is done, with the times it had: only then is it known which traces its commits came from.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any, Final

import redis
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags

from domain.codec import Commit
from domain.errors import MusterError
from domain.log.connection import connection_error
from domain.stretch import Stretch
from domain.telemetry import (
    BATCH_SECONDS,
    BATCH_SPAN,
    BREAKS,
    CHECKPOINTS,
    COMPLETED,
    CREATED,
    FOLD_SPAN,
    LOAD_SPAN,
    PHASE_SECONDS,
    SCOPE,
    VISIBLE_SECONDS,
    WORKER_COMMITS,
    WORKER_ERRORS,
    WORKER_EVENTS,
    WORKER_PARKED,
    WORKER_REBUILDS,
    WRITE_SPAN,
)
from projections.catchup import Batch, Projected
from workers.telemetry.counting import count, is_counting, record

logger = logging.getLogger(__name__)

#: A batch is linked to so many commits at most: as many links as a span holds.
MOST_LINKS: Final = 128
#: What the statistics of a session gain → what is counted of it.
_GAINS: Final = (("sessions", CREATED), ("state completed", COMPLETED), ("breaks", BREAKS))


class Batches:
    """Observes the batches of one projection."""

    def __init__(self, projection: str, *, slow_s: float) -> None:
        self._projection = projection
        self._slow_s = slow_s

    def done(self, batch: Batch, projected: Projected | None, server_ms: int) -> None:
        """Notes a batch that was applied at `server_ms`; None: one that was no stretch of the feed."""
        if projected is None:
            if not batch.retry:
                count(WORKER_REBUILDS, projection=self._projection)
            return
        phases = projected.phases
        took = phases.load + phases.fold + phases.write
        if took >= self._slow_s or logger.isEnabledFor(logging.DEBUG):
            self._say(batch, projected, took)
        if is_counting():
            self._count(projected, took, server_ms)
            self._trace(batch, projected)

    def failed(self, error: Exception) -> None:
        """Notes a batch that failed."""
        if is_counting():
            count(WORKER_ERRORS, projection=self._projection, code=_code(error))

    def _say(self, batch: Batch, projected: Projected, took: float) -> None:
        is_slow = took >= self._slow_s
        spent = {"load": projected.phases.load, "fold": projected.phases.fold, "write": projected.phases.write}
        about: dict[str, Any] = {
            "action": "projection.slow_batch" if is_slow else "projection.batch",
            "projection": self._projection,
            "partition": batch.partition,
            "events": projected.events,
            "sessions": projected.sessions,
            "took_s": round(took, 6),
            **{f"{name}_s": round(seconds, 6) for name, seconds in spent.items()},
        }
        phases = ", ".join(f"{name} {seconds:.3f} s" for name, seconds in spent.items())
        text = "a batch of partition %d of %s, %d events of %d sessions, took %.3f s: %s"
        size = (batch.partition, self._projection, projected.events, projected.sessions, took, phases)
        logger.log(logging.WARNING if is_slow else logging.DEBUG, text, *size, extra=about)

    def _count(self, projected: Projected, took: float, server_ms: int) -> None:
        label, phases = self._projection, projected.phases
        record(BATCH_SECONDS, took, projection=label)
        record(PHASE_SECONDS, phases.load, projection=label, phase="load")
        record(PHASE_SECONDS, phases.fold, projection=label, phase="fold")
        record(PHASE_SECONDS, phases.write, projection=label, phase="write")
        oldest = min((_first_time(commits) for commits in projected.loaded if len(commits)), default=None)
        if oldest is not None:
            record(VISIBLE_SECONDS, max(0, server_ms - oldest) / 1000, projection=label)
        count(WORKER_EVENTS, projected.events, projection=label)
        count(WORKER_COMMITS, sum(map(len, projected.loaded)), projection=label)
        count(WORKER_PARKED, projected.parked, projection=label)
        count(CHECKPOINTS, sum([len(outcome.checkpoints) for outcome in projected.outcomes]))
        for name, metric in _GAINS:
            gains = [outcome.sums.get(name, 0) for outcome in projected.outcomes]
            count(metric, sum([gain for gain in gains if gain > 0]))

    def _trace(self, batch: Batch, projected: Projected) -> None:
        links = [Link(context) for context in sampled_contexts(projected.loaded)]
        phases = projected.phases
        about: dict[str, str | int] = {
            "muster.projection": self._projection,
            "muster.partition": batch.partition,
            "muster.events": projected.events,
            "muster.sessions": projected.sessions,
        }
        tracer, at = trace.get_tracer(SCOPE), phases.began_ns
        span = tracer.start_span(
            BATCH_SPAN.name, Context(), SpanKind.CONSUMER, about, links=links[:MOST_LINKS], start_time=at
        )
        if span.is_recording():
            within = trace.set_span_in_context(span, Context())
            for kind, seconds in ((LOAD_SPAN, phases.load), (FOLD_SPAN, phases.fold), (WRITE_SPAN, phases.write)):
                part = tracer.start_span(kind.name, within, start_time=at)
                at += int(seconds * 1e9)
                part.end(at)
        span.end(at)


def sampled_contexts(loaded: Iterable[Sequence[Commit]]) -> list[SpanContext]:
    """The spans that commits came with and that are told, each once."""
    found: dict[str | bytes, None] = {}
    for commits in loaded:
        traces = commits.traces if isinstance(commits, Stretch) else [commit.traceparent for commit in commits]
        found |= {one: None for one in traces if one}
    contexts = [_context(one if isinstance(one, str) else one.decode("ascii", "replace")) for one in found]
    return [context for context in contexts if context is not None and context.trace_flags.sampled]


def _context(traceparent: str) -> SpanContext | None:
    """The span that a W3C trace context names; None for what is none: a foreign producer may have written anything."""
    try:
        _, trace_id, span_id, flags = traceparent.split("-")[:4]
        context = SpanContext(int(trace_id, 16), int(span_id, 16), True, TraceFlags(int(flags, 16)))
    except ValueError:
        return None
    return context if context.is_valid else None


def _first_time(commits: Sequence[Commit]) -> int:
    return commits.times[0] if isinstance(commits, Stretch) else commits[0].at_ms


def _code(error: Exception) -> str:
    """The code of an error; of one that is neither ours nor the server's its type, of which there are few."""
    if isinstance(error, MusterError):
        return error.code
    return connection_error(error).code if isinstance(error, (redis.RedisError, OSError)) else type(error).__name__
