"""Finding and counting sessions by the number of sessions in the store, p50: what is found stays the same.

One agent took part in 2,000 sessions, fifty of these have a tag, one session in a hundred is broken. Each number of
sessions has a server of its own, on which sessions are there by name, head, view and index entries alone.
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
from domain.session import Participation
from projections import indexing, session_view
from projections.indexing import IndexMoves
from projections.queries import Views
from projections.searching import Filter
from tests.bench.arena import Arena, store_of
from tests.bench.row import Contestant, Measure, Row, flat, point

COUNTS = (1_000, 10_000, 100_000, 1_000_000)
PAGE: Final = 50
#: In how many sessions the agent is that is asked for, and how many have the tag.
OF_AGENT: Final = 2_000
TAGGED: Final = 50
#: Sessions that are written in one go.
BATCH: Final = 2_000
BEGAN: Final = 1_700_000_000_000
PARTS = (f"by agent, a page of {PAGE}", "by agent, counted", "by tag, all 50", "by tag and by agent", "newest 50")


def among(count: int) -> Contestant:
    def prepare(arena: Arena) -> Measure:
        log = arena.log(server=f"{count}")
        number = arena.whole(count, smoke=200)
        crowd(log, number)
        views = Views(store_of(log), log)
        calls = arena.many(100, least=10)
        newest = Filter(last_after=BEGAN + number - PAGE)
        work: tuple[Callable[[], object], ...] = (
            lambda: views.find(Filter(agent="asked-for"), limit=PAGE),
            lambda: views.count(Filter(agent="asked-for")),
            lambda: views.find(Filter(tag="rare"), limit=100),
            lambda: views.find(Filter(tag="rare", agent="asked-for"), limit=PAGE),
            lambda: views.find(newest, limit=PAGE),
        )

        def measure() -> dict[str, float]:
            return {point(part, count): p50_us(each, calls) for part, each in zip(PARTS, work, strict=True)}

        return measure

    return Contestant(point("queries", count), prepare, x=count)


def crowd(log: SessionLog, count: int) -> None:
    """Sessions as Muster leaves them when it has projected them, as far as queries look."""
    chance = random.Random(1)
    asked_for = set(chance.sample(range(count), min(count, OF_AGENT)))
    tagged = set(chance.sample(sorted(asked_for), min(count, TAGGED)))
    client: Any = log.client
    for at in range(0, count, BATCH):
        pipe = client.pipeline(transaction=False)
        values: dict[str, Any] = {}
        moves = {keys.meta: IndexMoves(keys) for keys in log.keyspace.partitions}
        registered: dict[str, dict[str, float]] = {}
        for number in range(at, min(at + BATCH, count)):
            name = f"session-{number:07}"
            keys = log.keyspace.of(name)
            view = session_view.initial(name)
            view.seq, view.started_at, view.last_at = 20, BEGAN + number, BEGAN + number
            view.state = "broken" if number % 100 == 0 else "working"
            view.agents[f"agent-{number % 500}"] = Participation(20, 1, 20, True)
            if number in asked_for:
                view.agents["asked-for"] = Participation(1, 1, 1, True)
            if number in tagged:
                view.tags.add("rare")
            values[keys.head(name)] = pack_head(Head(20, view.digest, "o", view.last_at))
            values[keys.session_view(name)] = session_view.encode(view)
            registered.setdefault(keys.sessions, {})[name] = 0
            moves[keys.meta].move(name, indexing.NO_ENTRIES, indexing.entries(view))
        client.mset(values)
        for key, members in registered.items():
            pipe.zadd(key, members)
        for move in moves.values():
            for command, key, arguments in move.writes():
                pipe.execute_command(command, key, *arguments)
        pipe.execute()


def p50_us(work: Callable[[], object], times: int) -> float:
    """How long it takes, in the middle of so many times."""
    taken = []
    for _ in range(max(3, times)):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return median(taken) * 1e6


ROW = Row(
    "queries by the number of sessions, p50",
    "µs",
    [among(count) for count in COUNTS],
    [flat(part, 10_000, COUNTS[-1], at_most=1.5) for part in PARTS],
    axis="sessions",
    rounds=3,
    is_quick=False,
)
