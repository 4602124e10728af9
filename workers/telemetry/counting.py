"""What this process counts: the worker metrics of domain/telemetry.py. Until somebody listens it does nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from resource import getpagesize
from typing import Final

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Counter, Histogram, Observation

from domain.log.observing import counter, histogram
from domain.telemetry import HELD, METRICS, PROCESS_MEMORY, SCOPE, Metric

_COUNTERS: Final[dict[str, Counter]] = {}
_HISTOGRAMS: Final[dict[str, Histogram]] = {}


def begin() -> None:
    """Counts from now on, for the meter provider that is set."""
    meter = metrics.get_meter(SCOPE)
    for metric in METRICS:
        if metric.teller == "worker" and metric.kind == "counter":
            _COUNTERS[metric.name] = counter(meter, metric)
        elif metric.teller == "worker" and metric.kind == "histogram":
            _HISTOGRAMS[metric.name] = histogram(meter, metric)
    meter.create_observable_gauge(PROCESS_MEMORY.name, [_resident], "By", PROCESS_MEMORY.meaning)


def is_counting() -> bool:
    """Whether somebody listens."""
    return bool(_COUNTERS)


def count(metric: Metric, amount: int = 1, **labels: str) -> None:
    """Adds to a counter."""
    if amount and (found := _COUNTERS.get(metric.name)) is not None:
        found.add(amount, labels)


def record(metric: Metric, seconds: float, **labels: str) -> None:
    """Adds to a histogram."""
    if (found := _HISTOGRAMS.get(metric.name)) is not None:
        found.record(seconds, labels)


def tell_held(held: Callable[[], dict[str, int]]) -> None:
    """Has it told how many partitions this process holds, by projection, whenever somebody asks."""
    if not is_counting():
        return

    def look(_: CallbackOptions) -> Iterable[Observation]:
        return [Observation(count, {"projection": label}) for label, count in held().items()]

    metrics.get_meter(SCOPE).create_observable_gauge(HELD.name, [look], "", HELD.meaning)


def _resident(_: CallbackOptions) -> Iterable[Observation]:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return [Observation(pages * getpagesize())]
