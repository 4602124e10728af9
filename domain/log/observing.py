"""What is counted, traced and logged of appends, by OpenTelemetry's API: whoever sets up the SDK decides what becomes
of it.

Providers that are set up before a log is opened are used; without them an append makes no span and counts nothing. How
long it took is looked at in any case, because what is slow is logged.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any, Final
from weakref import WeakKeyDictionary

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
)

logger = logging.getLogger(__name__)

#: Of appends that are in no trace, this part begins one, if the sampler agrees.
ROOTS: Final = 0.01
#: How many times are kept until the SDK asks; of more, which is thousands of appends a second, these are a fair sample.
TIMES: Final = 1024
#: How many sessions a line names.
NAMED: Final = 3


class Observer:
    """Observes the appends of one log, for these providers: those of the process, unless others are named."""

    def __init__(
        self,
        slow_s: float,
        tracers: trace.TracerProvider | None = None,
        meters: metrics.MeterProvider | None = None,
    ) -> None:
        tracers, meters = tracers or trace.get_tracer_provider(), meters or metrics.get_meter_provider()
        self._slow_s = slow_s
        #: None where nobody traces.
        self.tracer = tracers.get_tracer(SCOPE) if _is_set_up(tracers) else None
        self._measures = _measures(meters)

    def is_told(self) -> bool:
        """Whether the tracer is to be asked for a span: it takes long to say no. As the current trace; of appends that
        are in none, a few begin one.
        """
        current = trace.get_current_span().get_span_context()
        return current.trace_flags.sampled if current.is_valid else random.random() < ROOTS

    @contextmanager
    def span(self, appends: Sequence[Append]) -> Iterator[None]:
        """A span around appends, current meanwhile, so that its context travels with them. One that is not sampled
        stands for nothing: then what travels is the producer's own context, as ever.
        """
        assert self.tracer is not None
        made = self.tracer.start_span(APPEND_SPAN.name, kind=trace.SpanKind.PRODUCER)
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

    def sent(self, answers: Sequence[Any], timing: Timing) -> None:
        """Notes what one call came to."""
        if self._measures is not None:
            self._measures.sent(answers, time.perf_counter() - timing.left)

    def answered(
        self, requests: Sequence[Any], answers: Sequence[Any], began: float, timing: Timing | None = None
    ) -> None:
        """Notes what became of commits that somebody waits for since `began`; without `timing` none was answered."""
        now = time.perf_counter()
        if timing is None and self._measures is not None:
            self._measures.failed(answers)
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
    """What a producer counts. An SDK takes long over each measurement, so numbers are counted here and told when it
    asks; so are times, as many as are kept; and commits that travel together are one.
    """

    def __init__(self, meters: metrics.MeterProvider) -> None:
        meter = meters.get_meter(SCOPE)
        self._lock = Lock()
        self._commits = self._events = 0
        self._times: list[float] = []
        self._calls = 0
        self._errors: dict[str, int] = {}
        self._seconds = meter.create_histogram(
            APPEND_SECONDS.name, "s", APPEND_SECONDS.meaning, explicit_bucket_boundaries_advisory=LATENCIES
        )
        for metric, tell in (
            (PRODUCER_COMMITS, lambda _: self._commits_and_times()),
            (PRODUCER_EVENTS, lambda _: [metrics.Observation(self._events)]),
            (PRODUCER_ERRORS, lambda _: self._errors_by_code()),
        ):
            meter.create_observable_counter(metric.name, [tell], "", metric.meaning)

    def sent(self, answers: Sequence[Any], seconds: float) -> None:
        """Counts what one call came to."""
        commits = events = 0
        for answer in answers:
            if isinstance(answer, Receipt):
                commits += 1
                events += answer.appended
        with self._lock:
            self._commits += commits
            self._events += events
            self._calls += 1
            if self._calls <= TIMES:
                self._times.append(seconds)
            elif (at := int(random.random() * self._calls)) < TIMES:
                self._times[at] = seconds
        if commits < len(answers):
            self.failed(answers)

    def failed(self, answers: Sequence[Any]) -> None:
        """Counts the errors among answers."""
        with self._lock:
            for answer in answers:
                if isinstance(answer, MusterError):
                    self._errors[answer.code] = self._errors.get(answer.code, 0) + 1

    def _hand_over(self) -> None:
        with self._lock:
            times, self._times, self._calls = self._times, [], 0
        record = self._seconds.record
        for seconds in times:
            record(seconds)

    def _commits_and_times(self) -> list[metrics.Observation]:
        self._hand_over()  # whoever asks is given all there is
        return [metrics.Observation(self._commits)]

    def _errors_by_code(self) -> list[metrics.Observation]:
        with self._lock:
            return [metrics.Observation(number, {"code": code}) for code, number in self._errors.items()]


#: One a provider, for all logs of the process: an instrument has one that tells.
_MEASURES: Final[WeakKeyDictionary[metrics.MeterProvider, Measures]] = WeakKeyDictionary()


def _measures(meters: metrics.MeterProvider) -> Measures | None:
    if not _is_set_up(meters):
        return None
    if meters not in _MEASURES:
        _MEASURES[meters] = Measures(meters)
    return _MEASURES[meters]


def _is_set_up(provider: object) -> bool:
    """Whether a provider is more than the API's own, which does nothing."""
    return not type(provider).__module__.startswith(("opentelemetry.trace", "opentelemetry.metrics"))
