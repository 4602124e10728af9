"""A worker is killed with -9: until its partitions have moved again, against the time to live of its leases."""

from __future__ import annotations

import os
import signal
import time
from itertools import count

from domain import Append, Event
from tests.bench.arena import Arena, wait_until
from tests.bench.fleet import is_shared_out, left, running
from tests.bench.row import Contestant, Kind, Measure, Ratio, Row
from workers.leasing import living_workers
from workers.settings import Settings


def prepare(arena: Arena) -> Measure:
    _, log, store = arena.keep(running())
    rounds = count()

    def measure() -> float:
        wait_until(lambda: is_shared_out(log))
        victims = sorted(living_workers(log.client, log.keyspace), key=lambda worker: str(worker["worker"]))
        os.kill(int(victims[next(rounds) % 2]["pid"]), signal.SIGKILL)
        began = time.perf_counter()
        log.append_many([Append(f"k-{number}", (Event.of("tool.called", actor="a"),)) for number in range(200)])
        wait_until(lambda: left(store) == 0)
        return time.perf_counter() - began

    return measure


def time_to_live(arena: Arena) -> Measure:
    return lambda: Settings().worker.lease_ttl_ms / 1000


ROW = Row(
    "a worker killed -9 → its partitions move again",
    "s",
    [Contestant("all have moved", prepare), Contestant("the lease's time to live", time_to_live, Kind.LIMIT)],
    [Ratio("all have moved", "the lease's time to live", at_most=1.5)],
)
