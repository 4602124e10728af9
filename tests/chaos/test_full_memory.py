"""Ten times as much as the server's memory holds goes through it, while workers that archive are killed now and then.

The server's own limit is set for real. Nothing is lost or doubled, and everything that was acknowledged is read.
"""

from __future__ import annotations

import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, Final

import pytest

from domain import Append, Event, Receipt, SessionLog, Unavailable
from tests.chaos.effort import FULL, seeded
from tests.conftest import Store
from tests.own_server import OwnServer
from tests.projections.world import World, did
from tests.waiting import wait_until
from workers.child_process import ChildProcess, start_child

MB: Final = 1024 * 1024
#: What the server may use, and how many bytes of events go through it.
CEILING: Final = (100 if FULL else 12) * MB
THROUGH: Final = (1024 if FULL else 72) * MB
EVENT: Final = "x" * 1000
#: Events of a commit, commits of a session, sessions at a time.
EVENTS, COMMITS, SESSIONS = 10, 20, 16


@pytest.fixture
def server(tmp_path: Path) -> Iterator[OwnServer]:
    server = OwnServer(
        tmp_path / "own", *("--maxmemory", str(CEILING), "--maxmemory-policy", "noeviction"), kind="valkey"
    )
    server.start()
    yield server
    server.stop()


class Workers:
    """Worker processes that archive; one of them is killed and another one started, now and then."""

    def __init__(self, world: World, archive: Path, chance: Random) -> None:
        settings = {
            "MUSTER_ARCHIVE__URL": str(archive),
            "MUSTER_ARCHIVE__EVERY_S": "1",
            "MUSTER_ARCHIVE__AFTER_END_S": "0",
        }
        self._environ = {**world.environ(), **settings, "MUSTER_WORKER__FEED_KEEP_S": "1"}
        self._chance = chance
        self._running: list[ChildProcess] = [self._start() for _ in range(2)]
        self.killed = 0

    def kill_one(self) -> None:
        victim = self._running.pop(self._chance.randrange(2))
        victim.kill()
        victim.wait()
        self.killed += 1
        self._running.append(self._start())

    def stop(self) -> None:
        for child in self._running:
            child.send_signal(signal.SIGTERM)
        for child in self._running:
            child.wait()

    def _start(self) -> ChildProcess:
        return start_child([sys.executable, "-m", "workers.process"], env=self._environ, stderr=2)


def appended(log: SessionLog, appends: list[Append]) -> list[Receipt]:
    """The receipts of commits, sent again with the same ids until they are taken."""
    receipts: dict[int, Receipt] = {}
    while len(receipts) < len(appends):
        waiting = [at for at in range(len(appends)) if at not in receipts]
        for at, answer in zip(waiting, log.append_many([appends[at] for at in waiting]), strict=True):
            if isinstance(answer, Receipt):
                receipts[at] = answer
            elif not isinstance(answer, Unavailable):
                raise answer
        if len(receipts) < len(appends):
            time.sleep(0.05)
    return [receipts[at] for at in range(len(appends))]


def test_ten_times_the_memory_goes_through_and_all_of_it_is_read(
    server: OwnServer, make_store: Callable[..., Store], tmp_path: Path
) -> None:
    archive, chance = tmp_path / "archive", seeded()
    archive.mkdir()
    world = World(make_store(server.url, partitions=8), archive=str(archive))
    workers = Workers(world, archive, chance)
    told: dict[str, Receipt] = {}
    peak = sent = number = 0
    rounds = THROUGH // (SESSIONS * COMMITS * EVENTS * len(EVENT))
    try:
        for at in range(rounds):
            names = [f"s-{number + n}" for n in range(SESSIONS)]
            number += SESSIONS
            for _ in range(COMMITS):
                events = tuple(did_much(chance) for _ in range(EVENTS))
                appended(world.log, [Append(name, events) for name in names])
                sent += SESSIONS * EVENTS * len(EVENT)
            ends = appended(world.log, [Append(name, (did("completed"),)) for name in names])
            told |= dict(zip(names, ends, strict=True))
            peak = max(peak, counted(world.redis.info("memory")))
            if at % 8 == 5:
                workers.kill_one()
        wait_until(world.is_caught_up, timeout_s=120, message="the views have caught up")
        wait_until(lambda: all_cold(world), timeout_s=120, message="all is archived")
    finally:
        workers.stop()

    assert sent >= THROUGH * 0.9
    assert peak <= CEILING * 1.02
    assert workers.killed > 0
    fresh = world.store.open(archive=str(archive))
    for name, commits in zip(sorted(told), fresh.read_each(sorted(told)), strict=True):
        (last,) = deque(commits, maxlen=1)
        assert (last.last_seq, last.digest) == (told[name].last_seq, told[name].digest)
    assert world.verify() == []
    print(f"{sent / MB:.0f} MB through {CEILING / MB:.0f} MB, at most {peak / MB:.1f} MB used, {number} sessions")


def did_much(chance: Random) -> Event:
    return Event.of("tool.called", actor="ann", id=f"{chance.getrandbits(80):x}", data={"text": EVENT})


def counted(memory: dict[str, Any]) -> int:
    """What counts towards the limit."""
    return int(memory["used_memory"]) - int(memory["mem_not_counted_for_evict"])


def all_cold(world: World) -> bool:
    names = list(world.log.sessions())
    return all(head is not None and head.is_cold for head in world.log.heads(names))
