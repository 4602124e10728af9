"""Archives, for as long as a worker process runs, what may go of the partitions it holds.

It works beside the feed and needs no memory of the server: no task is written for it, because it must go on where
nothing can be written any more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from threading import Event, Thread
from typing import Final

import redis

from domain.errors import MusterError
from domain.log import SessionLog
from projections.store import ProjectionStore
from workers.archiving.archivist import Archivist
from workers.archiving.choosing import TIGHT, Keeping
from workers.hindrances import Hindrances
from workers.memory import MemoryWatch

logger = logging.getLogger(__name__)

#: How often it is looked while memory is short, in seconds.
SOON_S: Final = 1.0


class Archiving:
    """A thread that archives. It ends with the process: what it is in the middle of, whoever comes next begins anew."""

    def __init__(
        self,
        log: SessionLog,
        store: ProjectionStore,
        held: Callable[[], Iterable[int]],
        keeping: Keeping,
        memory: MemoryWatch,
        *,
        every_s: float,
    ) -> None:
        self._archivist = Archivist(log, store, log.archive)
        self._held = held
        self._keeping = keeping
        self._every_s = every_s
        self._memory = memory
        self._hindrances = Hindrances(logger)

    def start(self, stop: Event) -> None:
        Thread(target=self._run, args=(stop,), name="archiving", daemon=True).start()

    def _run(self, stop: Event) -> None:
        waited_s = 0.0
        while not stop.wait(SOON_S):
            waited_s += SOON_S
            if waited_s >= self._every_s or self._memory.is_short:
                waited_s = 0.0
                self._round(stop)

    def _round(self, stop: Event) -> None:
        before = self._archivist.done.events
        try:
            for partition in list(self._held()):
                if stop.is_set():
                    return
                self._archivist.partition(partition, TIGHT if self._memory.is_short else self._keeping)
        except (MusterError, redis.RedisError, OSError) as error:
            self._hindrances.met("archive.hindered", "nothing can be archived", error)
        except Exception:
            logger.exception("archiving failed", extra={"action": "archive.failed"})
        if self._archivist.done.events > before:
            events = self._archivist.done.events - before
            logger.info("%d events were archived", events, extra={"action": "archive.done", "events": events})
