"""How much memory each kind of key takes, estimated: of sessions and partitions drawn by chance, times how many there
are.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Final

from msgspec import Struct

from domain.log.keys import Keyspace, PartitionKeys
from projections.store import ProjectionStore

#: How many sessions and how many partitions are measured at most.
SESSIONS: Final = 64
PARTITIONS: Final = 4
#: Of a key with members, so many of them are looked at by the server.
MEMBERS: Final = 5

#: The keys that each session has.
_OF_SESSION: Final[dict[str, Callable[[PartitionKeys, str], str]]] = {
    "logs": lambda keys, session: keys.log(session),
    "heads": lambda keys, session: keys.head(session),
    "holds": lambda keys, session: keys.hold(session),
    "session views": lambda keys, session: keys.session_view(session),
    "checkpoints": lambda keys, session: keys.checkpoints(session),
}


class KindOfKey(Struct, frozen=True):
    """One kind: of how many owners (sessions, agents, partitions) so many were measured, and what all take, about."""

    kind: str
    owners: int
    measured: int
    bytes: int


def by_kind(store: ProjectionStore, rng: random.Random) -> list[KindOfKey]:
    """The kinds of keys of the built-in part of a store, the largest first."""
    keyspace, client = store.keyspace, store.client
    sessions = _drawn(client, [keys.sessions for keys in keyspace.partitions], rng)
    agents = _drawn(client, [keys.agents for keys in keyspace.partitions], rng)
    partitions = rng.sample(range(keyspace.count), min(PARTITIONS, keyspace.count))
    asked: list[tuple[str, str]] = [
        (kind, key(keyspace.partitions[partition], session))
        for kind, key in _OF_SESSION.items()
        for partition, session in sessions.members
    ]
    asked += [("agent views", keyspace.partitions[at].agent_view(agent)) for at, agent in agents.members]
    asked += [(kind, key) for at in partitions for kind, key in _of_partition(store, keyspace, at)]
    pipe = client.pipeline(transaction=False)
    for _, key in asked:
        pipe.memory_usage(key, samples=MEMBERS)
    sizes: dict[str, int] = {}
    for (kind, _), size in zip(asked, pipe.execute(), strict=True):
        sizes[kind] = sizes.get(kind, 0) + (size or 0)
    owners = dict.fromkeys(_OF_SESSION, (sessions.count, len(sessions.members)))
    owners["agent views"] = (agents.count, len(agents.members))
    found = []
    for kind, size in sizes.items():
        count, measured = owners.get(kind, (keyspace.count, len(partitions)))
        found.append(KindOfKey(kind, count, measured, round(size * count / measured)))
    return sorted(found, key=lambda one: -one.bytes)


def _of_partition(store: ProjectionStore, keyspace: Keyspace, partition: int) -> list[tuple[str, str]]:
    """The keys that each partition has."""
    keys = keyspace.partitions[partition]
    indexes = [("indexes", key) for key in (*store.index_keys(partition), keys.agents)]
    scrubbing = [("verification", key) for key in (keys.proofs, keys.swept, keys.drifted, keys.scrub)]
    single = [
        ("feeds", keys.feed),
        ("registry", keys.sessions),
        ("audit", keys.audit),
        ("skips", keys.skips),
        ("statistics", keys.statistics),
        ("signs of life", keys.beats),
    ]
    return [*indexes, *scrubbing, *single]


class _Drawn(Struct, frozen=True):
    """How many members there are in all, and some of them with their partitions."""

    count: int
    members: list[tuple[int, str]]


def _drawn(client: Any, lists: list[str], rng: random.Random) -> _Drawn:
    """Members of sorted sets, a list a partition, each as likely as any other; by rank, so that nothing is scanned."""
    pipe = client.pipeline(transaction=False)
    for key in lists:
        pipe.zcard(key)
    counts = pipe.execute()
    total = sum(counts)
    chosen = sorted(rng.sample(range(total), min(SESSIONS, total)))
    places, partition, before = [], 0, 0
    for number in chosen:
        while number >= before + counts[partition]:
            before += counts[partition]
            partition += 1
        places.append((partition, number - before))
    for at, rank in places:
        pipe.zrange(lists[at], rank, rank)
    replies = pipe.execute() if places else []
    members = [
        (at, reply[0].decode("utf-8", "replace")) for (at, _), reply in zip(places, replies, strict=True) if reply
    ]
    return _Drawn(total, members)
