"""What the server's memory takes for logs and heads of sessions of 50 events, against the bytes of the encoded events.

By the server's own count of what it allocated, before and after, with feed and registry deleted: the table of keys is
in it, room that the allocator keeps is not.
"""

from __future__ import annotations

from itertools import count

from domain import Append
from tests.bench.arena import Arena, allocated
from tests.bench.events import event
from tests.bench.row import Contestant, Measure, Ratio, Row

LENGTH = 50


def stored(commit: int) -> Contestant:
    def prepare(arena: Arena) -> Measure:
        rounds, sessions = count(), [f"s-{number}" for number in range(arena.many(2_000, least=20))]

        def measure() -> dict[str, float]:
            log = arena.log(f"memory-{commit}-{next(rounds)}")
            before = allocated(log.client)
            for first in range(0, LENGTH, commit):
                events = tuple(event(number) for number in range(first, first + commit))
                log.append_many([Append(session, events) for session in sessions])
            for keys in log.keyspace.partitions:
                log.client.delete(keys.feed, keys.sessions)
            taken = allocated(log.client) - before
            encoded = sum(len(entry.body) for each in log.read_each(sessions) for entry in each)
            for name in sessions:
                keys = log.keyspace.of(name)
                log.client.delete(keys.log(name), keys.head(name))
            events_in_all = LENGTH * len(sessions)
            return {
                f"log and head, commits of {commit}": taken / events_in_all,
                f"encoded, commits of {commit}": encoded / events_in_all,
            }

        return measure

    return Contestant(f"commits of {commit}", prepare)


ROW = Row(
    f"memory of log and head, 200 B events, sessions of {LENGTH}",
    "B/event",
    [stored(1), stored(10)],
    [
        Ratio(f"log and head, commits of {commit}", f"encoded, commits of {commit}", at_most=goal)
        for commit, goal in ((1, 1.5), (10, 1.15))
    ],
    rounds=2,
)
