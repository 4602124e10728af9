"""The latency of an append by the length of the session, p50: one session that grows, by commits of a hundred."""

from __future__ import annotations

import time
from statistics import median

from tests.bench.arena import Arena
from tests.bench.events import event, fill
from tests.bench.row import Contestant, Measure, Row, flat, point

LENGTHS = (100, 1_000, 10_000, 100_000)


def at_length(length: int) -> Contestant:
    def prepare(arena: Arena) -> Measure:
        log = arena.log()
        session, made, calls = f"long-{length}", event(), arena.many(1_000, least=20)
        fill(log, [session], arena.whole(length, smoke=100), commit=100)
        log.append(session, made)

        def measure() -> float:
            taken = []
            for _ in range(calls):
                began = time.perf_counter()
                log.append(session, made)
                taken.append(time.perf_counter() - began)
            return median(taken) * 1e6

        return measure

    return Contestant(point("append", length), prepare, x=length)


ROW = Row(
    "append by the session's length, p50",
    "µs",
    [at_length(length) for length in LENGTHS],
    [flat("append", LENGTHS[0], LENGTHS[-1], at_most=1.2)],
    axis="events in the session",
    is_quick=False,
)
