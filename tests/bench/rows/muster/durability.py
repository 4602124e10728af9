"""What each level of durability costs: one producer, one event a call, against a plain XADD that proves the same.

`memory`: the server replied (fsync every second). `local`: on its disk before the reply (fsync always).
`replicated(1)`: one replica has it.
"""

from __future__ import annotations

import time
from typing import Any

from tests.bench.arena import Arena, Fsync, wait_until
from tests.bench.events import body, event
from tests.bench.limits import redis_py_xadd
from tests.bench.row import Contestant, Kind, Measure, Ratio, Row

COUNT = 2_000


def muster(level: str, fsync: Fsync) -> Contestant:
    def prepare(arena: Arena) -> Measure:
        if level == "replicated(1)":
            replicated(arena)
        log = arena.log(appendfsync=fsync, durability=level)
        calls, made, session = arena.many(COUNT, least=50), event(), f"durable-{len(level)}"
        log.append(session, made)

        def measure() -> float:
            began = time.perf_counter()
            for _ in range(calls):
                log.append(session, made)
            return calls / (time.perf_counter() - began)

        return measure

    return Contestant(level, prepare)


def xadd_and_wait(arena: Arena) -> Measure:
    replicated(arena)
    client, calls, made = arena.client(), arena.many(COUNT, least=50), body()

    def measure() -> float:
        client.delete("limit:waited")
        began = time.perf_counter()
        for _ in range(calls):
            client.xadd("limit:waited", {"b": made})
            client.wait(1, 1000)
        return calls / (time.perf_counter() - began)

    return measure


def replicated(arena: Arena) -> None:
    """Gives the row's server a replica."""
    client: Any = arena.client()
    if int(client.info("replication")["connected_slaves"]) == 0:
        follower: Any = arena.client(server="replica")
        client.config_set("repl-diskless-sync-delay", 0)  # else it waits for more replicas that will not come
        follower.replicaof("127.0.0.1", arena.server().port)
        wait_until(lambda: "online" in str(client.info("replication").get("slave0")))


LIMITS = [
    redis_py_xadd(COUNT, name="XADD, everysec"),
    redis_py_xadd(COUNT, name="XADD, always", appendfsync="always"),
    Contestant("XADD and WAIT 1", xadd_and_wait, Kind.LIMIT),
]
LEVELS = [muster("memory", "everysec"), muster("local", "always"), muster("replicated(1)", "everysec")]

ROW = Row(
    "append by durability, one event a call",
    "events/s",
    [*LEVELS, *LIMITS],
    [Ratio(level.name, limit.name) for level, limit in zip(LEVELS, LIMITS, strict=True)],
    rounds=3,
    is_quick=False,
)
