"""One look at everything. A panel that cannot be had is named with the reason, and keeps no other from being shown."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Final, TypeVar

import redis
from msgspec import Struct

from domain.errors import MusterError
from domain.log.connection import connection_error
from domain.log.read_only import parsed
from projections.lag import Lag, lag
from projections.own.publishing import Publications
from projections.own.store import OwnStore
from projections.projection import without_class
from projections.store import ProjectionStore
from workers.glance import opened_store
from workers.halting import Halting
from workers.leasing import living_workers
from workers.overview.hot import Heat, heat
from workers.overview.memory import KindOfKey, by_kind
from workers.settings import Settings
from workers.slowness import SLOWEST, SlowCommand, slow_commands

#: How many slow commands are told.
SLOW_TOLD: Final = 10
T = TypeVar("T")


class ServerLook(Struct, frozen=True):
    """What the server says of itself."""

    version: str
    uptime_s: int
    commands_per_s: int
    clients: int
    memory_bytes: int
    memory_limit_bytes: int


class WorkerLook(Struct, frozen=True):
    """A worker process: how many partitions it says it holds, and how long ago."""

    pid: int
    host: str
    partitions: int
    silent_ms: int


class LagLook(Struct, frozen=True):
    """How far a projection is: events behind, for how long, and in how many partitions it is stuck or has no worker."""

    projection: str
    events: int
    seconds: float
    troubled: int
    session: str | None


class Overview(Struct, frozen=True):
    """All panels; `unseen` says of those that are None why."""

    server_ms: int
    sessions: int
    notices: list[str]
    server: ServerLook | None
    workers: list[WorkerLook] | None
    lags: list[LagLook] | None
    heat: Heat | None
    memory: list[KindOfKey] | None
    slow: list[SlowCommand] | None
    unseen: dict[str, str]


def look(settings: Settings, rng: random.Random) -> Overview:
    """Everything as it is now. Raises the typed error if the store cannot be opened."""
    with opened_store(settings) as store:
        now, unseen = store.server_ms(), dict[str, str]()

        def panel(name: str, make: Callable[[], T]) -> T | None:
            try:
                return make()
            except (MusterError, redis.RedisError, OSError) as error:
                typed = error if isinstance(error, MusterError) else connection_error(error)
                unseen[name] = f"{typed.code}: {typed.cause}"
                return None

        return Overview(
            server_ms=now,
            sessions=panel("sessions", lambda: _sessions(store)) or 0,
            notices=panel("notices", lambda: _notices(store, now)) or [],
            server=panel("server", lambda: _server(store.client)),
            workers=panel("workers", lambda: _workers(store, now)),
            lags=panel("lags", lambda: _lags(store)),
            heat=panel("heat", lambda: heat(store.client, store.keyspace, now)),
            memory=panel("memory", lambda: by_kind(store, rng)),
            slow=panel("slow", lambda: _slow(store.client)),
            unseen=unseen,
        )


def _sessions(store: ProjectionStore) -> int:
    pipe = store.client.pipeline(transaction=False)
    for keys in store.keyspace.partitions:
        pipe.zcard(keys.sessions)
    return sum(pipe.execute())


def _notices(store: ProjectionStore, now: int) -> list[str]:
    """What stands in the way of everything by somebody's word."""
    halt = Halting(store.client, store.keyspace).standing()
    closed = parsed(store.client.hget(store.keyspace.partitions[0].meta, "read_only"), now)
    found = [] if halt is None else [halt.told]
    return found if closed is None else [*found, f"the store takes no appends, by {closed.who}: {closed.why}"]


def _server(client: Any) -> ServerLook:
    info = client.info("everything")
    name = "valkey" if "valkey_version" in info else "redis"
    return ServerLook(
        f"{name} {info.get(f'{name}_version', '?')}",
        int(info.get("uptime_in_seconds", 0)),
        int(info.get("instantaneous_ops_per_sec", 0)),
        int(info.get("connected_clients", 0)),
        int(info.get("used_memory", 0)),
        int(info.get("maxmemory", 0)),
    )


def _workers(store: ProjectionStore, now: int) -> list[WorkerLook]:
    living = living_workers(store.client, store.keyspace)
    return sorted(
        (
            WorkerLook(int(one["pid"]), one["host"], len(one["partitions"]), max(0, now - int(one["heartbeat_at"])))
            for one in living
        ),
        key=lambda one: (one.host, one.pid),
    )


def _lags(store: ProjectionStore) -> list[LagLook]:
    found = [_lag_look(f"{store.name}@{store.version}", lag(store))]
    for version in Publications(store.client, store.keyspace).versions():
        if version.is_published and not version.is_paused:
            own = OwnStore(store.client, store.keyspace, without_class(version.name, version.version))
            found.append(_lag_look(version.label, lag(own)))
    return found


def _lag_look(label: str, found: Lag) -> LagLook:
    troubled = sum(part.state in ("stuck", "no worker") for part in found.partitions)
    return LagLook(label, found.events, found.seconds, troubled, found.session)


def _slow(client: Any) -> list[SlowCommand]:
    # In two words, so that the client library leaves the reply as it came: it would make one text of the arguments.
    entries = client.execute_command("SLOWLOG", "GET", SLOWEST)
    return sorted(slow_commands(entries), key=lambda one: -one.took_us)[:SLOW_TOLD]
