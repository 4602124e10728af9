"""A circuit breaker: a probe that keeps failing is not repeated with every look, and its last finding stands meanwhile.

    closed → (so many failures in a row) → open → (a wait that doubles) → half-open: one probe → closed, or open again

Only a probe that raised or was silent has failed: one that finds its component down has done its work. What is told
while it is open is what was last found, with since when, and that nobody asks just now: so nothing looks well, or
looks otherwise, because it was not asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from msgspec import structs

from workers.health.component import Component

#: The first wait, in seconds; it doubles with every half-open probe that fails.
FIRST_WAIT_S: Final = 1.0


class Breaker:
    """The breaker of one probe. To be used by one thread at a time; `monotonic` gives seconds."""

    def __init__(
        self, *, failures: int, longest_wait_s: float, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._opens_after = failures
        self._longest_wait_s = longest_wait_s
        self._monotonic = monotonic
        self._failures = 0
        self._asks_from = 0.0
        self._last: Component | None = None

    @property
    def is_open(self) -> bool:
        """Whether the component is not to be asked now."""
        return self._monotonic() < self._asks_from

    @property
    def has_failed(self) -> bool:
        """Whether the probe failed when it was last asked."""
        return self._last is not None

    def held(self) -> Component:
        """What is told without asking."""
        assert self._last is not None
        left_s = max(0.0, self._asks_from - self._monotonic())
        reason = f"{self._last.reason}; asked {self._failures} times in vain, again in {left_s:.0f} s"
        return structs.replace(self._last, reason=reason, is_asked=False, took_s=0.0)

    def answered(self) -> None:
        """The probe did its work, whatever it found."""
        self._failures, self._asks_from, self._last = 0, 0.0, None

    def failed(self, found: Component) -> None:
        """The probe raised, or was silent."""
        self._failures, self._last = self._failures + 1, found
        if self._failures >= self._opens_after:
            doublings = min(self._failures - self._opens_after, 16)
            self._asks_from = self._monotonic() + min(self._longest_wait_s, FIRST_WAIT_S * 2.0**doublings)
