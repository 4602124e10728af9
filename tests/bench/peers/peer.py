"""What peers have in common: sessions that events are appended to one at a time, read back, and perhaps folded.

A peer is one file in this folder. It imports its package only when it is opened, so that one that is not installed is
left out of a run, and said so. Each uses its library as its documentation does, with the settings it comes with, on the
same disk; an event is `tests.bench.events.payload`, whatever the peer makes of it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any, Final, Protocol

from msgspec import Struct

from tests.bench.arena import Arena
from tests.bench.events import identifier, payload
from tests.bench.row import Contestant, Kind, Measure

#: Events in a session when it is read back, and how many sessions there are.
LENGTH: Final = 200
SESSIONS: Final = 4


class Opened(Protocol):
    """A peer at work. Sessions begin with their first event."""

    def append(self, session: str, event: dict[str, Any]) -> None:
        """Appends one event, and returns when the peer says that it has it."""
        ...

    def read(self, session: str) -> int:
        """Reads a session back, every event with its data; how many events those were."""
        ...


class Folding(Opened, Protocol):
    """A peer that folds too."""

    def fold(self, session: str) -> int:
        """Builds a session's state from its first event; how many events it counts."""
        ...


class Peer(Struct, frozen=True):
    """A peer by name."""

    name: str
    open: Callable[[Arena], Opened]
    kind: Kind = Kind.PEER


def appending(peer: Peer, calls: int) -> Contestant:
    """Single events, one after another, to sessions that grow to fifty events and are then left; events/s."""

    def prepare(arena: Arena) -> Measure:
        opened, numbers = peer.open(arena), count()
        many = arena.many(calls, least=50, step=50)
        name = identifier(peer.name)
        opened.append(f"{name}-warm", payload())

        def measure() -> float:
            events = [payload(number) for number in range(50)]
            began = time.perf_counter()
            for _ in range(many // 50):
                session = f"{name}-{next(numbers)}"
                for event in events:
                    opened.append(session, event)
            return many / (time.perf_counter() - began)

        return measure

    return Contestant(peer.name, prepare, peer.kind)


def appending_together(peer: Peer, producers: int, calls: int) -> Contestant:
    """Single events by so many threads at a time, each to a session of its own; events/s."""

    def prepare(arena: Arena) -> Measure:
        opened, name = peer.open(arena), identifier(peer.name)
        pool = arena.keep(ThreadPoolExecutor(producers))
        sessions = [f"{name}-{number}" for number in range(producers)]
        each = max(1, arena.many(calls) // producers)

        def produce(session: str, times: int) -> None:
            for number in range(times):
                opened.append(session, payload(number))

        def all_of(times: int) -> None:
            list(pool.map(produce, sessions, [times] * producers))

        all_of(1)

        def measure() -> float:
            began = time.perf_counter()
            all_of(each)
            return each * producers / (time.perf_counter() - began)

        return measure

    return Contestant(peer.name, prepare, peer.kind)


def reading(peer: Peer) -> Contestant:
    """Sessions that were written an event at a time are read back; events/s."""

    def prepare(arena: Arena) -> Measure:
        opened, sessions, length = _filled(peer, arena)
        return _over(sessions, length, opened.read)

    return Contestant(peer.name, prepare, peer.kind)


def folding(peer: Peer, open_folding: Callable[[Arena], Folding]) -> Contestant:
    """The state of sessions that were written an event at a time is built from their first event; events/s."""

    def prepare(arena: Arena) -> Measure:
        opened = open_folding(arena)
        sessions, length = _fill(opened, peer.name, arena)
        return _over(sessions, length, opened.fold)

    return Contestant(peer.name, prepare, peer.kind)


def _filled(peer: Peer, arena: Arena) -> tuple[Opened, list[str], int]:
    opened = peer.open(arena)
    sessions, length = _fill(opened, peer.name, arena)
    return opened, sessions, length


def _fill(opened: Opened, name: str, arena: Arena) -> tuple[list[str], int]:
    length = arena.whole(LENGTH, smoke=5)
    sessions = [f"{identifier(name)}-{number}" for number in range(arena.many(SESSIONS))]
    for number in range(length):
        for session in sessions:
            opened.append(session, payload(number))
    return sessions, length


def _over(sessions: list[str], length: int, work: Callable[[str], int]) -> Measure:
    """Goes through the sessions for a while; long enough for quick ones to be timed."""

    def measure() -> float:
        done, began = 0, time.perf_counter()
        while time.perf_counter() - began < 0.3:
            for session in sessions:
                if work(session) != length:
                    raise AssertionError(f"{session} does not hold {length} events")
                done += length
        return done / (time.perf_counter() - began)

    return measure


class InLoop:
    """For peers of asyncio: a loop of their own that stands still while others are measured."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self._runner = runner

    def run(self, work: Awaitable[Any]) -> Any:
        async def awaited() -> Any:
            return await work

        return self._runner.run(awaited())
