"""What a subscription promises, on every log: each seq once and in order, from any place, with any filter."""

from __future__ import annotations

import itertools
import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest

from domain import Delivery, Event, MemoryLog, Misconfigured, Refused, SessionLog
from domain.log import create_store
from domain.log.subscribing.delivery import SubscriptionPosition
from domain.log.subscribing.stride import Stride
from tests.conftest import Store
from tests.domain.log.logs import MakeLog, RunnableLog, new_session, note, refused
from tests.domain.log.subscribing.deliveries import everything, fleet, rest, seqs, some

SEEDS = range(4)


@pytest.mark.parametrize("seed", SEEDS)
def test_from_the_beginning_everything_comes_once_and_in_order(log: RunnableLog, seed: int) -> None:
    """What was there before, and what is written afterwards."""
    fleet(log, seed)
    with log.subscribe(after="beginning") as subscription:
        found = rest(subscription)
        fleet(log, seed + 1000)
        found += rest(subscription)

    assert seqs(found) == everything(log)


def test_a_delivery_tells_where_the_event_stands(log: RunnableLog) -> None:
    session = new_session()
    first = log.append(session, [note("a", n=1), note("b", n=2)])
    second = log.append(session, note("c", n=3), traceparent="00-" + "1" * 32 + "-" + "2" * 16 + "-01")

    with log.subscribe(session, after="beginning") as one, log.subscribe(after="beginning") as all_of_them:
        for subscription in (one, all_of_them):
            a, b, c = [delivery for delivery in rest(subscription) if delivery.session == session]
            assert [d.event.payload() for d in (a, b, c) if d.event is not None] == [{"n": 1}, {"n": 2}, {"n": 3}]
            assert (a.seq, b.seq, c.seq) == (1, 2, 3)
            assert a.digest == b.digest == first.digest
            assert c.digest == second.digest
            assert a.at_ms == first.at_ms
            assert c.at_ms == second.at_ms
            assert c.traceparent is not None
            assert a.traceparent is None


def test_from_now_on_nothing_older_comes(log: RunnableLog) -> None:
    """Not even what was written in the very ms before."""
    for _ in range(20):
        session = new_session()
        log.append(session, note())
        with log.subscribe() as all_of_them, log.subscribe(session) as one:
            log.append(session, note())
            assert seqs(rest(all_of_them)) == {session: [2]}
            assert seqs(rest(one)) == {session: [2]}


def test_from_now_on_is_told_from_the_ms_before_though_the_feed_is_gone() -> None:
    """By the times of commits then: what is written after it began must not bear the time it began at."""
    ticks = itertools.count(8_000)
    log = MemoryLog(clock_ms=lambda: next(ticks) // 8, partitions=1)
    log.append("s", note())
    with log.subscribe() as subscription:
        log.append("s", note())
        log.append("s", note())
        del cast("Any", log)._feeds[0][:-1]
        assert seqs(rest(subscription)) == {"s": [2, 3]}


def test_logs_are_read_up_to_a_time_that_has_passed() -> None:
    """What is written in the very ms up to which they are read would come again by the feed."""
    now = 1000
    log = MemoryLog(clock_ms=lambda: now, partitions=1)
    log.append("s", note())
    log.append("s", note())
    del cast("Any", log)._feeds[0][:1]
    with log.subscribe(after="beginning") as subscription:
        reader = cast("Any", subscription)._reader
        log.run(reader.next_page(Stride()))
        log.append("s", note())
        now = 1001
        assert seqs(rest(subscription)) == {"s": [1, 2, 3]}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_subscription_goes_on_from_any_place(make_log: MakeLog, seed: int) -> None:
    """Its position, kept as text, may fall into the middle of a commit; other programs go on from it."""
    log = make_log()
    fleet(log, seed)
    chance = random.Random(seed)
    found: list[Delivery] = []
    after = "beginning"
    while len(found) < sum(map(len, everything(log).values())):
        with log.subscribe(after=after) as subscription:
            taken = [subscription.get(timeout_s=0) for _ in range(chance.randint(1, 40))]
            found += [delivery for delivery in taken if delivery is not None]
            after = str(subscription.position)
        if chance.random() < 0.3:
            fleet(log, seed, commits=3)

    assert seqs(found) == everything(log)


@pytest.mark.parametrize("seed", SEEDS)
def test_one_session_is_delivered_from_any_seq_on(log: RunnableLog, seed: int) -> None:
    chance = random.Random(seed)
    session = new_session()
    receipts = [log.append(session, [note() for _ in range(chance.randint(1, 4))]) for _ in range(30)]
    last = receipts[-1].last_seq
    seq, receipt = chance.randint(0, last), chance.choice(receipts)

    with log.subscribe(session, after=seq) as by_seq, log.subscribe(session, after=receipt) as by_receipt:
        assert [delivery.seq for delivery in rest(by_seq)] == list(range(seq + 1, last + 1))
        assert [delivery.seq for delivery in rest(by_receipt)] == list(range(receipt.last_seq + 1, last + 1))
        position = by_seq.position
    log.append(session, note())
    with log.subscribe(session, after=position) as again:
        assert [delivery.seq for delivery in rest(again)] == [last + 1]


def test_within_a_commit_one_session_goes_on_with_the_rest_of_it(log: RunnableLog) -> None:
    session = new_session()
    log.append(session, [note() for _ in range(3)])
    log.append(session, note())
    with log.subscribe(session, after=0) as subscription:
        assert seqs(some(subscription, 2)) == {session: [1, 2]}
        position = str(subscription.position)
    with log.subscribe(session, after=position) as again:
        assert seqs(rest(again)) == {session: [3, 4]}


def test_only_what_is_wanted_comes(log: RunnableLog) -> None:
    """By type, prefix of a type, actor, tag, session, and all of these at once."""
    session, other = new_session(), new_session()
    events = [
        Event.of("modified", actor="a", data={"tags": ["x", "y"]}),
        Event.of("tool.called", actor="a", data={"tags": ["x"]}),
        Event.of("tool.called", actor="b"),
        Event.of("tools.bought", actor="b", data={"tags": "x"}),
        Event.of("test_pass", actor="c", data={"tags": ["z"]}),
    ]
    log.append(session, events)
    log.append(other, events)

    def wanted(session: str | None = session, **options: Any) -> list[int]:
        with log.subscribe(session, after="beginning", **options) as subscription:
            found = rest(subscription)
        with log.subscribe(after="beginning", **options) as everywhere:
            assert [d.seq for d in rest(everywhere) if d.session == session] == [d.seq for d in found]
        return [delivery.seq for delivery in found]

    assert wanted(types="tool.called") == [2, 3]
    assert wanted(types="tool.*") == [2, 3]
    assert wanted(types=["modified", "test_pass"]) == [1, 5]
    assert wanted(actors="b") == [3, 4]
    assert wanted(actors={"b", "c"}) == [3, 4, 5]
    assert wanted(tags="x") == [1, 2]
    assert wanted(tags=["y", "z"]) == [1, 5]
    assert wanted(types="tool.*", actors="a", tags="x") == [2]
    assert wanted(actors="nobody") == []


def test_what_nobody_wants_is_passed_and_not_read_again(log: RunnableLog) -> None:
    """The position moves on over what the filter leaves out."""
    session = new_session()
    log.append(session, [note() for _ in range(5)])
    with log.subscribe(actors="nobody", after="beginning") as subscription:
        assert rest(subscription) == []
        position = subscription.position
    log.append(session, Event.of("note.made", actor="nobody"))
    with log.subscribe(after=position) as again:
        assert seqs(rest(again)) == {session: [6]}


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"session": "no session"}, "SESSION_INVALID"),
        ({"types": "modifed"}, "TYPE_UNKNOWN"),
        ({"types": ["tool.called", "Tool.*"]}, "TYPE_UNKNOWN"),
        ({"actors": "a b"}, "ACTOR_INVALID"),
        ({"tags": []}, "FIELD_INVALID"),
        ({"after": 7}, "USAGE"),
        ({"after": "yesterday"}, "POSITION_INVALID"),
        ({"session": "s", "after": -1}, "POSITION_INVALID"),
    ],
)
def test_what_can_never_be_delivered_is_refused(log: RunnableLog, options: dict[str, Any], code: str) -> None:
    """A misspelled subscription would wait for ever."""
    refused(lambda: log.subscribe(**options).get(timeout_s=0), Refused, code)


def test_a_position_belongs_to_what_it_was_taken_from(log: RunnableLog) -> None:
    session, other = new_session(), new_session()
    receipt = log.append(session, note())
    with log.subscribe(session, after=0) as subscription:
        position = str(subscription.position)

    refused(lambda: log.subscribe(other, after=position).get(timeout_s=0), Refused, "POSITION_INVALID")
    refused(lambda: log.subscribe(after=position).get(timeout_s=0), Refused, "POSITION_INVALID")
    refused(lambda: log.subscribe(other, after=receipt).get(timeout_s=0), Refused, "POSITION_INVALID")
    with log.subscribe() as everywhere:
        whole = everywhere.position
    part = SubscriptionPosition(whole.store, whole.epoch, None, {0: whole.places[0]})
    refused(lambda: log.subscribe(after=part).get(timeout_s=0), Refused, "POSITION_INVALID")


def test_a_place_in_another_store_is_none_here(log: RunnableLog) -> None:
    with log.subscribe() as subscription:
        position = subscription.position
    foreign = SubscriptionPosition("another", position.epoch, None, position.places)
    refused(lambda: log.subscribe(after=foreign).get(timeout_s=0), Misconfigured, "STORE_CHANGED")


def test_another_namespace_is_never_heard(store: Store) -> None:
    """The same session ids, on the same server: each subscriber gets its own namespace's, and a misspelled one none."""
    name = store.keyspace.namespace + "2"
    create_store(store.client, environment=store.keyspace.environment, namespace=name, partitions=store.keyspace.count)
    options: dict[str, Any] = {"environment": store.keyspace.environment}
    with (
        store.open() as one,
        SessionLog.open(store.url, **options, namespace=name) as other,
        one.subscribe(after="beginning") as of_one,
        other.subscribe(after="beginning") as of_other,
    ):
        one.append("s", note("in-one"))
        other.append("s", note("in-other"))

        assert [delivery.event.id for delivery in some(of_one, 1) if delivery.event] == ["in-one"]
        assert [delivery.event.id for delivery in some(of_other, 1) if delivery.event] == ["in-other"]
        assert of_one.get(timeout_s=0.2) is None
    refused(lambda: SessionLog.open(store.url, **options, namespace=name + "x"), Misconfigured, "STORE_MISSING")
    for key in list(store.client.scan_iter(match=f"{{{store.keyspace.environment}:{name}:*", count=1000)):
        store.client.delete(key)


def test_a_waiting_thread_is_woken_by_an_append_and_by_closing(store: Store) -> None:
    with store.open() as log, ThreadPoolExecutor(2) as threads:
        one, everywhere = log.subscribe("s"), log.subscribe()
        for subscription in (one, everywhere):
            cast("Any", subscription)._looks_after_s = 90  # it would look for itself
        waiting = [threads.submit(next, subscription, None) for subscription in (one, everywhere)]
        time.sleep(0.1)
        log.append("s", note())
        assert [delivery and delivery.seq for delivery in (one.result(60) for one in waiting)] == [1, 1]

        waiting = [threads.submit(next, subscription, None) for subscription in (one, everywhere)]
        time.sleep(0.1)
        one.close()
        everywhere.close()
        assert [delivery.result(60) for delivery in waiting] == [None, None]
