"""How long one append takes, by one producer that has nothing else to do: p50, p99 and p999, against redis-py's XADD.

In turn, so that whatever the machine does falls on both.
"""

from __future__ import annotations

import time
from statistics import quantiles

from tests.bench.arena import Arena
from tests.bench.events import body, event, in_partition
from tests.bench.row import Contestant, Measure, Ratio, Row

NAMES = (("p50", 499), ("p99", 989), ("p999", 998))


def prepare(arena: Arena) -> Measure:
    log, client = arena.log(), arena.client()
    sessions, made, plain = in_partition(log.keyspace, None, 64), event(), body()
    calls = arena.many(4_000, least=100)
    for session in sessions:
        log.append(session, made)

    def measure() -> dict[str, float]:
        appends: list[float] = []
        xadds: list[float] = []
        for number in range(calls):
            began = time.perf_counter()
            log.append(sessions[number % 64], made)
            replied = time.perf_counter()
            client.xadd("limit:latency", {"b": plain})
            appends.append(replied - began)
            xadds.append(time.perf_counter() - replied)
        return {
            f"{what}, {name}": quantiles(times, n=1000)[at] * 1e6
            for what, times in (("append", appends), ("XADD", xadds))
            for name, at in NAMES
        }

    return measure


ROW = Row(
    "latency of an append, one producer",
    "µs",
    [Contestant("append and XADD", prepare)],
    [Ratio(f"append, {name}", f"XADD, {name}") for name, _ in NAMES],
)
