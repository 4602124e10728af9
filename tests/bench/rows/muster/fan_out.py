"""Events delivered to 1, 4 and 16 subscribers of everything, each in a thread of its own, on one log object.

Against one plain reader that follows one stream with XREAD. Deliveries/s, all subscribers together.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from domain import Append
from domain.log import Subscription
from tests.bench.arena import Arena
from tests.bench.events import body, event, in_partition
from tests.bench.row import Contestant, Kind, Measure, Ratio, Row, point

COUNT = 16_000


def subscribers(count: int) -> Contestant:
    def prepare(arena: Arena) -> Measure:
        log, producer = arena.log(), arena.log()
        sessions = in_partition(log.keyspace, None, 64)
        each = max(1, arena.many(COUNT // count, least=64) // 64)
        pool = arena.keep(ThreadPoolExecutor(count))

        def measure() -> float:
            expected = each * len(sessions)
            subscriptions = [log.subscribe(after="now") for _ in range(count)]
            try:
                began = time.perf_counter()
                listening = [pool.submit(take, subscription, expected) for subscription in subscriptions]
                for _ in range(each):
                    producer.append_many([Append(session, (event(),)) for session in sessions])
                for done in listening:
                    done.result()
                return expected * count / (time.perf_counter() - began)
            finally:
                for subscription in subscriptions:
                    subscription.close()

        return measure

    return Contestant(point("subscribers", count), prepare, x=count)


def take(subscription: Subscription, count: int) -> None:
    """Takes so many deliveries."""
    for taken in range(count):
        if subscription.get(timeout_s=60) is None:
            raise TimeoutError(f"{taken} of {count} deliveries came")


def xread(arena: Arena) -> Measure:
    reader: Any = arena.client()
    writer, count, made = arena.client(), arena.many(COUNT, least=64, step=64), body()
    pool = arena.keep(ThreadPoolExecutor(1))

    def follow() -> None:
        last, seen = b"0", 0
        while seen < count:
            ((_, entries),) = reader.xread({"limit:followed": last}, count=1000, block=5000)
            seen, last = seen + len(entries), entries[-1][0]

    def measure() -> float:
        writer.delete("limit:followed")
        began = time.perf_counter()
        following = pool.submit(follow)
        for _ in range(count // 64):
            pipe = writer.pipeline(transaction=False)
            for _ in range(64):
                pipe.xadd("limit:followed", {"b": made})
            pipe.execute()
        following.result()
        return count / (time.perf_counter() - began)

    return measure


COUNTS = (1, 4, 16)
LIMIT = Contestant("redis-py XREAD, one reader", xread, Kind.LIMIT)

ROW = Row(
    "deliveries to subscribers of everything",
    "events/s",
    [*map(subscribers, COUNTS), LIMIT],
    [Ratio(point("subscribers", count), LIMIT.name) for count in COUNTS],
    axis="subscribers",
    rounds=3,
    is_quick=False,
)
