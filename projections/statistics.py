"""Figures over all sessions, and what is touched by how many: sums and counts, never a reading of all sessions.

Figures of now are sums kept a partition (projections/indexing.py) and merged when read. Figures over time are counts of
the indexes by time, so any bucket costs the same. Lengths are counted by powers of two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from domain.errors import Refused
from domain.impact import SEVERITIES, as_number
from domain.session import COMPLETED, EXPIRED, PRIORITIES
from projections import indexing
from projections.searching import STATES
from projections.session_view import rfc3339
from projections.store import ProjectionStore, unless_of_another_type

#: The buckets of figures over time, in ms.
BUCKETS: Final = {"hour": 3_600_000, "day": 86_400_000}
#: How many buckets are told where no time is given.
RECENT: Final = {"hour": 48, "day": 14}
MOST_BUCKETS: Final = 1000


def merged(store: ProjectionStore) -> dict[str, int]:
    """The sums over all partitions; those of a partition that are missing or damaged are taken from its views."""
    found: dict[str, int] = {}
    partitions = range(store.keyspace.count)
    for partition, stored in zip(partitions, store.statistics(partitions), strict=True):
        kept = indexing.readable_statistics(stored)
        indexing.add(found, store.summed_statistics(partition) if kept is None else kept)
    return found


def document(sums: Mapping[str, int]) -> dict[str, Any]:
    """The figures as readers get them."""
    sessions, completed = sums.get("sessions", 0), sums.get(f"state {COMPLETED}", 0)
    by_agents = {number: sums.get(f"agents {number}", 0) for number in range(1, indexing.MANY_AGENTS + 1)}
    return {
        "sessions": sessions,
        "active": sessions - completed - sums.get(f"state {EXPIRED}", 0),
        "by_state": {state: sums.get(f"state {state}", 0) for state in STATES},
        "by_priority": {priority: sums.get(f"priority {priority}", 0) for priority in PRIORITIES},
        "events": sums.get("events", 0),
        "events_per_session": round(sums.get("events", 0) / sessions, 3) if sessions else None,
        "sessions_by_events": _powers(sums, "length"),
        "completed_took_ms": sums.get("took_ms", 0) // completed if completed else None,
        "completed_by_seconds": _powers(sums, "took"),
        "collaborations": sum(count for number, count in by_agents.items() if number > 1),
        "sessions_by_agents": {
            f"{number}{'+' if number == indexing.MANY_AGENTS else ''}": count
            for number, count in by_agents.items()
            if count
        },
        "breaks": sums.get("breaks", 0),
        "severities": {name: sums[f"severity {name}"] for name in SEVERITIES if sums.get(f"severity {name}")},
        "perf_delta": as_number(sums.get("perf_delta", 0)),
    }


def _powers(sums: Mapping[str, int], name: str) -> dict[str, int]:
    """Counts by powers of two: under "<8" those from 4 to 7."""
    bits = sorted(int(key.partition(" ")[2]) for key in sums if key.startswith(f"{name} "))
    return {f"<{1 << bit}": sums[f"{name} {bit}"] for bit in bits}


def over_time(
    store: ProjectionStore, bucket: str, *, since: int | None = None, until: int | None = None
) -> Iterator[dict[str, Any]]:
    """How many sessions were started, completed and last appended to in each hour or day (UTC) of a time."""
    if bucket not in BUCKETS:
        raise Refused("USAGE", f"figures are by {' or '.join(BUCKETS)}, not by {bucket}")
    width = BUCKETS[bucket]
    until = store.server_ms() if until is None else until
    first = until - width * (RECENT[bucket] - 1) if since is None else since
    begins = range(first - first % width, until, width)
    if len(begins) > MOST_BUCKETS:
        raise Refused("USAGE", f"{len(begins)} buckets are more than {MOST_BUCKETS}: ask for a shorter time")
    names = ("started", "completed", "last")
    pipe = store.client.pipeline(transaction=False)
    for begin in begins:
        for keys in store.keyspace.partitions:
            for name in names:
                pipe.zcount(indexing.score_index(keys, name), begin, begin + width - 1)
    replies = iter([unless_of_another_type(reply, 0) for reply in pipe.execute(raise_on_error=False)])
    for begin in begins:
        counts = dict.fromkeys(names, 0)
        for _ in store.keyspace.partitions:
            for name in names:
                counts[name] += next(replies)
        yield {
            "from": rfc3339(begin),
            "until": rfc3339(begin + width),
            "started": counts["started"],
            "completed": counts["completed"],
            "last_appended": counts["last"],
        }


def entities(store: ProjectionStore, *, prefix: str = "", after: str | None = None) -> Iterator[dict[str, Any]]:
    """Entities by name, and how many sessions touched each. It goes from one to the next without reading sessions."""
    begin = f"[entity\0{prefix}" if after is None or after < prefix else f"[{_after(after)}"
    end = b"(entity\0" + prefix.encode() + b"\xff"
    ahead = _next_entities(store, dict.fromkeys(range(store.keyspace.count), begin), end)
    while ahead:
        entity = min(ahead.values())
        pipe = store.client.pipeline(transaction=False)
        for keys in store.keyspace.partitions:
            pipe.zlexcount(keys.session_index, f"[entity\0{entity}\0", f"({_after(entity)}")
        sessions = sum(unless_of_another_type(reply, 0) for reply in pipe.execute(raise_on_error=False))
        yield {"entity": entity, "sessions": sessions, "cursor": entity}
        there = {partition: f"[{_after(entity)}" for partition, found in ahead.items() if found == entity}
        ahead = {partition: found for partition, found in ahead.items() if found != entity}
        ahead |= _next_entities(store, there, end)


def _next_entities(store: ProjectionStore, lows: Mapping[int, str], end: bytes) -> dict[int, str]:
    """The first entity of each partition from a place on; partitions that have none are left out."""
    pipe = store.client.pipeline(transaction=False)
    for partition, low in lows.items():
        pipe.zrangebylex(store.keys(partition).session_index, low, end, start=0, num=1)
    replies = [unless_of_another_type(reply) for reply in pipe.execute(raise_on_error=False)] if lows else []
    return {
        partition: indexing.parted(found[0].decode("utf-8", "replace"))[0].partition(indexing.SEPARATOR)[2]
        for partition, found in zip(lows, replies, strict=True)
        if found
    }


def _after(entity: str) -> str:
    """What comes right after the entries of an entity."""
    return f"entity\0{entity}\1"
