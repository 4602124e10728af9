"""The partitions a worker process holds, and how far each has been handed out.

Shared by three kinds of threads: the lease keeper adds and drops partitions, the feed's consumer hands out one
batch of a partition at a time, and the threads that finished a batch say so. It lives on the broker and not in the
consumer, because a consumer may be replaced while its batches are still in flight.
"""

from __future__ import annotations

import time
from threading import Condition
from typing import Final

from msgspec import Struct

#: How long a partition rests after a batch of it failed; doubles up to the longest.
FIRST_REST_S: Final = 0.1
LONGEST_REST_S: Final = 5.0


class HeldPartition(Struct):
    """A partition under our lease. `position` is where its next batch begins; None: ask the cursor first.

    `careful`: those who held it before died, and its next batch may be what they died of.
    """

    token: str
    position: int | None = None
    busy: bool = False
    leaving: bool = False
    rest_s: float = 0.0
    rests_until: float = 0.0
    careful: bool = False
    #: Nobody looked yet whether sessions wait here for a worker that knows more than the one before.
    is_new: bool = True
    #: When its batch in flight got further, by this process's clock.
    moved_at: float = 0.0


class HeldPartitions:
    """All partitions under our lease."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._held: dict[int, HeldPartition] = {}
        self._closed = False

    def tokens(self) -> dict[int, str]:
        """The partitions and their tokens."""
        with self._changed:
            return {partition: held.token for partition, held in self._held.items()}

    def adopt(self, partition: int, token: str, *, careful: bool = False) -> None:
        """Takes a partition up, under a lease just claimed."""
        with self._changed:
            self._held[partition] = HeldPartition(token, careful=careful)
            self._changed.notify_all()

    def drop(self, partition: int, token: str) -> None:
        """Lets a partition go whose lease was lost or given back; a batch in flight will be refused by its token."""
        with self._changed:
            held = self._held.get(partition)
            if held is not None and held.token == token:
                del self._held[partition]

    def leave(self, count: int) -> dict[int, str]:
        """Stops handing out `count` partitions, and returns those of them that are idle now and may be released."""
        with self._changed:
            for partition in sorted(self._held, reverse=True)[:count]:
                self._held[partition].leaving = True
            idle = {p: held.token for p, held in self._held.items() if held.leaving and not held.busy}
            for partition in idle:
                del self._held[partition]
            return idle

    def stay(self) -> None:
        """Takes back that partitions should leave: they are needed here after all."""
        with self._changed:
            for held in self._held.values():
                held.leaving = False

    def ready(self) -> dict[int, HeldPartition]:
        """The partitions a batch may be read for now."""
        now = time.monotonic()
        with self._changed:
            if self._closed:
                return {}
            return {
                partition: held
                for partition, held in self._held.items()
                if not held.busy and not held.leaving and held.rests_until <= now
            }

    def close(self) -> None:
        """Hands out no batch any more: the process ends."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def is_closed(self) -> bool:
        """Whether the process ends."""
        return self._closed

    def in_flight(self) -> list[int]:
        """The partitions with a batch in flight."""
        with self._changed:
            return sorted(partition for partition, held in self._held.items() if held.busy)

    def positions(self) -> dict[int, int]:
        """Where the cursors of the partitions stand, as far as they were read."""
        with self._changed:
            return {p: held.position for p, held in self._held.items() if held.position is not None}

    def wait_until_idle(self, timeout_s: float) -> None:
        """Waits until no batch is in flight, or the time is over."""
        with self._changed:
            self._changed.wait_for(lambda: not any(held.busy for held in self._held.values()), timeout_s)

    def is_any_busy(self) -> bool:
        """Whether a batch is in flight."""
        with self._changed:
            return any(held.busy for held in self._held.values())

    def wait(self, timeout_s: float) -> None:
        """Waits until a partition came, or a batch was finished, or the time is over."""
        with self._changed:
            self._changed.wait(timeout_s)

    def hand_out(self, partition: int, token: str) -> bool:
        """Marks a batch of the partition as in flight; False if the partition is gone."""
        with self._changed:
            held = self._held.get(partition)
            if self._closed or held is None or held.token != token or held.busy:
                return False
            held.busy, held.moved_at = True, time.monotonic()
            return True

    def goes_on(self, partition: int) -> None:
        """A batch of the partition got further."""
        # Without the lock: it is called for every session, and a number is set whole.
        held = self._held.get(partition)
        if held is not None:
            held.moved_at = time.monotonic()

    def overdue(self, deadline_s: float) -> list[int]:
        """The partitions with a batch in flight that did not get further for so long."""
        late = time.monotonic() - deadline_s
        with self._changed:
            return sorted(partition for partition, held in self._held.items() if held.busy and held.moved_at < late)

    def finished(self, partition: int, token: str, position: int | None) -> None:
        """A batch was applied: the next one begins at `position`."""
        with self._changed:
            held = self._held.get(partition)
            if held is not None and held.token == token:
                held.busy, held.position, held.rest_s, held.careful = False, position, 0.0, False
            self._changed.notify_all()

    def failed(self, partition: int, token: str) -> None:
        """A batch was not applied: the partition rests a while, then its cursor is asked."""
        with self._changed:
            held = self._held.get(partition)
            if held is not None and held.token == token:
                held.rest_s = min(LONGEST_REST_S, held.rest_s * 2 or FIRST_REST_S)
                held.busy, held.position = False, None
                held.rests_until = time.monotonic() + held.rest_s
            self._changed.notify_all()
