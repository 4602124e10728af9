"""Rebuilding and recovery: what the log says replaces what is stored, wherever it is cut off."""

from __future__ import annotations

from hashlib import sha1
from typing import Any

import pytest
from msgspec import structs

from domain import Append, Damaged
from domain.log.protocol import pack_head
from projections import session_view
from projections.drift import Validator
from projections.rebuild import REPLACED_TTL_MS, Rebuild
from tests.projections import test_drift as damages
from tests.projections.test_drift import CASES, Case, built
from tests.projections.world import World, did, folded, lying_append, notes, raised_code
from workers.recovery import Recovery, plan_of

__all__ = ["built"]
#: After recovery these stay findings: an operator decides about them.
FOR_OPERATORS = {
    *("LOG_GAP", "LOG_TRIMMED", "LOG_ALTERED", "TAIL_LOST", "FORK"),
    *("EVENT_ILLEGAL", "EVENT_UNREADABLE", "EVENT_NEWER", "WORKER_KILLED", "QUARANTINED"),
    *("SUBSCRIPTION_DAMAGED", "SUBSCRIPTION_LOST"),
}
#: These append something themselves, so that afterwards there is more than before.
APPENDING = (damages.view_ahead, damages.parked_behind, damages.feed_gap, damages.feed_cut)


def rebuilt(world: World, partition: int, *, quarantine: bool = False) -> Rebuild:
    token = world.leases.claim(partition, ttl_ms=60_000)
    assert token is not None
    return Rebuild(
        world.projections, world.log, partition, token, who="tester", quarantine=quarantine, renew=lambda: None
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.damage.__name__)
def test_recovery_repairs_what_is_derived_and_only_that(built: World, case: Case) -> None:
    """Afterwards nothing is found but what an operator must decide about, and a second recovery changes nothing."""
    before = built.derived()
    case.damage(built)

    left = built.recover()

    assert [finding.code for finding in left] == ([case.code] if case.code in FOR_OPERATORS else [])
    assert built.verify() == left
    once = built.derived()
    built.recover()
    assert built.derived() == once
    if case.code not in FOR_OPERATORS and case.damage not in APPENDING:
        assert built.derived() == before
    built.project()
    assert built.verify() == left
    built.log.append("s-2", did("modified"))
    built.project()
    assert {finding.code for finding in built.verify()} <= FOR_OPERATORS


def test_a_damaged_log_is_quarantined_and_its_verified_prefix_counts(built: World) -> None:
    """Appends are refused, the view is the verified prefix, agents' totals count just that; others are as before."""
    zoe = built.views.agent("zoe")
    damages.gap(built)

    (left,) = built.recover()

    assert (left.code, left.quarantined, left.first_bad_seq) == ("LOG_GAP", True, 55)
    with pytest.raises(Damaged) as raised:
        built.log.append("s-1", did("modified"))
    assert raised.value.code == "QUARANTINED"
    assert built.views.session("s-1")["seq"] == 54
    assert zoe["events"] == 7
    assert built.views.agent("zoe") == {"agent": "zoe", "events": 1, "sessions": 1, "present": 1}
    assert built.verify() == [left]


def test_verification_and_workers_never_quarantine(built: World) -> None:
    """Only recovery closes a session for appends."""
    damages.altered(built)
    built.verify()
    built.redis.delete(built.keyspace.of("s-1").cursor("sessions", 2))
    built.project()

    head = built.log.head("s-1")
    assert head is not None
    assert not head.quarantined
    assert built.log.append("s-1", did("modified")).first_seq == 61


def test_a_replaced_view_is_kept_for_a_while_and_noted(built: World) -> None:
    """The old bytes stay under a key that expires, and the audit stream says who replaced what, where and why."""
    keys = built.keyspace.of("s-1")
    damages.view_differs(built)
    old = built.redis.get(keys.session_view("s-1"))

    built.recover()

    assert built.redis.get(keys.replaced("s-1")) == old
    assert 0 < built.redis.pttl(keys.replaced("s-1")) <= REPLACED_TTL_MS
    ((_, entry),) = built.redis.xrange(keys.audit)
    assert entry == {
        b"who": b"recovery:test",
        b"what": b"view replaced",
        b"session": b"s-1",
        b"seq": b"60",
        b"digest": folded(built.log, "s-1").digest.encode(),
        b"why": b"rebuild",
        b"before": sha1(old).hexdigest()[:20].encode(),
        b"after": sha1(built.redis.get(keys.session_view("s-1"))).hexdigest()[:20].encode(),
    }


def test_a_rebuild_of_what_is_right_writes_nothing(built: World) -> None:
    """Building everything again beside what is there finds it equal to the byte and swaps nothing."""
    before = {key: value for key, value in built.store.snapshot().items() if b"owner" not in key}

    for partition in range(built.keyspace.count):
        rebuild = rebuilt(built, partition)
        assert not any(swapped.changed for swapped in rebuild.everything())
        assert rebuild.totals() == 0

    assert {key: value for key, value in built.store.snapshot().items() if b"owner" not in key} == before


def test_everything_derived_comes_back_at_once(built: World) -> None:
    """From nothing but the log, a rebuild gives the same views, checkpoints, totals, index and cursors, to the byte."""
    before = built.derived()
    built.redis.delete(*before)

    for partition in range(built.keyspace.count):
        list(rebuilt(built, partition).everything())

    assert built.derived() == before


def test_appends_go_on_while_a_partition_is_rebuilt(world: World) -> None:
    """What is appended between two steps of a rebuild lies after its cursor, and is caught up with afterwards."""
    names = world.sessions(300, events=1)
    world.project()
    partition = world.keyspace.partition_of("s-0")
    world.redis.delete(world.keyspace.partitions[partition].cursor("sessions", 2))
    rebuild = rebuilt(world, partition)

    for number, _ in enumerate(rebuild.everything()):
        if number % 20 == 0:
            world.log.append_many([Append(name, (did("broke", "bob"),)) for name in (*names[::50], f"new-{number}")])

    world.project()
    world.assert_views_are_folds()
    assert world.verify() == []


def test_a_rebuild_that_lost_its_lease_writes_nothing_more(world: World) -> None:
    """Once another holder has the partition, each further step of the rebuild is refused."""
    world.sessions(20)
    rebuild = rebuilt(world, 1)
    assert world.leases.claim(1, ttl_ms=60_000) is not None
    before = world.store.snapshot()

    assert raised_code(lambda: list(rebuild.everything())) == "LEASE_TAKEN"
    assert world.store.snapshot() == before


def test_a_head_is_mended_but_never_over_one_that_moved_on(built: World) -> None:
    """A head that was read, then moved by an append, is left alone."""
    damages.head_behind(built)
    stale = built.redis.get(built.keyspace.of("s-1").head("s-1"))
    (found,) = Validator(built.projections, built.log).examine(built.keyspace.partition_of("s-1"), ["s-1"])
    last = found.snapshot.last_entry
    right = found.verified

    assert not built.projections.mend_head("s-1", b"other", last, right)
    assert not built.projections.mend_head("s-1", stale, "59-1", right)
    assert built.projections.mend_head("s-1", stale, last, right)
    assert built.log.append("s-1", did("modified")).first_seq == 61
    assert not built.projections.mend_head("s-1", stale, last, right)
    assert built.verify() == []


@pytest.mark.parametrize("damage", ["lost", "behind"])
def test_a_mended_head_keeps_the_sessions_policy(built: World, damage: str) -> None:
    """Who may append outlives the loss of the head, and its damage."""
    key = built.keyspace.of("s-1").head("s-1")
    stale = built.log.head("s-1")
    assert stale is not None
    built.log.set_policy("s-1", "strict")
    if damage == "lost":
        built.redis.delete(key)
    else:
        built.redis.set(key, pack_head(structs.replace(stale, seq=stale.seq - 1, flags="s")))

    assert built.recover() == []

    head = built.log.head("s-1")
    assert head is not None
    assert head.policy == "strict"


def test_a_mended_head_takes_appends_where_the_log_ends(built: World) -> None:
    """After recovery the session goes on where it stopped, with the gate that its log has."""
    built.log.append("s-2", did("completed"))
    built.project()
    built.redis.delete(built.keyspace.of("s-1").head("s-1"), built.keyspace.of("s-2").head("s-2"))

    assert built.recover() == []

    assert built.log.append("s-1", did("modified")).first_seq == 61
    assert raised_code(lambda: built.log.append("s-2", did("modified"))) == "GATE_REFUSED"


def test_a_poison_event_stays_parked_through_a_rebuild(built: World) -> None:
    """Recovery leaves its session at the last good commit, and counts it so."""
    damages.illegal(built)

    (left,) = built.recover()

    assert left.code == "EVENT_ILLEGAL"
    assert built.views.session("s-1")["seq"] == 61
    assert built.log.append("s-1", did("tool.called")).last_seq == 63, (
        "its log is whole: it still takes what its gate takes"
    )


def test_a_stale_reason_to_park_goes(built: World) -> None:
    """A parked session whose log is whole is projected again after recovery."""
    damages.parked_behind(built)

    assert built.recover() == []

    assert built.views.session("s-1")["seq"] == 61
    built.log.append("s-1", did("modified"))
    built.project()
    assert built.views.session("s-1")["seq"] == 62


#: How many calls of functions the recovery below takes: it is cut off after each.
CALLS = 24


@pytest.mark.parametrize("steps", range(CALLS + 1))
def test_a_recovery_cut_off_after_any_write_is_completed_by_the_next(
    world: World, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever number of its calls reached the server, running it again leads to the same end."""
    world.sessions(40)
    world.log.append("s-1", notes(50))
    world.project()
    right = world.derived()
    for number in range(0, 40, 3):
        keys = world.keyspace.of(f"s-{number}")
        world.redis.set(keys.session_view(f"s-{number}"), b"garbage")
        world.redis.delete(keys.agent_view("ann"), keys.cursor("sessions", 2))
    world.redis.delete(world.keyspace.of("s-1").checkpoints("s-1"))

    class Killed(BaseException):
        """As if the process had died."""

    calls = 0
    fcall = world.log.client.fcall

    def dying(function: str, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > steps:
            raise Killed
        return fcall(function, *arguments)

    plan = plan_of("store", world.verify())
    monkeypatch.setattr(world.log.client, "fcall", dying)
    recovery = Recovery(world.projections, world.log, who="recovery:first", progress=lambda _: None)
    try:
        recovery.apply(plan)
    except Killed:
        pass
    else:
        assert steps == CALLS, "all its steps were tried"
    monkeypatch.undo()
    for keys in world.keyspace.partitions:
        world.redis.hset(keys.owner("sessions"), "deadline", 1)

    assert world.recover() == []
    world.project()
    assert world.derived() == right


def test_a_plan_says_what_would_be_done(built: World) -> None:
    """Findings about sessions name these; findings about cursor or feed name the whole partition."""
    damages.view_missing(built)
    damages.gap(built)
    partition = built.keyspace.partition_of("s-2")
    built.redis.delete(built.keyspace.of("s-2").feed)

    plan = plan_of("store", built.verify())

    parts = {part.partition: part for part in plan.partitions}
    assert parts[partition].whole
    assert "s-1" in parts[built.keyspace.partition_of("s-1")].sessions
    assert plan_of("store", []).partitions == []


def test_a_lying_producer_does_not_stop_a_rebuild(world: World) -> None:
    """A partition that is built from nothing parks the session with the illegal event and builds all others."""
    world.sessions(12)
    world.log.append("bad", did("completed"))
    lying_append(world.store, "bad", did("modified"), ".")
    world.project()

    assert world.codes() == ["EVENT_ILLEGAL"]
    assert world.views.session("bad")["seq"] == 1
    assert all(view["seq"] == 3 for view in world.views.sessions() if view["session"] != "bad")
    assert session_view.initial("bad").seq == 0
