"""What this process counts: the worker metrics of domain/telemetry.py. Until somebody listens it does nothing.

Counted by hand: each measurement of OpenTelemetry's SDK takes as long as folding an event. What is told is its data all
the same (workers/telemetry/otlp.py).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from math import inf
from pathlib import Path
from resource import getpagesize
from threading import Lock
from typing import NamedTuple, TypeAlias

from domain.telemetry import HELD, LATENCIES, METRICS, PROCESS_MEMORY, Metric

Labels: TypeAlias = tuple[tuple[str, str], ...]
#: A metric with its labels.
Key: TypeAlias = tuple[str, Labels]


class Latencies:
    """A histogram: how many values are in each bucket, up to its bound; their sum, the least and the most of them."""

    def __init__(self) -> None:
        self.inside = [0] * (len(LATENCIES) + 1)
        self.sum = self.most = 0.0
        self.least = inf

    def add(self, seconds: float) -> None:
        self.inside[bisect_left(LATENCIES, seconds)] += 1
        self.sum += seconds
        if seconds < self.least:
            self.least = seconds
        if seconds > self.most:
            self.most = seconds


class Series(NamedTuple):
    """One metric with one set of labels, as it stands now."""

    labels: Labels
    value: float
    #: Of a histogram, what is in its buckets, and the least and the most of it; `value` is the sum.
    inside: tuple[int, ...] = ()
    least: float = 0.0
    most: float = 0.0


class Counting:
    """Counters and histograms, since it began; and who is asked for gauges."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._counters: dict[Key, int] = {}
        self._latencies: dict[Key, Latencies] = {}
        self.held: Callable[[], dict[str, int]] = dict

    def add(self, numbers: Sequence[tuple[Key, int]], times: Sequence[tuple[Key, float]] = ()) -> None:
        """Adds to counters and to histograms, all at once: an event may be waiting for it."""
        with self._lock:
            for key, number in numbers:
                if number > 0:
                    self._counters[key] = self._counters.get(key, 0) + number
            for key, seconds in times:
                found = self._latencies.get(key)
                if found is None:
                    found = self._latencies[key] = Latencies()
                found.add(seconds)

    def told(self) -> Iterator[tuple[Metric, list[Series]]]:
        """Every metric of a worker that has a value. A counter without labels has one from the start: 0."""
        with self._lock:
            counters = dict(self._counters)
            latencies = {
                key: (found.sum, tuple(found.inside), found.least, found.most) for key, found in self._latencies.items()
            }
        held = [Series((("projection", label),), count) for label, count in self.held().items()]
        gauges = {HELD: held, PROCESS_MEMORY: [Series((), resident())]}
        for metric in METRICS:
            if metric.teller != "worker":
                continue
            found = [Series(labels, number) for (one, labels), number in counters.items() if one == metric.name]
            found += [Series(labels, *values) for (one, labels), values in latencies.items() if one == metric.name]
            if metric.kind == "counter" and not metric.labels and not found:
                found = [Series((), 0)]
            if found := found or gauges.get(metric, []):
                yield metric, found


#: Where this process counts.
_now: Counting | None = None


def begin(counting: Counting | None) -> None:
    """Counts there from now on; None: no more."""
    global _now
    _now = counting


def now() -> Counting | None:
    """Where this process counts; None where nobody listens."""
    return _now


def count(metric: Metric, amount: int = 1, **labels: str) -> None:
    """Adds to a counter."""
    if _now is not None:
        _now.add([(key_of(metric, **labels), amount)])


def key_of(metric: Metric, **labels: str) -> Key:
    """A metric with its labels, for whoever adds to it time and again."""
    return metric.name, tuple(labels.items())


def tell_held(held: Callable[[], dict[str, int]]) -> None:
    """Has it told how many partitions this process holds, by projection, whenever somebody asks."""
    if _now is not None:
        _now.held = held


def resident() -> int:
    """Bytes of memory this process has."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * getpagesize()
