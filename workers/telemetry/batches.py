"""What is counted, traced and logged of the batches of one projection.

Spans are made when a batch is done, with the times it had: only then is it known which traces its commits came from.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import redis
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags

from domain import session
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
from workers.telemetry.counting import Counting, count, key_of, now

logger = logging.getLogger(__name__)

#: A batch is linked to so many commits at most: as many links as a span holds.
MOST_LINKS: Final = 128
#: How the statistics call sessions in that state.
COMPLETED_STATE: Final = f"state {session.COMPLETED}"
_CREATED, _COMPLETED, _BREAKS, _CHECKPOINTS = map(key_of, (CREATED, COMPLETED, BREAKS, CHECKPOINTS))


class Batches:
    """Observes the batches of one projection. `sample`: this part of those without a traced commit is traced too."""

    def __init__(
        self, projection: str, *, slow_s: float, sample: float, tracers: trace.TracerProvider | None = None
    ) -> None:
        self._projection = projection
        self._batch = key_of(BATCH_SECONDS, projection=projection)
        self._load, self._fold, self._write = (
            key_of(PHASE_SECONDS, projection=projection, phase=phase) for phase in ("load", "fold", "write")
        )
        self._visible = key_of(VISIBLE_SECONDS, projection=projection)
        self._events = key_of(WORKER_EVENTS, projection=projection)
        self._commits = key_of(WORKER_COMMITS, projection=projection)
        self._parked = key_of(WORKER_PARKED, projection=projection)
        self._tracer = (tracers or trace.get_tracer_provider()).get_tracer(SCOPE)
        self._slow_s = slow_s
        self._sample = sample

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
        if (counting := now()) is not None:
            brought = Brought.by(projected.loaded)
            self._count(counting, projected, brought, took, server_ms)
            links = [Link(context) for context in sampled_contexts(brought.traces)]
            if links or random.random() < self._sample:
                self._trace(batch, projected, links)

    def failed(self, error: Exception) -> None:
        """Notes a batch that failed."""
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

    def _count(self, counting: Counting, projected: Projected, brought: Brought, took: float, server_ms: int) -> None:
        created = completed = breaks = checkpoints = 0
        for outcome in projected.outcomes:
            gains = outcome.sums
            created += gains.get("sessions", 0)
            completed += max(0, gains.get(COMPLETED_STATE, 0))  # one that is reopened is no completion less
            breaks += gains.get("breaks", 0)
            checkpoints += len(outcome.checkpoints)
        phases = projected.phases
        times = [
            (self._batch, took),
            (self._load, phases.load),
            (self._fold, phases.fold),
            (self._write, phases.write),
        ]
        if brought.commits:
            times.append((self._visible, max(0, server_ms - brought.oldest_ms) / 1000))
        numbers = [
            (self._events, projected.events),
            (self._commits, brought.commits),
            (self._parked, projected.parked),
            (_CREATED, created),
            (_COMPLETED, completed),
            (_BREAKS, breaks),
            (_CHECKPOINTS, checkpoints),
        ]
        counting.add(numbers, times)

    def _trace(self, batch: Batch, projected: Projected, links: Sequence[Link]) -> None:
        phases = projected.phases
        about: dict[str, str | int] = {
            "muster.projection": self._projection,
            "muster.partition": batch.partition,
            "muster.events": projected.events,
            "muster.sessions": projected.sessions,
        }
        tracer, at = self._tracer, phases.began_ns
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


class Brought(NamedTuple):
    """What the commits of a batch are: how many, how old the oldest, the traces they came with."""

    commits: int
    oldest_ms: int
    traces: list[str | bytes]

    @classmethod
    def by(cls, loaded: Iterable[Sequence[Commit]]) -> Brought:
        """By the commits of each session, in their order."""
        count, firsts, traces = 0, [], list[str | bytes]()
        for commits in loaded:
            stretch = commits if isinstance(commits, Stretch) else Stretch.of("", commits)
            times = stretch.times
            if times:
                count += len(times)
                firsts.append(times[0])
                if found := stretch.traces:
                    traces += [one for one in found if one]
        return cls(count, min(firsts, default=0), traces)


def sampled_contexts(traces: Iterable[str | bytes]) -> list[SpanContext]:
    """The spans that these trace contexts name and that are told, each once."""
    texts = [one if isinstance(one, str) else one.decode("ascii", "replace") for one in dict.fromkeys(traces)]
    contexts = [_context(text) for text in texts]
    return [context for context in contexts if context is not None and context.trace_flags.sampled]


def _context(traceparent: str) -> SpanContext | None:
    """The span that a W3C trace context names; None for what is none: a foreign producer may have written anything."""
    try:
        _, trace_id, span_id, flags = traceparent.split("-")[:4]
        context = SpanContext(int(trace_id, 16), int(span_id, 16), True, TraceFlags(int(flags, 16)))
    except ValueError:
        return None
    return context if context.is_valid else None


def _code(error: Exception) -> str:
    """The code of an error; of one that is neither ours nor the server's its type, of which there are few."""
    if isinstance(error, MusterError):
        return error.code
    return connection_error(error).code if isinstance(error, (redis.RedisError, OSError)) else type(error).__name__
