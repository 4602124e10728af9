"""What becomes of appends while the server's memory is short: first they wait for one another, then they are refused.

Reads, projections and archiving go on, also where all memory is used. What is told to the server lapses by itself a few
seconds later, so nobody is kept waiting by a worker that died.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, Final

from msgspec import Struct

from domain.log.store import Identity
from projections.store import ProjectionStore

logger = logging.getLogger(__name__)

#: How long what is told holds, in ms: some looks.
LASTS_MS: Final = 10_000
#: How long appends to a partition wait for one another, in ms: when it begins, and just before they are refused.
LEAST_WAIT_MS: Final = 5
MOST_WAIT_MS: Final = 1_000
FULL: Final = "full"


class Watermarks(Struct, frozen=True):
    """From which share of the server's `maxmemory` on more is archived, appends wait, appends are refused."""

    early: float
    slow: float
    refuse: float

    def wait(self, used: float) -> str | None:
        """How long appends wait at this share, in ms; `full`: they are refused; None: they do not."""
        if used < self.slow:
            return None
        if used >= self.refuse:
            return FULL
        steepness = MOST_WAIT_MS / LEAST_WAIT_MS
        return str(int(LEAST_WAIT_MS * steepness ** ((used - self.slow) / (self.refuse - self.slow))))


class MemoryWatch:
    """The memory of the server, as this process looks at it for the partitions it holds."""

    def __init__(self, store: ProjectionStore, identity: Identity, watermarks: Watermarks) -> None:
        self._store = store
        self._identity = identity
        self._watermarks = watermarks
        self._told: str | None = None
        self._share = 0.0

    @property
    def is_short(self) -> bool:
        """Whether more is to be archived than else."""
        return self._share >= self._watermarks.early

    def look(self, partitions: Iterable[int]) -> None:
        """Looks, and tells the partitions. Raises redis-py's errors."""
        self._share = used_share(self._store.client.info("memory"))
        wait = self._watermarks.wait(self._share)
        if (wait == FULL) != (self._told == FULL):
            self._say(logging.ERROR, "appends are refused" if wait == FULL else "appends are taken again")
        elif (wait is None) != (self._told is None):
            self._say(logging.WARNING, _told(wait))
        if wait is not None or self._told is not None:
            pipe = self._store.client.pipeline(transaction=False)
            for partition in partitions:
                lasts_ms = 0 if wait is None else LASTS_MS
                pipe.fcall(
                    "muster_press_1", 1, self._store.keys(partition).meta, self._identity.store, lasts_ms, wait or 0
                )
            pipe.execute()
        self._told = wait

    def _say(self, level: int, what: str) -> None:
        about = {"action": "memory.level", "used": round(self._share, 3)}
        logger.log(level, "%.0f %% of the server's memory is used: %s", 100 * self._share, what, extra=about)


def used_share(info: dict[str, Any]) -> float:
    """Which share of `maxmemory` is used, as the server counts it before it refuses writes; 0 where it has no limit."""
    limit = int(info.get("maxmemory", 0))
    if not limit:
        return 0.0
    return max(0, int(info["used_memory"]) - int(info.get("mem_not_counted_for_evict", 0))) / limit


def _told(wait: str | None) -> str:
    return "appends go as ever" if wait is None else f"appends to a partition wait {wait} ms for one another"
