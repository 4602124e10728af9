"""Nothing is missed and nothing repeated, whatever becomes of the feed and of the connections; what is lost is told."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any, Final, cast

import pytest
import redis

from domain import Append, Damaged, Delivery, Receipt, SessionLog
from domain.log import Connecting, create_store
from domain.log.protocol import together
from domain.log.subscribing.delivery import Place
from domain.log.subscribing.reached import Mark, Reached, given_flow, marks_of
from domain.log.subscribing.stride import LEAST, Stride
from tests.conftest import Servers, Store
from tests.domain.log.logs import Blocking, RunnableLog, note, refused
from tests.domain.log.subscribing.deliveries import everything, fleet, rest, seqs, some
from tests.own_server import OwnServer


class World:
    """A store, a log on it, and what befalls them."""

    def __init__(self, store: Store, log: RunnableLog, seed: int) -> None:
        self.store = store
        self.log = log
        self.chance = random.Random(seed)
        self.seed = seed * 1000

    def append(self) -> None:
        self.seed += 1
        fleet(self.log, self.seed % 3, commits=self.chance.randint(1, 12), sessions=5)

    def trim(self) -> None:
        """Of some feeds the beginning, or all."""
        for keys in self.store.keyspace.partitions:
            if self.chance.random() < 0.5:
                entries = cast("list[Any]", self.store.client.xrange(keys.feed))
                if entries:
                    keep_from = self.chance.choice(entries)[0] if self.chance.random() < 0.7 else b"99999999-0"
                    self.store.client.xtrim(keys.feed, minid=keep_from, approximate=False)

    def delete_feeds(self) -> None:
        for keys in self.store.keyspace.partitions:
            if self.chance.random() < 0.3:
                self.store.client.delete(keys.feed)

    def set_the_clock_back(self) -> None:
        """As far as times go: what was written last is an hour from now."""
        for keys in self.store.keyspace.partitions:
            if self.chance.random() < 0.3:
                at = int(cast("bytes", self.store.client.hget(keys.meta, "at") or 0))
                self.store.client.hset(keys.meta, "at", at + 3_600_000)

    def cut_connections(self) -> None:
        cast("Any", self.store.client).execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


@pytest.fixture(params=["valkey", "valkey-async", "redis7"])
def world(
    request: pytest.FixtureRequest, servers: Servers, make_store: Callable[..., Store], seed: int
) -> Iterator[World]:
    server, _, face = request.param.partition("-")
    store = make_store(servers.url(server), partitions=4)
    log = Blocking(store.open_async) if face else store.open()
    yield World(store, log, seed)
    log.close()


@pytest.mark.parametrize("seed", range(6))
def test_trims_cuts_and_restarts_lose_and_repeat_nothing(world: World) -> None:
    """A subscriber that is handed on as text now and then, while feeds are trimmed, deleted and connections cut."""
    befalls = [world.append] * 4 + [world.trim, world.delete_feeds, world.cut_connections, world.set_the_clock_back]
    found: list[Delivery] = []
    subscription: Any = world.log.subscribe(after="beginning")
    for _ in range(60):
        world.chance.choice(befalls)()
        taken = [subscription.get(timeout_s=0) for _ in range(world.chance.randint(0, 25))]
        found += [delivery for delivery in taken if delivery is not None]
        if world.chance.random() < 0.3:
            position = str(subscription.position)
            subscription.close()
            subscription = world.log.subscribe(after=position)
    found += rest(subscription)
    subscription.close()

    assert seqs(found) == everything(world.log)


@pytest.mark.parametrize("seed", range(3))
def test_a_place_tells_up_to_where_each_session_was_given(world: World) -> None:
    """In the middle of a feed, of a commit, of a pass through the logs, and where there is no feed any more."""
    befalls = [world.append] * 3 + [world.trim, world.delete_feeds]
    subscription: Any = world.log.subscribe(after="beginning")
    found: list[Delivery] = []
    for _ in range(40):
        world.chance.choice(befalls)()
        taken = [subscription.get(timeout_s=0) for _ in range(world.chance.randint(0, 25))]
        found += [delivery for delivery in taken if delivery is not None]
        places = subscription.position.places
        names = list(world.log.sessions())
        flows = [given_flow(name, places[world.store.keyspace.partition_of(name)], None) for name in names]
        told = dict(zip(names, world.log.run(together(flows)), strict=True))
        assert told == dict.fromkeys(names, 0) | {name: given[-1] for name, given in seqs(found).items()}
    subscription.close()


def test_a_mark_is_read_as_it_was_written() -> None:
    """And nothing else is one."""
    marks = {"a": Mark(0), "b": Mark(9_007_199_254_740_992), "c": Mark(7, is_away=True)}
    assert marks_of({name.encode(): str(mark).encode() for name, mark in marks.items()}) == marks
    for stored in (b"", b"-1", b"1.0", b"01", b"7 away ", b"away", b"7\n", b"\xff", b"99999999999999999999"):
        with pytest.raises(Damaged, match=r"^SUBSCRIPTION_DAMAGED:"):
            marks_of({b"s": stored})


def test_where_the_end_of_a_log_is_lost_a_mark_is_where_it_ends(store: Store) -> None:
    """So that what comes at those seqs instead is given."""
    with store.open() as log:
        log.append("s", [note(), note()])
        for kept in (
            Reached(Place(ties={"s": 9}, at_ms=1), {}),
            Reached(Place(), {"s": "7"}),
            Reached(None, {"s": "3"}),
        ):
            assert log.run(kept.mark_flow("s")) == Mark(2)
        assert log.run(Reached(None, {"s": "7 away"}).mark_flow("s")) == Mark(2, is_away=True)
        assert log.run(Reached(Place(at_ms=2**50), {}).mark_flow("never")) == Mark(0)


@pytest.mark.parametrize("seed", range(3))
def test_a_hole_in_the_middle_of_the_feed_loses_nothing(world: World) -> None:
    """Up to it the feed is followed; what it should tell of is read from the logs."""
    for _ in range(6):
        world.append()
    for keys in world.store.keyspace.partitions:
        for entry_id, _ in cast("list[Any]", world.store.client.xrange(keys.feed))[1:]:
            if world.chance.random() < 0.3:
                world.store.client.xdel(keys.feed, entry_id)
    with world.log.subscribe(after="beginning") as subscription:
        assert seqs(rest(subscription)) == everything(world.log)


@pytest.mark.parametrize("seed", range(3))
def test_a_subscriber_to_what_comes_now_is_as_complete(world: World) -> None:
    """From now on, though the feed it began in is gone before it looks."""
    for _ in range(5):
        world.append()
    before = {session: len(found) for session, found in everything(world.log).items()}
    subscription: Any = world.log.subscribe(after="now")
    subscription.get(timeout_s=0)
    for _ in range(4):
        world.append()
        world.trim()
        world.delete_feeds()
    found = rest(subscription)
    subscription.close()

    expected = {session: found[before.get(session, 0) :] for session, found in everything(world.log).items()}
    assert seqs(found) == {session: found for session, found in expected.items() if found}


@pytest.mark.parametrize("seed", [1])
def test_a_long_session_is_found_again_after_a_trim(world: World) -> None:
    """Where the place is within it is found by halving, not by reading it all."""
    receipts = [world.log.append("long", note()) for _ in range(700)]
    with world.log.subscribe(after="beginning") as subscription:
        assert len(some(subscription, 650)) == 650
        for keys in world.store.keyspace.partitions:
            world.store.client.delete(keys.feed)
        world.log.append("long", note())
        position = str(subscription.position)
    with world.log.subscribe(after=position) as again:
        assert [delivery.seq for delivery in rest(again)] == list(range(651, len(receipts) + 2))


def test_a_busy_partition_keeps_nobody_from_being_read(store: Store) -> None:
    """Also where so little can be read at a time that partitions take turns."""
    names = {store.keyspace.partition_of(name): name for name in (f"s{number}" for number in range(1000))}
    first, last = names[min(names)], names[max(names)]
    with store.open() as log, log.subscribe(after="beginning") as subscription:
        cast("Any", subscription)._stride = Stride(LEAST)
        log.append(last, note())
        given = []
        for _ in range(2 * len(names)):
            log.append(first, note())
            given += some(subscription, 1)
        assert last in {delivery.session for delivery in given}


@pytest.mark.parametrize("share", [1.0, 0.15, LEAST])
@pytest.mark.parametrize("has_feeds", [True, False])
def test_a_page_that_breaks_off_is_read_again_whole(
    make_store: Callable[..., Store], server_url: str, share: float, *, has_feeds: bool
) -> None:
    """After any number of exchanges, while partitions are read side by side: some are done before others."""
    store = make_store(server_url, partitions=2)
    with store.open() as log:
        for number in range(100):
            log.append("long", note())
            log.append(f"s{number % 20}", note())
        with log.subscribe(after="beginning") as subscription:
            reader = cast("Any", subscription)._reader
            given = some(subscription, 150)
            given += [item.delivery for item in cast("Any", subscription)._page if item.take() is not None]
            cast("Any", subscription)._page.clear()
            for number in range(20):
                few = [Append(f"s{10 + (number + one) % 20}", (note(),)) for one in (0, 0, 0, 7)]
                assert all(isinstance(answer, Receipt) for answer in log.append_many(few))
            if not has_feeds:
                for keys in store.keyspace.partitions:
                    store.client.delete(keys.feed)
            reader.news.update(range(store.keyspace.count))
            breaks_after = 0
            while (page := _page_of(log, reader, Stride(share), breaks_after := breaks_after + 1)) is not None:
                if page is not _BROKEN:
                    breaks_after = 0
                    given += [item.delivery for item in page if item.take() is not None]
        assert seqs(given) == everything(log)


_BROKEN: Final[list[Any]] = []


def _page_of(log: SessionLog, reader: Any, stride: Stride, breaks_after: int) -> list[Any] | None:
    """The next page, unless it takes so many exchanges: then the connection broke in the last of them."""
    flow = reader.next_page(stride)
    answers = None
    try:
        for _ in range(breaks_after):
            # The answers to the last one do not come any more.
            answers = log._exchange(next(flow) if answers is None else flow.send(answers))
    except StopIteration as done:
        return cast("list[Any] | None", done.value)
    return _BROKEN


def test_a_waiting_subscriber_outlives_its_server(tmp_path: Path) -> None:
    """The server is killed and started again, twice; who waits hears of what is appended afterwards, and of all."""
    server = OwnServer(tmp_path / "server", "--appendonly", "yes", "--appendfsync", "always", kind="valkey")
    server.start()
    try:
        with server.client() as client:
            create_store(client, environment="test", partitions=4)
        connecting = Connecting(server.url, timeout_s=2.0, retry_for_s=60.0)
        found: list[Delivery] = []
        with (
            SessionLog.open(connecting, environment="test") as log,
            log.subscribe() as everywhere,
            log.subscribe("s") as one,
        ):
            waiting = [
                Thread(target=lambda subscription=subscription: found.extend(some(subscription, 3)))
                for subscription in (everywhere, one)
            ]
            for thread in waiting:
                thread.start()
            for _ in range(2):
                log.append("s", note())
                server.kill()
                server.start()
            log.append("s", note())
            for thread in waiting:
                thread.join(60)
            assert sorted(delivery.seq for delivery in found) == [1, 1, 2, 2, 3, 3]
    finally:
        server.stop()


@pytest.fixture
def forgetful(tmp_path: Path) -> Iterator[OwnServer]:
    """A server that keeps what it last saved, and nothing else."""
    server = OwnServer(tmp_path / "server", kind="valkey")
    server.start()
    with server.client() as client:
        create_store(client, environment="test", partitions=2)
    yield server
    server.stop()


def forget(server: OwnServer) -> None:
    server.kill()
    server.start()


def save(server: OwnServer) -> None:
    with server.client() as client:
        client.save()


def opened(server: OwnServer) -> SessionLog:
    return SessionLog.open(Connecting(server.url, retry_for_s=30.0), environment="test")


@pytest.mark.parametrize("with_others_in_its_place", [False, True])
@pytest.mark.parametrize("is_resumed", [False, True])
@pytest.mark.parametrize("session", ["s1", None])
def test_a_lost_tail_is_told_until_it_is_accepted(
    forgetful: OwnServer, session: str | None, *, is_resumed: bool, with_others_in_its_place: bool
) -> None:
    """Then the subscription goes on after what the store still holds: nothing of what came since is missed.

    One that was kept as text remembers fewer commits, and may be given some again from before what was lost.
    """
    with opened(forgetful) as log, opened(forgetful) as other:
        for number in range(30):
            log.append(f"s{number % 3}", note())
        subscription = log.subscribe(session, after="beginning")
        kept = rest(subscription)
        save(forgetful)
        for number in range(9):
            log.append(f"s{number % 3}", note())
        lost = rest(subscription)
        assert len(lost) == (9 if session is None else 3)
        forget(forgetful)
        if with_others_in_its_place:
            for number in range(12):
                other.append(f"s{number % 3}", note())
        if is_resumed:
            subscription = other.subscribe(session, after=str(subscription.position))
        code = "FORK" if with_others_in_its_place else "TAIL_LOST"
        refused(lambda: rest(subscription), Damaged, code)
        error = refused(lambda: rest(subscription), Damaged, code)
        assert {(delivery.session, delivery.seq) for delivery in lost} >= set(error.facts["lost"])
        assert error.facts["lost"]

        subscription.accept_loss()
        other.append("s1", note())
        since = rest(subscription)
        subscription.close()

        known = {(delivery.session, delivery.seq, delivery.digest) for delivery in kept}
        repeated = [one for one in since if (one.session, one.seq, one.digest) in known]
        assert is_resumed or not repeated
        held = everything(other)
        assert seqs([*kept, *(one for one in since if one not in repeated)]) == (
            held if session is None else {session: held[session]}
        )


def test_a_receipt_that_is_lost_is_no_place_to_go_on_from(forgetful: OwnServer) -> None:
    """Whoever subscribes after it is told, also where other commits stand in its place."""
    with opened(forgetful) as log:
        log.append("s", note())
        save(forgetful)
        receipt = log.append("s", note())
        forget(forgetful)
    with opened(forgetful) as other, other.subscribe("s", after=receipt) as subscription:
        refused(lambda: rest(subscription), Damaged, "TAIL_LOST")
        other.append("s", note())
        refused(lambda: rest(subscription), Damaged, "FORK")


@pytest.mark.parametrize("is_resumed", [False, True])
def test_of_what_was_written_in_one_ms_any_may_have_been_the_last(
    make_store: Callable[..., Store], server_url: str, *, is_resumed: bool
) -> None:
    """Read by sessions it comes in another order than it was written in, and a loss takes what was written last."""
    store = make_store(server_url, partitions=1)
    with store.open() as log:
        assert all(
            isinstance(one, Receipt) for one in log.append_many([Append("b", (note(),)), Append("a", (note(),))])
        )
        store.client.delete(store.keyspace.partitions[0].feed)
        subscription = log.subscribe(after="beginning")
        assert [delivery.session for delivery in rest(subscription)] == ["a", "b"]
        if is_resumed:
            subscription = log.subscribe(after=str(subscription.position))
        store.client.delete(store.keyspace.of("a").log("a"))
        error = refused(lambda: rest(subscription), Damaged, "TAIL_LOST")
        assert error.facts["session"] == "a"
        subscription.close()


def test_a_place_from_before_a_loss_that_it_did_not_see_just_goes_on(forgetful: OwnServer) -> None:
    """What was lost was never delivered, so there is nothing to tell."""
    with opened(forgetful) as log, log.subscribe(after="beginning") as subscription:
        log.append("s", note())
        found = rest(subscription)
        save(forgetful)
        log.append("s", note())
        position = str(subscription.position)
        forget(forgetful)
    with opened(forgetful) as other, other.subscribe(after=position) as again:
        other.append("s", [note(), note()])
        found += rest(again)
        assert seqs(found) == {"s": [1, 2, 3]}


def test_what_the_feed_tells_of_and_the_log_lacks_is_told_and_others_go_on(store: Store) -> None:
    """One delivery says so, whatever is wanted; the trouble of a session stays its own."""
    with store.open() as log, log.subscribe(after="beginning", actors="agent-1") as subscription:
        log.append("s", [note(), note()])
        log.append("s", note())
        log.append("other", note())
        store.client.xdel(store.keyspace.of("s").log("s"), "2-2")
        found = rest(subscription)

    broken = [delivery for delivery in found if delivery.error is not None]
    assert [(delivery.session, delivery.seq, delivery.event) for delivery in broken] == [("s", 1, None)]
    assert isinstance(broken[0].error, Damaged)
    assert broken[0].error.code == "LOG_GAP"
    assert seqs(delivery for delivery in found if delivery.error is None) == {"s": [3], "other": [1]}


def test_one_session_is_delivered_up_to_where_its_log_is_damaged(store: Store) -> None:
    with store.open() as log:
        for number in range(6):
            log.append("gap", note(f"g{number}"))
            log.append("changed", note(f"c{number}"))
        key = store.keyspace.of("changed").log("changed")
        entry = dict(cast("list[tuple[bytes, dict[bytes, bytes]]]", store.client.xrange(key, "4", "4"))[0][1])
        store.client.xdel(store.keyspace.of("gap").log("gap"), "4-1")
        store.client.delete("elsewhere")
        rewritten = cast("list[tuple[bytes, dict[bytes, bytes]]]", store.client.xrange(key))
        store.client.delete(key)
        for entry_id, fields in rewritten:
            if entry_id == b"4-1":
                fields = entry | {b"b": entry[b"b"].replace(b"c3", b"cX")}
            store.client.xadd(key, cast("Any", fields), entry_id)
        for session, code in (("gap", "LOG_GAP"), ("changed", "LOG_ALTERED")):
            with log.subscribe(session, after=0) as subscription:
                assert [delivery.seq for delivery in some(subscription, 3)] == [1, 2, 3]
                refused(subscription.get, Damaged, code)
                refused(subscription.get, Damaged, code)


def test_who_may_not_read_is_told_so(store: Store) -> None:
    """An outage passes and is waited for; a missing right does not."""
    with store.open() as log, log.subscribe(after="beginning") as subscription:
        log.append("s", note())
        cast("Any", store.client).execute_command("ACL", "SETUSER", "default", "-xrange")
        try:
            with pytest.raises(Exception, match="ACCESS_DENIED") as raised:
                subscription.get(timeout_s=5)
            assert not isinstance(raised.value, redis.RedisError)
        finally:
            cast("Any", store.client).execute_command("ACL", "SETUSER", "default", "+xrange")
        assert seqs(rest(subscription)) == {"s": [1]}
