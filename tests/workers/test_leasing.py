"""Worker processes share the partitions out, take over from the dead, and are fenced when they come back."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from contextlib import ExitStack
from threading import Event as Flag
from threading import Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain import Append, Receipt
from projections.store import Cursor, ProjectionStore
from tests.conftest import Store
from tests.projections.world import World, did
from tests.waiting import wait_until
from workers.leasing import fair_share


@pytest.fixture
def world(server_url: str, make_store: Callable[..., Store]) -> World:
    """A fresh store with 32 partitions."""
    return World(make_store(server_url))


@given(count=st.integers(1, 300), workers=st.sets(st.text(min_size=1), min_size=1, max_size=40))
def test_shares_add_up_and_are_within_one_of_each_other(count: int, workers: set[str]) -> None:
    """Whoever sees the same living workers agrees on how many partitions each of them should hold."""
    shares = [fair_share(count, worker, sorted(workers)) for worker in workers]

    assert sum(shares) == count
    assert max(shares) - min(shares) <= 1


def test_one_two_and_three_workers_share_evenly_and_give_back_at_once(world: World) -> None:
    """As workers come and go the partitions are shared within one of each other; a stop releases without delay."""
    # A lease that is not given back would outlive the test.
    with world.workers(3, lease_ttl_ms=600_000) as children:
        world.wait_until_shared(children)
        stopped = children[0]
        stopped.terminate()
        assert stopped.wait(timeout=30) == 0
        world.wait_until_shared(children[1:])
        children[1].terminate()
        assert children[1].wait(timeout=30) == 0
        world.wait_until_shared(children[2:])
        with world.workers(1, lease_ttl_ms=600_000) as more:
            world.wait_until_shared([*children[2:], *more])
            for child in (*children[2:], *more):
                child.terminate()
                assert child.wait(timeout=30) == 0
    assert world.leases.owners() == [None] * 32
    assert world.shares() == {}


def produce(world: World, number: int, *, after_call: Callable[[int], None]) -> None:
    """So many sessions of one event each, and one call after the other."""
    log = world.store.open()
    appends = [Append(f"s-{n}", (did("modified", f"agent-{n % 7}"),)) for n in range(number)]
    for start in range(0, number, 50):
        receipts = log.append_many(appends[start : start + 50])
        assert all(isinstance(receipt, Receipt) for receipt in receipts)
        after_call(start + 50)


def test_under_kills_every_event_is_projected_exactly_once(world: World) -> None:
    """4,000 sessions of one event, workers killed with -9 meanwhile: views are folds, totals exact, no drift."""
    chance = random.Random(7)
    with world.workers(2) as children, ExitStack() as others:

        def kill_now_and_then(done: int) -> None:
            if done % 800 == 0:
                victim = chance.choice(children)
                victim.kill()
                victim.wait()
                children.remove(victim)
                children.extend(others.enter_context(world.workers(1)))

        produce(world, 4000, after_call=kill_now_and_then)
        world.wait_until_caught_up()
        world.wait_until_shared(children)

    world.assert_views_are_folds()
    assert world.verify() == []
    assert sum(agent["events"] for agent in world.views.agents()) == 4000
    assert sum(agent["sessions"] for agent in world.views.agents()) == 4000
    cursors = [world.projections.cursor(partition) for partition in range(32)]
    assert sum(cursor.position or 0 for cursor in cursors) == 4000


def test_a_worker_that_slept_past_its_leases_never_commits(world: World) -> None:
    """Stopped in the middle of work and resumed after others took over, its steps are refused; the end is right."""
    sessions = [f"s-{n}" for n in range(500)]
    with world.workers(2) as children:
        world.wait_until_shared(children)
        sleeper, other = children
        stop = Flag()
        thread = Thread(target=lambda: append_until(world, sessions, stop))
        thread.start()
        try:
            wait_until(lambda: sum(c.position or 0 for c in cursors(world.projections)) > 500, message="both work")
            os.kill(sleeper.pid, signal.SIGSTOP)
            wait_until(lambda: world.shares().get(other.pid) == 32, message="the other one took over")
            at = [cursor.position or 0 for cursor in cursors(world.projections)]
            os.kill(sleeper.pid, signal.SIGCONT)
            world.wait_until_shared(children)
        finally:
            stop.set()
            thread.join()
        world.wait_until_caught_up()

    assert all(before <= (now.position or 0) for before, now in zip(at, cursors(world.projections), strict=True))
    world.assert_views_are_folds()
    assert world.verify() == []


def cursors(store: ProjectionStore) -> list[Cursor]:
    return [store.cursor(partition) for partition in range(32)]


def append_until(world: World, sessions: list[str], stop: Flag) -> None:
    log = world.store.open()
    while not stop.is_set():
        for start in range(0, len(sessions), 100):
            log.append_many([Append(name, (did("modified"),)) for name in sessions[start : start + 100]])


def test_a_worker_stopped_while_it_works_finishes_what_is_in_flight(world: World) -> None:
    """SIGTERM under load ends it with code 0 and all leases given back; nothing is half done."""
    sessions = world.sessions(300, events=1)
    stop = Flag()
    thread = Thread(target=lambda: append_until(world, sessions, stop))
    with world.workers(1) as (child,):
        world.wait_until_caught_up()
        thread.start()
        try:
            wait_until(lambda: sum(c.position or 0 for c in cursors(world.projections)) > 600, message="it works")
            child.terminate()
            assert child.wait(timeout=30) == 0
        finally:
            stop.set()
            thread.join()
    assert world.leases.owners() == [None] * 32
    assert world.verify() == []
    with world.workers(1):
        world.wait_until_caught_up()
    world.assert_views_are_folds()


def test_a_recovery_borrows_a_partition_and_its_worker_gets_it_back(world: World) -> None:
    """While a recovery holds a partition its worker waits; afterwards that worker, or another, goes on with it."""
    with world.workers(1) as children:
        world.wait_until_shared(children)
        keys = world.keyspace.of("s")
        partition = world.keyspace.partition_of("s")
        taken = world.leases.claim(partition, ttl_ms=600_000, force=True)
        assert taken is not None
        world.log.append("s", did("start"))
        world.log.append("t", did("start"))
        wait_until(lambda: world.projections.views(["t"]) != [None], message="other partitions go on")
        assert world.projections.views(["s"]) == [None]
        assert world.redis.hget(keys.owner("sessions"), "worker") == b"tester"

        world.leases.release(partition, taken)

        world.wait_until_caught_up()
        world.wait_until_shared(children)
