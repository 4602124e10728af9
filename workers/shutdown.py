"""How a worker process ends: in phases with names, before a deadline, saying where it stands.

    initiated → draining → checkpointing → cleanup → complete      exit 0
                draining → forced                                  exit 10

Nothing is lost either way: a batch is committed with its cursor in one step or not at all. What is still in flight
when it is forced is refused by its token, because its lease was given back, and read again by whoever takes over.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum
from typing import Final

from workers.partitions import HeldPartitions

#: How often the batches in flight are counted aloud, in seconds.
SAY_EVERY_S: Final = 1.0

FORCED_EXIT: Final = 10


class Phase(Enum):
    """A phase of a shutdown, by the name it is said with."""

    INITIATED = "initiated"
    DRAINING = "draining"
    CHECKPOINTING = "checkpointing"
    CLEANUP = "cleanup"
    COMPLETE = "complete"
    FORCED = "forced"


class Shutdown:
    """The end of one worker process, which holds partitions of one projection or of several.

    It touches nothing but those.
    """

    def __init__(self, *held: HeldPartitions, drain_s: float, say: Callable[[str], None]) -> None:
        self._held = held
        self._say = say
        self._deadline = time.monotonic() + drain_s
        self.phase = Phase.INITIATED
        self._enter(Phase.INITIATED, f"{drain_s:g} s to finish what is in flight")

    def drain(self) -> bool:
        """Hands out no further batch and waits for those in flight; False if the deadline passed first."""
        for partitions in self._held:
            partitions.close()
        while busy := [partitions for partitions in self._held if partitions.is_any_busy()]:
            in_flight = [partition for partitions in busy for partition in partitions.in_flight()]
            left_s = self._deadline - time.monotonic()
            if left_s <= 0:
                at = ", ".join(map(str, in_flight))
                self._enter(Phase.FORCED, f"past the deadline; still in flight: partitions {at}")
                return False
            self._enter(Phase.DRAINING, f"{len(in_flight)} batches in flight, {left_s:.1f} s left")
            busy[0].wait_until_idle(min(SAY_EVERY_S, left_s))
        positions = self._held[0].positions()
        self._enter(
            Phase.CHECKPOINTING,
            f"all that was handed out is committed with its cursor, in {len(positions)} partitions: "
            + (", ".join(f"{partition} at {position}" for partition, position in sorted(positions.items())) or "none"),
        )
        return True

    def clean_up(self, give_back: Callable[[], int]) -> None:
        """Gives the leases back, so that others take over at once."""
        if self.phase is not Phase.FORCED:
            self._enter(Phase.CLEANUP, "giving the leases back")
        count = give_back()
        self._say(f"{self.phase.value}: gave {count} leases back")

    def complete(self) -> int:
        """The last word; returns the exit code."""
        if self.phase is Phase.FORCED:
            return FORCED_EXIT
        self._enter(Phase.COMPLETE, "nothing is left to do")
        return 0

    def _enter(self, phase: Phase, text: str) -> None:
        self.phase = phase
        self._say(f"{phase.value}: {text}")
