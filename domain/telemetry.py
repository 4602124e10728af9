"""Every metric and every span of Muster, declared once: name, unit, meaning, labels, and who tells it.

A *serve* metric is computed from Redis when `muster serve` is asked, so that it is the same whoever tells it. What a
*producer* or a *worker* counts is of one process, since its start. No label is a session, an agent or anything else
without bounds. A name ends with its unit, and a counter in _total, as Prometheus wants it; OTLP has the same names.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, TypeAlias

#: The scope that meters and tracers are asked for by.
SCOPE: Final = "muster"
Kind: TypeAlias = Literal["counter", "gauge", "histogram"]
Teller: TypeAlias = Literal["serve", "producer", "worker"]

#: Bounds of the buckets of latencies, in seconds.
LATENCIES: Final = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0),
)


class Metric(NamedTuple):
    """One metric; `unit` is "" for what is counted."""

    name: str
    kind: Kind
    unit: str
    meaning: str
    labels: tuple[str, ...] = ()
    teller: Teller = "serve"


class SpanKind(NamedTuple):
    """One kind of span."""

    name: str
    meaning: str
    teller: Teller


APPEND_SECONDS: Final = Metric(
    *(
        "muster_producer_append_seconds",
        "histogram",
        "seconds",
        "How long calls took that append; of very many a fair sample",
    ),
    teller="producer",
)
PRODUCER_COMMITS: Final = Metric(
    "muster_producer_commits_total", "counter", "", "Commits that got a receipt", teller="producer"
)
PRODUCER_EVENTS: Final = Metric(
    "muster_producer_events_total", "counter", "", "Events that were appended", teller="producer"
)
PRODUCER_ERRORS: Final = Metric(
    *("muster_producer_errors_total", "counter", "", "Commits that were answered with an error, by its code"),
    labels=("code",),
    teller="producer",
)

BATCH_SECONDS: Final = Metric(
    *("muster_worker_batch_seconds", "histogram", "seconds", "How long batches took, from loading to the step"),
    labels=("projection",),
    teller="worker",
)
PHASE_SECONDS: Final = Metric(
    *("muster_worker_phase_seconds", "histogram", "seconds", "How long each phase of a batch took: load, fold, write"),
    labels=("projection", "phase"),
    teller="worker",
)
VISIBLE_SECONDS: Final = Metric(
    *("muster_worker_visible_seconds", "histogram", "seconds", "From append to view, of the oldest commit of a batch"),
    labels=("projection",),
    teller="worker",
)
WORKER_EVENTS: Final = Metric(
    *("muster_worker_events_total", "counter", "", "Events of the batches that were applied"),
    labels=("projection",),
    teller="worker",
)
WORKER_COMMITS: Final = Metric(
    *("muster_worker_commits_total", "counter", "", "Commits of the batches that were applied"),
    labels=("projection",),
    teller="worker",
)
WORKER_PARKED: Final = Metric(
    *("muster_worker_parked_total", "counter", "", "Sessions that were parked"), labels=("projection",), teller="worker"
)
WORKER_ERRORS: Final = Metric(
    *("muster_worker_errors_total", "counter", "", "Batches that failed, by the error's code"),
    labels=("projection", "code"),
    teller="worker",
)
WORKER_REBUILDS: Final = Metric(
    *("muster_worker_rebuilds_total", "counter", "", "Times a partition was compared with its log, not its feed"),
    labels=("projection",),
    teller="worker",
)
CHECKPOINTS: Final = Metric(
    "muster_worker_checkpoints_total", "counter", "", "Checkpoints that were written", teller="worker"
)
CREATED: Final = Metric(
    "muster_worker_sessions_created_total", "counter", "", "Sessions whose first view was written", teller="worker"
)
COMPLETED: Final = Metric(
    "muster_worker_sessions_completed_total", "counter", "", "Sessions whose view became completed", teller="worker"
)
BREAKS: Final = Metric(
    "muster_worker_breaks_total", "counter", "", "Events that say that something broke", teller="worker"
)
LEASES_LOST: Final = Metric(
    *("muster_worker_leases_lost_total", "counter", "", "Leases that were taken over while this process held them"),
    teller="worker",
)
JOBS_ENDED: Final = Metric(
    *("muster_worker_jobs_total", "counter", "", "Jobs that ended here, by kind and by how"),
    labels=("kind", "state"),
    teller="worker",
)
FINDINGS: Final = Metric(
    *("muster_worker_findings_total", "counter", "", "What verification found, by code"),
    labels=("code",),
    teller="worker",
)
REPAIRED: Final = Metric(
    "muster_worker_repaired_total", "counter", "", "Findings that recovery repaired", teller="worker"
)
HELD: Final = Metric(
    *("muster_worker_partitions", "gauge", "", "Partitions that this process holds"),
    labels=("projection",),
    teller="worker",
)
PROCESS_MEMORY: Final = Metric(
    "muster_worker_memory_bytes", "gauge", "bytes", "Resident memory of this process", teller="worker"
)

#: What `muster serve` tells; probes name them.
_SERVED: Final = (
    Metric(
        "muster_component_status", "gauge", "", "0 healthy, 1 unknown, 2 warning, 3 critical, 4 down", ("component",)
    ),
    Metric(
        *("muster_probe_duration_seconds", "gauge", "seconds", "How long the probe of a component took"),
        labels=("component",),
    ),
    Metric(
        *("muster_probe_suspended", "gauge", "", "Whether the probe of a component waits, because it kept failing"),
        labels=("component",),
    ),
    Metric("muster_alert_active", "gauge", "", "Whether an alert fires", ("alert", "severity")),
    Metric("muster_redis_up", "gauge", "", "Whether the server answers"),
    Metric("muster_redis_latency_seconds", "gauge", "seconds", "How long a PING took"),
    Metric("muster_redis_clients", "gauge", "", "Clients connected to the server"),
    Metric("muster_redis_connections_total", "counter", "", "Connections the server took since its start"),
    Metric("muster_redis_rejected_connections_total", "counter", "", "Connections it turned away for being full"),
    Metric("muster_redis_commands_total", "counter", "", "Commands the server processed since its start"),
    Metric("muster_redis_memory_used_bytes", "gauge", "bytes", "Memory the server uses"),
    Metric("muster_redis_memory_limit_bytes", "gauge", "bytes", "The server's maxmemory; 0: none"),
    Metric("muster_events_appended_total", "counter", "", "Events the log took"),
    Metric("muster_sessions", "gauge", "", "Sessions in the registry"),
    Metric("muster_sessions_by_state", "gauge", "", "Sessions by the state of their views", ("state",)),
    Metric("muster_losses", "gauge", "", "Reports of lost commits that nobody accepted yet"),
    Metric("muster_read_only", "gauge", "", "Whether the store takes no appends, by hand or by itself"),
    Metric("muster_feed_entries", "gauge", "", "Entries the feeds hold"),
    Metric(
        *("muster_events_projected_total", "counter", "", "Events applied to the views of a projection"),
        labels=("projection",),
    ),
    Metric(
        *("muster_projection_lag_events", "gauge", "", "Events that are not in the views of a projection yet"),
        labels=("projection",),
    ),
    Metric(
        *("muster_projection_lag_seconds", "gauge", "seconds", "Age of the oldest event that is not in the views yet"),
        labels=("projection",),
    ),
    Metric(
        *("muster_projection_stuck_partitions", "gauge", "", "Partitions of a projection that do not move"),
        labels=("projection",),
    ),
    Metric("muster_sessions_parked", "gauge", "", "Sessions that wait at a commit that breaks a law"),
    Metric("muster_sessions_drifted", "gauge", "", "Sessions and agents with findings, as far as scrubbing has read"),
    Metric("muster_sessions_unread", "gauge", "", "Sessions that scrubbing has never read whole"),
    Metric("muster_verification_lag_events", "gauge", "", "Events appended since what is verified"),
    Metric("muster_workers", "gauge", "", "Worker processes that give signs of life"),
    Metric("muster_partitions", "gauge", "", "Partitions of the store"),
    Metric("muster_partitions_held", "gauge", "", "Partitions that a worker holds"),
    Metric("muster_jobs_open", "gauge", "", "Jobs that have not ended"),
    Metric("muster_migrations_open", "gauge", "", "Migrations to this store that have not ended"),
    Metric("muster_schedule_age_seconds", "gauge", "seconds", "How long ago what recurs was last begun"),
    Metric("muster_spool_commits", "gauge", "", "Commits that wait in the outage spool of this host"),
    Metric("muster_spool_bytes", "gauge", "bytes", "Bytes of commits in the outage spool of this host"),
    Metric(
        "muster_disk_used_ratio", "gauge", "ratio", "How full the disk of the spool is, or of the working directory"
    ),
)

METRICS: Final[tuple[Metric, ...]] = (
    *_SERVED,
    *(APPEND_SECONDS, PRODUCER_COMMITS, PRODUCER_EVENTS, PRODUCER_ERRORS),
    *(BATCH_SECONDS, PHASE_SECONDS, VISIBLE_SECONDS, WORKER_EVENTS, WORKER_COMMITS, WORKER_PARKED, WORKER_ERRORS),
    *(WORKER_REBUILDS, CHECKPOINTS, CREATED, COMPLETED, BREAKS, LEASES_LOST, JOBS_ENDED, FINDINGS, REPAIRED, HELD),
    PROCESS_MEMORY,
)

APPEND_SPAN: Final = SpanKind(
    "muster.append", "An append, a child of the producer's span; its context travels with the commits", "producer"
)
BATCH_SPAN: Final = SpanKind(
    "muster.batch", "A batch that became views; linked to the spans that its commits came with", "worker"
)
LOAD_SPAN: Final = SpanKind("muster.batch.load", "Reading views and new commits of the batch", "worker")
FOLD_SPAN: Final = SpanKind("muster.batch.fold", "Folding the commits into the views", "worker")
WRITE_SPAN: Final = SpanKind("muster.batch.write", "The step that writes views and cursor", "worker")
SPANS: Final = (APPEND_SPAN, BATCH_SPAN, LOAD_SPAN, FOLD_SPAN, WRITE_SPAN)
