"""One probe a component: looks at the thing itself, judges it by thresholds, and knows nothing of the others.

A probe may raise any MusterError or error of redis-py, and may hang: whoever runs it (looking.py) waits only so long.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeAlias

from msgspec import structs
from redis import ResponseError

from domain.log import Spool
from domain.log.connection import connection_error
from domain.log.protocol import APPEND_FUNCTION
from domain.log.read_only import parsed
from domain.log.store import parse_info
from projections.indexing import readable_statistics
from projections.lag import STUCK, Lag, lag
from projections.lease import Leases
from projections.own.publishing import Publications
from projections.own.store import OwnStore
from projections.projection import without_class
from projections.scrub import summed, verified
from projections.searching import STATES
from projections.store import ProjectionStore
from workers.glance import asking as _client
from workers.glance import opened_store as _store
from workers.halting import Halting
from workers.health.component import Component, Sample, Status
from workers.leasing import living_workers
from workers.migration.record import ENDED, UNFENCED, Migrations
from workers.readiness import quick, ready
from workers.schedule import SCRUB, SWEEP, SWEEP_EVERY_S, ticked
from workers.settings import Settings
from workers.tasks import FAILED, Tasks

Probe: TypeAlias = Callable[[Settings], Component]
#: Of so many jobs, the newest, it is looked whether they failed.
JOBS_LOOKED_AT: Final = 20
#: After so many ticks without what was due it is late.
LATE_TICKS: Final = 3
#: A folder of the archive that no store has.
NOWHERE: Final = "nowhere"
#: How often it is looked whether a partition found its next worker, in seconds.
LOOK_AGAIN_S: Final = 0.1


def redis(settings: Settings) -> Component:
    """Whether the server answers, how fast, and whether it takes writes."""
    with _client(quick(settings)) as ask:
        ask(["PING"])  # connects
        began = time.monotonic()
        ask(["PING"])
        latency_s = time.monotonic() - began
        info = parse_info(ask(["INFO"])[0])
    health = settings.health
    measured = (
        Sample("muster_redis_up", 1),
        Sample("muster_redis_latency_seconds", latency_s),
        Sample("muster_redis_clients", _number(info, "connected_clients")),
        Sample("muster_redis_connections_total", _number(info, "total_connections_received")),
        Sample("muster_redis_rejected_connections_total", _number(info, "rejected_connections")),
        Sample("muster_redis_commands_total", _number(info, "total_commands_processed")),
    )
    clients, most = _number(info, "connected_clients"), _number(info, "maxclients")
    status, code, reason = Status.HEALTHY, None, f"answers in {latency_s * 1000:.1f} ms"
    if info.get("role") == "slave":
        status, code, reason = Status.CRITICAL, "SERVER_READ_ONLY", "it is a replica: it takes no writes"
    elif "err" in (info.get("aof_last_write_status"), info.get("rdb_last_bgsave_status")):
        status, code, reason = Status.CRITICAL, "SERVER_CANNOT_PERSIST", "its last write to the disk failed"
    elif latency_s >= health.latency_warning_s:
        status = Status.CRITICAL if latency_s >= health.latency_critical_s else Status.WARNING
        code, reason = "SERVER_SLOW", f"a PING took {latency_s:.3f} s"
    elif most and clients > 0.8 * most:
        status, code, reason = Status.WARNING, "SERVER_FULL", f"{clients} of {most} clients are connected"
    return Component("redis", status, reason, code, samples=measured)


def memory(settings: Settings) -> Component:
    """How much of its memory the server has left, and what it does when there is none."""
    with _client(quick(settings)) as ask:
        info = parse_info(ask(["INFO"])[0])
    used, limit = _number(info, "used_memory"), _number(info, "maxmemory")
    measured = (
        Sample("muster_redis_memory_used_bytes", used),
        Sample("muster_redis_memory_limit_bytes", limit),
    )
    share, policy = (used / limit if limit else 0.0), info.get("maxmemory_policy", "noeviction")
    status, code, reason = Status.HEALTHY, None, f"{used / 2**20:.1f} MiB used, no limit"
    if limit:
        reason = f"{share:.0%} of {limit / 2**20:.0f} MiB used"
    if limit and policy != "noeviction":
        status, code, reason = Status.CRITICAL, "SERVER_EVICTS", f"{reason}; {policy} deletes events when it is full"
    elif share >= 1:
        status, code, reason = Status.CRITICAL, "SERVER_OUT_OF_MEMORY", f"{reason}: appends are refused"
    elif share >= settings.memory.refuse:
        status, code, reason = Status.CRITICAL, "MEMORY_HIGH", f"{reason}: workers have appends refused"
    elif share >= settings.health.memory_warning:
        status = Status.CRITICAL if share >= settings.health.memory_critical else Status.WARNING
        code = "SERVER_NEARLY_FULL"
    return Component("memory", status, reason, code, samples=measured)


def log(settings: Settings) -> Component:
    """Whether the store is there and takes appends, and whether some of it was reported lost."""
    with _store(settings) as store:
        client, partitions = store.client, store.keyspace.partitions
        try:
            client.execute_command("FCALL", APPEND_FUNCTION, 0)
        except ResponseError as error:  # the function's own word is that keys are missing
            typed = connection_error(error)
            if typed.code == "FUNCTIONS_MISSING":
                return Component("log", Status.DOWN, typed.cause, typed.code)
        pipe = client.pipeline(transaction=False)
        for keys in partitions:
            pipe.hget(keys.meta, "total")
            pipe.zcard(keys.sessions)
            pipe.hlen(keys.lost)
            pipe.hget(keys.meta, "read_only")
        replies, now = pipe.execute(), store.server_ms()
    totals, sessions, lost, read_only = (replies[n::4] for n in range(4))
    closed = next((found for text in read_only if (found := parsed(text, now)) is not None), None)
    events, count, losses = sum(int(total or 0) for total in totals), sum(sessions), sum(lost)
    measured = (
        Sample("muster_events_appended_total", events),
        Sample("muster_sessions", count),
        Sample("muster_losses", losses),
        Sample("muster_read_only", closed is not None),
        Sample("muster_partitions", len(partitions)),
    )
    if losses:
        reason = f"{losses} reports of lost commits wait for somebody's word"
        return Component("log", Status.CRITICAL, reason, "LOSS_REPORTED", samples=measured)
    if closed is not None:
        reason = f"it takes no appends, by {closed.who}: {closed.why}"
        return Component("log", Status.CRITICAL, reason, "READ_ONLY", closed.since_ms, measured)
    return Component("log", Status.HEALTHY, f"{events} events of {count} sessions", samples=measured)


def feed(settings: Settings) -> Component:
    """How long the feeds are."""
    with _store(settings) as store:
        pipe = store.client.pipeline(transaction=False)
        for keys in store.keyspace.partitions:
            pipe.xlen(keys.feed)
        entries = sum(pipe.execute())
    measured = (Sample("muster_feed_entries", entries),)
    status, code = Status.HEALTHY, None
    if entries >= settings.health.feed_warning:
        status = Status.CRITICAL if entries >= settings.health.feed_critical else Status.WARNING
        code = "FEED_LONG"
    return Component("feed", status, f"{entries} entries", code, samples=measured)


def projections(settings: Settings) -> Component:
    """How far the views are behind: the built-in ones, and those of own projections that readers get."""
    with _store(settings) as store:
        looked_at = [(f"{store.name}@{store.version}", store)]
        for version in Publications(store.client, store.keyspace).versions():
            if version.is_published and not version.is_paused:
                own = OwnStore(store.client, store.keyspace, without_class(version.name, version.version))
                looked_at.append((version.label, own))
        lags = [(label, lag(one)) for label, one in looked_at]
        parked = sum(_parked(one) for _, one in looked_at)
        states = _states(store)
    measured = [Sample("muster_sessions_parked", parked)]
    measured += [Sample("muster_sessions_by_state", states.get(name, 0), (("state", name),)) for name in STATES]
    for label, found in lags:
        labels = (("projection", label),)
        stuck = sum(part.state == STUCK for part in found.partitions)
        measured += [
            Sample("muster_events_projected_total", found.applied, labels),
            Sample("muster_projection_lag_events", found.events, labels),
            Sample("muster_projection_lag_seconds", found.seconds, labels),
            Sample("muster_projection_stuck_partitions", stuck, labels),
        ]
    label, slowest = max(lags, key=lambda one: one[1].seconds)
    status, code, reason = Status.HEALTHY, None, "the views hold everything"
    if slowest.events:
        reason = f"{label} is {slowest.events} events behind, the oldest since {slowest.seconds:.1f} s{_who(slowest)}"
    since_ms = None
    if slowest.seconds >= settings.health.lag_warning_s:
        status = Status.CRITICAL if slowest.seconds >= settings.health.lag_critical_s else Status.WARNING
        code, since_ms = "PROJECTION_BEHIND", int((time.time() - slowest.seconds) * 1000)
    elif parked:
        status, code, reason = Status.WARNING, "SESSION_PARKED", f"{parked} sessions wait at a commit that breaks a law"
    return Component("projections", status, reason, code, since_ms, tuple(measured))


def verification(settings: Settings) -> Component:
    """What scrubbing has found."""
    with _store(settings) as store:
        told = summed(verified(store))
    drifted = told["drifted"] + told["agents"]
    measured = (
        Sample("muster_sessions_drifted", drifted),
        Sample("muster_sessions_unread", told["unread"]),
        Sample("muster_verification_lag_events", told["events"]),
    )
    if drifted:
        reason = f"{told['drifted']} sessions and {told['agents']} agents are not what the log says"
        return Component("verification", Status.CRITICAL, reason, "DRIFT_FOUND", samples=measured)
    reason = f"nothing found; {told['unread']} sessions were never read whole, {told['events']} events since"
    return Component("verification", Status.HEALTHY, reason, samples=measured)


def workers(settings: Settings) -> Component:
    """Whether worker processes live, and hold all partitions between them."""
    with _store(settings) as store:
        living = living_workers(store.client, store.keyspace)
        count, leases = store.keyspace.count, Leases(store.client, store.keyspace, "", owned=store.owned)
        # A partition changes hands within a second or so: one that nobody holds for a moment is no trouble.
        until = time.monotonic() + settings.health.timeout_s / 2
        halt, now = Halting(store.client, store.keyspace).standing(), store.server_ms()
        while (held := _held(store, leases)) < count and living and halt is None and time.monotonic() < until:
            time.sleep(LOOK_AGAIN_S)
    measured = (Sample("muster_workers", len(living)), Sample("muster_partitions_held", held))
    reason = f"{len(living)} processes hold {held} of {count} partitions"
    if halt is not None and living and now - halt.at_ms > settings.worker.drain_s * 1000:
        hanging = ", ".join(f"process {one['pid']} on {one['host']}" for one in living)
        reason = f"{halt.told}, and has not stopped: {hanging}"
        return Component("workers", Status.CRITICAL, reason, "STOP_UNFINISHED", halt.at_ms, measured)
    if halt is not None:
        status = Status.WARNING if living else Status.DOWN
        return Component("workers", status, f"{halt.told}; {reason}", "FLEET_STOPPED", halt.at_ms, measured)
    if not living:
        return Component("workers", Status.DOWN, "no worker process lives", "WORKERS_MISSING", samples=measured)
    status, code = (Status.HEALTHY, None) if held == count else (Status.WARNING, "WORKERS_MISSING")
    return Component("workers", status, reason, code, samples=measured)


def jobs(settings: Settings) -> Component:
    """Whether the queues' database answers, and whether jobs failed lately."""
    if settings.jobs.url is None:
        return Component("jobs", Status.HEALTHY, "off: no database for jobs is named")
    with _client(structs.replace(quick(settings), url=settings.jobs.url, username=None, password=None)) as ask:
        ask(["PING"])
    with _store(settings) as store:
        tasks = Tasks(store.client, store.keyspace)
        open_jobs, newest = len(tasks.open()), tasks.newest(JOBS_LOOKED_AT)
    measured = (Sample("muster_jobs_open", open_jobs),)
    failed = [task for task in newest if task.state == FAILED]
    if failed:
        reason = f"{failed[0].kind} {failed[0].id} failed: {failed[0].error}"
        return Component("jobs", Status.WARNING, reason, "JOB_FAILED", failed[0].ended, measured)
    return Component("jobs", Status.HEALTHY, f"{open_jobs} open", samples=measured)


def schedule(settings: Settings) -> Component:
    """Whether what recurs is begun in time by the workers that take jobs."""
    if settings.jobs.url is None:
        return Component("schedule", Status.HEALTHY, "off: no database for jobs is named")
    with _store(settings) as store:
        living, last, now = living_workers(store.client, store.keyspace), ticked(store.client, store.keyspace), 0
        now = store.server_ms()
    if not living:
        return Component("schedule", Status.UNKNOWN, "it cannot be seen while no worker lives")
    every = {SWEEP: SWEEP_EVERY_S}
    if settings.jobs.verify_every_s is not None:
        every[SCRUB] = settings.jobs.verify_every_s
    measured = tuple(
        Sample("muster_schedule_age_seconds", (now - last[name]) / 1000, (("job", name),))
        for name in every
        if name in last
    )
    for name, every_s in every.items():
        if name not in last:
            reason = f"{name} was never begun: does a worker take jobs (MUSTER_JOBS__URL)?"
            return Component("schedule", Status.WARNING, reason, "SCHEDULE_LATE", samples=measured)
        late_s = (now - last[name]) / 1000 - LATE_TICKS * every_s
        if late_s > 0:
            since_ms = last[name] + int(every_s * 1000)
            reason = f"{name} is due every {every_s:g} s and was begun {(now - last[name]) / 1000:.0f} s ago"
            return Component("schedule", Status.WARNING, reason, "SCHEDULE_LATE", since_ms, measured)
    return Component("schedule", Status.HEALTHY, f"{', '.join(every)}: in time", samples=measured)


def migrations(settings: Settings) -> Component:
    """Whether sessions are on their way here, or from here back, and nobody is at it."""
    with _store(settings) as store:
        still = [one for one in Migrations(store).all() if one.state not in ENDED]
    measured = (Sample("muster_migrations_open", len(still)),)
    for one in sorted(still, key=lambda one: not one.may_hold_sessions):
        if one.is_stuck:
            status = Status.CRITICAL if one.may_hold_sessions else Status.WARNING
            reason = f"migration {one.id} is {one.state}, and nobody is at it"
            return Component("migrations", status, reason, "MIGRATION_STUCK", one.beat, measured)
        if one.state == UNFENCED:
            reason = f"{one.source} was failed over from, and still takes appends when it is back"
            return Component("migrations", Status.CRITICAL, reason, "MIGRATION_UNFENCED", one.beat, measured)
    return Component("migrations", Status.HEALTHY, f"{len(still)} open", samples=measured)


def spool(settings: Settings) -> Component:
    """What waits in the outage spool of this host."""
    path = settings.spool.path
    if path is None or not Path(path).exists():  # opening it would make one
        return Component("spool", Status.HEALTHY, "off" if path is None else "empty")
    opened = Spool(path, max_bytes=settings.spool.max_bytes)
    try:
        totals = opened.totals()
    finally:
        opened.close()
    measured = (
        Sample("muster_spool_commits", totals.commits),
        Sample("muster_spool_bytes", totals.bytes),
    )
    share = totals.bytes / totals.max_bytes
    reason = f"{totals.commits} commits of {totals.sessions} sessions wait, {totals.held} held; {share:.0%} full"
    status, code = Status.HEALTHY, None
    if totals.held or share >= settings.health.spool_critical:
        status, code = Status.CRITICAL, "SPOOL_HELD" if totals.held else "SPOOL_WAITING"
    elif share >= settings.health.spool_warning or totals.commits:
        status, code = Status.WARNING, "SPOOL_WAITING"
    return Component("spool", status, reason, code, samples=measured)


def disk(settings: Settings) -> Component:
    """How full the disk is that the spool is on, or this process works in."""
    folder = Path(settings.spool.path or "x").absolute().parent
    usage = shutil.disk_usage(folder)
    share = usage.used / (usage.used + usage.free) if usage.used + usage.free else 0.0
    status, code = Status.HEALTHY, None
    if share >= settings.health.disk_warning:
        status = Status.CRITICAL if share >= settings.health.disk_critical else Status.WARNING
        code = "DISK_NEARLY_FULL"
    reason = f"{share:.0%} of the disk of {folder} is used"
    return Component("disk", status, reason, code, samples=(Sample("muster_disk_used_ratio", share),))


def archive(settings: Settings) -> Component:
    """Whether the archive can be reached."""
    place = settings.archive.opened()
    if place is None:
        return Component("archive", Status.HEALTHY, "none is named: all commits stay on the server")
    next(place.names(NOWHERE), None)  # one that is away, or lets nobody in, says so
    return Component("archive", Status.HEALTHY, f"{place.described()} answers")


def configuration(settings: Settings) -> Component:
    """Whether settings and server are fit for the profile."""
    advice = ready(settings)
    trouble = [one for one in advice if one.level != "recommendation"]
    if not trouble:
        return Component("configuration", Status.HEALTHY, f"fit for {settings.profile}")
    worst = trouble[0]
    status = Status.CRITICAL if worst.level == "error" else Status.WARNING
    more = f" (and {len(trouble) - 1} more: muster config check --live)" if len(trouble) > 1 else ""
    return Component("configuration", status, f"{worst.key}: {worst.why}{more}", worst.code)


#: What a look looks at, in the order it is told. All but spool, disk and archive cannot be seen without the first.
PROBES: Final[dict[str, Probe]] = {
    "redis": redis,
    "memory": memory,
    "log": log,
    "feed": feed,
    "projections": projections,
    "verification": verification,
    "workers": workers,
    "jobs": jobs,
    "schedule": schedule,
    "migrations": migrations,
    "spool": spool,
    "disk": disk,
    "archive": archive,
}
#: What must be well for appends to be taken.
READY: Final = ("redis", "log")
#: What a deep look adds.
DEEP: Final[dict[str, Probe]] = {"configuration": configuration}
#: What can be seen without the server of the store.
WITHOUT_REDIS: Final = frozenset({"redis", "spool", "disk", "archive"})


def _who(found: Lag) -> str:
    """Who holds the partition that waits longest, and for which session, as far as that is known."""
    slowest = max(found.partitions, key=lambda part: part.seconds)
    session = f", session {slowest.session}" if slowest.session else ""
    if slowest.owner is None:
        return f": partition {slowest.partition}{session}, which nobody holds"
    return f": partition {slowest.partition}{session}, held by {slowest.owner}"


def _parked(store: ProjectionStore) -> int:
    """How many sessions a projection left waiting."""
    pipe = store.client.pipeline(transaction=False)
    for partition in range(store.keyspace.count):
        pipe.hlen(store.keys(partition).parked(store.owned))
    return sum(pipe.execute())


def _states(store: ProjectionStore) -> dict[str, int]:
    """How many sessions are in each state, by the statistics of partitions; damaged ones count for nothing."""
    found: dict[str, int] = {}
    for stored in store.statistics(range(store.keyspace.count)):
        for name, count in (readable_statistics(stored) or {}).items():
            word, _, state = name.partition(" ")
            if word == "state":
                found[state] = found.get(state, 0) + count
    return found


def _held(store: ProjectionStore, leases: Leases) -> int:
    """How many partitions a worker holds now."""
    now = store.server_ms()
    return sum(owner is not None and owner[1] > now for owner in leases.owners())


def _number(info: dict[str, str], name: str) -> int:
    """A number of INFO; 0 where the server does not say."""
    text = info.get(name, "0")
    return int(text) if text.isdigit() else 0
