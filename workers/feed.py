"""The feed as a Dramatiq queue: a broker whose queue `feed` is read straight from Redis Streams, all others stock.

Theory of operation. The consumer blocks on the feeds of the partitions this process holds, from their cursors, and
gives the actor one message for a batch of sessions. A partition has one batch in flight; its cursor moves in the
same atomic step as the views, so a batch that is lost anywhere on the way is simply read again. Acknowledging is
local: it says where the next batch of the partition begins.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final

import dramatiq
import redis
from dramatiq import Message, MessageProxy
from dramatiq.broker import Consumer
from dramatiq.brokers.redis import RedisBroker

from domain.log.feed import FeedEntry, Span, parse_feed_entry
from projections.catchup import Batch
from projections.store import ProjectionStore
from workers.hindrances import Hindrances
from workers.partitions import HeldPartition, HeldPartitions

logger = logging.getLogger(__name__)

QUEUE: Final = "feed"
ACTOR: Final = "project"

#: How long the consumer blocks when nothing is in flight, in ms: how late a partition that was just claimed is
#: first read.
BLOCK_MS: Final = 100
#: How long it waits between looks while a batch is in flight, in s; a batch that ends wakes it at once.
BUSY_WAIT_S: Final = 0.002
#: How often the cursors of silent partitions are looked at, in s: so late a deleted one is noticed where nothing comes.
CURSOR_LOOK_S: Final = 1.0
#: Feed entries read at a time and partition, and commit bytes in a batch.
READ_ENTRIES: Final = 512
BATCH_BYTES: Final = 4 * 1024 * 1024


class FeedBroker(RedisBroker):
    """Dramatiq's Redis broker, with the feed as one more queue that nobody can enqueue to, for one projection."""

    def __init__(self, store: ProjectionStore, partitions: HeldPartitions, **options: Any) -> None:
        super().__init__(**options)  # type: ignore[no-untyped-call]
        self._store = store
        self._partitions = partitions

    def declare_queue(self, queue_name: str) -> None:
        if queue_name != QUEUE:
            super().declare_queue(queue_name)
        elif queue_name not in self.queues:
            # No delay queue: what the feed cannot do now, it does when it is read again.
            self.emit_before("declare_queue", queue_name)
            self.queues.add(queue_name)
            self.emit_after("declare_queue", queue_name)

    def enqueue(self, message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        if message.queue_name == QUEUE:
            raise ValueError("the feed is filled by appends alone")
        return super().enqueue(message, delay=delay)

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 5000) -> Consumer:
        if queue_name != QUEUE:
            return super().consume(queue_name, prefetch, timeout)
        return FeedConsumer(self._store, self._partitions)


class FeedConsumer(Consumer):
    """Reads batches from the feeds of the held partitions. Never raises: while Redis is away, it waits and tries
    again.
    """

    def __init__(self, store: ProjectionStore, partitions: HeldPartitions) -> None:
        self._store = store
        self._partitions = partitions
        self._read: deque[Batch] = deque()
        self._outage_s = 0.0
        self._hindrances = Hindrances(logger)
        self._next_look = 0.0

    def __next__(self) -> MessageProxy | None:
        try:
            if not self._read:
                self._read.extend(self._batches())
            self._outage_s = 0.0
        except (redis.RedisError, OSError) as error:
            self._outage_s = min(1.0, self._outage_s * 2 or 0.05)
            self._hindrances.met("feed.unread", "the feed cannot be read", error)
            self._partitions.wait(self._outage_s)
            return None
        while self._read:
            batch = self._read.popleft()
            if self._partitions.hand_out(batch.partition, batch.token):
                about = {"action": "feed.batch", "partition": batch.partition, "sessions": len(batch.spans)}
                text = "a batch of partition %d: %s to %s, of %d sessions"
                place = (batch.partition, batch.cursor_from, batch.cursor_to)
                logger.debug(text, *place, len(batch.spans), extra=about)
                return MessageProxy(Message(QUEUE, ACTOR, (batch,), {}, {}))
        return None

    def ack(self, message: MessageProxy) -> None:
        batch: Batch = message.args[0]
        self._partitions.finished(batch.partition, batch.token, batch.cursor_to)

    def nack(self, message: MessageProxy) -> None:
        batch: Batch = message.args[0]
        self._partitions.failed(batch.partition, batch.token)

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        for message in messages:
            self.nack(message)

    def _batches(self) -> list[Batch]:
        ready = self._partitions.ready()
        if not ready:
            self._partitions.wait(BLOCK_MS / 1000)
            return []
        unknown = {partition: held for partition, held in ready.items() if held.position is None}
        if unknown:
            return self._begin(unknown)
        busy = self._partitions.is_any_busy()
        feeds = {self._store.keys(partition).feed: partition for partition in ready}
        positions = {feed: f"{ready[partition].position}-0" for feed, partition in feeds.items()}
        found = self._store.client.xread(positions, count=READ_ENTRIES, block=None if busy else BLOCK_MS)
        if not found and busy:
            self._partitions.wait(BUSY_WAIT_S)
        batches = []
        for name, entries in found:
            partition = feeds[name.decode()]
            batches.append(batch_of(partition, ready.pop(partition), map(parse_feed_entry, entries)))
        self._look_at_cursors(ready)
        return batches

    def _look_at_cursors(self, silent: dict[int, HeldPartition]) -> None:
        """Takes partitions up anew whose feed is silent though not everything is applied, or whose cursor was moved.

        Silence proves nothing: whoever waits beyond the end of a feed waits for ever. What is derived may be
        deleted any time, and a server that was started again, or restored, may have lost the end of the feed and
        the last steps.
        """
        # Here and not in the lease keeper: only the thread that hands batches out may change where the next one begins.
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + CURSOR_LOOK_S
        unbuilt = self._store.unbuilt(list(silent))
        for partition, (position, total) in self._store.standing(silent).items():
            if partition in unbuilt or not position == silent[partition].position == total:
                silent[partition].position = None

    def _begin(self, unknown: dict[int, HeldPartition]) -> list[Batch]:
        """Asks the cursors of partitions that were just taken up, and has sessions tried that waited for this worker.

        One whose cursor or feed cannot say what is new is compared with its registry and log first.
        """
        batches = []
        new = [partition for partition, held in unknown.items() if held.is_new]
        for partition, names in (self._store.waiting(new) if new else {}).items():
            batches.append(Batch(partition, unknown[partition].token, None, None, [], retry=names))
        for partition in new:
            unknown[partition].is_new = False
        for batch in batches:
            del unknown[batch.partition]
        unbuilt = self._store.unbuilt(list(unknown))
        for partition, (position, total) in self._store.standing(unknown).items():
            held = unknown[partition]
            is_known = position is not None and partition not in unbuilt
            if is_known and (position == total or self._store.feed_goes_on(partition, position or 0, total)):
                held.position = position
            else:
                batches.append(Batch(partition, held.token, position, None, [], held.careful))
        return batches


def batch_of(partition: int, held: HeldPartition, entries: Iterable[FeedEntry]) -> Batch:
    """A batch of feed entries: as many as BATCH_BYTES allows, but at least one; spans of one session become one.

    The positions in the feed are running totals. Where they do not add up, entries are missing: then the batch says
    so by having no end, and the partition is compared with its registry instead.
    """
    assert held.position is not None
    spans: dict[str, Span] = {}
    position, size = held.position, 0
    for entry in entries:
        entry_size = sum(span.size for span in entry.spans)
        if spans and size + entry_size > BATCH_BYTES:
            break
        if entry.position - position != entry.events:
            about = {"action": "feed.gap", "partition": partition, "position": position}
            logger.error("the feed of partition %d has a gap after position %d", partition, position, extra=about)
            return Batch(partition, held.token, held.position, None, [], held.careful)
        for span in entry.spans:
            known = spans.get(span.session)
            spans[span.session] = span if known is None else Span(span.session, known.from_seq, span.to_seq)
        position, size = entry.position, size + entry_size
    return Batch(partition, held.token, held.position, position, list(spans.values()), held.careful)


def declare_project_actor(
    broker: FeedBroker, project: Callable[[Batch], None], throws: tuple[type[Exception], ...]
) -> None:
    """Makes `project` the actor of the feed. A batch that fails is not retried as a message: the feed is read again."""
    dramatiq.actor(broker=broker, queue_name=QUEUE, actor_name=ACTOR, max_retries=0, throws=throws)(project)
