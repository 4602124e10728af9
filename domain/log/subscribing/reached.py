"""How far a durable subscription was given each session. Does no I/O.

Theory of operation. A place says it of all sessions of a partition at once, by the partition's feed. Of a session that
came from another store it cannot: there the feed tells of it as a whole, at the instant it arrived. Such a session has
a mark of its own beside the place, a seq; and where a session went, its mark says that nothing more is given of it
here. So the cursor of a session moves from store to store as its seq, whatever each store's feed and partitions are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from msgspec import Struct

from domain.codec import Commit
from domain.errors import Damaged
from domain.log.protocol import Flow, HeadRequest, RangeRequest, taken
from domain.log.subscribing.delivery import Place

_MARK: Final = re.compile(r"(0|[1-9][0-9]{0,15})( away)?\Z")


class Mark(Struct, frozen=True):
    """A session was given up to `seq`. `is_away`: whatever comes after it is given by the subscription elsewhere."""

    seq: int
    is_away: bool = False

    def __str__(self) -> str:
        return f"{self.seq} away" if self.is_away else str(self.seq)

    @classmethod
    def parse(cls, stored: bytes) -> Mark:
        """The inverse of `str`. Raises Damaged (SUBSCRIPTION_DAMAGED)."""
        found = _MARK.match(stored.decode("ascii", "replace"))
        if found is None:
            raise Damaged("SUBSCRIPTION_DAMAGED", f"{stored[:40]!r} does not say how far a session was given")
        return cls(int(found[1]), found[2] is not None)


#: A session that has just arrived, before its cursor has: nothing is given of it yet.
ARRIVED: Final = Mark(0, is_away=True)


def marks_of(stored: Mapping[bytes, bytes] | Any) -> dict[str, Mark]:
    """The marks of a partition as the store keeps them: a mapping, or fields and values in a row. Raises Damaged."""
    pairs = stored.items() if isinstance(stored, Mapping) else zip(stored[::2], stored[1::2], strict=True)
    return {session.decode(): Mark.parse(value) for session, value in pairs}


def given_flow(session: str, place: Place, mark: Mark | None) -> Flow[int]:
    """Up to which seq a session was given, by the place in its partition and the mark it may have.

    The log of the session may be a copy of the one the place was reached with: it has the same times and seqs.
    """
    if mark is not None:
        return mark.seq
    catching = place.catching
    if catching is not None and catching.session == session and catching.seq is not None:
        return catching.seq
    # Names are gone through in the order of their bytes.
    if catching is not None and catching.session and session.encode() <= catching.session.encode():
        return (yield from _last_before(session, catching.to_at_ms + 1))
    if place.ties is not None:
        known = place.ties.get(session)
        return (yield from _last_before(session, place.at_ms)) if known is None else known
    return (yield from _last_before(session, place.at_ms + 1))


class Reached(Struct, array_like=True, frozen=True):
    """How far a subscription is in one partition: its place (None: it cannot be read), and marks as they are stored."""

    place: Place | None
    marks: dict[str, str]

    def mark_flow(self, session: str) -> Flow[Mark]:
        """The mark that a session gets where its log is now; that may lack the end of what was given."""
        stored = self.marks.get(session)
        mark = None if stored is None else Mark.parse(stored.encode())
        given = yield from given_flow(session, self.place or Place(), mark)
        (head,) = yield [HeadRequest(session)]
        head = taken(head)
        return Mark(0 if head is None else min(given, head.seq), is_away=mark is not None and mark.is_away)


def older_flow(session: str, at_ms: int, count: int) -> Flow[int]:
    """A seq up to which all of a session is older than that, at most `count` seqs before the last that is."""
    (head,) = yield [HeadRequest(session)]
    low, high = 0, head.seq if hasattr(head, "seq") else 0
    while high - low > count:
        middle = (low + high) // 2
        (found,) = yield [RangeRequest(session, middle, None, 1)]
        page: list[Commit] = taken(found)
        if page and page[0].at_ms < at_ms:
            low = page[0].last_seq
        else:
            high = middle
    return low


def _last_before(session: str, at_ms: int) -> Flow[int]:
    (head,) = yield [HeadRequest(session)]
    head = taken(head)
    if head is None or head.at_ms < at_ms:
        return 0 if head is None else head.seq
    reached: int = yield from older_flow(session, at_ms, 1)
    while True:
        (found,) = yield [RangeRequest(session, reached + 1, None, 1)]
        page: list[Commit] = taken(found)
        if not page or page[0].at_ms >= at_ms:
            return reached
        reached = page[0].last_seq
