"""Trimming the feed: what every own cursor has left behind long enough ago is dropped, and nothing else.

The feed only points at commits, so what is dropped is no truth: a cursor that is deleted, or rolled back behind what is
left, is noticed by positions that do not add up, and its partition is compared with registry and log instead. How many
entries there are never decides; an entry goes because it is applied and old.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from domain.log.feed import parse_feed_entry
from projections.own.publishing import Publications, positions
from projections.store import ProjectionStore
from projections.subscriptions import durable_places

#: How many of the oldest entries of a feed are looked at in one round trip.
LOOK_AT: Final = 512
#: How many such rounds one call makes, so that a long backlog of entries does not keep its caller.
ROUNDS: Final = 32


def trim_feeds(store: ProjectionStore, partitions: Iterable[int], *, keep_s: float, pin_s: float = 0.0) -> int:
    """Drops the entries of feeds that are behind the cursor and older than `keep_s`; returns how many.

    The cursors of own projections, and the places of durable subscriptions, pin what is after them for `pin_s`, if that
    is longer: whoever needs more time finds out by the positions, and reads registry and log. The newest entry that
    could go stays, so that a feed always tells where it was cut. Ages are server time: a validator that began before a
    cursor moved on still finds what it compares with.
    """
    seconds, micros = store.client.time()
    now = seconds * 1000 + micros // 1000
    before_ms, unpinned_ms = now - int(keep_s * 1000), now - int(max(keep_s, pin_s) * 1000)
    versions = Publications(store.client, store.keyspace).versions()
    pins = positions(store.client, store.keyspace, versions) if versions else {}
    dropped, pending = 0, list(partitions)
    for partition, places in durable_places(store.client, store.keyspace, pending).items():
        acknowledged = [place.total for _, place in places if place is not None and place.total >= 0]
        pins[partition] = [*pins.get(partition, ()), *acknowledged]
    for _ in range(ROUNDS):
        if not pending:
            break
        dropped_here, pending = _trim_once(store, pending, pins, before_ms, unpinned_ms)
        dropped += dropped_here
    return dropped


def _trim_once(
    store: ProjectionStore, partitions: list[int], pins: dict[int, list[int]], before_ms: int, unpinned_ms: int
) -> tuple[int, list[int]]:
    """One round: how many entries were dropped, and which partitions may have more of them."""
    standing = store.standing(partitions)
    pipe = store.client.pipeline(transaction=False)
    for partition in partitions:
        pipe.xrange(store.keys(partition).feed, "-", "+", count=LOOK_AT)
    replies = pipe.execute(raise_on_error=False)
    cuts, unfinished = store.client.pipeline(transaction=False), []
    for partition, entries in zip(partitions, replies, strict=True):
        position, total = standing[partition]
        # A cursor ahead of its total contradicts it: then nobody knows what is applied.
        if position is None or position > total or not isinstance(entries, list):
            continue
        last = None
        pinned = min(pins.get(partition, ()), default=total)
        for entry in map(parse_feed_entry, entries):
            youngest_ms = before_ms if entry.position <= pinned else unpinned_ms
            if entry.position > position or not 0 < entry.at_ms < youngest_ms:
                break
            last = entry.position
        if last is None:
            continue
        cuts.xtrim(store.keys(partition).feed, minid=f"{last}-0", approximate=False)
        if len(entries) == LOOK_AT:
            unfinished.append(partition)
    counts = cuts.execute() if len(cuts) else []
    # Only where something went: an entry that stays at the front for ever must not be looked at again and again.
    return sum(counts), [partition for partition in unfinished if sum(counts)]
