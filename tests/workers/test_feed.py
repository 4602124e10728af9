"""The feed as workers read it: batches that miss nothing, and what becomes of a feed that lost something."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import dramatiq
import pytest
from dramatiq.middleware import Retries
from hypothesis import given
from hypothesis import strategies as st

from domain.log.feed import FeedEntry, Span
from tests.conftest import Store
from tests.projections.world import World, did, foreign_append, notes
from tests.waiting import wait_until
from workers.feed import BATCH_BYTES, QUEUE, FeedBroker, FeedConsumer, batch_of, declare_project_actor
from workers.partitions import HeldPartition, HeldPartitions

HELD = HeldPartition("1-a", 0)


@st.composite
def feeds(draw: st.DrawFn) -> list[FeedEntry]:
    """A feed without gaps: entries of one to three spans, of a few sessions."""
    seqs: dict[str, int] = {}
    position, entries = 0, []
    for _ in range(draw(st.integers(1, 12))):
        spans = []
        for session in draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=3)):
            first = seqs.get(session, 0) + 1
            seqs[session] = last = first + draw(st.integers(0, 3))
            spans.append(Span(session, first, last, draw(st.sampled_from([10, BATCH_BYTES // 3]))))
            position += last - first + 1
        entries.append(FeedEntry(position, 1, spans))
    return entries


@given(entries=feeds())
def test_batches_hold_every_event_once(entries: list[FeedEntry]) -> None:
    """Batch after batch, each session's spans follow on each other, and no batch is larger than it may be."""
    total = entries[-1].position
    seqs: dict[str, int] = {}
    position = 0
    while position < total:
        rest = [entry for entry in entries if entry.position > position]
        batch = batch_of(3, HeldPartition("1-a", position), rest)
        assert (batch.partition, batch.token, batch.cursor_from) == (3, "1-a", position)
        assert batch.cursor_to is not None
        applied = [entry for entry in rest if entry.position <= batch.cursor_to]
        assert applied[-1].position == batch.cursor_to, "a batch ends where an entry ends"
        assert len(applied) == 1 or sum(span.size for entry in applied for span in entry.spans) <= BATCH_BYTES
        assert len({span.session for span in batch.spans}) == len(batch.spans)
        for span in batch.spans:
            assert span.from_seq == seqs.get(span.session, 0) + 1
            seqs[span.session] = span.to_seq
        assert sum(seqs.values()) == batch.cursor_to
        position = batch.cursor_to


@given(entries=feeds(), lost=st.integers(0))
def test_a_lost_entry_never_goes_unnoticed(entries: list[FeedEntry], lost: int) -> None:
    """Whichever entry is missing, no batch passes its place: at the latest, the one that reaches it has no end."""
    gone = entries[lost % len(entries)]
    rest = [entry for entry in entries if entry is not gone]
    before = gone.position - gone.events
    position = 0
    while (left := [entry for entry in rest if entry.position > position]) and (
        batch := batch_of(0, HeldPartition("1-a", position), left)
    ).cursor_to is not None:
        position = batch.cursor_to
    assert position <= before
    if gone is not entries[-1]:
        assert left


def test_one_entry_is_a_batch_however_large() -> None:
    """What is larger than a batch may be is a batch of its own."""
    entries = [FeedEntry(1, 1, [Span("a", 1, 1, 3 * BATCH_BYTES)]), FeedEntry(2, 1, [Span("b", 1, 1, 1)])]

    assert batch_of(0, HELD, entries).cursor_to == 1


# -- a feed that lost something, and real workers ----------------------------------------------------------------------


@pytest.fixture
def world(server_url: str, make_store: Callable[..., Store]) -> World:
    return World(make_store(server_url, partitions=4))


def cut_entry(world: World) -> None:
    """An entry in the middle is gone."""
    for keys in world.keyspace.partitions:
        entries = world.redis.xrange(keys.feed)
        world.redis.xdel(keys.feed, entries[-3][0])


def cut_end(world: World) -> None:
    """The last entries are gone, and nothing is appended after them."""
    for keys in world.keyspace.partitions:
        world.redis.xdel(keys.feed, *[entry_id for entry_id, _ in world.redis.xrevrange(keys.feed, count=3)])


def cut_all(world: World) -> None:
    """The whole feed is gone."""
    world.redis.delete(*[keys.feed for keys in world.keyspace.partitions])


def cut_all_and_append(world: World) -> None:
    """The whole feed is gone, and begins anew."""
    cut_all(world)
    world.sessions(20, events=1)


def roll_back(world: World) -> None:
    """The running totals are smaller than what is applied."""
    for keys in world.keyspace.partitions:
        world.redis.hset(keys.meta, "total", 1)


def roll_back_and_cut(world: World) -> None:
    """The running totals are smaller than what is applied, and the feed begins anew behind the cursor."""
    roll_back(world)
    cut_all(world)
    world.sessions(20, events=1)


def garble(world: World) -> None:
    """An entry is there, but cannot be read."""
    for keys in world.keyspace.partitions:
        entries = world.redis.xrange(keys.feed)
        world.redis.delete(keys.feed)
        for number, (entry_id, fields) in enumerate(entries):
            world.redis.xadd(keys.feed, {"c": b"\xc1"} if number == len(entries) - 2 else fields, id=entry_id)


def intrude(world: World) -> None:
    """Somebody wrote into the feed, under an id of his own."""
    for keys in world.keyspace.partitions:
        world.redis.xadd(keys.feed, {"c": b"hello"})
    world.sessions(20, events=1)


LOSSES = (cut_entry, cut_end, cut_all, cut_all_and_append, roll_back, roll_back_and_cut, garble, intrude)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_what_the_feed_lost_is_brought_in_from_the_log(world: World, loss: Callable[[World], None]) -> None:
    """A worker that takes up such a partition skips no event: every view is the fold, and nothing is found."""
    world.sessions(20)
    world.project()
    world.sessions(24, events=2)
    loss(world)

    with world.workers(1):
        wait_until(lambda: world.is_caught_up() and not world.verify(), message="everything is applied")
        world.log.append("s-1", did("broke"))
        world.wait_until_caught_up()

    world.assert_views_are_folds()
    assert world.verify() == []


def test_what_is_lost_under_a_running_worker_is_brought_in_too(world: World) -> None:
    """Cursors vanish, totals are rolled back, and feeds are cut while a worker holds their partitions."""
    world.sessions(20)
    with world.workers(1):
        world.wait_until_caught_up()
        for loss in (cut_all, roll_back, roll_back_and_cut, intrude):
            loss(world)
            wait_until(world.is_caught_up, message=f"all is applied after {loss.__name__}")
            world.assert_views_are_folds()
            world.sessions(20, events=1)
            wait_until(lambda: world.is_caught_up() and not world.verify(), message=f"{loss.__name__} is mended")
            world.assert_views_are_folds()
        world.redis.delete(*world.derived())
        wait_until(lambda: world.is_caught_up() and not world.verify(), message="deleted views come back")
        world.assert_views_are_folds()


def test_a_worker_that_waits_beyond_the_cursor_notices_by_itself(world: World) -> None:
    """The server came back without its last second: the cursor stands further back, and nothing new is appended."""
    with world.workers(1) as (worker,):
        world.wait_until_shared([worker])
        # One commit after the other, so that the worker reads them from the feed: then it has an idea where it is.
        for turn in range(10):
            for number in range(8):
                world.log.append(f"s-{number}", notes(3))
            if turn % 5 == 4:
                world.wait_until_caught_up()
        for keys in world.keyspace.partitions:
            world.redis.hset(keys.cursor("sessions", 2), "position", 0)

        world.wait_until_caught_up()

    world.assert_views_are_folds()
    assert world.verify() == []


def test_a_foreign_producers_poison_stops_nobody_else(world: World) -> None:
    """Sessions of the same partition, and all other partitions, go on while a worker meets undecodable bodies."""
    names = world.sessions(20)
    with world.workers(1):
        world.wait_until_caught_up()
        for name in names[::5]:
            foreign_append(world.store, name, "..", b"\xc1")
        for name in names:
            world.log.append(name, did("tool.called"))
        world.wait_until_caught_up()
        assert {finding.code for finding in world.verify()} == {"EVENT_UNREADABLE"}
        assert [world.views.session(name)["seq"] for name in names] == [3 if n % 5 == 0 else 4 for n in range(20)]


# -- the queue ---------------------------------------------------------------------------------------------------------


@contextmanager
def consuming(world: World, held: HeldPartitions) -> Iterator[FeedConsumer]:
    broker = FeedBroker(world.projections, held, client=world.log.client, middleware=[Retries()])
    declare_project_actor(broker, lambda _: None, throws=())
    consumer = broker.consume(QUEUE)
    assert isinstance(consumer, FeedConsumer)
    with pytest.raises(ValueError, match="appends alone"):
        broker.enqueue(dramatiq.Message(QUEUE, "project", (), {}, {}))
    yield consumer


def next_message(consumer: FeedConsumer) -> dramatiq.MessageProxy:
    """The next message, however often the consumer must be asked for it."""
    found: list[dramatiq.MessageProxy] = []

    def is_there() -> bool:
        message = consumer.__next__()
        if message is not None:
            found.append(message)
        return bool(found)

    wait_until(is_there, message="a batch is read")
    return found[0]


def test_a_partition_has_one_batch_in_flight(world: World) -> None:
    """Until a batch is acknowledged no other of its partition is handed out; a failed one is read again."""
    world.log.append("s", notes(3))
    world.project()
    partition = world.keyspace.partition_of("s")
    held = HeldPartitions()
    held.adopt(partition, "1-a")
    with consuming(world, held) as consumer:
        world.log.append("s", notes(2))
        first = next_message(consumer)
        assert (first.args[0].cursor_from, first.args[0].cursor_to) == (3, 5)
        world.log.append("s", notes(1))
        assert consumer.__next__() is None

        consumer.ack(first)
        second = consumer.__next__()
        assert second is not None
        assert (second.args[0].cursor_from, second.args[0].cursor_to) == (5, 6)

        consumer.nack(second)
        again = next_message(consumer)
        assert again.args[0].cursor_from == 3, "nothing was committed: the cursor still stands where it stood"


def test_a_batch_of_a_lost_partition_is_not_handed_out(world: World) -> None:
    """What was read before a partition went is dropped."""
    world.log.append("s", notes(3))
    partition = world.keyspace.partition_of("s")
    held = HeldPartitions()
    held.adopt(partition, "1-a")
    with consuming(world, held) as consumer:
        consumer._read.extend(consumer._batches())
        assert consumer._read
        held.drop(partition, "1-a")
        assert consumer.__next__() is None
