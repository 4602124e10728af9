"""Projections of the user's own: right whatever the batches, with history, through poison and damage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domain import Conflict, Damaged, DeadlineExceeded, Event, Misconfigured, NotFound, Refused
from projections.catchup import Batch
from projections.own.catchup import SLICE_SESSIONS
from projections.own.drift import OwnValidator
from projections.own.publishing import Publications
from projections.own.reading import OwnViews
from projections.own.store import DONE, OwnStore
from projections.projection import Definition, Projection, RecordedEvent, without_class
from projections.trim import trim_feeds
from tests.conftest import Store
from tests.domain.log.logs import refused
from tests.projections.examples import (
    KEYED,
    ActorsByType,
    CannotMerge,
    ChangedByType,
    DoubleByType,
    EventsByType,
    Fussy,
    FussyByType,
    FussyMended,
    Spent,
    SpentPerSession,
    SumsWithoutSubtract,
)
from tests.projections.own_world import Own
from tests.projections.world import World, did, foreign_append, lying_append, run_cli

ALL: Final = (SpentPerSession, *KEYED)


@pytest.fixture
def world(server_url: str, make_store: Callable[..., Store]) -> World:
    """A fresh store with four partitions."""
    return World(make_store(server_url, partitions=4))


def spent(tokens: int) -> Event:
    return Event.of("llm.called", actor="ann", data={"tokens": tokens})


@pytest.mark.parametrize("kind", ALL)
def test_with_history_and_then_the_feed_every_event_counts_once(world: World, kind: type[Projection]) -> None:
    """Added to a store with a past, it gives what the log gives: at once, after more appends, batch by small batch."""
    own = Own(world, kind)
    world.sessions(40)
    own.project()
    own.assert_right()

    for n in range(60):
        world.log.append(f"s-{n}", [did("broke", "zoe"), spent(n)])
    own.project(entries=1)
    own.assert_right()

    for n in range(0, 60, 3):
        world.log.append(f"s-{n}", did("start", "joe"))
    own.project()
    own.assert_right()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.lists(st.tuples(st.integers(0, 3), st.sampled_from(("start", "tool.a", "tool.b"))), max_size=5), max_size=6
    ),
    entries=st.integers(1, 4),
    kind=st.sampled_from(KEYED),
)
def test_whatever_the_batches_views_are_what_the_log_gives(
    server_url: str,
    make_store: Callable[..., Store],
    steps: list[list[tuple[int, str]]],
    entries: int,
    kind: type[Projection],
) -> None:
    """Folds moved batch by batch and merged by difference are folds from the beginning, merged in any order."""
    world = World(make_store(server_url, partitions=1))
    own = Own(world, kind)
    for step in steps:
        for session, type in step:
            world.log.append(f"s-{session}", did(type, f"agent-{session % 2}"))
        own.project(entries=entries)
        own.assert_right()


def test_a_history_that_was_interrupted_goes_on_where_it_stood(world: World) -> None:
    """Each slice keeps how far it came; whoever takes over does the rest, and what came meanwhile, once."""
    names = [f"s-{n}" for n in range(4 * SLICE_SESSIONS)]
    for name in names:
        world.log.append(name, did("start"))
    own = Own(world, EventsByType)
    tokens = {partition: own.claim(partition) for partition in range(4)}
    for partition, token in tokens.items():
        assert own.projector.build_slice(partition, token) is False  # the cursor
        assert own.projector.build_slice(partition, token) is False  # a slice
    assert sum(world.redis.exists(world.keyspace.of(name).fold("by_type@1", name)) for name in names) > 0
    assert own.states() == {}, "nothing is merged before all is in"
    for name in names[::3]:
        world.log.append(name, did("tool.late"))

    Own(world, EventsByType).project()

    assert own.states() == {"start": len(names), "tool.late": len(names[::3])}
    own.assert_right()


def test_while_history_is_missing_the_feed_is_not_followed(world: World) -> None:
    """A batch for a partition whose `build` went away is refused, whatever it holds; then the history is brought in."""
    world.sessions(8)
    own = Own(world, EventsByType)
    own.project()
    world.log.append("s-1", did("start"))
    partition = world.keyspace.partition_of("s-1")
    world.redis.delete(world.keyspace.partitions[partition].build("by_type@1"))
    token = own.claim(partition)

    assert own.store.unbuilt(range(4)) == {partition}
    with pytest.raises(Conflict, match="history"):
        own.follow(partition, token)
    own.project()

    own.assert_right()


def test_nobody_writes_without_the_lease_or_from_another_position(world: World) -> None:
    """A stale owner's batch is refused and changes nothing."""
    own = Own(world, EventsByType)
    world.log.append("s", did("start"))
    own.project()
    world.log.append("s", did("start"))
    partition = world.keyspace.partition_of("s")
    stale = own.claim(partition)
    assert Own(world, EventsByType).leases.claim(partition, ttl_ms=1000, force=True) != stale

    with pytest.raises(Conflict, match="LEASE_TAKEN"):
        own.follow(partition, stale)
    assert own.states() == {"start": 1}


# -- poison ------------------------------------------------------------------------------------------------------------


def test_an_event_the_code_fails_at_parks_its_session_alone(world: World) -> None:
    """The fold stands before that commit, as if the code had never seen it; all others go on; the reason is kept."""
    own = Own(world, Fussy)
    for name in ("good", "bad"):
        world.log.append(name, [did("start"), did("start")])
    own.project()
    world.log.append("bad", did("start"))
    world.log.append("bad", [did("start"), did("tool.poison", id="p-1"), did("start")])
    world.log.append("bad", did("start"))
    world.log.append("good", did("start"))
    own.project()

    assert own.states() == {"good": Spent(3), "bad": Spent(3)}
    partition = world.keyspace.partition_of("bad")
    (reason,) = own.store.parked(partition, ["bad"])
    assert reason is not None
    assert (reason.code, reason.first_bad_seq) == ("PROJECTION_FAILED", 4)
    assert "fussy@1 raised ValueError: event p-1" in reason.cause
    assert own.codes() == ["SESSION_PARKED"]

    world.log.append("bad", did("start"))
    own.project()
    assert own.states() == {"good": Spent(3), "bad": Spent(3)}, "parked until somebody tries again"

    mended = Own(world, FussyMended)
    rebuilt(mended, anew=False)
    assert mended.states()["bad"] == Spent(8)
    mended.assert_right()
    assert mended.store.parked(partition, ["bad"]) == [None]


def test_states_that_cannot_be_merged_park_their_session(world: World) -> None:
    """A merge that raises is the trouble of the session whose states it was given."""
    own = Own(world, CannotMerge)
    world.log.append("a", did("tool.x"))
    world.log.append("b", did("tool.x"))
    own.project()
    partitions = {name: world.keyspace.partition_of(name) for name in ("a", "b")}
    other = next(f"c-{n}" for n in range(99) if world.keyspace.partition_of(f"c-{n}") == partitions["a"])
    world.log.append(other, did("tool.poison"))
    world.log.append("a", [did("tool.poison"), did("tool.x")])
    own.project()
    parked = own.store.parked(partitions["a"], [other, "a"])

    assert [reason and reason.code for reason in parked] == [None, "PROJECTION_FAILED"]
    assert parked[1] is not None
    assert "ArithmeticError: too many" in parked[1].cause
    assert own.states()["tool.x"] == 2
    fold = own.definition.decode(own.store.folds(partitions["a"], ["a"])[0], "a")
    assert fold is not None
    assert fold.seq == 1, "the fold stands where its views do"


def test_what_a_failing_commit_changed_is_in_no_view(world: World) -> None:
    """A commit counts whole or not at all, also in what sessions share."""
    own = Own(world, FussyByType)
    world.log.append("s", did("start"))
    own.project()
    world.log.append("s", [did("start"), did("tool.poison")])
    own.project()

    assert own.states() == {"start": 1}
    assert own.codes() == ["SESSION_PARKED"]


def test_a_log_that_breaks_a_law_parks_the_session_as_the_built_in_view_does(world: World) -> None:
    """What is no event, or is illegal, is in no state; the session waits at the last good commit."""
    kinds = {kind: Own(world, kind) for kind in (SpentPerSession, EventsByType)}
    for name in ("illegal", "unreadable", "whole"):
        world.log.append(name, [did("start"), did("completed")])
    for own in kinds.values():
        own.project()
    lying_append(world.store, "illegal", did("broke"), ".")
    foreign_append(world.store, "unreadable", ".", b"\xc1")
    for own in kinds.values():
        own.project()
        assert own.store.unbuilt(range(4)) == set(), "nothing derived was in doubt"

    for own in kinds.values():
        assert own.codes() == ["SESSION_PARKED", "SESSION_PARKED"]
    assert kinds[EventsByType].states() == {"start": 3, "completed": 3}
    assert set(kinds[SpentPerSession].states()) == {"illegal", "unreadable", "whole"}


def test_what_an_operator_discards_is_in_no_own_state(world: World) -> None:
    """The skip is honoured; a session that waited for it goes on by itself, and what it gave later is merged."""
    kinds = [Own(world, kind) for kind in (SpentPerSession, EventsByType)]
    for name in ("bad", "good"):
        world.log.append(name, [did("start"), did("completed")])
    lying_append(world.store, "bad", did("broke"), ".")
    world.log.append("bad", did("left"))
    world.project()
    for own in kinds:
        own.project()
        assert own.codes() == ["SESSION_PARKED"]

    assert run_cli(world, "parked", "discard", "bad", "--why", "it lied").code == 0
    world.log.append("bad", did("left"))
    for own in kinds:
        own.project()
        own.assert_right()
    assert kinds[1].states() == {"start": 2, "completed": 2, "left": 2}

    lying_append(world.store, "good", did("broke"), ".")
    world.project()
    assert run_cli(world, "parked", "discard", "good", "--why", "it lied too").code == 0
    for own in kinds:
        own.project()
        own.assert_right()


def test_parked_sessions_of_an_own_projection_are_listed_and_tried_again(world: World) -> None:
    """By command: with the error of the user's code; tried again by the workers once its cause is gone."""
    own = Own(world, Fussy)
    world.log.append("s", [did("start"), did("tool.poison")])
    own.project()
    assert run_cli(world, "parked", "ls").rows == []
    listed = run_cli(world, "parked", "ls", "--projection", "fussy").row
    assert (listed["session"], listed["code"]) == ("s", "PROJECTION_FAILED")
    assert run_cli(world, "parked", "show", "s", "--projection", "fussy@1").row == listed
    assert run_cli(world, "parked", "retry", "--all", "--projection", "nobody").code == 4

    own.project()
    assert run_cli(world, "parked", "retry", "--all", "--projection", "fussy", "--dry-run").code == 0
    mended = Own(world, FussyMended)
    mended.project()
    assert mended.states() == {}, "nobody asked for it"
    assert run_cli(world, "parked", "retry", "s", "--projection", "fussy").code == 0
    mended.project()
    assert mended.states() == {"s": Spent(2)}
    assert run_cli(world, "parked", "ls", "--projection", "fussy").rows == []


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("damage", ["deleted", "nonsense", "another's", "of another type"])
def test_damaged_folds_and_views_are_found_and_come_back(world: World, kind: type[Projection], damage: str) -> None:
    """The validator names each; the next events of the session, or a rebuild, bring back what the log gives."""
    own = Own(world, kind)
    world.sessions(12)
    own.project()
    label, keys = own.store.label, world.keyspace.of("s-3")
    view = keys.merged(label, "modified") if own.definition.is_keyed else None
    for key in filter(None, (keys.fold(label, "s-3"), view)):
        if damage == "deleted":
            world.redis.delete(key)
        elif damage == "nonsense":
            world.redis.set(key, b"nonsense")
        elif damage == "of another type":
            world.redis.delete(key)
            world.redis.lpush(key, "x")
        else:
            initial = own.definition.projection.initial("x")
            world.redis.set(key, own.definition.encode_state("another", initial))

    code = "VIEW_MISSING" if damage in ("deleted", "of another type") else "VIEW_UNREADABLE"
    assert own.codes() == [code]
    if not own.definition.is_keyed:
        assert own.states() == own.expected(), "a reader gets it from the log"

    world.log.append("s-3", did("start"))
    own.project()
    own.project()
    if own.definition.is_keyed:
        assert own.store.unbuilt(range(4)) == set()
    own.assert_right()


def test_a_view_that_was_altered_is_found_and_a_rebuild_mends_it(world: World) -> None:
    """A view with a seal that fits and a state that does not is drift like any other."""
    own = Own(world, EventsByType)
    world.sessions(12)
    own.project()
    keys = world.keyspace.partitions[0]
    world.redis.set(keys.merged("by_type@1", "modified"), own.definition.encode_state("modified", 99))
    world.redis.set(keys.merged("by_type@1", "ghost"), own.definition.encode_state("ghost", 1))
    world.redis.zadd(keys.view_keys("by_type@1"), {"ghost": 0})
    assert own.codes() == ["VIEW_AHEAD", "VIEW_DIFFERS"]

    rebuilt(own, anew=True)

    own.assert_right()


def test_a_missing_view_is_not_begun_anew(world: World) -> None:
    """What other sessions gave would be lost: it is merged again from all of them."""
    own = Own(world, EventsByType)
    for name in ("a", "b", "c"):
        world.log.append(name, did("start"))
    own.project()
    world.redis.delete(*(keys.merged("by_type@1", "start") for keys in world.keyspace.partitions))
    world.log.append("a", did("start"))
    own.project()
    own.project()
    assert own.store.unbuilt([world.keyspace.partition_of("a")]) == set()
    rebuilt(own, anew=False)
    own.assert_right()


def test_sessions_that_move_one_view_in_one_batch_all_count(world: World) -> None:
    """Without `subtract` it is merged again from what they give now, and not from what is stored of them."""
    own = Own(world, SumsWithoutSubtract)
    names = [f"s-{n}" for n in range(12)]
    for name in (*names, *names[:8]):
        world.log.append(name, did("start"))
    own.project()
    for name in names:
        world.log.append(name, [did("start"), did("start")])
    own.project()
    assert own.states() == {"start": 44}
    own.assert_right()


def test_a_fold_that_stands_elsewhere_is_named(world: World) -> None:
    """Behind what the cursor says; another session's; and not a fold that the feed is about to move on."""
    own = Own(world, EventsByType)
    world.log.append("s", did("start"))
    world.log.append("t", did("start"))
    own.project()
    keys = world.keyspace.of("s")
    before = world.redis.get(keys.fold("by_type@1", "s"))
    world.log.append("s", did("start"))
    assert own.codes() == [], "it is in the feed"
    own.project()
    world.redis.set(keys.fold("by_type@1", "s"), before)
    assert own.codes() == ["VIEW_BEHIND"]
    world.redis.set(keys.fold("by_type@1", "s"), world.redis.get(world.keyspace.of("t").fold("by_type@1", "t")))
    assert own.codes() == ["VIEW_UNREADABLE"]


def rebuilt(own: Own, *, anew: bool) -> None:
    """Brings the history of every partition in again."""
    for partition in range(4):
        token = own.claim(partition)
        own.projector.begin(partition, token)
        while not own.projector.build_slice(partition, token, anew=anew):
            pass
        own.leases.release(partition, token)


def test_only_a_rebuild_anew_mends_a_fold_that_looks_sound(world: World) -> None:
    """A fold at the right seq and digest with a wrong state is drift; whoever only brings history in trusts it."""
    own = Own(world, EventsByType)
    world.sessions(12)
    own.project()
    fold = own.definition.decode(own.store.folds(world.keyspace.partition_of("s-3"), ["s-3"])[0], "s-3")
    assert fold is not None
    fold.states = {"modified": 99}
    world.redis.set(world.keyspace.of("s-3").fold("by_type@1", "s-3"), own.definition.encode(fold))
    assert own.codes() == ["VIEW_DIFFERS"]

    rebuilt(own, anew=False)
    assert own.codes() == ["VIEW_DIFFERS"]
    rebuilt(own, anew=True)
    own.assert_right()


def test_a_fold_of_another_log_is_not_gone_on_with(world: World) -> None:
    """After a failover the same seqs may hold other events: the digest tells."""
    own = Own(world, EventsByType)
    keys = world.keyspace.of("s")
    world.log.append("s", [did("start"), did("broke")])
    own.project()
    world.redis.delete(keys.log("s"), keys.head("s"))
    world.redis.zrem(keys.sessions, "s")
    world.store.open().append("s", [did("start"), did("joined")])
    rebuilt(own, anew=False)

    own.assert_right()
    assert own.states() == {"start": 1, "joined": 1}


def test_a_key_that_its_index_lost_is_found_and_listed_again(world: World) -> None:
    """What is not listed is not among all states; the validator says so."""
    own = Own(world, EventsByType)
    world.sessions(12)
    own.project()
    world.redis.delete(world.keyspace.partitions[1].view_keys("by_type@1"))
    assert own.codes() == ["VIEW_DIFFERS"]
    assert own.states() != own.expected()

    rebuilt(own, anew=False)
    own.assert_right()


def test_a_lost_cursor_or_a_gap_in_the_feed_brings_the_history_in_again(world: World) -> None:
    """Where nobody can say what is new, registry and log do."""
    own = Own(world, EventsByType)
    world.sessions(12)
    own.project()
    keys = world.keyspace.of("s-3")
    partition = world.keyspace.partition_of("s-3")
    world.redis.delete(keys.cursor("by_type", 1))
    world.log.append("s-3", did("start"))
    own.project()
    own.assert_right()

    world.log.append("s-3", did("start"))
    world.redis.xtrim(keys.feed, maxlen=0)
    world.log.append("s-3", did("start"))
    token = own.claim(partition)
    position = own.store.cursor(partition).position
    own.projector.project(Batch(partition, token, position, None, []))  # what the consumer makes of a gap
    own.leases.release(partition, token)
    own.project()
    own.assert_right()


def test_pins_are_kept_and_bounded_in_time(world: World) -> None:
    """What an own projection has not applied stays in the feed, though it is old and applied by ours; not for ever."""
    own = Own(world, EventsByType)
    own.project()
    world.sessions(12)
    world.project()
    feeds = [keys.feed for keys in world.keyspace.partitions]
    before = sum(map(world.redis.xlen, feeds))

    assert trim_feeds(world.projections, range(4), keep_s=-1, pin_s=60) == 0
    assert sum(map(world.redis.xlen, feeds)) == before
    assert trim_feeds(world.projections, range(4), keep_s=-1, pin_s=-1) > 0

    world.log.append("s-1", did("start"))
    own.project()
    own.assert_right()
    assert trim_feeds(world.projections, range(4), keep_s=-1, pin_s=60) >= 0


# -- versions ----------------------------------------------------------------------------------------------------------


def test_a_version_is_published_when_it_is_built_and_caught_up(world: World) -> None:
    """Beside the published one, and only then; a reader without its class is told so; the old one can come back."""
    world.sessions(12)
    first, second = Own(world, EventsByType), Own(world, DoubleByType)
    views = OwnViews(world.log, [EventsByType()])
    first.project()
    first.offer()
    assert views.get("by_type", "modified") == 36

    second.offer()
    assert second.publications.version("by_type").version == 1, "it is not built"
    refused(
        lambda: second.publications.publish(second.publications.version("by_type", 2), "me"),
        Refused,
        "PROJECTION_UNBUILT",
    )
    second.project()
    world.log.append("s-1", did("start"))
    seen = second.publications.offer(second.store, "tester", {})
    world.log.append("s-1", did("start"))
    assert seen
    assert second.publications.offer(second.store, "tester", seen), "it has not applied what was there then"
    second.project()
    second.offer()
    first.project()

    refused(lambda: views.get("by_type", "modified"), Misconfigured, "PROJECTION_ABSENT")
    assert views.get("by_type", "modified", version=1) == 36
    assert OwnViews(world.log, [DoubleByType()]).get("by_type", "modified") == 72
    first.offer()
    assert first.publications.version("by_type").version == 2, "an older one never takes its place by itself"

    first.publications.publish(first.publications.version("by_type", 1), "me")
    second.offer()
    assert views.get("by_type", "modified") == 36, "what an operator published stays"


def test_an_older_version_never_takes_the_place_of_a_newer_one(world: World) -> None:
    """Also if nobody ever offered it; and none is offered while only its cursor is there."""
    world.sessions(12)
    first, second = Own(world, EventsByType), Own(world, DoubleByType)
    tokens = [second.claim(partition) for partition in range(4)]
    for partition, token in enumerate(tokens):
        second.projector.build_slice(partition, token)
    second.offer()
    assert not second.publications.version("by_type", 2).is_published
    for partition, token in enumerate(tokens):
        second.leases.release(partition, token)
    second.project()
    second.offer()
    first.project()
    first.offer()
    assert first.publications.version("by_type").version == 2


def test_a_rehearsal_says_what_would_differ_and_writes_nothing(world: World) -> None:
    """For a changed class of the same version, and for a next version; per session and key."""
    world.sessions(6)
    world.log.append("s-1", [did("start"), did("start")])
    own = Own(world, EventsByType)
    own.project()
    own.offer()
    before = world.store.snapshot()

    changed = OwnStore(world.log.client, world.keyspace, Definition(ChangedByType()))
    (found,) = OwnValidator(changed, world.log).rehearse(None)
    assert (found.session, found.key, found.stored, found.rehearsed) == ("s-1", "start", 2, 4)

    doubled = OwnStore(world.log.client, world.keyspace, Definition(DoubleByType()))
    published = OwnStore(world.log.client, world.keyspace, without_class("by_type", 1))
    differing = list(OwnValidator(doubled, world.log).rehearse(published))
    assert len(differing) == 7
    assert all(one.rehearsed == 2 * one.stored for one in differing)
    assert world.store.snapshot() == before
    own.assert_right()


def test_dropping_a_version_leaves_nothing_of_it_and_nothing_else_goes(world: World) -> None:
    """Not while readers get it, nor while a worker knows it; afterwards no key names it."""
    world.sessions(12)
    world.project()
    versions = [Own(world, kind) for kind in (SumsWithoutSubtract, SpentPerSession)]
    names = world.store.keys
    others = set(names())
    doomed = Own(world, SumsWithoutSubtract)
    for own in versions:
        own.project()
    publications = Publications(world.log.client, world.keyspace)
    doomed.offer()
    version = publications.version("slow_sums", 1)
    refused(lambda: list(publications.drop(version, "me")), Refused, "PROJECTION_IN_USE")
    world.redis.zadd(world.keyspace.projections, {"slow_sums": 0})
    version = publications.version("slow_sums", 1)
    world.redis.zadd(world.keyspace.workers_of("slow_sums@1"), {"w-1": 1 << 52})
    refused(lambda: list(publications.drop(version, "me")), Refused, "PROJECTION_IN_USE")
    world.redis.delete(world.keyspace.workers_of("slow_sums@1"))

    assert sum(publications.drop(version, "me")) > 12

    assert [key for key in names() if b"slow_sums" in key] == []
    assert others <= set(names()) | {world.keyspace.projection("slow_sums").encode()}
    assert [one.label for one in publications.versions()] == ["spent@1"]
    refused(lambda: publications.version("slow_sums"), NotFound, "PROJECTION_UNKNOWN")


# -- reading -----------------------------------------------------------------------------------------------------------


def test_readers_page_through_states_and_read_their_own_writes(world: World) -> None:
    """One key, all keys in order, after a key; a receipt is waited for, and BEHIND said when that takes too long."""
    own = Own(world, EventsByType)
    receipt = world.log.append("s", [did("start"), did("broke"), did("joined")])
    with pytest.raises(DeadlineExceeded, match="BEHIND"):
        own.views.get("by_type", "start", at_least=receipt, wait_s=0.01)
    own.project()
    assert own.views.get("by_type", "start", at_least=receipt) == 1
    later = world.log.append("s", did("start"))
    with pytest.raises(DeadlineExceeded, match="up to 3, not yet 4"):
        own.views.get("by_type", "start", at_least=later, wait_s=0.01)
    own.project()
    assert own.views.get("by_type", "start", at_least=later) == 2
    assert list(own.views.all("by_type")) == [("broke", 1), ("joined", 1), ("start", 2)]
    assert list(own.views.all("by_type", after="broke", limit=1)) == [("joined", 1)]
    refused(lambda: own.views.get("by_type", "left"), NotFound, "KEY_UNKNOWN")
    refused(lambda: own.views.get("nobody", "left"), NotFound, "PROJECTION_UNKNOWN")
    refused(lambda: own.views.get("by_type", "left", version=7), NotFound, "PROJECTION_UNKNOWN")


# -- the class ---------------------------------------------------------------------------------------------------------


class _Base(Projection):
    name, version = "fine", 1

    def initial(self, key: str) -> Any:
        return 0

    def apply(self, state: Any, event: RecordedEvent) -> Any:
        return state


def _made(**attributes: Any) -> type[Projection]:
    return type("Made", (_Base,), attributes)


@pytest.mark.parametrize(
    "kind",
    [
        _made(name="Sessions"),
        _made(name="sessions"),
        _made(name=""),
        _made(name="a@b"),
        _made(version=0),
        _made(version="1"),
        _made(version=True),
        _made(apply=Projection.apply),
        _made(initial=Projection.initial),
        _made(key=lambda _, event: event.type),
        _made(initial=lambda *_: object()),
        _made(initial=lambda *_: set()),
        _made(initial=lambda *_: {"a"}, state_type=int),
        _made(initial=lambda *_: float("nan")),
    ],
)
def test_a_class_that_cannot_work_is_refused(kind: type[Projection]) -> None:
    """Before a worker does anything with it, with the class and the cause."""
    error = refused(lambda: Definition(kind()), Misconfigured, "PROJECTION_INVALID")
    assert "Made" in str(error)
    assert Definition(_Base()).label == "fine@1"


@pytest.mark.parametrize("key", ["", "x" * 1025, "a\nb", 7])
def test_a_key_that_is_none_is_poison(world: World, key: Any) -> None:
    """It parks the session, since no view could have it."""
    own = Own(world, type("BadKey", (ActorsByType,), {"key": lambda *_: [key]}))
    world.log.append("s", did("start"))
    own.project()

    assert own.states() == {}
    (reason,) = own.store.parked(world.keyspace.partition_of("s"), ["s"])
    assert reason is not None
    assert "is not 1 to 1,024 characters" in reason.cause or "has no len" in reason.cause
    assert own.store.builds(range(4)) == [DONE] * 4
    with pytest.raises(Damaged):
        own.definition.decode_state("a", own.definition.encode_state("b", set()))
