"""The feed is trimmed behind the cursor and never before it; whoever fell behind catches up from registry and log."""

from __future__ import annotations

from itertools import pairwise

import pytest

from projections import trim
from projections.trim import trim_feeds
from tests.projections.world import World, did, notes
from tests.waiting import wait_until


def left(world: World, session: str = "s") -> list[int]:
    """The positions of the entries in the feed of the session's partition."""
    entries = world.projections.feed_after(world.keyspace.partition_of(session), -1)
    return [entry.position for entry in entries]


def trimmed(world: World) -> int:
    """Trims everything that may go; returns how many entries went."""
    server_ms = world.redis.time
    at = server_ms()
    wait_until(lambda: server_ms() > (at[0], at[1] + 2000), message="the server's clock moves on")
    return trim_feeds(world.projections, range(world.keyspace.count), keep_s=0)


def test_what_is_applied_is_dropped_and_what_is_not_stays(world: World) -> None:
    """Entries up to the cursor go but for the one it stands at; those after it stay; nothing drifts."""
    for _ in range(5):
        world.log.append("s", notes(2))
    world.project()
    for _ in range(3):
        world.log.append("s", notes(2))

    assert trimmed(world) == 4

    assert left(world) == [10, 12, 14, 16]
    world.project()
    world.assert_views_are_folds()
    assert world.verify() == []


def test_nothing_is_dropped_without_a_cursor_or_before_its_time(world: World) -> None:
    """A feed that nobody applied stays whole; so does what was written less than `keep_s` ago."""
    for _ in range(5):
        world.log.append("s", did("modified"))
    assert trimmed(world) == 0
    world.project()
    assert trim_feeds(world.projections, range(world.keyspace.count), keep_s=3600) == 0
    assert left(world) == [1, 2, 3, 4, 5]


def test_a_durable_subscription_pins_what_it_did_not_acknowledge(world: World) -> None:
    """For a bounded time: then it goes on by registry and logs, and misses nothing either."""
    server_ms = world.redis.time
    with world.log.subscribe_as("audit", after="beginning") as member:
        for _ in range(5):
            world.log.append("s", did("modified"))
        assert [member.get(timeout_s=30) is not None for _ in range(2)] == [True, True]
        member.ack()
        world.project()
        at = server_ms()
        wait_until(lambda: server_ms() > (at[0], at[1] + 2000), message="the server's clock moves on")
        trim_feeds(world.projections, range(world.keyspace.count), keep_s=0, pin_s=3600)
        assert left(world) == [2, 3, 4, 5]

        assert trimmed(world) == 3
        assert [delivery and delivery.seq for delivery in (member.get(timeout_s=30) for _ in range(3))] == [3, 4, 5]
        member.ack()


def test_a_cursor_ahead_of_its_total_drops_nothing(world: World) -> None:
    """Two numbers that contradict each other do not say what is applied."""
    for _ in range(5):
        world.log.append("s", did("modified"))
    world.project()
    keys = world.keyspace.of("s")
    world.redis.hset(keys.meta, "total", 3)

    assert trimmed(world) == 0


def test_a_backlog_is_dropped_in_rounds(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """More entries than one round looks at go too, in every partition, and positions still add up."""
    monkeypatch.setattr(trim, "LOOK_AT", 4)
    for number in range(60):
        world.log.append(f"s-{number % 6}", notes(1 + number % 3))
    world.project()

    trimmed(world)

    for partition in range(world.keyspace.count):
        entries = world.projections.feed_after(partition, -1)
        assert len(entries) <= 1
        assert [entry.position for entry in entries] == [world.projections.total(partition)][: len(entries)]
    world.log.append("s-0", did("modified"))
    entries = world.projections.feed_after(world.keyspace.partition_of("s-0"), -1)
    assert all(after.position - before.position == after.events for before, after in pairwise(entries))
    assert world.verify() == []


@pytest.mark.parametrize("lost", ["cursor deleted", "cursor rolled back"])
def test_a_cursor_that_fell_behind_the_feed_catches_up_from_registry_and_log(world: World, lost: str) -> None:
    """Views, totals and cursor come back whole, though the feed no longer tells what was missed."""
    sessions = [f"s-{number}" for number in range(20)]
    for name in sessions:
        world.log.append(name, notes(3))
    world.project()
    trimmed(world)
    for partition in range(world.keyspace.count):
        keys = world.keyspace.partitions[partition]
        if lost == "cursor deleted":
            world.redis.delete(keys.cursor("sessions", 2))
        elif world.projections.total(partition):
            world.redis.hset(keys.cursor("sessions", 2), "position", 1)
    for name in sessions[::3]:
        world.redis.delete(world.keyspace.of(name).session_view(name))
        world.log.append(name, notes(2))

    with world.workers(1):
        world.wait_until_caught_up()

    world.assert_views_are_folds()
    assert world.verify() == []
