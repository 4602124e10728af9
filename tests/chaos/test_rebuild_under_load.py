"""Law: while everything is built again from the logs, appends and workers go on, and no reader sees a view go backwards
or vanish. With the real logs; MUSTER_CHAOS=full also with a million generated events.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from threading import Event as Flag
from threading import Thread

import pytest

from domain import Append, Event, Receipt, SessionLog
from projections import session_view
from projections.store import ProjectionStore
from tests.chaos.effort import FULL
from tests.conftest import DATA, Store
from tests.projections.world import World
from workers.cli.event import opened_file, read_lines
from workers.importing import Importer
from workers.recovery import Recovery

#: The pace of appends meanwhile, events/s.
PACE = 200
MILLION = 1_000_000


class Reader:
    """Reads all views again and again; `broken` are sessions whose view went back or vanished, and how."""

    def __init__(self, store: ProjectionStore, sessions: list[str]) -> None:
        self._store = store
        self._sessions = sessions
        self._seen: dict[str, int] = {}
        self.broken: list[str] = []
        self.passes = 0

    def read(self, stop: Flag) -> None:
        while not stop.is_set():
            for at in range(0, len(self._sessions), 500):
                page = self._sessions[at : at + 500]
                for session, stored in zip(page, self._store.views(page), strict=True):
                    self._look(session, stored)
            self.passes += 1

    def _look(self, session: str, stored: bytes | None) -> None:
        view, before = session_view.readable(stored, session), self._seen.get(session)
        if view is None:
            if before is not None:
                self.broken.append(f"{session} vanished, it stood at {before}")
        elif before is not None and view.seq < before:
            self.broken.append(f"{session} went from {before} back to {view.seq}")
        else:
            self._seen[session] = view.seq


def produce(log: SessionLog, sessions: list[str], stop: Flag, answers: list[object]) -> None:
    """Appends an event to one session after another, at the pace."""
    number, due = 0, time.monotonic()
    while not stop.is_set():
        due += 10 / PACE
        appends = [
            Append(sessions[(number + n) % len(sessions)], (Event.of("tool.called", actor="live"),)) for n in range(10)
        ]
        answers.extend(log.append_many(appends))
        number += 10
        stop.wait(max(0.0, due - time.monotonic()))


@contextmanager
def running(*targets: Callable[[Flag], None]) -> Iterator[None]:
    """Runs these beside the block, each in a thread, until it ends; what fails in them fails the test."""
    stop, errors = Flag(), list[BaseException]()

    def run(target: Callable[[Flag], None]) -> None:
        try:
            target(stop)
        except BaseException as error:
            errors.append(error)

    threads = [Thread(target=run, args=(target,)) for target in targets]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert errors == []


def real_logs(world: World) -> None:
    """All of them where MUSTER_CHAOS=full, in the gate a quarter."""
    path = DATA / "incidents.ndjson.gz"
    if not path.exists():
        pytest.skip("the real logs are not there")
    with opened_file(str(path)) as file:
        lines = islice(read_lines(file, 1 << 20), None if FULL else 18_000)
        Importer(world.log, reject=lambda _: None, progress=lambda _: None).run(lines)


def a_million_events(world: World) -> None:
    names = [f"g-{n}" for n in range(2000)]
    events = tuple(Event.of("tool.called", actor=f"agent-{n % 7}", data={"tool": "edit"}) for n in range(10))
    for _ in range(MILLION // len(names) // len(events)):
        for at in range(0, len(names), 100):
            fresh = tuple(Event.of(one.type, actor=one.actor, data={"tool": "edit"}) for one in events)
            assert all(
                isinstance(done, Receipt)
                for done in world.log.append_many([Append(name, fresh) for name in names[at : at + 100]])
            )


HISTORIES = [
    real_logs,
    pytest.param(a_million_events, marks=pytest.mark.skipif(not FULL, reason="MUSTER_CHAOS=full")),
]


@pytest.mark.parametrize("history", HISTORIES if FULL else HISTORIES[:1])
def test_no_reader_sees_a_view_go_back_or_vanish_while_everything_is_rebuilt(
    server_url: str, make_store: Callable[..., Store], history: Callable[[World], None]
) -> None:
    world = World(make_store(server_url))
    history(world)
    with world.workers(2) as children:
        world.wait_until_shared(children)
        world.wait_until_caught_up()
        sessions = list(world.log.sessions())
        # Some views are not what they should be, so that something is replaced too.
        spoilt = [session for session in sessions if hash_of(session) % 10 == 0]
        for session in spoilt:
            world.redis.set(world.keyspace.of(session).session_view(session), b"spoilt")
        reader, log, answers = Reader(World(world.store).projections, sessions), world.store.open(), list[object]()
        recovery = Recovery(world.projections, world.log, who="recovery:test", progress=lambda _: None)
        with running(reader.read, lambda stop: produce(log, sessions, stop, answers)):
            began = time.monotonic()
            done = recovery.rebuild(range(world.keyspace.count))
            seconds = time.monotonic() - began
        world.wait_until_caught_up()

    events = sum(world.projections.total(part) for part in range(world.keyspace.count))
    print(f"rebuilt {events:,} events in {seconds:.1f} s under {PACE} events/s; {reader.passes} passes of all views")
    assert reader.broken == []
    assert reader.passes > 0
    assert 0 < done.changed <= len(spoilt), "workers mend those that they meet"
    assert all(isinstance(answer, Receipt) for answer in answers)
    assert world.verify() == []


def hash_of(session: str) -> int:
    """A number that is the same in every run."""
    return sum(session.encode())
