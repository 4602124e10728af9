"""How far the views are behind the log: a comparison of two numbers a partition, never an absence of messages.

Nobody is asked whether he works: who is stuck cannot say so. Whether a partition moves is read from its cursor, which
keeps the server's time of its last move, and from the age of what waits.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from projections.lease import Leases
from projections.store import ProjectionStore, parse_position

#: A partition whose oldest event waits longer than this, while its cursor stands still as long, is stuck, in seconds.
STUCK_AFTER_S: Final = 10.0

CAUGHT_UP: Final = "caught up"
MOVING: Final = "moving"
STUCK: Final = "stuck"
NO_WORKER: Final = "no worker"


class PartitionLag(Struct, frozen=True):
    """A partition: events its log ever took (`total`), applied (`position`), the difference, and who works on it.

    `seconds` is the age of the oldest event that is not applied yet, by the server's clock, and `session` the one it
    belongs to. `still_s` is how long the cursor has not moved (None if it never did). `state` is CAUGHT_UP, MOVING,
    STUCK or NO_WORKER.
    """

    partition: int
    total: int
    position: int
    events: int
    seconds: float
    owner: str | None
    session: str | None
    still_s: float | None
    state: str


class Lag(Struct, frozen=True):
    """All partitions, and their sums: events behind, the longest wait in seconds, events applied.

    `session` is the slowest one: whose oldest event waits longest.
    """

    events: int
    seconds: float
    applied: int
    session: str | None
    partitions: list[PartitionLag]

    @property
    def total(self) -> int:
        """Events that the logs ever took."""
        return sum(part.total for part in self.partitions)


def lag(store: ProjectionStore) -> Lag:
    """The lag now."""
    client = store.client
    seconds, micros = client.time()
    now = seconds * 1000 + micros // 1000
    owners = Leases(client, store.keyspace, "", owned=store.owned).owners()
    pipe = client.pipeline(transaction=False)
    for partition, keys in enumerate(store.keyspace.partitions):
        # The cursor is asked first: a total that is read later is never behind it.
        pipe.hmget(store.cursor_key(partition), "position", "at")
        pipe.hget(keys.meta, "total")
    replies = pipe.execute(raise_on_error=False)
    parts = []
    for partition, owner in enumerate(owners):
        cursor = replies[2 * partition]
        position, moved_ms = map(parse_position, cursor) if isinstance(cursor, list) else (None, None)
        position, total = position or 0, int(replies[2 * partition + 1] or 0)
        # A cursor ahead of its total says nothing: the total was rolled back, and all it counts is in doubt.
        behind = total - position if position <= total else max(1, total)
        oldest = store.oldest_after(partition, position) if behind else None
        waited_s = max(0, now - oldest.at_ms) / 1000 if oldest is not None else 0.0
        still_s = max(0, now - moved_ms) / 1000 if moved_ms is not None else None
        holder = owner[0] if owner is not None and owner[1] > now else None
        parts.append(
            PartitionLag(
                partition,
                total,
                position,
                behind,
                waited_s,
                holder,
                oldest.spans[0].session if oldest is not None and oldest.spans else None,
                still_s,
                _state(behind, waited_s, still_s, holder),
            )
        )
    slowest = max(parts, key=lambda part: part.seconds)
    return Lag(
        sum(part.events for part in parts),
        slowest.seconds,
        sum(part.position for part in parts),
        slowest.session,
        parts,
    )


def _state(behind: int, waited_s: float, still_s: float | None, holder: str | None) -> str:
    if not behind:
        return CAUGHT_UP
    if holder is None:
        return NO_WORKER
    # An event that came just now waits for nobody, however long the cursor had nothing to do before.
    is_still = waited_s > STUCK_AFTER_S and (still_s is None or still_s > STUCK_AFTER_S)
    return STUCK if is_still else MOVING


def eta_s(before: Lag, after: Lag, over_s: float) -> float | None:
    """Seconds until the views have caught up, at the pace between two looks; None if they never would."""
    if not after.events:
        return 0.0
    gained = (after.applied - before.applied) - (after.total - before.total)
    return after.events * over_s / gained if gained > 0 else None
