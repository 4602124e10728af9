"""Muster as its own peer: the same interface, so that both do the same work."""

from __future__ import annotations

from typing import Any

from domain import Event, SessionLog
from tests.bench.arena import Arena, Fsync
from tests.bench.peers.peer import Peer
from tests.bench.row import Kind


class Muster:
    """A blocking log; events are made and checked in each append, as a producer does."""

    def __init__(self, log: SessionLog) -> None:
        self._log = log

    def append(self, session: str, event: dict[str, Any]) -> None:
        self._log.append(session, Event.of(event["type"], actor=event["actor"], data=event["data"]))

    def read(self, session: str) -> int:
        return sum(len([event.payload() for event in commit.events]) for commit in self._log.read(session))


def muster(name: str, fsync: Fsync, durability: str) -> Peer:
    """With what a receipt is to prove."""

    def opened(arena: Arena) -> Muster:
        return Muster(arena.log(appendfsync=fsync, durability=durability))

    return Peer(name, opened, kind=Kind.MUSTER)


#: As it comes: the server has replied.
MUSTER = muster("Muster, memory", "everysec", "memory")
#: On the disk, and proved so.
MUSTER_SYNCED = muster("Muster, local", "always", "local")
