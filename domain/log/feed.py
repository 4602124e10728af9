"""The feed of a partition: one entry a call of the append function, pointing at the commits it wrote. Does no I/O.

An entry's position is the running total of the partition's events after it, so a gap is arithmetic: an entry begins
where the one before it ended. Times grow in the order of the feed, and a commit bears the time of its entry.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct


class Span(Struct, frozen=True, gc=False):
    """New commits of a session: from the first seq of the first to the last seq of the last, and their bytes."""

    session: str
    from_seq: int
    to_seq: int
    size: int = 0


class FeedEntry(Struct, frozen=True):
    """One call of the append function, as the feed tells it. `position` is the running total of events after it."""

    position: int
    at_ms: int
    spans: list[Span]

    @property
    def begins_after(self) -> int:
        """The running total before it: where the entry before it ended."""
        return self.position - self.events

    @property
    def events(self) -> int:
        """How many events it tells of."""
        return sum(span.to_seq - span.from_seq + 1 for span in self.spans)


_SPANS = msgspec.msgpack.Decoder(list[tuple[str, int, int, int]])


def parse_feed_entry(entry: tuple[bytes, Any]) -> FeedEntry:
    """A feed entry as the append function packs it.

    One that cannot be read comes out without spans: then the positions do not add up, which is what gaps are known by.
    """
    entry_id, flat = entry
    fields = flat if isinstance(flat, dict) else dict(zip(flat[::2], flat[1::2], strict=True)) if flat else {}
    position = int(entry_id.partition(b"-")[0])
    try:
        return FeedEntry(position, int(fields[b"t"]), [Span(*packed) for packed in _SPANS.decode(fields[b"c"])])
    except (KeyError, ValueError, TypeError, msgspec.MsgspecError):
        return FeedEntry(position, 0, [])


def parse_feed_position(info: Any) -> int:
    """The position of the last entry that a feed was given, from the reply to XINFO STREAM; 0 where there is no
    feed.
    """
    return int(info["last-generated-id"].partition(b"-")[0]) if isinstance(info, dict) else 0
