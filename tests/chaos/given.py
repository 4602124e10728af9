"""What a subscriber was given, counted: an event is a byte, so that an hour's worth of them is no load of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from msgspec import Struct


class Tally(Struct):
    """What came of one way to subscribe: of so many events, how many arrived, are missing, came again, or too early."""

    of: int
    delivered: int
    lost: int
    repeated: int
    disordered: int

    @property
    def is_perfect(self) -> bool:
        """Each once and in order, and nothing else."""
        return self.delivered == self.of and not (self.lost or self.repeated or self.disordered)


class Given:
    """How often each event was given."""

    def __init__(self) -> None:
        self._counts: dict[str, bytearray] = {}
        self._last: dict[str, int] = {}
        self._disordered = 0
        #: How many different events there were.
        self.count = 0

    def add(self, session: str, seq: int) -> None:
        counts = self._counts.setdefault(session, bytearray())
        if len(counts) <= seq:
            counts.extend(bytes(seq - len(counts) + 256))
        self.count += not counts[seq]
        counts[seq] = min(255, counts[seq] + 1)
        last = self._last.get(session, 0)
        self._disordered += seq < last
        self._last[session] = max(seq, last)

    def tally(self, ends: Mapping[str, int], is_wanted: Callable[[str, int], bool]) -> Tally:
        """Held against sessions that go up to these seqs. What was given and is not wanted counts as repeated."""
        wanted = delivered = repeated = 0
        for session, end in ends.items():
            counts = self._counts.get(session, b"")
            for seq in range(1, max(end + 1, len(counts))):
                times = counts[seq] if seq < len(counts) else 0
                should = int(seq <= end and is_wanted(session, seq))
                wanted += should
                delivered += bool(times and should)
                repeated += max(0, times - should)
        return Tally(wanted, delivered, wanted - delivered, repeated, self._disordered)
