"""How far the views are behind the log: a comparison of two numbers a partition, never an absence of messages."""

from __future__ import annotations

from msgspec import Struct

from projections import session_view
from projections.lease import Leases
from projections.store import ProjectionStore, parse_position


class PartitionLag(Struct, frozen=True):
    """A partition: events its log ever took (`total`), applied (`position`), the difference, and who works on it.

    `seconds` is the age of the oldest event that is not applied yet, by the server's clock.
    """

    partition: int
    total: int
    position: int
    events: int
    seconds: float
    owner: str | None


class Lag(Struct, frozen=True):
    """All partitions, and their sums: events behind, the longest wait in seconds, events applied."""

    events: int
    seconds: float
    applied: int
    partitions: list[PartitionLag]


def lag(store: ProjectionStore) -> Lag:
    """The lag now."""
    client = store.client
    seconds, micros = client.time()
    now = seconds * 1000 + micros // 1000
    owners = Leases(client, store.keyspace, "").owners()
    pipe = client.pipeline(transaction=False)
    for keys in store.keyspace.partitions:
        # The cursor is asked first: a total that is read later is never behind it.
        pipe.hget(keys.cursor(session_view.NAME, session_view.VERSION), "position")
        pipe.hget(keys.meta, "total")
    replies = pipe.execute(raise_on_error=False)
    parts = []
    for partition, owner in enumerate(owners):
        position, total = parse_position(replies[2 * partition]) or 0, int(replies[2 * partition + 1] or 0)
        # A cursor ahead of its total says nothing: the total was rolled back, and all it counts is in doubt.
        behind = total - position if position <= total else max(1, total)
        waited = store.oldest_after(partition, position) if behind else None
        parts.append(
            PartitionLag(
                partition,
                total,
                position,
                behind,
                max(0, now - waited) / 1000 if waited is not None else 0.0,
                owner[0] if owner is not None and owner[1] > now else None,
            )
        )
    return Lag(
        sum(part.events for part in parts),
        max(part.seconds for part in parts),
        sum(part.position for part in parts),
        parts,
    )
