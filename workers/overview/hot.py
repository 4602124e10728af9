"""Which sessions take most events just now, from the last entries of the feeds."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Final

from msgspec import Struct

from domain.log.feed import FeedEntry, parse_feed_entry
from domain.log.keys import Keyspace

#: How far back it is looked, in ms, and at how many entries of a feed at most.
WINDOW_MS: Final = 10_000
ENTRIES: Final = 64
#: How many sessions are told.
HOTTEST: Final = 10


class HotSession(Struct, frozen=True):
    """A session and what came to it in the window: events, bytes of commits, events a second."""

    session: str
    events: int
    bytes: int
    per_s: float


class Heat(Struct, frozen=True):
    """Events a second over all sessions, and the hottest sessions."""

    per_s: float
    sessions: list[HotSession]


def heat(client: Any, keyspace: Keyspace, now_ms: int) -> Heat:
    """What came in the last seconds. Of a feed with more than is read, what is read stands for its own time."""
    pipe = client.pipeline(transaction=False)
    for keys in keyspace.partitions:
        pipe.xrevrange(keys.feed, count=ENTRIES)
    per_s, found = 0.0, defaultdict[str, list[float]](lambda: [0, 0, 0.0])
    for reply in pipe.execute():
        entries = [entry for entry in map(parse_feed_entry, reply) if entry.at_ms > now_ms - WINDOW_MS]
        seconds = _seconds(entries, now_ms, is_full=len(reply) == ENTRIES)
        per_s += sum(entry.events for entry in entries) / seconds
        for span in (span for entry in entries for span in entry.spans):
            events = span.to_seq - span.from_seq + 1
            totals = found[span.session]
            totals[0], totals[1], totals[2] = totals[0] + events, totals[1] + span.size, totals[2] + events / seconds
    hottest = sorted(found.items(), key=lambda one: (-one[1][2], one[0]))[:HOTTEST]
    sessions = [HotSession(name, int(events), int(size), rate) for name, (events, size, rate) in hottest]
    return Heat(per_s, sessions)


def _seconds(entries: list[FeedEntry], now_ms: int, *, is_full: bool) -> float:
    """For how long the entries stand: the window, unless they are not all that came in it."""
    if is_full and len(entries) == ENTRIES:
        return max(1, now_ms - entries[-1].at_ms) / 1000
    return WINDOW_MS / 1000
