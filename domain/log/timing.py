"""When commits were sent, noted on their way."""

from __future__ import annotations

from msgspec import Struct


class Timing(Struct):
    """When commits left for the server and were sent, by `time.perf_counter`; later attempts count as sending."""

    left: float
    sent: float = 0.0
