"""The latency of an append to a session of 100,000 events, against one to a session that has just begun; p50.

Both in turn by one producer, so that whatever the machine does falls on both.
"""

from __future__ import annotations

import time
from statistics import quantiles

from tests.bench.arena import Arena
from tests.bench.events import event, fill
from tests.bench.row import Contestant, Measure, Ratio, Row

LENGTH = 100_000


def prepare(arena: Arena) -> Measure:
    log = arena.log()
    fill(log, ["long"], arena.whole(LENGTH, smoke=2_000), commit=100)
    made, calls, rounds = event(), arena.many(3_000, least=50), iter(range(1_000_000))
    log.append("long", made)

    def measure() -> dict[str, float]:
        fresh = [f"fresh-{next(rounds)}" for _ in range(calls)]
        for session in fresh:
            log.append(session, made)  # its first event asks for the head before; the second is as any other
        taken: dict[str, list[float]] = {"at event 2": [], f"at event {LENGTH:,}": []}
        for session in fresh:
            for name, times in zip((session, "long"), taken.values(), strict=True):
                began = time.perf_counter()
                log.append(name, made)
                times.append((time.perf_counter() - began) * 1e6)
        return {name: quantiles(times, n=100)[49] for name, times in taken.items()}

    return measure


ROW = Row(
    "append latency at the end of a long session, p50",
    "µs",
    [Contestant("append", prepare)],
    [Ratio(f"at event {LENGTH:,}", "at event 2", at_most=1.1)],
)
