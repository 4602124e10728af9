"""Reading on from a place: of one session, or of partitions by their feeds. Does no I/O.

Theory of operation. A partition's feed tells in order what was written, and positions in it are running totals of
events: so what comes next is found by arithmetic, and a hole is seen. Where the feed does not reach back to the place
(it was trimmed), the sessions are read instead: all that was written after the time of the place, up to a time that has
passed, and from there on the feed is followed. Times decide that exactly, because within a partition they grow in the
order of writing.

Before anything is delivered, the commit that was written last of those delivered is looked at again. What a server
wrote is lost from its end on, so if that commit is there, so is all before it. If it is not, the subscriber is told,
each time it asks, until it accepts that.

A session that has a mark of its own (`reached.py`) is read on from there first, and what the feed tells of it up to
there is passed over.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from operator import attrgetter
from typing import Any, Final

from msgspec import Struct

from domain.codec import Commit, chain
from domain.errors import Damaged, MusterError
from domain.log.feed import FeedEntry
from domain.log.protocol import (
    PAGE_BYTES,
    PAGE_ENTRIES,
    FeedRequest,
    Flow,
    HeadRequest,
    RangeRequest,
    RegistryRequest,
    Request,
    SkipsRequest,
    StandingRequest,
    TimeRequest,
    next_count,
    taken,
    together,
)
from domain.log.skips import Skips, marked
from domain.log.subscribing.delivery import (
    REMEMBERED,
    Anchor,
    Catching,
    Delivery,
    Place,
    Wanted,
    lost_error,
)
from domain.log.subscribing.reached import Mark, older_flow
from domain.log.subscribing.stride import Stride

#: How many entries of a feed, commits of a session, and names of a registry are read at a time.
FEED_PAGE: Final = 64
SESSION_PAGE: Final = 64
NAMES_PAGE: Final = 256
#: How many commits of each session are read when a feed does not reach back. In a longer one the first commit after a
#: time is looked for by halving.
LOG_PAGE: Final = 128
#: How many sessions are read side by side when a feed does not reach back; of how many partitions feeds are.
SIDE_BY_SIDE: Final = 16


class Item(Struct, frozen=True):
    """A delivery, or (None) events nobody wants; and the place of the reader after it."""

    reader: SessionReader | PartitionReader
    delivery: Delivery | None
    session: str
    #: None: that is all of the session that is to be read.
    seq: int | None
    anchor: Anchor | None = None
    total: int = 0
    at_ms: int = 0
    #: Up to which seq the entry of the feed tells of the session that this is of.
    to_seq: int = 0
    #: It was read on from the session's own mark, not by the place.
    is_owed: bool = False

    def take(self) -> Delivery | None:
        """The delivery, unless it was given before; from now on the reader stands after it."""
        return self.delivery if self.reader.stand_after(self) else None


class _Told(Struct, frozen=True):
    """Events of a session that a feed tells of, from after seq `reached` on. A seq is `offset` away from the running
    total at it.
    """

    session: str
    reached: int
    to_seq: int
    offset: int
    at_ms: int


class SessionReader:
    """Reads one session from a seq on, and verifies the digest chain as it goes."""

    def __init__(self, session: str, wanted: Wanted, place: Place) -> None:
        self.session = session
        self._wanted = wanted
        self._recent = list(place.recent)
        self.seq = place.total
        self.is_lost = False
        self._page = SESSION_PAGE

    @property
    def place(self) -> Place:
        return Place(self.seq, 0, None, None, list(self._recent))

    def stand_after(self, item: Item) -> bool:
        assert item.seq is not None
        self.seq = item.seq
        _remember(self._recent, item.anchor)
        return True

    def next_page(self, stride: Stride) -> Flow[list[Item] | None]:
        """What comes next; None if that is all for now. Only to be asked for when all before was taken.

        Raises Damaged: TAIL_LOST, FORK; LOG_GAP, LOG_ALTERED for a log that is damaged after the place.
        """
        anchor = self._recent[-1] if self._recent else None
        low = anchor.seq if anchor is not None else self.seq + 1
        found, skips = yield [
            RangeRequest(self.session, low, None, stride.of(self._page) + (anchor is not None)),
            SkipsRequest(self.session),
        ]
        commits: list[Commit] = taken(found)
        if anchor is not None:
            if not commits or (commits[0].last_seq, commits[0].digest) != (anchor.seq, anchor.digest):
                self.is_lost = True
                raise (yield from _loss(self._recent))
            # Of a commit that was delivered in part, the rest comes once more.
            commits = commits if anchor.seq > self.seq else commits[1:]
        if not commits:
            return None
        self._page = next_count(commits)
        return list(self._items(marked(commits, taken(skips)), anchor))

    def _items(self, commits: list[Commit], anchor: Anchor | None) -> Iterator[Item]:
        reached = self.seq
        digest = anchor.digest if anchor is not None and anchor.seq == reached else None
        for commit in commits:
            loss = None
            if commit.first_seq > reached + 1:
                loss = _missing(self.session, reached + 1)
            elif digest is not None and not _follows(commit, digest):
                loss = Damaged(
                    "LOG_ALTERED", f"session {self.session}: the commit at seq {commit.first_seq} is not as appended"
                )
            if loss is not None:
                if reached == self.seq:
                    raise loss
                return  # what comes before it first
            yield from _of_commit(self, commit, self._wanted, reached)
            reached, digest = commit.last_seq, commit.digest

    def accept_loss(self) -> Flow[None]:
        """Goes back behind what was lost."""
        if self.is_lost:
            self.is_lost = False
            held = yield from _held(self._recent)
            self.seq = held[-1].seq if held else self._recent[0].seq - 1
            self._recent = held


class PartitionReader:
    """Reads a partition by its feed, and by registry and logs where the feed does not reach back."""

    def __init__(self, partition: int, wanted: Wanted, place: Place, marks: Mapping[str, Mark] | None = None) -> None:
        self.partition = partition
        self._wanted = wanted
        self._recent = list(place.recent)
        self._place = place
        self.is_lost = False
        self._names: deque[str] = deque()
        self.marks: dict[str, Mark] = {}
        #: Marks that were moved since they were read, and (None) those that the place stands for by now.
        self.moved: dict[str, Mark | None] = {}
        #: Sessions that were told of from their beginning, so that they may have got a mark since the marks were read.
        self.unmarked: set[str] = set()
        #: So may any, because it may have arrived while the feed was not followed.
        self.is_any_unmarked = False
        self._owed: deque[str] = deque()
        self.learn(marks or {})
        #: The ms of the commit that was read by sessions last, so that nobody knows which of that ms came last.
        self._unordered_ms = self._recent[-1].at_ms if self._recent else 0

    @property
    def place(self) -> Place:
        place = self._place
        return Place(place.total, place.at_ms, place.ties, place.catching, list(self._recent))

    def learn(self, marks: Mapping[str, Mark]) -> None:
        """Takes marks as the store has them, of sessions that had none so far."""
        for session in sorted(marks.keys() - self.marks.keys() - self.moved.keys()):
            self.marks[session] = marks[session]
            if not marks[session].is_away and self._is_wanted(session):
                self._owed.append(session)

    def stand_after(self, item: Item) -> bool:
        """Returns whether it was not given before."""
        mark = self.marks.get(item.session)
        is_read_by_time = self._place.catching is not None and not item.is_owed
        self._stand_at(item)
        is_new = mark is None
        if mark is not None and not mark.is_away and not is_read_by_time and item.seq is not None:
            is_new = item.seq > mark.seq
            if item.seq >= mark.seq:
                self._mark(item.session, None if 0 < item.to_seq <= item.seq else Mark(item.seq))
        if is_new:
            _remember(self._recent, item.anchor)
        return is_new

    def _mark(self, session: str, mark: Mark | None) -> None:
        self.moved[session] = mark
        if mark is None:
            del self.marks[session]
        else:
            self.marks[session] = mark

    def _stand_at(self, item: Item) -> None:
        place = self._place
        if item.is_owed:
            if item.seq is None:
                self._owed.popleft()
        elif place.catching is not None:
            place.catching.session, place.catching.seq = item.session, item.seq
            if item.seq is None:
                self._names.popleft()
            if item.anchor is not None:
                self._unordered_ms = max(self._unordered_ms, item.anchor.at_ms)
        else:
            assert item.seq is not None
            if item.at_ms != place.at_ms or place.ties is None:
                place.at_ms, place.ties = item.at_ms, {}
            place.total = item.total
            place.ties[item.session] = item.seq

    def next_page(self, stride: Stride) -> Flow[list[Item] | None]:
        """What comes next, which may be nothing yet; None if that is all for now. Only to be asked for when all before
        was taken. Raises Damaged (TAIL_LOST, FORK).
        """
        self.unmarked = set()
        yield from self._check_anchor()
        self._owed = deque(session for session in self._owed if session in self.marks)
        if self._owed:
            return (yield from self._next_owed(stride))
        if self._place.catching is not None:
            return (yield from self._next_of_logs(self._place.catching, stride))
        place = self._place
        standing, found = yield [
            StandingRequest(self.partition),
            FeedRequest(self.partition, place.total, stride.of(FEED_PAGE)),
        ]
        entries: list[FeedEntry] = taken(found)
        if not entries and taken(standing).total == place.total:
            return None
        if not entries or not entries[0].begins_after <= place.total < entries[0].position:
            return (yield from self._begin_with_logs())
        return (yield from self._next_of_feed(_connected(entries), stride))

    def _check_anchor(self) -> Flow[None]:
        newest = self._recent[-1:]
        if newest and newest[0].at_ms == self._unordered_ms:
            # Of each session its last: digests are chained.
            newest = list({one.session: one for one in self._recent if one.at_ms == self._unordered_ms}.values())
        if newest and len((yield from _held(newest))) < len(newest):
            self.is_lost = True
            raise (yield from _loss(self._recent))

    # -- by marks ----------------------------------------------------------------------------------------------------

    def _next_owed(self, stride: Stride) -> Flow[list[Item]]:
        """What the logs hold after the marks of sessions."""
        names = [self._owed[at] for at in range(min(len(self._owed), stride.of(SIDE_BY_SIDE)))]
        count = stride.of(LOG_PAGE)
        pages = yield from _logs([RangeRequest(name, self.marks[name].seq + 1, None, count) for name in names])
        items: list[Item] = []
        for name in names:
            page = list(pages[name].values())
            items += self._of_owed(name, page)
            if len(page) == count:
                break  # there is more of it
            items.append(Item(self, None, name, None, is_owed=True))
        return items

    def _of_owed(self, name: str, commits: list[Commit]) -> Iterator[Item]:
        reached = self.marks[name].seq
        for commit in commits:
            if commit.first_seq > reached + 1:
                delivery = Delivery(name, reached + 1, None, commit.at_ms, "", error=_missing(name, reached + 1))
                yield Item(self, delivery, name, commit.first_seq - 1, is_owed=True)
            yield from _of_commit(self, commit, self._wanted, reached, is_owed=True)
            reached = commit.last_seq

    # -- by the feed -------------------------------------------------------------------------------------------------

    def _next_of_feed(self, entries: list[FeedEntry], stride: Stride) -> Flow[list[Item]]:
        told = self._told(entries, stride.of(PAGE_BYTES))
        ranges: dict[str, tuple[int, int]] = {}
        for one in told:
            if self._is_wanted(one.session):
                low, _ = ranges.get(one.session, (one.reached + 1, 0))
                ranges[one.session] = (low, one.to_seq)
        most = stride.of(PAGE_ENTRIES)
        self.unmarked.update(
            one.session for one in told if not one.reached and one.session in ranges and one.session not in self.marks
        )
        logs = yield from _logs(
            [RangeRequest(session, low, high, min(most, high - low + 1)) for session, (low, high) in ranges.items()]
        )
        items: list[Item] = []
        for one in told:
            commits = logs.get(one.session)
            if commits is None:
                items.append(Item(self, None, one.session, one.to_seq, None, one.offset + one.to_seq, one.at_ms))
                continue
            # Of a log that holds more than was asked for, the end of what came is no hole.
            end = max(commits) if len(commits) == most else one.to_seq
            items += self._of_told(one, end, commits)
            if end < one.to_seq:
                break  # what comes after it in the feed comes after it here
        return items

    def _told(self, entries: list[FeedEntry], most_bytes: int) -> list[_Told]:
        """What entries tell of that was not delivered, as much as has about so many bytes."""
        told: list[_Told] = []
        left = most_bytes
        for entry in entries:
            total = entry.begins_after
            for span in entry.spans:
                before = max(0, self._place.total - total)  # how many events of it were delivered
                total += span.to_seq - span.from_seq + 1
                if total <= self._place.total:
                    continue
                left -= span.size if self._is_wanted(span.session) else 0
                if told and left < 0:
                    return told
                offset = total - span.to_seq
                told.append(_Told(span.session, span.from_seq + before - 1, span.to_seq, offset, entry.at_ms))
        return told

    def _of_told(self, told: _Told, end: int, commits: dict[int, Commit]) -> Iterator[Item]:
        """The events of a session that an entry tells of, up to seq `end`."""
        session, reached, to, offset, at_ms = told.session, told.reached, told.to_seq, told.offset, told.at_ms
        while reached < min(end, to):
            commit = next((commits[seq] for seq in range(reached + 1, to + 1) if seq in commits), None)
            # A commit that was written later took the place of the one that the entry tells of.
            if commit is None or commit.first_seq > reached + 1 or commit.at_ms > at_ms:
                error = _missing(session, reached + 1)
                delivery = Delivery(session, reached + 1, None, at_ms, "", error=error)
                yield Item(self, delivery, session, to, None, offset + to, at_ms, to)
                return
            yield from _of_commit(self, commit, self._wanted, reached, offset, at_ms, to)
            reached = commit.last_seq

    def _is_wanted(self, session: str) -> bool:
        return self._wanted.has(session)

    # -- by registry and logs ----------------------------------------------------------------------------------------

    def _begin_with_logs(self) -> Flow[list[Item]]:
        """Nothing at first: the target is a time that has passed, so that nothing more can be written in it."""
        now, standing = yield [TimeRequest(), StandingRequest(self.partition)]
        target = taken(standing)
        # A clock that was set back behind it gives later times to what comes all the same (`written_at`).
        if taken(now) != target.at_ms:
            self._place.catching = Catching(target.total, target.at_ms or taken(now) - 1)
        return []

    def _next_of_logs(self, catching: Catching, stride: Stride) -> Flow[list[Item]]:
        if not self._names:
            names = yield from self._more_names(catching, stride.of(NAMES_PAGE))
            if not names:
                self._place.total, self._place.at_ms, self._place.ties = catching.to_total, catching.to_at_ms, None
                self._place.catching = None
                # What has a mark is read by it alone; and what arrived meanwhile may have one.
                self._owed.extend(session for session, mark in self.marks.items() if not mark.is_away)
                self.is_any_unmarked = True
                return []
            self._names.extend(names)
        # One that is longer than a page is read on alone: what was read of the next ones would be thrown away.
        width = stride.of(SIDE_BY_SIDE) if catching.seq is None else 1
        together_now = [self._names[at] for at in range(min(width, len(self._names)))]
        count = stride.of(LOG_PAGE)
        lows = yield from self._beginnings(together_now, catching, count)
        self.unmarked.update(set(together_now) - self.marks.keys())
        pages = yield from _logs([RangeRequest(name, lows[name] + 1, None, count) for name in together_now])
        items: list[Item] = []
        for name in together_now:
            page = list(pages[name].values())
            items += self._of_log(name, page, lows[name], catching)
            if len(page) == count and page[-1].at_ms <= catching.to_at_ms:
                break  # there is more of it
            items.append(Item(self, None, name, None))  # taken, it takes the name off: a page may get lost on its way
        return items

    def _more_names(self, catching: Catching, count: int) -> Flow[list[str]]:
        """Names of sessions that were written to after the place, the one that is begun first; none at the end."""
        if catching.seq is not None:
            return [catching.session]
        after = catching.session or None
        while True:
            (found,) = yield [RegistryRequest(self.partition, after, count)]
            names: list[str] = taken(found)
            wanted = [name for name in names if self._is_wanted(name) and name not in self.marks]
            heads = (yield [HeadRequest(name) for name in wanted]) if wanted else []
            # A head that cannot be read says nothing of when.
            moved = [
                name
                for name, head in zip(wanted, heads, strict=True)
                if head is None or isinstance(head, MusterError) or head.at_ms >= self._place.at_ms
            ]
            if moved or len(names) < count:
                return moved
            after = names[-1]

    def _beginnings(self, names: Sequence[str], catching: Catching, count: int) -> Flow[dict[str, int]]:
        """A seq of each session up to which nothing is to be delivered, and about `count` after which something is."""
        begun = {catching.session: catching.seq} if catching.seq is not None else {}
        found = yield from together([self._beginning(name, begun.get(name), count) for name in names])
        return {name: taken(low) for name, low in zip(names, found, strict=True)}

    def _beginning(self, name: str, begun: int | None, count: int) -> Flow[int]:
        if begun is not None:
            return begun
        return (yield from older_flow(name, self._place.at_ms, count)) if self._place.at_ms else 0

    def _of_log(self, name: str, commits: list[Commit], low: int, catching: Catching) -> Iterator[Item]:
        place, reached = self._place, low
        for commit in commits:
            if commit.at_ms > catching.to_at_ms:
                break
            if commit.at_ms < place.at_ms or (commit.at_ms == place.at_ms and place.ties is None and place.at_ms):
                reached = commit.last_seq
                continue
            if commit.at_ms == place.at_ms and place.ties is not None:
                reached = max(reached, place.ties.get(name, 0))
            if commit.first_seq > reached + 1:
                delivery = Delivery(name, reached + 1, None, commit.at_ms, "", error=_missing(name, reached + 1))
                yield Item(self, delivery, name, commit.first_seq - 1)
            yield from _of_commit(self, commit, self._wanted, reached)
            reached = max(reached, commit.last_seq)
        if reached > low:
            yield Item(self, None, name, reached)  # also where all of it was before the place

    # -- after a loss ------------------------------------------------------------------------------------------------

    def accept_loss(self) -> Flow[None]:
        """Goes back behind what was lost, by time: what is written by a server that lost something is later."""
        if not self.is_lost:
            return
        self.is_lost = False
        held = yield from _held(self._recent)
        oldest, place = self._recent[0], self._place
        self._recent = held
        self._names.clear()
        if len(held) and place.catching is not None:
            self._place = Place(-1, place.at_ms, place.ties)  # the pass through the logs begins again
        elif held:
            ties = {one.session: one.seq for one in held if one.at_ms == held[-1].at_ms}
            self._place = Place(-1, held[-1].at_ms, ties)
        else:
            self._place = Place(-1, oldest.at_ms - 1)


class FeedReader:
    """Reads many partitions, those with news side by side."""

    def __init__(self, readers: dict[int, PartitionReader]) -> None:
        self.readers = readers
        #: Partitions that may have more than was read.
        self.news: set[int] = set(readers)
        #: Partitions that are being read, or whose page did not come.
        self._asked: list[int] = []
        self._last = -1

    def next_page(self, stride: Stride) -> Flow[list[Item] | None]:
        """What comes next, which may be nothing yet; None if that is all for now. Only to be asked for when all before
        was taken. Raises Damaged (TAIL_LOST, FORK).
        """
        self.news.update(self._asked)
        # After those of the last time, or the first ones might keep the others waiting for ever.
        there = self.news & self.readers.keys()
        asked = sorted(there, key=lambda partition: (partition <= self._last, partition))
        self._asked = asked = asked[: stride.of(SIDE_BY_SIDE)]
        if not asked:
            self.news.clear()
            return None
        self._last = asked[-1]
        # Before they are read: what is heard of meanwhile is news again.
        self.news.difference_update(asked)
        pages = yield from together([self.readers[partition].next_page(stride) for partition in asked])
        self._asked = []
        items: list[Item] = []
        troubles: list[MusterError] = []
        for partition, page in zip(asked, pages, strict=True):
            if isinstance(page, MusterError):
                troubles.append(page)
            elif page is not None:
                items += page
            if page is not None:
                self.news.add(partition)
        if troubles and not items:
            raise troubles[0]
        return items

    def accept_loss(self) -> Flow[None]:
        """Goes back behind what was lost, in every partition that lost something."""
        for partition, reader in self.readers.items():
            yield from reader.accept_loss()
            self.news.add(partition)


# -- commits ---------------------------------------------------------------------------------------------------------


def _of_commit(
    reader: SessionReader | PartitionReader,
    commit: Commit,
    wanted: Wanted,
    reached: int,
    offset: int = 0,
    at_ms: int = 0,
    to_seq: int = 0,
    *,
    is_owed: bool = False,
) -> Iterator[Item]:
    """The events of a commit after seq `reached`; what is not wanted of it is passed at once where it ends."""
    anchor = Anchor(commit.session, commit.last_seq, commit.digest, commit.at_ms)
    passed = False
    error: MusterError | None = None
    try:
        events: Sequence[Any] = commit.events
    except Damaged as unreadable:
        events, error = [None] * 1, unreadable
    if error is not None:
        delivery = Delivery(
            commit.session, reached + 1, None, commit.at_ms, commit.digest, commit.traceparent, commit.skipped, error
        )
        last = commit.last_seq
        yield Item(reader, delivery, commit.session, last, anchor, offset + last, at_ms, to_seq, is_owed)
        return
    for seq, event in enumerate(events, commit.first_seq):
        if seq <= reached:
            continue
        passed = not wanted.takes(event)
        if not passed:
            delivery = Delivery(
                commit.session, seq, event, commit.at_ms, commit.digest, commit.traceparent, commit.skipped
            )
            yield Item(reader, delivery, commit.session, seq, anchor, offset + seq, at_ms, to_seq, is_owed)
    if passed:
        yield Item(
            reader, None, commit.session, commit.last_seq, anchor, offset + commit.last_seq, at_ms, to_seq, is_owed
        )


def _logs(ranges: list[RangeRequest]) -> Flow[dict[str, dict[int, Commit]]]:
    """The commits of sessions by their last seqs, marked where they are skipped."""
    if not ranges:
        return {}
    requests: list[Request] = [*ranges, *(SkipsRequest(one.session) for one in ranges)]
    answers = yield requests
    found: dict[str, dict[int, Commit]] = {}
    for asked, commits, skips in zip(ranges, answers[: len(ranges)], answers[len(ranges) :], strict=True):
        known: Skips = taken(skips)
        found[asked.session] = {commit.last_seq: commit for commit in marked(taken(commits), known)}
    return found


def _follows(commit: Commit, digest: str) -> bool:
    count = commit.last_seq - commit.first_seq + 1
    return commit.digest == chain(digest, commit.session, commit.first_seq, count, commit.at_ms, commit.body)


def _missing(session: str, seq: int) -> Damaged:
    return Damaged(
        "LOG_GAP", f"session {session} lacks what was appended at seq {seq}", session=session, first_bad_seq=seq
    )


def _connected(entries: list[FeedEntry]) -> list[FeedEntry]:
    """The entries up to the first hole between them."""
    page = entries[:1]
    for before, entry in pairwise(entries):
        if entry.begins_after != before.position:
            break
        page.append(entry)
    return page


# -- what was delivered ----------------------------------------------------------------------------------------------


def _remember(recent: list[Anchor], anchor: Anchor | None) -> None:
    """Notes what was delivered, in the order it was written in."""
    if anchor is not None and (not recent or recent[-1] != anchor):
        insort(recent, anchor, key=attrgetter("at_ms"))
        del recent[:-REMEMBERED]


def _held(recent: Sequence[Anchor]) -> Flow[list[Anchor]]:
    """What the log holds of commits that were delivered, up to the first that it does not hold."""
    found = yield [RangeRequest(one.session, one.seq, one.seq, 1) for one in recent]
    held: list[Anchor] = []
    for anchor, page in zip(recent, found, strict=True):
        if not _is_held(anchor, taken(page)):
            break
        held.append(anchor)
    return held


def _is_held(anchor: Anchor, page: list[Commit]) -> bool:
    return bool(page) and (page[0].last_seq, page[0].digest) == (anchor.seq, anchor.digest)


def _loss(recent: Sequence[Anchor]) -> Flow[Damaged]:
    """The error that names what was delivered and is not in the log."""
    held = yield from _held(recent)
    lost = list(recent[len(held) :])
    (later,) = yield [RangeRequest(lost[0].session, lost[0].seq, None, 1)]
    return lost_error(lost, is_replaced=bool(taken(later)))
