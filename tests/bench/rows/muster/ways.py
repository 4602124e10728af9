"""What a promise costs the producer: `any`, an exact expected seq, a lease, deduplication by the session's ids."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count

from domain import Event, SessionLog
from tests.bench.arena import Arena
from tests.bench.events import event, identifier
from tests.bench.row import Contestant, Measure, Ratio, Row

COUNT = 2_000
#: A session that appends are deduplicated against has at most so many events, and is then left.
DEDUPED = 100


def way(name: str, begin: Callable[[Arena, SessionLog, str], Callable[[int], object]], length: int) -> Contestant:
    """Appends one event a call to sessions that grow to `length`; `begin` makes one of them ready, untimed."""

    def prepare(arena: Arena) -> Measure:
        log, numbers, each = arena.log(), count(), arena.whole(length, smoke=10)
        calls = arena.many(COUNT, step=each)

        def measure() -> float:
            taken = 0.0
            for _ in range(calls // each):
                append = begin(arena, log, f"{identifier(name)}-{next(numbers)}")
                append(1)
                began = time.perf_counter()
                for seq in range(2, each + 2):
                    append(seq)
                taken += time.perf_counter() - began
            return calls / taken

        return measure

    return Contestant(name, prepare)


def anywhere(arena: Arena, log: SessionLog, session: str) -> Callable[[int], object]:
    made = event()
    return lambda _: log.append(session, made)


def exact(arena: Arena, log: SessionLog, session: str) -> Callable[[int], object]:
    made = event()
    return lambda seq: log.append(session, made, expected=seq - 1)


def leased(arena: Arena, log: SessionLog, session: str) -> Callable[[int], object]:
    made = event()
    arena.keep(log.lease(session, made.actor))
    return lambda _: log.append(session, made)


def deduplicated(arena: Arena, log: SessionLog, session: str) -> Callable[[int], object]:
    return lambda seq: log.append(session, numbered(session, seq), dedupe=True)


def numbered(session: str, seq: int) -> Event:
    return Event.of("tool.called", actor="agent-07", data={"tool": "edit", "note": "x" * 120}, id=f"{session}:{seq}")


WAYS = [
    way("any", anywhere, 500),
    way("exact", exact, 500),
    way("leased", leased, 500),
    way(f"dedupe, sessions of {DEDUPED}", deduplicated, DEDUPED),
]

ROW = Row(
    "append by what it promises, one event a call",
    "events/s",
    WAYS,
    [Ratio(each.name, WAYS[0].name) for each in WAYS[1:]],
    rounds=3,
    is_quick=False,
)
