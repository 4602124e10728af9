"""How long sessions may idle, by the word of all workers that live: the most patient one holds.

Workers on several hosts share the partitions, so a setting that is wrong on one host would end sessions of all others.
Each says what it was told, as part of its sign of life; nobody ends what any of them would still wait for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from msgspec import Struct

from workers.settings import SessionSettings


class Patience(Struct, frozen=True):
    """How long sessions may idle, and are warned, in seconds; for ever where none expires."""

    idle_s: float
    grace_s: float

    @classmethod
    def of(cls, ends: SessionSettings) -> Patience:
        return cls(ends.idle_s if ends.expire else math.inf, ends.grace_s)

    @property
    def told(self) -> dict[str, str]:
        """What a worker says of itself."""
        return {"idle_s": str(self.idle_s), "grace_s": str(self.grace_s)}

    def with_that_of(self, workers: Iterable[Mapping[str, Any]]) -> Patience:
        """The patience of this one and of all these workers; one that says nothing has none."""
        idle_s, grace_s = self.idle_s, self.grace_s
        for worker in workers:
            with suppress(KeyError, ValueError):
                idle_s, grace_s = max(idle_s, float(worker["idle_s"])), max(grace_s, float(worker["grace_s"]))
        return Patience(idle_s, grace_s)
