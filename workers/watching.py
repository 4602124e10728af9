"""Watches from outside whether the partitions move: who is stuck cannot say so.

Runs in the process that keeps the workers alive, on a connection of its own, and says a line whenever a partition
becomes stuck or has no worker, and when it moves again: of the built-in views, and of every own projection that readers
get and nobody paused. It also sees when a stop of the fleet is taken back.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Event, Thread
from typing import Final

import redis

from projections.lag import NO_WORKER, STUCK, STUCK_AFTER_S, Lag, lag
from projections.own.publishing import Publications
from projections.own.store import OwnStore
from projections.projection import without_class
from projections.store import ProjectionStore
from workers.halting import Halt, Halting

#: How often it looks, in seconds.
LOOK_EVERY_S: Final = 2.0


class Watch:
    """Says what changed from one look to the next. While the server is away it says nothing: others do.

    `goes_on` is called whenever no stop of the fleet stands.
    """

    def __init__(
        self, store: ProjectionStore, say: Callable[[str], None], *, goes_on: Callable[[], None] = lambda: None
    ) -> None:
        self._store = store
        self._say = say
        self._goes_on = goes_on
        self._halting = Halting(store.client, store.keyspace)
        self._halt: Halt | None = None
        self._publications = Publications(store.client, store.keyspace)
        self._trouble: dict[tuple[str, int], str] = {}
        self._stop = Event()
        self._thread = Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def look(self) -> None:
        """Compares what is found with the look before."""
        if self._is_halted():
            return  # that nothing moves is what was asked for
        self._compare(f"{self._store.name}@{self._store.version}", lag(self._store))
        for version in self._publications.versions():
            if version.is_published and not version.is_paused:
                definition = without_class(version.name, version.version)
                self._compare(version.label, lag(OwnStore(self._store.client, self._store.keyspace, definition)))

    def _is_halted(self) -> bool:
        before, self._halt = self._halt, self._halting.standing()
        if self._halt is None:
            if before is not None:
                self._say("the stop of the fleet is taken back: workers go on")
            self._goes_on()
        elif before is None:
            self._say(f"{self._halt.told}; workers wait for `muster stop --cancel`")
        return self._halt is not None

    def _compare(self, label: str, found: Lag) -> None:
        for part in found.partitions:
            # A partition changes hands within a second or two; only one that stays without a worker is trouble.
            forsaken = part.state == NO_WORKER and part.seconds > STUCK_AFTER_S
            trouble = part.state if part.state == STUCK or forsaken else ""
            before = self._trouble.get((label, part.partition), "")
            if trouble and trouble != before:
                who = f"held by {part.owner}" if part.owner else "nobody holds it"
                self._say(
                    f"{label}: partition {part.partition} does not move ({trouble}): {part.events} events behind, "
                    f"the oldest of session {part.session or 'unknown'} since {part.seconds:.0f} s; {who}"
                )
            elif before and not trouble:
                self._say(f"{label}: partition {part.partition} moves again: {part.events} events behind")
            self._trouble[label, part.partition] = trouble

    def _run(self) -> None:
        while not self._stop.wait(LOOK_EVERY_S):
            try:
                self.look()
            except (redis.RedisError, OSError):
                continue
