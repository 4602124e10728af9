"""Lag: two numbers a partition, right whether a worker runs or not."""

from __future__ import annotations

from projections.lag import lag
from tests.projections.world import World, did, notes
from tests.waiting import wait_until


def test_a_new_store_is_not_behind(world: World) -> None:
    """Nothing appended, nothing applied, nothing to wait for."""
    found = lag(world.projections)

    assert (found.events, found.seconds, found.applied) == (0, 0.0, 0)
    assert [part.partition for part in found.partitions] == [0, 1, 2, 3]


def test_while_no_worker_runs_lag_counts_what_is_appended(world: World) -> None:
    """Events are those appended and not applied; seconds are the age of the oldest of them, and grow."""
    world.log.append("s", notes(5))
    world.project()
    partition = world.keyspace.partition_of("s")
    world.log.append("s", notes(3))
    world.log.append("s", notes(4))

    found = lag(world.projections)

    assert (found.events, found.applied) == (7, 5)
    part = found.partitions[partition]
    assert (part.total, part.position, part.events, part.owner) == (12, 5, 7, None)
    assert found.seconds == part.seconds >= 0
    wait_until(lambda: lag(world.projections).seconds > part.seconds + 0.01, message="the wait grows")
    world.project()
    assert (lag(world.projections).events, lag(world.projections).seconds) == (0, 0.0)


def test_lag_names_who_works_on_a_partition(world: World) -> None:
    """The owner is named as long as its lease lasts."""
    token = world.leases.claim(2, ttl_ms=60_000)
    assert token is not None
    assert [part.owner for part in lag(world.projections).partitions] == [None, None, "tester", None]

    world.redis.hset(world.keyspace.partitions[2].owner("sessions"), "deadline", 1)

    assert [part.owner for part in lag(world.projections).partitions] == [None] * 4


def test_lag_never_asks_the_feed_for_numbers(world: World) -> None:
    """Where feed entries are lost, events behind are still counted, only their age is unknown."""
    world.log.append("s", did("start"))
    world.redis.delete(world.keyspace.of("s").feed)

    found = lag(world.projections)

    assert (found.events, found.seconds) == (1, 0.0)


def test_a_total_behind_its_cursor_is_never_caught_up(world: World) -> None:
    """Two numbers that contradict each other do not say that everything is applied."""
    world.log.append("s", notes(5))
    world.project()

    world.redis.hset(world.keyspace.of("s").meta, "total", 2)

    assert lag(world.projections).events == 2
