"""Scrubbing: all is verified in time, changes at once, within a budget; unchanged history waits for its sweep."""

from __future__ import annotations

import random

import pytest

from projections.findings import Finding
from projections.scrub import DRAWN, Scrub, Verified, verified
from tests.projections.world import World, did, notes

ALL = 1_000_000


@pytest.fixture
def built(world: World) -> World:
    """Sixty sessions of three events in four partitions, and a long one; all projected."""
    world.sessions(60)
    for _ in range(30):
        world.log.append("long", notes(100))
    world.project()
    return world


def scrub(world: World, budget: int = ALL, *, rounds: int = 1, seed: int = 1) -> tuple[list[Finding], list[Scrub]]:
    """So many rounds over all partitions: what was found, and the scrubbings."""
    found: list[Finding] = []
    done = []
    for number in range(rounds):
        for partition in range(world.keyspace.count):
            one = Scrub(world.projections, world.log, partition, chance=random.Random(seed + number))
            found += one.round(budget)
            done.append(one)
    return found, done


def read(done: list[Scrub]) -> tuple[int, int]:
    """Sessions and events that were read."""
    return sum(one.read.sessions for one in done), sum(one.read.events for one in done)


def told(world: World) -> Verified:
    """How far the partition of the long session is verified."""
    return verified(world.projections)[world.keyspace.partition_of("long")]


def test_the_first_round_reads_everything_and_says_so(built: World) -> None:
    """Before it, it is said that nothing was read; after it, up to where, when, and that nothing is left."""
    before = told(built)
    assert (before.position, before.up_to, before.oldest_read) == (None, None, None)
    assert before.unread > 0
    assert before.events == built.projections.total(before.partition)

    found, done = scrub(built)

    assert found == []
    sessions, events = read(done)
    assert (sessions, events) == (61, 60 * 3 + 3000)
    after = told(built)
    assert (after.events, after.unread, after.drifted, after.seconds) == (0, 0, 0, 0.0)
    assert after.position == built.projections.total(after.partition)
    assert after.up_to is not None
    assert after.oldest_read is not None


def test_changes_are_verified_without_reading_what_was_proved(built: World) -> None:
    """Three more events in a session of three thousand: what is read of it begins at its newest checkpoint."""
    scrub(built)
    for keys in built.keyspace.partitions:  # so that neither sweep nor draw is due
        built.redis.hset(keys.scrub, "sweep_began", 1)
    built.log.append("long", notes(3))
    built.project()
    assert told(built).events == 3

    found, done = scrub(built, DRAWN * 3 + 1)

    assert found == []
    changed = [one for one in done if one.done.changed]
    assert [one.done.changed for one in changed] == [1]
    assert changed[0].read.events <= 50 + 3 + DRAWN * 3
    assert told(built).events == 0


def test_damage_to_what_changed_is_found_in_the_next_round(built: World) -> None:
    """However large the store, and however small the budget: the view of a session that moved is compared at once."""
    scrub(built)
    built.log.append("s-7", did("broke"))
    built.project()
    key = built.keyspace.of("s-7").session_view("s-7")
    built.redis.setrange(key, 20, "?")

    found, _ = scrub(built, 1)

    assert [(one.code, one.session) for one in found] == [("VIEW_UNREADABLE", "s-7")]


def test_damage_to_what_did_not_change_is_found_by_the_sweep(built: World) -> None:
    """Within as many rounds as the budget needs to go round once, whatever is appended meanwhile."""
    scrub(built)
    built.redis.delete(built.keyspace.of("s-9").session_view("s-9"))
    built.redis.hdel(built.keyspace.of("long").checkpoints("long"), 2900)
    found: list[Finding] = []
    for number in range(60):
        built.log.append("busy", notes(40))
        built.project()
        found += scrub(built, 60, seed=number)[0]

    assert {(one.code, one.session) for one in found} == {("VIEW_MISSING", "s-9"), ("CHECKPOINT_MISSING", "long")}


def test_what_was_found_is_looked_at_in_every_round_until_it_is_mended(built: World) -> None:
    """And counted until then, for whoever asks."""
    scrub(built)
    built.redis.delete(built.keyspace.of("s-9").session_view("s-9"))
    scrub(built)
    assert sum(part.drifted for part in verified(built.projections)) == 1
    assert [one.session for one in scrub(built, 1)[0]] == ["s-9"]

    assert built.recover() == []

    assert scrub(built, 1)[0] == []
    assert sum(part.drifted for part in verified(built.projections)) == 0


def test_a_proof_is_worth_nothing_once_what_it_is_about_is_changed(built: World) -> None:
    """A checkpoint altered after it was proved is nothing to go on from, nor is a log that does not hold it."""
    scrub(built)
    keys = built.keyspace.of("long")
    other = built.redis.hget(keys.checkpoints("long"), 2900)
    built.redis.hset(keys.checkpoints("long"), 3000, other)
    built.log.append("long", notes(3))
    built.project()

    found, _ = scrub(built, 1)

    assert [(one.code, one.first_bad_seq) for one in found] == [("CHECKPOINT_DIFFERS", 3000)]


def test_a_log_that_lost_what_was_proved_is_found(built: World) -> None:
    """Cut below the checkpoint: the session is read whole, and what is missing is named."""
    scrub(built)
    keys = built.keyspace.of("long")
    built.log.append("long", notes(3))
    built.project()
    built.redis.xdel(keys.log("long"), *[entry for entry, _ in built.redis.xrange(keys.log("long"), "2950", "+")])

    found, _ = scrub(built, 1)

    assert [(one.code, one.session, one.first_bad_seq) for one in found] == [("TAIL_LOST", "long", 2901)]


def test_without_the_feed_changes_are_told_by_the_heads(built: World) -> None:
    """A feed that was trimmed past what was verified, or a raised epoch, hides nothing."""
    scrub(built)
    for keys in built.keyspace.partitions:
        built.redis.hset(keys.scrub, "sweep_began", 1)
    built.log.append("s-7", did("broke"))
    built.log.append("new", did("start"))
    built.project()
    for keys in built.keyspace.partitions:
        built.redis.xtrim(keys.feed, maxlen=0)
    built.redis.setrange(built.keyspace.of("s-7").session_view("s-7"), 20, "?")

    found, done = scrub(built, 40)

    assert [one.code for one in found] == ["VIEW_UNREADABLE"]
    assert sum(one.done.changed for one in done) == 2
    assert sum(part.events for part in verified(built.projections)) == 0


def test_a_budget_bounds_a_round_and_rounds_go_on_where_the_last_one_stopped(built: World) -> None:
    """However little each may read, all is read in the end, and it is said what is not yet."""
    rounds = 0
    while any(part.unread or part.position is None for part in verified(built.projections)):
        _, done = scrub(built, 20)
        rounds += 1
        assert all(one.read.events <= 20 + 32 * 3 + 3100 for one in done)
        assert rounds < 100
    assert rounds > 1


def test_totals_of_agents_and_lists_are_judged_when_a_sweep_is_done(built: World) -> None:
    """Those of an agent that are wrong, a session that no list names; and the totals are right under traffic."""
    scrub(built)
    part = built.keyspace.partition_of("s-3")
    keys = built.keyspace.partitions[part]
    built.redis.delete(keys.agent_view("ann"))
    built.redis.zrem(keys.sessions, "s-3")
    built.log.append("s-5", did("broke", "zoe"))

    found, done = scrub(built)

    assert sorted((one.code, one.session or one.agent) for one in found) == [
        ("AGENT_MISSING", "ann"),
        ("REGISTRY_DIFFERS", "s-3"),
    ]
    assert all(one.done.sweeps == 1 for one in done)
    assert verified(built.projections)[part].agents == 1
    assert built.recover() == []
    assert scrub(built)[0] == []


def test_what_scrubbing_keeps_is_derived(built: World) -> None:
    """Deleted, altered or of another type: everything counts as unread, and is read again."""
    scrub(built)
    for keys in built.keyspace.partitions:
        built.redis.delete(keys.scrub, keys.swept)
        built.redis.set(keys.swept, "nonsense")
        built.redis.delete(keys.drifted)
        built.redis.zadd(keys.drifted, {"s": 1})
        for session in built.redis.hkeys(keys.proofs):
            built.redis.hset(keys.proofs, session, "nonsense")

    assert sum(part.unread for part in verified(built.projections)) == 61
    found, done = scrub(built)

    assert found == []
    assert read(done)[0] == 61


def test_a_partition_whose_cursor_is_wrong_is_not_said_to_be_verified(built: World) -> None:
    """The finding is the cursor's alone; sessions are held against their own seq meanwhile."""
    scrub(built)
    keys = built.keyspace.of("long")
    built.log.append("long", notes(3))
    built.redis.hset(keys.cursor("sessions", 1), "position", 9_999_999)

    found, _ = scrub(built)

    assert [one.code for one in found] == ["CURSOR_AHEAD"]
    assert told(built).events == 3
