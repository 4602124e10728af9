"""Lag: two numbers a partition, right whether a worker runs or not."""

from __future__ import annotations

from projections.lag import Lag, PartitionLag, eta_s, lag
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


def test_the_slowest_session_is_named(world: World) -> None:
    """Of all that waits, the session whose event is the oldest; none where nothing waits."""
    world.log.append("first", did("start"))
    at = world.redis.time()
    wait_until(lambda: world.redis.time() > (at[0], at[1] + 5000), message="the server's clock moves on")
    world.log.append("second", did("start"))

    assert lag(world.projections).session == "first"
    world.project()
    assert lag(world.projections).session is None


def long_ago(world: World, session: str, ms: int) -> None:
    """Makes what waits in the feed of the session's partition, and the last move of its cursor, so much older."""
    keys = world.keyspace.of(session)
    entries = world.redis.xrange(keys.feed)
    world.redis.delete(keys.feed)
    for entry_id, fields in entries:
        world.redis.xadd(keys.feed, {**fields, b"t": int(fields[b"t"]) - ms}, id=entry_id)
    cursor = keys.cursor("sessions", 2)
    if world.redis.hexists(cursor, "at"):
        world.redis.hincrby(cursor, "at", -ms)


def test_whether_a_partition_moves_is_told_by_its_cursor(world: World) -> None:
    """Behind and without a holder: no worker. Held: moving, until what waits and the cursor both stand for long."""
    partition = world.keyspace.partition_of("s")

    def state() -> str:
        return lag(world.projections).partitions[partition].state

    assert state() == "caught up"
    world.log.append("s", did("start"))
    assert state() == "no worker"
    world.project()
    assert state() == "caught up"
    long_ago(world, "s", 60_000)

    world.log.append("s", did("modified"))
    token = world.leases.claim(partition, ttl_ms=600_000, force=True)
    assert token is not None
    assert state() == "moving"  # the cursor had nothing to do for a minute, and yet nobody waits for long
    long_ago(world, "s", 60_000)
    assert state() == "stuck"
    world.redis.hset(world.keyspace.of("s").cursor("sessions", 2), "at", world.redis.time()[0] * 1000)
    assert state() == "moving"  # a long backlog, but it gets shorter


def test_the_pace_says_when_the_views_will_have_caught_up() -> None:
    """Events behind, over what is gained on the appends; never, if nothing is gained."""

    def looked(total: int, position: int) -> Lag:
        part = PartitionLag(0, total, position, total - position, 0.0, "w", None, 0.0, "moving")
        return Lag(total - position, 0.0, position, None, [part])

    assert eta_s(looked(100, 0), looked(100, 20), 0.5) == 2.0
    assert eta_s(looked(100, 0), looked(110, 20), 0.5) == 4.5
    assert eta_s(looked(100, 0), looked(120, 20), 0.5) is None
    assert eta_s(looked(100, 0), looked(100, 100), 0.5) == 0.0
