"""Durable subscriptions: what is acknowledged is never given again, and what is not, somebody is given."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from domain import Conflict, Delivery, NotFound, Refused
from domain.log.subscribing.durable import DurableSubscriptions, read_place
from domain.log.subscribing.member import DurableSubscription
from tests.conftest import Store
from tests.domain.log.logs import note, refused
from tests.domain.log.subscribing.deliveries import everything, fleet, rest, seqs, some
from tests.domain.log.subscribing.member_processes import MemberProcess, is_acknowledged
from tests.waiting import wait_until

ROOT = Path(__file__).parents[4]


@pytest.fixture
def shared(make_store: Callable[..., Store], server_url: str) -> Store:
    """A store of eight partitions."""
    return make_store(server_url, partitions=8)


def test_what_is_acknowledged_is_not_given_again_and_the_rest_is(shared: Store) -> None:
    """Whoever opens the subscription next goes on after the last acknowledgement, feeds trimmed or not."""
    with shared.open() as log:
        fleet(log, 1)
        total = sum(map(len, everything(log).values()))
        # A member that leaves gives back its share at once: nobody waits here for leases to run out.
        with log.subscribe_as("audit", after="beginning", ttl_ms=600_000) as member:
            first = some(member, 40)
            member.ack()
            unacknowledged = some(member, 19)
            settle(member)
            unacknowledged += some(member, 1)
        for keys in shared.keyspace.partitions:
            shared.client.delete(keys.feed)
        with log.subscribe_as("audit") as member:
            again = some(member, total - 40)
            member.ack()
            fleet(log, 2)
            newer = rest(member)
            member.ack()
        with log.subscribe_as("audit") as member:
            assert member.get(timeout_s=0.3) is None

        given = {(delivery.session, delivery.seq) for delivery in again}
        assert {(delivery.session, delivery.seq) for delivery in unacknowledged} <= given
        assert seqs([*first, *again, *newer]) == everything(log)


def settle(member: DurableSubscription) -> None:
    """It is time to settle before the next delivery."""
    cast("Any", member)._membership._settled_at = -1e9


def test_what_was_taken_is_kept_until_it_is_acknowledged(shared: Store) -> None:
    """Though another member comes meanwhile that is to have a part of it."""
    with shared.open() as log:
        fleet(log, 1, commits=120, sessions=60)  # some in every partition
        total = sum(map(len, everything(log).values()))
        with log.subscribe_as("work", after="beginning") as first, log.subscribe_as("work") as second:
            found = some(first, total)
            assert second.get(timeout_s=0) is None
            log.drive(cast("Any", first)._membership.beat())
            settle(first)
            assert first.get(timeout_s=0) is None
            first.ack()
            fleet(log, 2)
            total = sum(map(len, everything(log).values()))
            while len(found) < total:
                for member in (first, second):
                    settle(member)
                    found += [delivery for delivery in [member.get(timeout_s=0)] if delivery is not None]
                    member.ack()
            assert first.partitions
            assert second.partitions
            assert seqs(found) == everything(log)


def test_an_acknowledgement_that_got_no_answer_is_harmless_to_repeat(shared: Store) -> None:
    with shared.open() as log:
        fleet(log, 1)
        with log.subscribe_as("work", after="beginning") as member:
            some(member, 60)
            shares = cast("Any", member)._membership._shares
            before = {partition: (share.position, share.taken) for partition, share in shares.items()}
            member.ack()
            for partition, (position, taken) in before.items():
                shares[partition].position, shares[partition].taken = position, taken
            member.ack()
            assert member.partitions == sorted(before)


def test_members_share_the_work_and_each_event_is_given_to_one(shared: Store) -> None:
    """Also while a member comes and another one leaves."""
    with shared.open() as log, ThreadPoolExecutor(3) as threads:
        found: list[Delivery] = []
        members = [log.subscribe_as("work", after="beginning", ttl_ms=8000) for _ in range(3)]

        def work(member: DurableSubscription) -> None:
            while not member.is_closed:
                if (delivery := member.get(timeout_s=0.05)) is not None:
                    found.append(delivery)
                    member.ack()

        def is_all_given() -> bool:
            return len(found) >= sum(map(len, everything(log).values()))

        def are_shared(living: list[DurableSubscription]) -> bool:
            """Each learns who else is there and sees to its share next, as it would in time."""
            for member in living:
                log.drive(cast("Any", member)._membership.beat())
                settle(member)
            shares = [member.partitions for member in living]
            return sorted(at for share in shares for at in share) == list(range(8)) and min(map(len, shares)) >= 2

        try:
            fleet(log, 1)
            done = [threads.submit(work, member) for member in members]
            wait_until(lambda: are_shared(members), message="each partition is one's, and everybody has a share")
            fleet(log, 2)
            wait_until(is_all_given, message="all is given")
            members[0].close()
            fleet(log, 3)
            wait_until(lambda: are_shared(members[1:]), message="its share is the others'")
            wait_until(is_all_given, message="all is given")
        finally:
            for member in members:
                member.close()
        for one in done:
            one.result(60)
        assert seqs(found) == everything(log)


@contextmanager
def processes(store: Store, count: int, every: int, tmp_path: Path) -> Iterator[list[MemberProcess]]:
    members = [
        MemberProcess(store.url, store.namespace, "work", every, tmp_path / f"{number}.out") for number in range(count)
    ]
    try:
        yield members
    finally:
        for member in members:
            member.kill()


@pytest.mark.parametrize("seed", range(2))
def test_the_share_of_a_killed_member_is_taken_over(shared: Store, tmp_path: Path, seed: int) -> None:
    """What it acknowledged is not given again; what it did not, is; nothing is missed."""
    chance = random.Random(seed)
    with shared.open() as log, processes(shared, 2, 3, tmp_path) as members:
        fleet(log, 1, commits=200, sessions=40)

        def both_work() -> bool:
            for session in range(40):
                log.append(f"fleet-1-{session}", note())
            return all(member.acknowledged() for member in members)

        wait_until(both_work, message="both work")
        for number in range(3):
            fleet(log, number + 2, commits=100)
            time.sleep(chance.random() / 5)
            victim = chance.randrange(2)
            members[victim].kill()
            members.append(MemberProcess(shared.url, shared.namespace, "work", 3, tmp_path / f"next-{number}.out"))
            members.append(members.pop(victim))
        expected = {f"{session} {seq}" for session, found in everything(log).items() for seq in found}

        def given() -> set[str]:
            return {line for member in members for line in member.given()}

        wait_until(lambda: given() >= expected, message="everything is given")
        wait_until(lambda: is_acknowledged(log, "work"), message="everything is acknowledged")
        times = Counter(line for member in members for line in member.acknowledged())
        # What was acknowledged by its member's own word is given to nobody again. (One that died before it could say so
        # may have acknowledged more.)
        assert [line for line, count in times.items() if count > 1] == []


def test_a_member_that_was_paused_for_too_long_acknowledges_nothing(shared: Store, tmp_path: Path) -> None:
    """Another one has its share; it learns that when it acknowledges, and no place moves back."""
    with shared.open() as log, processes(shared, 1, 10_000, tmp_path) as members:
        fleet(log, 1)
        expected = {f"{session} {seq}" for session, found in everything(log).items() for seq in found}
        wait_until(lambda: members[0].given(), message="it is given something")
        os.kill(members[0].process.pid, signal.SIGSTOP)
        with log.subscribe_as("work", ttl_ms=4000) as other:
            given: list[Delivery] = []
            while len(given) < len(expected) - len(members[0].acknowledged()):
                given += some(other, 1)
            other.ack()
            os.kill(members[0].process.pid, signal.SIGCONT)
            fleet(log, 2, commits=5)
            other.close()
        if not members[0].acknowledged():
            wait_until(lambda: members[0].has_lost, message="it learns that it lost its share")
        everything_now = {f"{session} {seq}" for session, found in everything(log).items() for seq in found}
        both = [f"{delivery.session} {delivery.seq}" for delivery in given]
        # What it was given of a share that it lost and got back since, it may count as lost though it acknowledged it.
        wait_until(lambda: {*both, *members[0].given()} >= everything_now, message="it goes on with the rest")
        wait_until(lambda: is_acknowledged(log, "work"), message="and acknowledges it")


def test_the_place_moves_over_what_nobody_wants(shared: Store) -> None:
    """A filter that leaves everything out does not hold the feed for ever."""
    with shared.open() as log, log.subscribe_as("rare", actors="nobody", after="beginning", ttl_ms=400) as member:
        assert member.get(timeout_s=0.3) is None
        log.append("s", note())
        partition = shared.keyspace.partition_of("s")
        key = shared.keyspace.partitions[partition].place("rare")
        shared.keyspace.partitions[partition].place("rare")

        def place() -> int:
            assert member.get(timeout_s=0.05) is None
            return read_place("rare", partition, cast("bytes", shared.client.get(key))).total

        wait_until(lambda: place() == 1, message="the place moves")


def test_a_subscription_to_one_session_reads_its_partition_alone(shared: Store) -> None:
    with shared.open() as log, log.subscribe_as("one", sessions="s", after="beginning") as member:
        log.append("s", note())
        log.append("other", note())
        assert seqs(some(member, 1)) == {"s": [1]}
        assert member.partitions == [shared.keyspace.partition_of("s")]
        assert member.get(timeout_s=0.2) is None


def test_what_a_name_stands_for_is_not_changed_by_mistake(shared: Store) -> None:
    made = DurableSubscriptions(shared.keyspace)
    with shared.open() as log:
        refused(lambda: log.subscribe_as("no name"), Refused, "SUBSCRIPTION_INVALID")
        with log.subscribe_as("mine", actors="a") as member:
            member.get(timeout_s=0)
            refused(lambda: log.subscribe_as("mine", actors="b"), Refused, "SUBSCRIPTION_DIFFERS")
            assert log.drive(made.names()) == ["mine"]
            assert log.drive(made.show("mine")).members == [member.member]
            refused(lambda: log.drive(made.drop("mine", "who")), Refused, "SUBSCRIPTION_IN_USE")
        log.drive(made.drop("mine", "who"))
        assert log.drive(made.names()) == []
        refused(lambda: log.drive(made.show("mine")), NotFound, "SUBSCRIPTION_UNKNOWN")
        refused(lambda: log.drive(made.drop("mine", "who")), NotFound, "SUBSCRIPTION_UNKNOWN")
        stored = shared.keys()
        assert [key for key in stored if b"mine" in key] == []


def test_a_member_is_told_what_it_lost_when_it_acknowledges(shared: Store) -> None:
    """The rest is acknowledged; what it is given afterwards is what it holds."""
    with shared.open() as log:
        fleet(log, 1)
        with log.subscribe_as("work", after="beginning") as member:
            found = some(member, 60)
            held = {shared.keyspace.partition_of(delivery.session) for delivery in found}
            stolen = shared.keyspace.partition_of(found[-1].session)
            assert stolen in held
            key = shared.keyspace.partitions[stolen].subscription_owner("work")
            shared.client.fcall("muster_claim_1", 1, key, "thief", "nonce", 60_000, "1")
            error = refused(member.ack, Conflict, "SHARE_LOST")
            assert error.facts["partitions"] == [stolen]
            member.ack()
            since = rest(member)
            assert stolen not in {shared.keyspace.partition_of(delivery.session) for delivery in since}
            found += since
            member.ack()
            others = {s: seq for s, seq in everything(log).items() if shared.keyspace.partition_of(s) != stolen}
            kept = seqs(found)
            assert {session: seq for session, seq in kept.items() if session in others} == others


def test_asyncio_members_are_as_good(shared: Store) -> None:
    """Two of them in one event loop, one of which leaves half-way."""
    with shared.open() as log:
        fleet(log, 1)
        left, stayed = asyncio.run(_two_members(shared, sum(map(len, everything(log).values()))))
        assert left
        assert seqs([*left, *stayed]) == everything(log)


async def _two_members(store: Store, total: int) -> tuple[list[Delivery], list[Delivery]]:
    left: list[Delivery] = []
    stayed: list[Delivery] = []
    async with (
        await store.open_async() as log,
        log.subscribe_as("work", after="beginning", ttl_ms=4000) as second,
    ):
        async with log.subscribe_as("work", ttl_ms=4000) as first:
            while len(left) < 30:
                left += [delivery for delivery in [await first.get(timeout_s=0.05)] if delivery is not None]
                await first.ack()
        while len(left) + len(stayed) < total:
            delivery = await second.get(timeout_s=30)
            assert delivery is not None
            stayed.append(delivery)
            await second.ack()
    return left, stayed
