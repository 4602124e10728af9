"""A session with very many events, and a backlog of very many: others go on, and workers stay small."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from threading import Event as Flag
from threading import Thread
from typing import Final

import pytest

from domain import Append, Event, Receipt
from tests.chaos.effort import FULL
from tests.conftest import Store
from tests.projections.world import World, did
from tests.waiting import wait_until
from workers.child_process import ChildProcess

EVENTS: Final = 1_000_000 if FULL else 100_000
#: Events that are a commit each.
SINGLE: Final = 1_000_000 if FULL else 40_000
COMMIT: Final = 1_000
PARTITIONS: Final = 8
NAMES: Final = [f"other-{n}" for n in range(200)]
#: What a worker may take, whatever waits for it, in bytes of resident memory.
BOUND: Final = 300 << 20
PATIENCE_S: Final = 1_800 if FULL else 180


@pytest.fixture
def world(server_url: str, make_store: Callable[..., Store]) -> World:
    """A store with eight partitions whose cursors are there already: what comes now comes by the feed."""
    world = World(make_store(server_url, partitions=PARTITIONS))
    world.project()
    return world


class Memory(Thread):
    """Watches the resident memory of processes; `highest` is the most that one of them took, in bytes."""

    def __init__(self, processes: list[ChildProcess]) -> None:
        super().__init__(daemon=True)
        self._processes = processes
        self._over = Flag()
        self.highest = 0

    def run(self) -> None:
        while not self._over.wait(0.02):
            self.highest = max([self.highest, *(resident(process.pid) for process in self._processes)])

    def __enter__(self) -> Memory:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        self.join()
        print(f"highest resident memory of a worker: {self.highest >> 20} MB")


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def heavy(number: int) -> tuple[Event, ...]:
    """Events of some hundred bytes each, so that a backlog of them is many batches."""
    text = "x" * 400
    return tuple(Event.of("tool.called", actor="hot", id=f"h{number}-{n}", data={"text": text}) for n in range(COMMIT))


def wait_until_caught_up(world: World) -> None:
    wait_until(world.is_caught_up, timeout_s=PATIENCE_S, message="the views have caught up")


def append_to_each(world: World, names: list[str]) -> None:
    receipts = world.log.append_many([Append(name, (did("start"),)) for name in names])
    assert all(isinstance(receipt, Receipt) for receipt in receipts)


def test_a_hot_session_keeps_no_other_partition_waiting_and_no_worker_grows(world: World) -> None:
    """There is one worker, and sessions of other partitions, appended to after the hot one, are done before it.

    Afterwards the hot partition's cursor is deleted: the worker builds it again from the log, no larger than before.
    """
    hot = world.keyspace.partition_of("hot")
    for number in range(EVENTS // COMMIT):
        world.log.append("hot", heavy(number))
    others = set(range(PARTITIONS)) - {hot}
    append_to_each(world, [name for name in NAMES if world.keyspace.partition_of(name) in others])

    def moved_last_ms(partition: int) -> int:
        return int(world.redis.hget(world.projections.cursor_key(partition), "at"))

    with world.workers(1) as workers, Memory(workers) as memory:
        wait_until_caught_up(world)
        assert max(map(moved_last_ms, others)) < moved_last_ms(hot)
        world.redis.delete(world.projections.cursor_key(hot))
        wait_until_caught_up(world)

    assert memory.highest < BOUND
    assert world.verify() == []


def test_a_hot_session_lets_others_of_its_partition_in_between(world: World) -> None:
    """The first batch of a partition ends long before the backlog does: what stands near its front is visible then."""
    hot = world.keyspace.partition_of("hot")
    beside = [name for name in NAMES if world.keyspace.partition_of(name) == hot]
    for number in range(40):
        world.log.append("hot", heavy(number))
        if number == 0:
            append_to_each(world, beside)
    token = world.leases.claim(hot, ttl_ms=60_000)
    assert token is not None
    batch = world.next_batch(hot, token)
    assert batch is not None
    world.apply(batch)

    assert None not in world.projections.views(beside)
    position = world.projections.cursor(hot).position
    assert position is not None
    assert position < world.projections.total(hot) / 2
    world.leases.release(hot, token)
    world.project()
    assert world.verify() == []


def test_a_backlog_of_single_events_makes_no_worker_grow(world: World) -> None:
    """Workers that were away find very many events of very many sessions, and take them in bounded batches."""
    names = [f"s-{n}" for n in range(5_000)]
    for start in range(0, SINGLE, 1_000):
        appends = [Append(names[n % len(names)], (did("modified", f"a-{n % 9}"),)) for n in range(start, start + 1_000)]
        assert all(isinstance(receipt, Receipt) for receipt in world.log.append_many(appends))

    with world.workers(2) as workers, Memory(workers) as memory:
        wait_until_caught_up(world)

    assert memory.highest < BOUND
    assert world.verify() == []
