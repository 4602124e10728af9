"""Since when a process watches each of its partitions without a gap.

Who says that something did not come must have been there to see it come. After this process began, took a partition
over, could not reach the server, or saw the server's clock jump, it has seen nothing yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

#: How far the server's clock may run beside ours from one look to the next, in ms.
JUMP_MS: Final = 2_000


class Vigil:
    """The partitions that are watched, each since a time of the server's clock. `monotonic` gives seconds."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._looked: tuple[int, float] | None = None
        self.since: dict[int, int] = {}

    def look(self, now: int, partitions: Sequence[int]) -> None:
        """Takes note that these partitions are being looked at; `now` by the server's clock, in ms."""
        before, self._looked = self._looked, (now, self._monotonic())
        if before is not None and abs((now - before[0]) - (self._looked[1] - before[1]) * 1000) > JUMP_MS:
            self.since = {}
        self.since = {partition: self.since.get(partition, now) for partition in partitions}

    def broke(self) -> None:
        """A look failed: what came meanwhile was not seen."""
        self.since = {}
