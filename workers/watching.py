"""Watches from outside whether the partitions move: who is stuck cannot say so.

Runs in the process that keeps the workers alive, on a connection of its own, and says a line whenever a partition
becomes stuck or has no worker, and when it moves again.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Event, Thread
from typing import Final

import redis

from projections.lag import NO_WORKER, STUCK, STUCK_AFTER_S, Lag, lag
from projections.store import ProjectionStore

#: How often it looks, in seconds.
LOOK_EVERY_S: Final = 2.0


class Watch:
    """Says what changed from one look to the next. While the server is away it says nothing: others do."""

    def __init__(self, store: ProjectionStore, say: Callable[[str], None]) -> None:
        self._store = store
        self._say = say
        self._trouble: dict[int, str] = {}
        self._stop = Event()
        self._thread = Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def look(self, found: Lag) -> None:
        """Compares what is found with the look before."""
        for part in found.partitions:
            # A partition changes hands within a second or two; only one that stays without a worker is trouble.
            forsaken = part.state == NO_WORKER and part.seconds > STUCK_AFTER_S
            trouble = part.state if part.state == STUCK or forsaken else ""
            before = self._trouble.get(part.partition, "")
            if trouble and trouble != before:
                who = f"held by {part.owner}" if part.owner else "nobody holds it"
                self._say(
                    f"partition {part.partition} does not move ({trouble}): {part.events} events behind, "
                    f"the oldest of session {part.session or 'unknown'} since {part.seconds:.0f} s; {who}"
                )
            elif before and not trouble:
                self._say(f"partition {part.partition} moves again: {part.events} events behind")
            self._trouble[part.partition] = trouble

    def _run(self) -> None:
        while not self._stop.wait(LOOK_EVERY_S):
            try:
                found = lag(self._store)
            except (redis.RedisError, OSError):
                continue
            self.look(found)
