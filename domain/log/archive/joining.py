"""Archive and log as one: where a log begins later than what was asked of it, the archive gives what comes before.

Nothing is asked of a session whose log has what is wanted. Where an answer has a hole at its beginning, the session's
horizon is asked for; without one, the answer stays as it is, for whoever folds it to find.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock
from typing import Any, Final

from domain.codec import Commit
from domain.errors import Damaged
from domain.log.archive.segment import Label, name_of, opened
from domain.log.protocol import Horizon, RangeRequest, Ranging, StretchRequest
from domain.stretch import Stretch

#: How many bytes of segments, as they are packed, are kept open: who reads a session page by page opens each once.
KEPT_BYTES: Final = 4 * 1024 * 1024


def is_short(request: Any, answer: Any) -> bool:
    """Whether the answer to a request may lack commits at its beginning that an archive holds."""
    if isinstance(request, StretchRequest) and isinstance(answer, Stretch):
        return not len(answer) or answer.lasts[0] - answer.counts[0] >= request.from_seq
    if not isinstance(request, RangeRequest) or not isinstance(answer, list):
        return False
    if request.backward:
        return len(answer) < request.count and (not answer or answer[-1].first_seq > request.from_seq)
    return not answer or answer[0].first_seq > request.from_seq


class Opened:
    """The segments that were opened last, whose commits were verified."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[int, list[Commit]]] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def get(self, name: str) -> list[Commit] | None:
        with self._lock:
            found = self._kept.get(name)
            if found is None:
                return None
            self._kept.move_to_end(name)
            return found[1]

    def open(self, name: str, content: bytes) -> list[Commit]:
        """The commits of a segment. Raises Damaged (ARCHIVE_DAMAGED)."""
        commits = opened(name, content)
        with self._lock:
            if name not in self._kept:
                self._kept[name] = len(content), commits
                self._bytes += len(content)
            while self._bytes > KEPT_BYTES and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1][0]
        return commits


class Wanted:
    """What a request lacks of what a session's segments hold: which of them, in the order of the answer; how much."""

    def __init__(self, store: str, request: Ranging, answer: Any, horizon: Horizon) -> None:
        self._request = request
        self._answer = answer
        self._horizon = horizon
        self._is_backward = isinstance(request, RangeRequest) and request.backward
        to_seq = request.to_seq if isinstance(request, RangeRequest) else None
        self._low, self._high = request.from_seq, horizon.seq if to_seq is None else min(to_seq, horizon.seq)
        if self._is_backward and answer:  # more may have been archived since it was read
            self._high = min(self._high, answer[-1].first_seq - 1)
        self._found: list[Commit] = []
        self._lacks = request.count - len(answer) if self._is_backward else request.count
        labels = labels_of(store, request.session, horizon)
        names = [name_of(label) for label in labels if label.to_seq >= self._low and label.from_seq <= self._high]
        #: The segments that hold it, as far as they are needed.
        self.names = names[::-1] if self._is_backward else names

    @property
    def is_met(self) -> bool:
        return len(self._found) >= self._lacks

    def take(self, commits: Sequence[Commit]) -> None:
        """Takes in what a segment holds of it. Raises Damaged (ARCHIVE_DAMAGED) if it does not follow the last one."""
        begins = bisect_left(commits, self._low, key=lambda commit: commit.last_seq)
        ends = bisect_left(commits, self._high + 1, key=lambda commit: commit.last_seq)
        wanted = list(commits[begins:ends])
        if wanted and self._found and not self._is_backward and wanted[0].first_seq != self._found[-1].last_seq + 1:
            raise self._damaged(f"its segments leave out what follows seq {self._found[-1].last_seq}")
        if commits and commits[-1].last_seq == self._horizon.seq and commits[-1].digest != self._horizon.digest:
            raise self._damaged(f"its digest at seq {self._horizon.seq} is not the one at which the log goes on")
        self._found += wanted[::-1] if self._is_backward else wanted

    def answer(self) -> Any:
        """The answer, with what it lacked."""
        if self._is_backward:
            return [*self._answer, *self._found[: self._lacks]]
        found = self._found[: self._lacks]
        reached = found[-1].last_seq if found else 0
        goes_on = [commit for commit in self._answer if commit.last_seq > reached]
        joined = [*found, *goes_on[: self._lacks - len(found)]]
        return Stretch.of(self._request.session, joined) if isinstance(self._answer, Stretch) else joined

    def _damaged(self, why: str) -> Damaged:
        session = self._request.session
        return Damaged("ARCHIVE_DAMAGED", f"session {session} in the archive: {why}", session=session)


def labels_of(store: str, session: str, horizon: Horizon) -> list[Label]:
    """The segments that hold what is archived of a session, in order. Raises Damaged (ARCHIVE_DAMAGED)."""
    labels = []
    for segment in horizon.segments:
        match = _RECORDED.fullmatch(segment)
        if match is None:
            raise Damaged("ARCHIVE_DAMAGED", f"session {session} names the segment {segment!r}", session=session)
        labels.append(Label(store, session, int(match["from"]), int(match["to"]), match["sha"]))
    return labels


def recorded(label: Label) -> str:
    """A segment as its session names it."""
    return f"{label.from_seq}-{label.to_seq}-{label.sha256}"


_RECORDED: Final = re.compile("(?P<from>[0-9]{1,15})-(?P<to>[0-9]{1,15})-(?P<sha>[0-9a-f]{64})")
