"""What events said of their impact, as sums: how many of each severity, and what it did to performance.

Sums are added, subtracted and merged in any order and come out the same, so a `perf_delta` is no float here but a whole
number of millionths. What is no severity or no number counts as not said.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any, Final

from msgspec import Struct

SEVERITIES: Final = ("low", "medium", "high", "critical")
#: How many of the units that are summed make one of the producer's.
SCALE: Final = 1_000_000
#: A `perf_delta` beyond this counts as this: then a sum of nine million of them still is a number of 64 bits.
MOST: Final = 1_000_000


class Impacts(Struct, array_like=True, gc=False):
    """What an agent's events in one session said. `perf_delta` is the sum and `lowest` the lowest one, in millionths;
    `lowest` is None where none was said.
    """

    severities: dict[str, int] = {}
    perf_delta: int = 0
    lowest: int | None = None

    def add(self, impact: Mapping[str, Any]) -> None:
        """Counts the impact of one event."""
        severity, delta = impact.get("severity"), units(impact.get("perf_delta"))
        if severity in SEVERITIES:
            self.severities[severity] = self.severities.get(severity, 0) + 1
        if delta is not None:
            self.perf_delta += delta
            self.lowest = delta if self.lowest is None else min(self.lowest, delta)


def units(delta: object) -> int | None:
    """A `perf_delta` in millionths, rounded half up without an error; None for what is no finite number."""
    if isinstance(delta, bool) or not isinstance(delta, (int, float)):
        return None
    if isinstance(delta, float) and not isfinite(delta):
        return None
    over, under = max(-MOST, min(MOST, delta)).as_integer_ratio()
    return (2 * over * SCALE + under) // (2 * under)


def as_number(units: int | None) -> float | None:
    """Millionths as readers get them."""
    return None if units is None else units / SCALE
