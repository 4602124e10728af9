"""What `muster serve` does beside answering: it looks at all components again and again, and others heed what it finds.

One process a store is meant to run it; where several do, each says the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from threading import Event, Thread
from typing import Final, TypeAlias

import redis

from domain.errors import MusterError
from workers.health.component import Component
from workers.health.looking import Health
from workers.hindrances import Hindrances

logger = logging.getLogger(__name__)

Heed: TypeAlias = Callable[[list[Component]], None]
#: How long the look under way is waited for when it is to end, in seconds; it ends by itself within `health.timeout_s`.
PATIENCE_S: Final = 5.0

#: What is said where it comes to nothing.
UNDONE: Final = "what follows from the state of components could not be done"


class Attending:
    """Looks every `every_s()`; what one of those who heed fails with is said, and keeps no other from it."""

    def __init__(self, health: Health, heeding: Sequence[Heed], *, every_s: Callable[[], float]) -> None:
        self._health = health
        self._heeding = heeding
        self._every_s = every_s
        self._hindrances = Hindrances(logger)
        self._stop = Event()
        self._thread = Thread(target=self._run, name="attending", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(PATIENCE_S)

    def look(self) -> None:
        """One look, and what comes of it."""
        components = self._health.look_shared()
        for heed in self._heeding:
            try:
                heed(components)
            except (MusterError, redis.RedisError, OSError) as error:
                self._hindrances.met("worker.heeding_hindered", UNDONE, error)
            except Exception:
                logger.exception(UNDONE, extra={"action": "worker.heeding_failed"})

    def _run(self) -> None:
        while not self._stop.wait(self._every_s()):
            self.look()
