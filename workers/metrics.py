"""Every metric Muster tells, declared once: name, kind, unit and meaning; and how they are written for Prometheus.

`muster serve` computes them from Redis when it is asked, so they are the same whoever tells them, and no process has to
be asked itself. What could not be measured is left out: a value that is missing can be seen, a wrong one cannot. No
label is a session, an agent or anything else without bounds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal, NamedTuple

from workers.health.component import Component, Sample


class Metric(NamedTuple):
    """One metric. The unit is the end of its name too, as Prometheus wants it; counters end in _total."""

    name: str
    kind: Literal["counter", "gauge"]
    unit: str
    meaning: str


METRICS: Final = (
    Metric("muster_component_status", "gauge", "", "0 healthy, 1 unknown, 2 warning, 3 critical, 4 down"),
    Metric("muster_probe_duration_seconds", "gauge", "seconds", "How long the probe of a component took"),
    Metric("muster_redis_up", "gauge", "", "Whether the server answers"),
    Metric("muster_redis_latency_seconds", "gauge", "seconds", "How long a PING took"),
    Metric("muster_redis_clients", "gauge", "", "Clients connected to the server"),
    Metric("muster_redis_commands_total", "counter", "", "Commands the server processed since its start"),
    Metric("muster_redis_memory_used_bytes", "gauge", "bytes", "Memory the server uses"),
    Metric("muster_redis_memory_limit_bytes", "gauge", "bytes", "The server's maxmemory; 0: none"),
    Metric("muster_events_appended_total", "counter", "", "Events the log took"),
    Metric("muster_sessions", "gauge", "", "Sessions in the registry"),
    Metric("muster_losses", "gauge", "", "Reports of lost commits that nobody accepted yet"),
    Metric("muster_feed_entries", "gauge", "", "Entries the feeds hold"),
    Metric("muster_events_projected_total", "counter", "", "Events applied to the views of a projection"),
    Metric("muster_projection_lag_events", "gauge", "", "Events that are not in the views of a projection yet"),
    Metric("muster_projection_lag_seconds", "gauge", "seconds", "Age of the oldest event that is not in the views yet"),
    Metric("muster_projection_stuck_partitions", "gauge", "", "Partitions of a projection that do not move"),
    Metric("muster_sessions_parked", "gauge", "", "Sessions that wait at a commit that breaks a law"),
    Metric("muster_sessions_drifted", "gauge", "", "Sessions and agents with findings, as far as scrubbing has read"),
    Metric("muster_sessions_unread", "gauge", "", "Sessions that scrubbing has never read whole"),
    Metric("muster_verification_lag_events", "gauge", "", "Events appended since what is verified"),
    Metric("muster_workers", "gauge", "", "Worker processes that give signs of life"),
    Metric("muster_partitions", "gauge", "", "Partitions of the store"),
    Metric("muster_partitions_held", "gauge", "", "Partitions that a worker holds"),
    Metric("muster_jobs_open", "gauge", "", "Jobs that have not ended"),
    Metric("muster_migrations_open", "gauge", "", "Migrations to this store that have not ended"),
    Metric("muster_spool_commits", "gauge", "", "Commits that wait in the outage spool of this host"),
    Metric("muster_spool_bytes", "gauge", "bytes", "Bytes of commits in the outage spool of this host"),
    Metric(
        "muster_disk_used_ratio", "gauge", "ratio", "How full the disk of the spool is, or of the working directory"
    ),
)
BY_NAME: Final = {metric.name: metric for metric in METRICS}


def samples(components: Iterable[Component]) -> list[Sample]:
    """All that a look measured, and what the look itself came to."""
    found = []
    for one in components:
        label = (("component", one.name),)
        found.append(Sample("muster_component_status", int(one.status), label))
        found.append(Sample("muster_probe_duration_seconds", one.took_s, label))
        found.extend(one.samples)
    return found


def exposition(components: Iterable[Component]) -> str:
    """The text Prometheus scrapes (version 0.0.4). Raises KeyError for a metric that is not declared."""
    by_metric: dict[str, list[Sample]] = {metric.name: [] for metric in METRICS}
    for sample in samples(components):
        by_metric[sample.metric].append(sample)
    lines = []
    for metric in METRICS:
        if by_metric[metric.name]:
            lines.append(f"# HELP {metric.name} {metric.meaning}")
            lines.append(f"# TYPE {metric.name} {metric.kind}")
        for sample in by_metric[metric.name]:
            labels = ",".join(f'{name}="{_escaped(value)}"' for name, value in sample.labels)
            lines.append(f"{metric.name}{f'{{{labels}}}' if labels else ''} {sample.value:.17g}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
