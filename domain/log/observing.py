"""What is counted, traced and logged of appends, by OpenTelemetry's API: whoever sets up the SDK decides what becomes
of it.

Providers that are set up before a log is opened are used; without them an append makes no span and counts nothing. How
long it took is looked at in any case, because what is slow is logged.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from opentelemetry import metrics, trace

from domain.errors import MusterError
from domain.log.contract import Append, AppendRequest, Receipt
from domain.log.timing import Timing
from domain.telemetry import (
    APPEND_SECONDS,
    APPEND_SPAN,
    LATENCIES,
    PRODUCER_COMMITS,
    PRODUCER_ERRORS,
    PRODUCER_EVENTS,
    SCOPE,
    Metric,
)

logger = logging.getLogger(__name__)

#: How many sessions a line names.
NAMED: Final = 3


class Observer:
    """Observes the appends of one log."""

    def __init__(self, slow_s: float) -> None:
        self._slow_s = slow_s
        self._tracer = trace.get_tracer(SCOPE) if _is_set_up(trace.get_tracer_provider()) else None
        self._measures = Measures(metrics.get_meter(SCOPE)) if _is_set_up(metrics.get_meter_provider()) else None

    @property
    def traces(self) -> bool:
        """Whether appends make spans."""
        return self._tracer is not None

    @contextmanager
    def span(self, appends: Sequence[Append]) -> Iterator[None]:
        """A span around appends, current meanwhile, so that its context travels with them. One that is not sampled
        stands for nothing: then what travels is the producer's own context, as ever.
        """
        assert self._tracer is not None
        made = self._tracer.start_span(APPEND_SPAN.name, kind=trace.SpanKind.PRODUCER)
        if not made.is_recording():
            yield
            return
        made.set_attribute("muster.commits", len(appends))
        made.set_attribute("muster.events", sum(len(append.events) for append in appends))
        if len(appends) == 1:
            made.set_attribute("muster.session", appends[0].session)
        # An error's text and its frames may hold what events say: its code is told alone.
        with trace.use_span(made, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            try:
                yield
            except BaseException as error:
                code = error.code if isinstance(error, MusterError) else type(error).__name__
                made.set_status(trace.StatusCode.ERROR, code)
                raise

    def answered(
        self, requests: Sequence[Any], answers: Sequence[Any], began: float, timing: Timing | None = None
    ) -> None:
        """Notes what became of commits that were sent since `began`; without `timing` none was answered."""
        now = time.perf_counter()
        if self._measures is not None:
            self._measures.answered(answers, now - began)
        is_slow = now - began >= self._slow_s
        if is_slow or logger.isEnabledFor(logging.DEBUG):
            self._say(requests, answers, now, began, timing, logging.WARNING if is_slow else logging.DEBUG)

    def _say(
        self,
        requests: Sequence[Any],
        answers: Sequence[Any],
        now: float,
        began: float,
        timing: Timing | None,
        level: int,
    ) -> None:
        sessions = list(dict.fromkeys(one.session for one in requests if isinstance(one, AppendRequest)))
        more = f" and {len(sessions) - NAMED} more" if len(sessions) > NAMED else ""
        codes = sorted({answer.code for answer in answers if isinstance(answer, MusterError)})
        about: dict[str, Any] = {
            "action": "log.slow_append" if level == logging.WARNING else "log.append",
            "sessions": ",".join(sessions[:NAMED]),
            "took_s": round(now - began, 6),
        }
        phases = ""
        if timing is not None:
            sent = timing.sent or now
            spent = {"wait": timing.left - began, "send": sent - timing.left, "reply": now - sent}
            phases = ": " + ", ".join(f"{name} {seconds:.3f} s" for name, seconds in spent.items())
            about |= {f"{name}_s": round(seconds, 6) for name, seconds in spent.items()}
        if codes:
            about["code"] = ",".join(codes)
            phases += f"; it failed with {', '.join(codes)}"
        text = "an append to %s%s took %.3f s%s"
        logger.log(level, text, ", ".join(sessions[:NAMED]), more, now - began, phases, extra=about)


class Measures:
    """The metrics of a producer."""

    def __init__(self, meter: metrics.Meter) -> None:
        self._seconds = histogram(meter, APPEND_SECONDS)
        self._commits = counter(meter, PRODUCER_COMMITS)
        self._events = counter(meter, PRODUCER_EVENTS)
        self._errors = counter(meter, PRODUCER_ERRORS)

    def answered(self, answers: Sequence[Any], seconds: float) -> None:
        """Counts answers, and how long their callers waited."""
        self._seconds.record(seconds)
        receipts = [answer for answer in answers if isinstance(answer, Receipt)]
        if receipts:
            self._commits.add(len(receipts))
            self._events.add(sum([receipt.appended for receipt in receipts]))
        if len(receipts) < len(answers):
            for answer in answers:
                if isinstance(answer, MusterError):
                    self._errors.add(1, {"code": answer.code})


def counter(meter: metrics.Meter, metric: Metric) -> metrics.Counter:
    """The instrument of a counter that is declared."""
    return meter.create_counter(metric.name, _UNITS[metric.unit], metric.meaning)


def histogram(meter: metrics.Meter, metric: Metric) -> metrics.Histogram:
    """The instrument of a histogram of latencies that is declared."""
    return meter.create_histogram(
        metric.name, _UNITS[metric.unit], metric.meaning, explicit_bucket_boundaries_advisory=LATENCIES
    )


#: Units as OpenTelemetry writes them.
_UNITS: Final = {"": "", "seconds": "s", "bytes": "By", "ratio": "1"}


def _is_set_up(provider: object) -> bool:
    """Whether a provider is more than the API's own, which does nothing."""
    return not type(provider).__module__.startswith(("opentelemetry.trace", "opentelemetry.metrics"))
