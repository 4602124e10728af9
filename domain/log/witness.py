"""The witness: what a log object was told is in the log, to hold against what is there after the server changed.

A server that came back from a failover, a crash or a backup may have lost the end of its log and given the same seqs to
other commits. It cannot know. Whoever holds receipts can: a pair (seq, digest) is in the log or it is not, and
since digests are chained, one that is there proves everything before it.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from threading import Lock
from typing import Any, Final

from msgspec import Struct

from domain.errors import Damaged, MusterError
from domain.log.archive.place import is_of_archive
from domain.log.contract import Position, Receipt
from domain.log.protocol import Flow, HeadRequest, RangeRequest, ReadFlow, position_of, taken

logger = logging.getLogger(__name__)

#: How many sessions are remembered with the last position known of each.
REMEMBERED_SESSIONS: Final = 65_536
#: How many receipts are remembered, so that what was lost can be named commit by commit.
REMEMBERED_RECEIPTS: Final = 65_536
#: How many sessions are compared in one round trip.
COMPARED_TOGETHER: Final = 512


class Loss(Struct, frozen=True):
    """What a session lost of what was acknowledged.

    `code` is TAIL_LOST where nothing stands in its place, FORK where other commits do. `first_bad_seq` is the first seq
    known to be missing or other. `receipts` are those of the lost commits, as far as they are remembered; `last` is
    the last position that was known.
    """

    session: str
    code: str
    first_bad_seq: int
    last: Position
    receipts: tuple[Receipt, ...]


class Witness:
    """Receipts and positions, bounded: the oldest are forgotten first. Safe to share between threads."""

    def __init__(self) -> None:
        self._last: OrderedDict[str, Position] = OrderedDict()
        self._receipts: dict[str, dict[int, Receipt]] = {}
        self._order: deque[str] = deque()
        self._lock = Lock()

    def known(self, session: str) -> Position | None:
        """The last position known of a session."""
        return self._last.get(session)

    def saw(self, session: str, position: Position) -> None:
        """Remembers that a session stood at a position."""
        with self._lock:
            self._saw(session, position)

    def told(self, *receipts: Receipt) -> None:
        """Remembers receipts."""
        with self._lock:
            for receipt in receipts:
                if receipt.digest is None:
                    continue
                self._saw(receipt.session, Position(receipt.last_seq, receipt.digest))
                known = self._receipts.setdefault(receipt.session, {})
                if receipt.last_seq not in known:
                    known[receipt.last_seq] = receipt
                    self._order.append(receipt.session)
                    if len(self._order) > REMEMBERED_RECEIPTS:
                        self._forget_oldest()

    def forget(self, sessions: Iterable[str]) -> None:
        """Forgets what was known of sessions, because it is accepted that it is lost."""
        with self._lock:
            for session in sessions:
                self._last.pop(session, None)
                self._receipts.pop(session, None)

    def sessions(self) -> list[str]:
        """The sessions that something is known of."""
        with self._lock:
            return list(self._last)

    def compare_flow(self, sessions: Sequence[str]) -> Flow[list[Loss]]:
        """Holds what is known of sessions against the log. What is lost is returned; nothing is forgotten."""
        losses: list[Loss] = []
        for at in range(0, len(sessions), COMPARED_TOGETHER):
            page = [
                (session, known) for session in sessions[at : at + COMPARED_TOGETHER] if (known := self.known(session))
            ]
            entries: list[Any] = yield [RangeRequest(session, known.seq, known.seq, 1) for session, known in page]
            for (session, known), found in zip(page, entries, strict=True):
                try:
                    if not any(commit.digest == known.digest for commit in taken(found)):
                        losses.append((yield from self._loss_flow(session, known)))
                except MusterError as error:  # one session's trouble; the validator has the words for it
                    if not isinstance(error, Damaged) and not is_of_archive(error.code):
                        raise
                    about = {"action": "log.incomparable", "session": session}
                    logger.warning("session %s could not be compared: %s", session, error, extra=about)
        return losses

    def _loss_flow(self, session: str, known: Position) -> Flow[Loss]:
        """Which receipts of a session are not in the log, given that the last position is not."""
        with self._lock:
            receipts = sorted(self._receipts.get(session, {}).values(), key=lambda receipt: receipt.first_seq)
        (head,) = yield [HeadRequest(session)]
        ends_at = position_of(taken(head)).seq
        first = min((receipt.first_seq for receipt in receipts), default=known.seq)
        held: dict[int, str] = {}
        reading = ReadFlow(session, after=first - 1)
        while (page := (yield from reading.next_page())) is not None:
            held |= {commit.last_seq: commit.digest for commit in page}
        missing = tuple(receipt for receipt in receipts if held.get(receipt.last_seq) != receipt.digest)
        first_bad = min([ends_at + 1, known.seq, *(receipt.first_seq for receipt in missing)])
        code = "FORK" if ends_at >= first_bad else "TAIL_LOST"
        return Loss(session, code, first_bad, known, missing)

    def _saw(self, session: str, position: Position) -> None:
        known = self._last.get(session)
        if position.seq <= (known.seq if known is not None else 0):
            return  # seq 0 is no place in a log: it could not be held against one
        self._last[session] = position
        self._last.move_to_end(session)
        if len(self._last) > REMEMBERED_SESSIONS:
            oldest, _ = self._last.popitem(last=False)
            self._receipts.pop(oldest, None)

    def _forget_oldest(self) -> None:
        receipts = self._receipts.get(self._order.popleft())
        if receipts:
            del receipts[next(iter(receipts))]
