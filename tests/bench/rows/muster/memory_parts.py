"""What an event and a session take on the server, part by part, by its own word for each key (MEMORY USAGE)."""

from __future__ import annotations

from typing import Any

from tests.bench.arena import Arena
from tests.bench.history import History
from tests.bench.row import Contestant, Measure, Row

LENGTH = 50


def prepare(arena: Arena) -> Measure:
    made = History.of(arena, "main", sessions=arena.many(1_000, least=32), length=LENGTH, commit=1)
    made.rebuild()
    client: Any = made.log.client

    def of(keys: list[str]) -> int:
        pipe = client.pipeline(transaction=False)
        for key in keys:
            pipe.memory_usage(key, samples=0)
        return sum(size or 0 for size in pipe.execute())

    def measure() -> dict[str, float]:
        keyspace, names, parts = made.log.keyspace, made.sessions, made.log.keyspace.partitions
        count = len(names)
        return {
            "log, an event": of([keyspace.of(name).log(name) for name in names]) / made.events,
            "feed, an event": of([keys.feed for keys in parts]) / made.events,
            "head, a session": of([keyspace.of(name).head(name) for name in names]) / count,
            "registry, a session": of([keys.sessions for keys in parts]) / count,
            "view, a session": of([keyspace.of(name).session_view(name) for name in names]) / count,
            "checkpoints, a session": of([keyspace.of(name).checkpoints(name) for name in names]) / count,
        }

    return measure


ROW = Row(
    f"memory by part: sessions of {LENGTH} single commits",
    "B",
    [Contestant("the server", prepare)],
    rounds=1,
)
