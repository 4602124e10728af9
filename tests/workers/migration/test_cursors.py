"""Durable subscriptions go where their sessions go: what was acknowledged never comes again, and the rest does."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Event as Flag
from typing import Any

import pytest

from domain import Conflict, Delivery, SessionLog
from domain.log import Connecting
from domain.log.subscribing.durable import DurableSubscriptions
from domain.log.subscribing.member import DurableSubscription
from tests.conftest import ENVIRONMENT, Servers, Store
from tests.domain.log.subscribing.deliveries import everything, rest, some
from tests.domain.log.subscribing.member_processes import is_acknowledged
from tests.waiting import wait_until
from tests.workers.migration.scene import Scene, copied, cut, fill, note
from workers.migration import cursors
from workers.migration.cursors import Cursors
from workers.migration.planning import plan
from workers.migration.record import Migrations

NAMES = [f"s{number}" for number in range(12)]


def given(deliveries: Iterable[Delivery]) -> dict[str, list[int]]:
    """The seqs given of each session, in their order."""
    found: dict[str, list[int]] = defaultdict(list)
    for one in deliveries:
        assert one.error is None, one
        found[one.session].append(one.seq)
    return dict(found)


def joined(*parts: dict[str, list[int]]) -> dict[str, list[int]]:
    """What was given by one after the other."""
    found: dict[str, list[int]] = defaultdict(list)
    for part in parts:
        for session, seqs in part.items():
            found[session] += seqs
    return dict(found)


def acknowledged(log: SessionLog, count: int | None = None, name: str = "audit") -> dict[str, list[int]]:
    """What a member is given, so many or all there is, and acknowledges; then it leaves."""
    with log.subscribe_as(name, after="beginning") as member:
        found = rest(member) if count is None else some(member, count)
        member.ack()
    return given(found)


def test_it_goes_on_where_it_was_in_each_session(either_way: Scene) -> None:
    """Between partitions of other numbers: half a session, a whole one, none of one."""
    with either_way.source.open() as log:
        fill(log, NAMES)
        before = acknowledged(log, 31)
        with log.subscribe_as("audit") as member:
            some(member, 5)  # and not acknowledged
    either_way.moved()

    with either_way.target.open() as log:
        fill(log, [*NAMES, "begun-here"], 1)
        after = acknowledged(log)
        assert joined(before, after) == everything(log)
        assert acknowledged(log) == {}
    assert not [key for key in either_way.target.keys() if b":reached:" in key], "what the feed tells needs no mark"  # noqa: SIM118


def test_it_is_told_where_it_went(scene: Scene) -> None:
    """At the source nobody waits for ever for what is given elsewhere."""
    with scene.source.open() as log:
        fill(log, NAMES)
        with log.subscribe_as("audit", after="beginning", ttl_ms=400) as member:
            some(member, 3)
            scene.moved()
            wait_until(lambda: is_told(member), message="it is told")
        with pytest.raises(Conflict, match=r"^MOVED_TO:") as refused, log.subscribe_as("audit"):
            pass
        assert scene.target.url.partition("@")[2] in str(refused.value)
        assert log.drive(DurableSubscriptions(log.keyspace).show("audit")).moved_to is not None


def is_told(member: DurableSubscription) -> bool:
    """Whether a member comes to know, with what it asks next, that all is elsewhere."""
    try:
        member.get(timeout_s=0.1)
    except Conflict as error:
        return error.code == "MOVED_TO"
    return False


def test_a_member_that_was_told_of_the_target_goes_there_by_itself(either_way: Scene) -> None:
    """While it works and others append. All is acknowledged, in the order of its session, and never given again."""
    stop = Flag()
    clean: list[Delivery] = []
    unsure: list[Delivery] = []

    def append(producer: SessionLog) -> None:
        while not stop.is_set():
            for name in NAMES:
                producer.append(name, note())

    def work(log: SessionLog) -> None:
        taken: list[Delivery] = []
        with log.subscribe_as("audit", after="beginning", ttl_ms=1000) as member:
            while not stop.is_set() or not is_acknowledged(there, "audit"):
                delivery = member.get(timeout_s=0.1)
                taken += [delivery] if delivery else []
                if len(taken) >= 20 or not delivery:
                    (clean if is_taken(member) else unsure).extend(taken)
                    taken = []

    with (
        either_way.producer() as log,
        either_way.producer() as producer,
        either_way.target.open() as there,
        ThreadPoolExecutor(2) as threads,
    ):
        fill(log, NAMES)
        appending, working = threads.submit(append, producer), threads.submit(work, log)
        try:
            wait_until(lambda: len(clean) > 100)
            either_way.moved()
            moved = either_way.target.client.hgetall(either_way.target.keyspace.partitions[0].acked("audit"))
            wait_until(
                lambda: (
                    either_way.target.client.hgetall(either_way.target.keyspace.partitions[0].acked("audit")) != moved
                )
            )
        finally:
            stop.set()
        appending.result(60)
        working.result(120)
        expected = everything(there)
    known = given(clean)
    for session, seqs in expected.items():
        assert set(known[session]) | {one.seq for one in unsure if one.session == session} == set(seqs)
        assert known[session] == sorted(set(known[session]))


def is_taken(member: DurableSubscription) -> bool:
    """Acknowledges; returns whether all that was taken was this member's to acknowledge."""
    try:
        member.ack()
    except Conflict:
        return False
    return True


def test_an_asyncio_member_goes_there_too(scene: Scene) -> None:
    async def run() -> tuple[dict[str, list[int]], dict[str, set[int]]]:
        log = await scene.async_producer()
        async with log, log.subscribe_as("audit", after="beginning", ttl_ms=400) as member:
            before = [await member.get(10) for _ in range(20)]
            await member.ack()
            await asyncio.to_thread(scene.moved)
            after: dict[str, set[int]] = defaultdict(set)
            while not is_acknowledged(there, "audit"):
                if (delivery := await member.get(timeout_s=0.1)) is not None:
                    after[delivery.session].add(delivery.seq)
                with suppress(Conflict):  # what was taken before it moved is given again
                    await member.ack()
        return given([one for one in before if one]), after

    with scene.source.open() as log, scene.target.open() as there:
        fill(log, NAMES)
        before, after = asyncio.run(run())
        assert joined(before, {name: sorted(found) for name, found in after.items()}) == everything(there)


def test_a_member_that_goes_there_is_told_of_what_it_took_and_did_not_acknowledge(scene: Scene) -> None:
    """Also where it goes before its leases are taken from it: it is given again."""
    with scene.source.open() as log, scene.producer() as producer, scene.ends() as ends:
        fill(log, NAMES)
        with producer.subscribe_as("audit", after="beginning", ttl_ms=400) as member:
            some(member, 3)
            moving = Cursors(ends, "a-task", lambda _: None)
            moving.begin([])
            cursors.close(ends.source, moving.shared[0], ends.target)
            wait_until(lambda: (member.get(timeout_s=0.1), member.position.store != log.identity.store)[1])
            with pytest.raises(Conflict, match=r"^SHARE_LOST:"):
                member.ack()


def test_only_what_moves_is_given_at_the_target(scene: Scene) -> None:
    """The rest, and what comes to it, at the source: as one subscription with two ends."""
    with scene.source.open() as log:
        fill(log, NAMES)
        before = acknowledged(log, 31)
    scene.moved({"sessions": NAMES[:5]})

    with scene.source.open() as log, scene.target.open() as there:
        fill(log, NAMES[5:], 1)
        fill(there, NAMES[:5], 1)
        here, moved = acknowledged(log), acknowledged(there)
        assert set(moved) <= set(NAMES[:5])
        assert not set(here) & set(NAMES[:5])
        assert joined(before, here, moved) == everything(log) | everything(there)


def test_a_plan_says_whose_cursors_would_stay(scene: Scene) -> None:
    with scene.source.open() as log, scene.target.open() as there:
        fill(log, NAMES)
        for name in ("audit", "fine", "other"):
            acknowledged(log, name=name)
        scene.source.client.set(scene.source.keyspace.partitions[1].place("audit"), b"nonsense")
        with there.subscribe_as("other", types="tool.*") as member:
            member.ack()
    with scene.ends() as ends:
        made = plan(ends, {})
    assert made.subscriptions == {"audit": "SUBSCRIPTION_DAMAGED", "fine": None, "other": "SUBSCRIPTION_DIFFERS"}
    assert made.is_hindered


def test_a_subscription_that_the_target_had_gets_what_is_new_to_it(scene: Scene) -> None:
    """It has members that work meanwhile; another one there, which the source has not, is given the whole session."""
    with scene.source.open() as log, scene.target.open() as there:
        fill(there, ["theirs"])
        with there.subscribe_as("audit", after="beginning", ttl_ms=1000) as member:
            with there.subscribe_as("other", after="beginning") as other:
                other.ack()
            fill(log, NAMES)
            before = acknowledged(log, 31)
            scene.moved({"sessions": NAMES})
            after: list[Delivery] = []
            while len(after) < 6 + 6 * len(NAMES) - 31:
                after += some(member, 1)
                member.ack()
            assert rest(member) == []
        assert joined(before, given(after)) == everything(there)
        assert acknowledged(there, name="other") == everything(there)


def test_one_that_the_feed_does_not_reach_is_given_history_that_was_moved_in(scene: Scene) -> None:
    """Its own place is a time then, and what was moved in is older than that."""
    with scene.source.open() as log, scene.target.open() as there:
        fill(log, NAMES)
        fill(there, [f"t{number}" for number in range(20)])
        acknowledged(there)
        scene.moved()
        fill(there, ["later"])
        for keys in scene.target.keyspace.partitions:
            scene.target.client.delete(keys.feed)
        moved = acknowledged(there)
        assert moved == {session: seqs for session, seqs in everything(there).items() if session[0] != "t"}


def test_one_that_lost_its_feed_while_sessions_arrived_is_given_them(scene: Scene) -> None:
    """It knew of all marks that there were when it took its share, and the feed tells it of none."""
    with scene.source.open() as log, scene.target.open() as there:
        fill(log, NAMES)
        fill(there, [f"t{number}" for number in range(20)])
        with there.subscribe_as("audit", after="beginning", ttl_ms=600_000) as member:
            rest(member)
            member.ack()
            found: list[Delivery] = []
            scene.moved()
            for name in ("later", "latest"):
                fill(there, [name, NAMES[0]])
                for keys in scene.target.keyspace.partitions:
                    scene.target.client.delete(keys.feed)
                found += rest(member)
        assert given(found) == {session: seqs for session, seqs in everything(there).items() if session[0] != "t"}


def test_what_is_acknowledged_at_the_target_is_not_given_again_after_a_rollback(either_way: Scene) -> None:
    """Nor is anything lost that was not; appended at the target, it comes back with it."""
    with either_way.source.open() as log, either_way.target.open() as there:
        fill(log, NAMES)
        first = acknowledged(log, 31)
        with either_way.ends() as ends:
            migration = either_way.begun(ends)
            work = either_way.moving(ends, migration)
            copied(work)
            cut(work)
            fill(there, NAMES[:6], 2)
            second = acknowledged(there, 17)
            with work.phase("rolling back", "rolled back"):
                work.rollback(carry_back=True)
        fill(log, NAMES, 1)
        third = acknowledged(log)
        assert joined(first, second, third) == everything(log)
        with pytest.raises(Conflict, match=r"^MOVED_TO:"):
            acknowledged(there)
        fill(log, NAMES, 1)
        either_way.moved()
        assert joined(first, second, third, acknowledged(there)) == everything(there)


def test_one_session_that_goes_back_takes_its_cursor_along(scene: Scene) -> None:
    with scene.source.open() as log, scene.target.open() as there:
        fill(log, NAMES)
        first = acknowledged(log, 31)
        with scene.ends() as ends:
            migration = scene.begun(ends)
            work = scene.moving(ends, migration)
            copied(work)
            cut(work)
            second = acknowledged(there, 17)
            with work.phase("rolling back", "moved"):
                work.rollback(["s3"], carry_back=True)
            fill(log, ["s3"], 1)
            fill(there, [name for name in NAMES if name != "s3"], 1)
            third, fourth = acknowledged(log), acknowledged(there)
            assert set(third) == {"s3"}
        assert joined(first, second, third, fourth) == everything(there) | {"s3": everything(log)["s3"]}


def test_who_was_given_a_session_that_goes_back_is_not_told_of_a_loss(scene: Scene) -> None:
    """Though it was the last that was given at the target."""
    with scene.source.open() as log, scene.target.open() as there:
        fill(log, ["s0"])
        with log.subscribe_as("audit", after="beginning") as member:
            some(member, 1)
        with scene.ends() as ends:
            work = scene.moving(ends, scene.begun(ends))
            copied(work)
            cut(work)
            assert acknowledged(there) == {"s0": [1, 2, 3, 4, 5, 6]}
            fill(there, ["t0"], 1)
            with work.phase("rolling back", "moved"):
                work.rollback()
        assert acknowledged(there) == {"t0": [1, 2]}


def test_a_session_that_could_not_go_back_is_given_on_where_it_stayed(scene: Scene) -> None:
    """From where it was given up to there, not from where it came."""
    with scene.source.open() as log, scene.target.open() as there:
        fill(log, ["s0"])
        before = acknowledged(log, 2)
        with scene.ends() as ends:
            work = scene.moving(ends, scene.begun(ends))
            copied(work)
            cut(work)
            meanwhile = acknowledged(there, 3)
            going = Cursors(ends, work.migration.id, lambda _: None)
            going.look()
            going.take_back(["s0"])
            assert acknowledged(there) == {}
            going.put_back([], ["s0"], are_all=False)
        assert joined(before, meanwhile, acknowledged(there)) == everything(there)


def test_one_that_is_made_while_sessions_move_is_given_those_that_moved_before(scene: Scene) -> None:
    """It was given them at the source; what came to them at the target, before it was there, comes too."""
    with scene.source.open() as log, scene.target.open() as there:
        fill(log, NAMES)
        with scene.ends() as ends:
            work = scene.moving(ends, scene.begun(ends))
            copied(work)
            cut(work, NAMES[:6])
            before = acknowledged(log, 31)
            fill(there, NAMES[:6], 1)
            cut(work)
        fill(there, NAMES, 1)
        assert joined(before, acknowledged(there)) == everything(there)


@pytest.mark.parametrize("act", ["_left", "_arrived"])
@pytest.mark.parametrize("after", [False, True])
def test_who_dies_over_it_is_gone_on_from(scene: Scene, monkeypatch: pytest.MonkeyPatch, act: str, after: bool) -> None:
    """Before and after each act, of which every partition has one; meanwhile the migration says what waits."""
    real: Callable[..., None] = getattr(cursors, act)
    calls = 0

    def dying(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2 and not after:
            raise KeyboardInterrupt
        real(*arguments)
        if calls == 2:
            raise KeyboardInterrupt

    with scene.source.open() as log, scene.target.open() as there:
        fill(log, NAMES)
        before = acknowledged(log, 31)
        with scene.ends() as ends:
            migration = scene.begun(ends)
            work = scene.moving(ends, migration)
            copied(work)
            with monkeypatch.context() as patched:
                patched.setattr(cursors, act, dying)
                with pytest.raises(KeyboardInterrupt):
                    cut(work)
            assert Migrations(ends.target.store).get(migration.id).cursors_waiting
            meanwhile = acknowledged(there)
            cut(work)
            assert not Migrations(ends.target.store).get(migration.id).cursors_waiting
        fill(there, NAMES, 1)
        assert joined(before, meanwhile, acknowledged(there)) == everything(there)


def test_marks_are_looked_for_once_after_logs_were_read(scene: Scene) -> None:
    """Not with each page from then on, of whoever never moved anything."""
    with scene.source.open() as log:
        fill(log, NAMES)
        acknowledged(log, 5)
        for keys in scene.source.keyspace.partitions:
            scene.source.client.delete(keys.feed)
        with log.subscribe_as("audit") as member:
            rest(member)
            before = asked_for_marks(scene)
            fill(log, NAMES)
            rest(member)
            assert asked_for_marks(scene) == before


def asked_for_marks(scene: Scene) -> int:
    """How often whole hashes were read at the source."""
    calls: int = scene.source.client.info("commandstats").get("cmdstat_hgetall", {"calls": 0})["calls"]
    return calls


def test_what_went_on_to_a_third_store_is_not_given_at_the_second(
    scene: Scene, servers: Servers, make_store: Callable[..., Store]
) -> None:
    """Also when who brought it to the second moves more of the first."""
    third = Scene(scene.target, make_store(servers.url("valkey"), partitions=2))
    with scene.source.open() as log, scene.target.open() as second, third.target.open() as last:
        fill(log, NAMES)
        before = acknowledged(log, 31)
        with scene.ends() as ends:
            work = scene.moving(ends, scene.begun(ends))
            copied(work)
            cut(work)
            third.moved({"sessions": NAMES[:6]})
            fill(log, ["new"])
            cut(work)
        moved, onwards = acknowledged(second), acknowledged(last)
        assert set(onwards) <= set(NAMES[:6])
        assert not set(moved) & set(NAMES[:6])
        assert joined(before, moved, onwards) == everything(second) | everything(last)


def test_a_member_goes_on_to_where_its_subscription_went_twice(
    scene: Scene, servers: Servers, make_store: Callable[..., Store]
) -> None:
    """It may have been away while that was."""
    third = Scene(scene.target, make_store(servers.url("valkey"), partitions=2))
    with scene.source.open() as log, third.target.open() as last:
        fill(log, NAMES)
        before = acknowledged(log, 31)
        scene.moved()
        third.moved()
        known = [scene.target.url, third.target.url]
        here, namespace = Connecting(scene.source.url), scene.source.namespace
        with SessionLog.open(here, environment=ENVIRONMENT, namespace=namespace, moved=known) as producer:
            after = acknowledged(producer)
        assert joined(before, after) == everything(last)


def test_sessions_that_begin_after_all_had_gone_are_given_at_the_source_when_others_move(scene: Scene) -> None:
    with scene.source.open() as log:
        fill(log, NAMES)
        acknowledged(log)
        with scene.ends() as ends:
            work = scene.moving(ends, scene.begun(ends))
            copied(work)
            cut(work)
            fill(log, ["new", "newer"])
            cut(work, ["newer"])
        assert set(acknowledged(log)) == {"new"}


def test_a_copy_that_was_never_opened_leaves_no_mark(scene: Scene) -> None:
    """The name is free again at the target, and what comes by it is given."""
    with scene.source.open() as log, scene.target.open() as there:
        fill(log, NAMES)
        fill(there, ["theirs"])
        acknowledged(log)
        before = acknowledged(there)
        with scene.ends() as ends:
            work = scene.moving(ends, scene.begun(ends))
            copied(work)
            with work.phase("rolling back", "rolled back"):
                work.rollback()
        fill(there, NAMES)
        assert joined(before, acknowledged(there)) == everything(there)


def test_a_subscription_that_is_dropped_meanwhile_keeps_nothing_back(scene: Scene) -> None:
    """Nobody knows its cursors then, so the target's is given the sessions whole."""
    with scene.source.open() as log, scene.target.open() as there:
        fill(log, NAMES)
        acknowledged(log)
        with scene.ends() as ends:
            one = Cursors(ends, "a-task", lambda _: None)
            one.begin([])
            ends.target.replies(one.expected(NAMES))
            log.drive(DurableSubscriptions(log.keyspace).drop("audit", "ann"))
            again = Cursors(ends, "a-task", lambda _: None)
            again.begin([])
            fill(there, NAMES)
            assert again.bring(NAMES, are_all=False) == 0
        assert acknowledged(there) == everything(there)


def test_a_place_that_cannot_be_read_holds_its_cursors_back_and_is_named(scene: Scene) -> None:
    with scene.source.open() as log:
        fill(log, NAMES)
        acknowledged(log, 31)
        for keys in scene.source.keyspace.partitions:
            scene.source.client.set(keys.place("audit"), b"nonsense")
    said: list[str] = []
    with scene.ends() as ends:
        migration = scene.begun(ends)
        work = scene.moving(ends, migration)
        work._say = said.append
        copied(work)
        assert cut(work).failed == 0
        assert Migrations(ends.target.store).get(migration.id).cursors_waiting == len(NAMES)
    assert any("SUBSCRIPTION_DAMAGED" in line for line in said)
