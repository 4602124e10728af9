"""Scrubbing: all is verified in time, changes at once, within a budget; unchanged history waits for its sweep."""

from __future__ import annotations

import random

import pytest

from domain.codec import chain, encode_body
from projections import session_view
from projections.census import Unlisted
from projections.drift import Validator
from projections.findings import Finding
from projections.proof import read_proofs
from projections.scrub import DRAWN, Scrub, Verified, verified
from tests.projections.world import World, did, folded, notes
from tests.waiting import wait_until

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


def no_sweep_is_due(world: World) -> None:
    """As if all had been read whole just now."""
    for keys in world.keyspace.partitions:
        world.redis.hset(keys.scrub, "sweep_began", 1)


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
    no_sweep_is_due(built)
    built.log.append("long", [did("modified", entities=[f"{n}.py"]) for n in range(3)])
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
    no_sweep_is_due(built)
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
    no_sweep_is_due(built)
    keys = built.keyspace.of("long")
    other = built.redis.hget(keys.checkpoints("long"), 2900)
    built.redis.hset(keys.checkpoints("long"), 3000, other)
    built.log.append("long", notes(3))
    built.project()

    found, _ = scrub(built, 1)

    assert [(one.code, one.first_bad_seq) for one in found] == [("CHECKPOINT_DIFFERS", 3000)]


def test_a_checkpoint_forged_after_it_was_proved_is_found_and_blames_no_view(built: World) -> None:
    """However well it is made: what is gone on from is what was proved, to the byte."""
    scrub(built)
    no_sweep_is_due(built)
    keys = built.keyspace.of("long")
    forged = folded(built.log, "long", 3000)
    forged.entities = {"not/in/the/log"}
    built.redis.hset(keys.checkpoints("long"), 3000, session_view.encode(forged))
    built.log.append("long", notes(3))
    built.project()

    found, _ = scrub(built, 1)

    assert [(one.code, one.first_bad_seq) for one in found] == [("CHECKPOINT_DIFFERS", 3000)]


def test_a_checkpoint_too_many_is_found_in_what_changed(built: World) -> None:
    """Those after the proved one are made anew and compared."""
    scrub(built)
    no_sweep_is_due(built)
    built.log.append("long", notes(3))
    built.project()
    keys = built.keyspace.of("long")
    built.redis.hset(keys.checkpoints("long"), 3003, session_view.encode(folded(built.log, "long")))

    found, _ = scrub(built, 1)

    assert [(one.code, one.first_bad_seq) for one in found] == [("CHECKPOINT_UNEXPECTED", 3003)]


def test_a_fork_below_what_was_proved_is_found(built: World) -> None:
    """The last commits are others now, and the head with them: what was proved is nothing to go on from."""
    scrub(built)
    no_sweep_is_due(built)
    keys = built.keyspace.of("long")
    (entry, fields) = built.redis.xrevrange(keys.log("long"), count=1)[0]
    before = folded(built.log, "long", 2900)
    body = encode_body(notes(100, "eve"))
    digest = chain(before.digest, "long", 2901, 100, int(fields[b"t"]), body)
    built.redis.delete(keys.log("long") + "x")
    entries = built.redis.xrange(keys.log("long"))[:-1]
    built.redis.delete(keys.log("long"))
    for entry_id, kept in [*entries, (entry, {**fields, b"b": body, b"d": digest.encode()})]:
        built.redis.xadd(keys.log("long"), kept, id=entry_id)
    built.redis.set(keys.head("long"), f"3000 {digest} o {int(fields[b't'])} -")
    built.redis.hset(keys.scrub, "epoch", 0)

    found, _ = scrub(built, 1)

    assert [(one.code, one.session, one.first_bad_seq) for one in found] == [("FORK", "long", 3000)]


def test_totals_are_judged_by_views_that_are_as_they_were_proved(built: World) -> None:
    """One that was forged since is read from its log; the totals of its agents are not blamed for it."""
    scrub(built)
    forged = folded(built.log, "s-3")
    forged.agents = {}
    keys, part = built.keyspace.of("s-3"), built.keyspace.partition_of("s-3")
    built.redis.set(keys.session_view("s-3"), session_view.encode(forged))
    validator = Validator(built.projections, built.log)

    found = validator.totals(part, Unlisted(set(), set()), lambda page: read_proofs(built.redis, keys.proofs, page))

    assert list(found) == []
    assert validator.read.sessions == 1


def test_a_log_that_lost_what_was_proved_is_found(built: World) -> None:
    """Cut below the checkpoint: the session is read whole, and what is missing is named."""
    scrub(built)
    no_sweep_is_due(built)
    keys = built.keyspace.of("long")
    built.log.append("long", notes(3))
    built.project()
    built.redis.xdel(keys.log("long"), *[entry for entry, _ in built.redis.xrange(keys.log("long"), "2950", "+")])

    found, _ = scrub(built, 1)

    assert [(one.code, one.session, one.first_bad_seq) for one in found] == [("TAIL_LOST", "long", 2901)]


def test_without_the_feed_changes_are_told_by_the_heads(built: World) -> None:
    """A feed that was trimmed past what was verified, or a raised epoch, hides nothing."""
    scrub(built)
    no_sweep_is_due(built)
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


def test_a_raised_epoch_has_every_head_compared(built: World) -> None:
    """A store that lost a tail gives its numbers again: what the feed tells after them is not all that changed."""
    scrub(built)
    built.log.append("s-7", did("broke"))
    built.project()
    keys = built.keyspace.of("s-7")
    total = built.projections.total(built.keyspace.partition_of("s-7"))
    built.redis.hset(keys.scrub, mapping={"position": total, "epoch": 0, "sweep_began": 1})

    _, done = scrub(built, 1)

    assert sum(one.done.changed for one in done) == 1


def test_what_is_not_applied_yet_is_verified_once_it_is(built: World) -> None:
    """A round verifies up to the cursor; what lies after it stays unverified, and is said to be."""
    scrub(built)
    no_sweep_is_due(built)
    for session in ("s-1", "s-2", "s-3"):
        built.log.append(session, did("broke"))
    assert scrub(built)[0] == []
    assert sum(part.events for part in verified(built.projections)) == 3
    built.project()
    built.redis.setrange(built.keyspace.of("s-2").session_view("s-2"), 20, "?")

    found, done = scrub(built, 1)

    assert [(one.code, one.session) for one in found] == [("VIEW_UNREADABLE", "s-2")]
    assert sum(one.done.changed for one in done) == 3


def test_every_round_draws_some_at_random(built: World) -> None:
    """Others in each; so damage all over is met long before a sweep gets there."""
    scrub(built)
    for session in (f"s-{n}" for n in range(60)):
        built.redis.delete(built.keyspace.of(session).session_view(session))
    no_sweep_is_due(built)

    found, done = scrub(built, 1_000, rounds=3)

    assert max(one.done.drawn for one in done) == DRAWN
    assert len({one.session for one in found}) > 4 * DRAWN


def test_changes_leave_a_part_of_the_budget_to_the_sweep(built: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much is appended, what did not change is read in time; and changes are all verified in the end."""
    monkeypatch.setattr("projections.scrub.GROUP", 2)
    scrub(built)
    for session in (f"s-{n}" for n in range(60)):
        built.log.append(session, notes(10))
    built.project()
    _, done = scrub(built, 80)
    assert all(2 <= one.done.changed <= 10 and one.done.swept for one in done)
    rounds = 1
    while sum(part.events for part in verified(built.projections)):
        scrub(built, 80)
        rounds += 1
    assert 1 < rounds < 30


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
    assert built.redis.zscore(keys.swept, "s-3") is None
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
    keys, before = built.keyspace.of("long"), told(built).up_to
    assert before is not None
    built.redis.hset(keys.cursor("sessions", 2), "position", 9_999_999)
    wait_until(lambda: built.projections.server_ms() > before, message="time goes on")
    assert [one.code for one in scrub(built)[0]] == ["CURSOR_AHEAD"]
    assert told(built).up_to == before
    built.log.append("long", notes(3))

    found, _ = scrub(built)

    assert [one.code for one in found] == ["CURSOR_AHEAD"]
    assert told(built).events == 3


def test_indexes_are_judged_with_their_sessions_and_what_is_too_much_when_a_sweep_is_done(built: World) -> None:
    """A lacking entry is found with its session, in each round until it is mended; a stray by the whole index."""
    scrub(built)
    keys = built.keyspace.of("s-3")
    built.redis.zrem(keys.session_index, "agent\0ann\0s-3")
    built.redis.zadd(keys.last_index, {"nobody": 5})
    built.redis.delete(built.keyspace.of("long").statistics)

    found, _ = scrub(built)

    lacking = [(one.code, one.session, one.rebuilt) for one in found if one.session == "s-3"]
    assert lacking == [("INDEX_DIFFERS", "s-3", {"agent=ann": True})]
    assert [one.stored for one in found if one.session == "nobody"] == [{"last": True}]
    assert [one.code for one in found].count("STATISTICS_DIFFER") == 1
    assert [one.session for one in scrub(built)[0]].count("s-3") == 1
    built.recover()
    assert scrub(built)[0] == []


def test_an_index_that_is_gone_is_one_finding_of_a_round(built: World) -> None:
    """Not one for each session."""
    scrub(built)
    built.redis.delete(built.keyspace.of("long").session_index)

    found, _ = scrub(built)

    assert [(one.code, one.session) for one in found] == [("INDEX_DIFFERS", None)] * len(found)
    assert 1 <= len(found) <= 2
