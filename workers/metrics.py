"""Metrics as Prometheus reads them: the text format, version 0.0.4. All of them are declared in domain/telemetry.py.

`muster serve` computes its own from Redis when it is asked, so they are the same whoever tells them, and no process has
to be asked itself. What could not be measured is left out: a value that is missing can be seen, a wrong one cannot.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from domain.telemetry import METRICS, Metric
from workers.health.component import Component, Sample

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class Told(NamedTuple):
    """A line of the format: a value, its labels, and what stands after the metric's name in a histogram."""

    value: float
    labels: tuple[tuple[str, str], ...] = ()
    suffix: str = ""


def samples(components: Iterable[Component]) -> list[Sample]:
    """All that a look measured, and what the look itself came to."""
    found = []
    for one in components:
        label = (("component", one.name),)
        found.append(Sample("muster_component_status", int(one.status), label))
        found.append(Sample("muster_probe_duration_seconds", one.took_s, label))
        found.append(Sample("muster_probe_suspended", not one.is_asked, label))
        found.extend(one.samples)
    return found


def exposition(components: Iterable[Component], more: Iterable[Sample] = ()) -> str:
    """What a look measured, and more. Raises KeyError for a metric that is not declared."""
    by_metric: dict[str, list[Told]] = {metric.name: [] for metric in METRICS if metric.teller == "serve"}
    for sample in (*samples(components), *more):
        by_metric[sample.metric].append(Told(sample.value, sample.labels))
    return text((metric, by_metric.get(metric.name, [])) for metric in METRICS)


def text(metrics: Iterable[tuple[Metric, list[Told]]]) -> str:
    """The format; metrics without a value are left out."""
    lines = []
    for metric, told in metrics:
        if told:
            lines.append(f"# HELP {metric.name} {metric.meaning}")
            lines.append(f"# TYPE {metric.name} {metric.kind}")
        for value, labels, suffix in told:
            named = ",".join(f'{name}="{_escaped(label)}"' for name, label in labels)
            lines.append(f"{metric.name}{suffix}{f'{{{named}}}' if named else ''} {value:.17g}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
