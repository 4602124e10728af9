"""The laws of Muster, as views, workers and recovery keep them. Read this after `test_laws.py`.

Each test is one law of the design. What each part promises in detail is in `tests/projections` and `tests/workers`.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from domain.log.keys import KeyClass
from tests.conftest import Store, row_of
from tests.projections.world import World, did, foreign_append, notes


@pytest.fixture
def world(server_url: str, make_store: Callable[..., Store]) -> World:
    """A store in which forty sessions of three agents are projected."""
    world = World(make_store(server_url, partitions=4))
    world.sessions(40)
    world.log.append("long", notes(120))
    world.project()
    return world


def test_law_1_everything_derived_comes_back_from_the_log(world: World) -> None:
    """Every derived key is deleted; a worker brings all of them back, equal to the byte."""
    before = world.derived()
    names = world.store.keys()
    derived = [key for key in names if (row := row_of(key.decode())) and row.key_class is KeyClass.DERIVED]
    assert sorted(derived) == sorted(before)
    world.redis.delete(*derived)

    with world.workers(1):
        world.wait_until_caught_up()

    assert world.derived() == before


def test_law_1_a_reader_is_served_without_any_view(world: World) -> None:
    """While everything derived is gone, sessions are answered from the log, the same as before."""
    before = list(world.views.sessions())
    world.redis.delete(*world.derived())

    assert list(world.views.sessions()) == before


def test_law_4_caught_up_is_a_comparison_of_two_numbers(world: World) -> None:
    """The feed is deleted, so no message tells of new events; the numbers do, and no event is skipped."""
    world.sessions(40, events=1)
    world.redis.delete(*[keys.feed for keys in world.keyspace.partitions])
    assert not world.is_caught_up()

    with world.workers(1):
        world.wait_until_caught_up()

    world.assert_views_are_folds()


def test_law_4_a_view_moves_together_with_its_cursor(world: World) -> None:
    """A worker that lost its lease to another changes neither; the other one goes on from where the cursor stands."""
    partition = world.keyspace.partition_of("long")
    lost = world.leases.claim(partition, ttl_ms=60_000)
    assert lost is not None
    world.log.append("long", did("broke"))
    batch = world.next_batch(partition, lost)
    assert batch is not None
    assert world.leases.claim(partition, ttl_ms=60_000, force=True) is not None
    before = world.derived()

    with pytest.raises(Exception, match="LEASE_TAKEN"):
        world.apply(batch)

    assert world.derived() == before
    world.project()
    world.assert_views_are_folds()


def test_law_6_one_sessions_trouble_stays_its_own(world: World) -> None:
    """A commit that nobody can read parks its session, with the reason; every other session goes on."""
    foreign_append(world.store, "s-1", ".", b"\xc1 no events at all")
    names = [f"s-{n}" for n in range(40)]
    for name in names:
        world.log.append(name, did("test_pass"))

    with world.workers(1):
        world.wait_until_caught_up()

    assert [world.views.session(name)["seq"] for name in names] == [3 if name == "s-1" else 4 for name in names]
    (finding,) = world.verify()
    assert (finding.code, finding.session, finding.first_bad_seq) == ("EVENT_UNREADABLE", "s-1", 4)
