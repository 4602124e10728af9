"""Archiving step by step, and what is to be the same before and after."""

from __future__ import annotations

from itertools import chain
from typing import Any, Final

from domain import SessionLog
from tests.projections.world import World
from workers.archiving.archivist import Archived, Archivist
from workers.archiving.choosing import Keeping

ALL_THAT_ENDED: Final = Keeping(10**9, 0.0)
#: Also what is open.
ALL: Final = Keeping(0, 0.0, 0.0)


def archived(world: World, keeping: Keeping) -> Archived:
    """What a round over all partitions archives."""
    archivist = Archivist(world.log, world.projections, world.log.archive)
    for partition in range(world.keyspace.count):
        archivist.partition(partition, keeping)
    return archivist.done


def everything(log: SessionLog) -> dict[str, Any]:
    """All that can be read of a log, in every way there is."""
    told: dict[str, Any] = {}
    for session in log.sessions():
        commits = list(log.read(session))
        seqs = [0, 1, 2, 49, 50, 51, commits[-1].last_seq - 1, commits[-1].last_seq]
        told[session] = (
            commits,
            list(chain.from_iterable(log.stretches(session))),
            list(log.read_back(session)),
            [list(log.read(session, after=seq)) for seq in seqs],
            [list(log.read(session, to=seq)) for seq in seqs],
            [list(log.read_back(session, before=seq)) for seq in seqs],
            [log.position_at(session, commit.at_ms) for commit in commits[:: len(commits) // 5 + 1]],
        )
    told["each"] = [list(commits) for commits in log.read_each(sorted(told))]
    return told


def events_on_the_server(world: World) -> int:
    """How many events the streams hold."""
    count = 0
    for session in world.log.sessions():
        for entry, _ in world.redis.xrange(world.keyspace.of(session).log(session)):
            count += int(entry.partition(b"-")[2])
    return count


def derived(world: World) -> dict[bytes, bytes]:
    """Every view, index and total, to the byte."""
    return {key: value for key, value in world.derived().items() if b":cursor:" not in key and b":ckpt:" not in key}
