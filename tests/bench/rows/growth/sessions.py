"""A page of `session ls`, `session show` and an append by the number of sessions in the store, p50.

Each number of sessions has a server of its own. All but a few sessions are there by name, head and view alone, written
with plain commands: their logs would take most of the time and are read by none of these.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from statistics import median
from typing import Any, Final

from domain import SessionLog
from domain.log.contract import Head
from domain.log.protocol import pack_head
from projections import session_view
from projections.queries import Views
from tests.bench.arena import Arena, store_of
from tests.bench.events import event, fill
from tests.bench.row import Contestant, Measure, Row, flat, point

COUNTS = (1_000, 10_000, 100_000, 1_000_000)
PAGE: Final = 100
#: Sessions that are written in one command.
BATCH: Final = 2_000
PARTS = (f"ls, a page of {PAGE}", "show", "append")


def among(count: int) -> Contestant:
    def prepare(arena: Arena) -> Measure:
        log = arena.log(server=f"{count}")
        number = arena.whole(count, smoke=200)
        crowd(log, number)
        views, chance, made = Views(store_of(log), log), random.Random(7), event()
        calls = arena.many(300, least=10)
        log.append("apart", made)

        def somebody() -> str:
            return _name(chance.randrange(number))

        work: tuple[Callable[[], object], ...] = (
            lambda: list(views.sessions(after=somebody(), limit=PAGE)),
            lambda: views.session(somebody()),
            lambda: log.append("apart", made),
        )

        def measure() -> dict[str, float]:
            return {
                point(part, count): _p50_us(each, calls // 10 if part == PARTS[0] else calls)
                for part, each in zip(PARTS, work, strict=True)
            }

        return measure

    return Contestant(point("sessions", count), prepare, x=count)


def crowd(log: SessionLog, count: int) -> None:
    """Sessions as Muster leaves them when it has projected them: all like one that it did project."""
    fill(log, ["model"], 20, commit=1)
    view = session_view.initial("model")
    for commit in log.read("model"):
        for made in commit.events:
            view.apply(made)
    head = pack_head(Head(20, "0" * 20, "o", 1_700_000_000_000))
    client: Any = log.client
    for at in range(0, count, BATCH):
        names = [_name(number) for number in range(at, min(at + BATCH, count))]
        values: dict[str, Any] = {}
        registered: dict[str, dict[str, float]] = {}
        for name in names:
            keys = log.keyspace.of(name)
            view.session, view.seq = name, 20
            values[keys.head(name)] = head
            values[keys.session_view(name)] = session_view.encode(view)
            registered.setdefault(keys.sessions, {})[name] = 0
        client.mset(values)
        pipe = client.pipeline(transaction=False)
        for key, members in registered.items():
            pipe.zadd(key, members)
        pipe.execute()


def _name(number: int) -> str:
    return f"session-{number:07}"


def _p50_us(work: Callable[[], object], times: int) -> float:
    taken = []
    for _ in range(max(3, times)):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return median(taken) * 1e6


ROW = Row(
    "by the number of sessions, p50",
    "µs",
    [among(count) for count in COUNTS],
    [flat(part, COUNTS[0], COUNTS[-1], at_most=1.5) for part in PARTS],
    axis="sessions",
    rounds=3,
    is_quick=False,
)
