"""Replaying sessions: their events once more, several sessions merged by server time, with the state after each.

A replay reads. It runs no effects, appends nothing, and moves no cursor: what becomes of the events is up to whoever it
gives them to.

Theory of operation. The order is by server time, then session, then seq: it is a function of the log alone, so a
position in it can be kept and gone on from. A heap holds each session with a time before which it has nothing more; the
first of them is folded to where it begins, and goes back into the heap with the time of its next commit. What was read
ahead is held of MOST_OPEN sessions at a time; of the others it is read again. Every commit is held to the laws before
it is given out: a session that breaks one ends there, and the others go on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from heapq import heappop, heappush
from itertools import islice
from typing import Any, Final, Protocol, Self, TypeAlias, TypeVar

from msgspec import Struct

from domain.codec import Commit
from domain.errors import Damaged, NotFound, Refused
from domain.events import Event, check_session, shortened
from domain.log.contract import EventLog, Head
from domain.log.keys import Keyspace
from domain.log.protocol import (
    Flow,
    HeadRequest,
    RangeRequest,
    Request,
    Standing,
    StandingRequest,
    TimeRequest,
    taken,
)
from domain.log.subscribing.delivery import Wanted
from domain.session import Session
from projections import session_view
from projections.stepping import Step, of_commit, steps

#: How many sessions are held open at a time.
MOST_OPEN: Final = 1000
#: Of how many sessions the beginnings are asked for in one round trip.
TOGETHER: Final = 64
#: How often the clock is asked, at most, until the ms in which a replay begins is over.
TICKS: Final = 100

T = TypeVar("T")
#: Gives the state at the end of the commit before the one that holds a seq (`Views.state_before`).
StateBefore: TypeAlias = Callable[[str, int], Session]


class PlayableLog(EventLog, Protocol):
    """A log whose protocol can be asked directly: a `SessionLog`, or a `MemoryLog`."""

    keyspace: Keyspace

    def run(self, flow: Flow[T]) -> T: ...


class ReplayPosition(Struct, frozen=True, order=True):
    """Where a replay stands: after this event. As text to be kept (`str`) and read again (`parse`)."""

    at_ms: int
    session: str
    seq: int

    def __str__(self) -> str:
        return f"{self.at_ms}.{self.seq}.{self.session}"

    @classmethod
    def parse(cls, text: str) -> ReplayPosition:
        """The position that was kept. Raises Refused (POSITION_INVALID, SESSION_INVALID)."""
        at_ms, _, rest = text.partition(".")
        seq, _, session = rest.partition(".")
        if not (at_ms.isdecimal() and seq.isdecimal()):
            raise Refused("POSITION_INVALID", f"{shortened(text)} is no position of a replay")
        check_session(session)
        return cls(int(at_ms), session, int(seq))


class Selection(Struct, frozen=True):
    """What is to be replayed: events that are wanted, of server times from `since_ms` to `until_ms`, from the seq
    `from_seq` of each session on, after the position `after`.
    """

    wanted: Wanted = Wanted()
    since_ms: int | None = None
    until_ms: int | None = None
    from_seq: int = 1
    after: ReplayPosition | None = None

    @classmethod
    def of(
        cls,
        sessions: str | Collection[str] | None = None,
        *,
        types: str | Collection[str] | None = None,
        actors: str | Collection[str] | None = None,
        tags: str | Collection[str] | None = None,
        since_ms: int | None = None,
        until_ms: int | None = None,
        from_seq: int = 1,
        after: ReplayPosition | None = None,
    ) -> Self:
        """A selection; `types` as `tool.*` too. Raises Refused as `EventLog.subscribe`."""
        return cls(Wanted.of(sessions, types, actors, tags), since_ms, until_ms, from_seq, after)


class Replayed(Struct, frozen=True):
    """One event of a replay. `event` is None in a discarded commit that nobody can read; `state` is the document of the
    session right after it, if states are wanted.
    """

    position: ReplayPosition
    event: Event | None
    is_skipped: bool
    digest: str | None
    traceparent: str | None
    state: dict[str, Any] | None

    @property
    def session(self) -> str:
        return self.position.session

    @property
    def seq(self) -> int:
        return self.position.seq

    @property
    def at_ms(self) -> int:
        return self.position.at_ms


class Replay:
    """The events of a selection in their order; iterate over it, or `play` it (projections/playing.py). It holds what
    was acknowledged before it began, or was sent elsewhere; what is written meanwhile comes after its last position.

    `damages` are those of sessions that ended before their log did, for breaking a law.
    """

    def __init__(
        self,
        log: PlayableLog,
        selection: Selection,
        *,
        with_state: bool = False,
        state_before: StateBefore | None = None,
    ) -> None:
        self._log = log
        self._selection = selection
        self._with_state = with_state
        self._state_before = state_before or self._folded
        self.damages: list[Damaged] = []
        self._since_ms = selection.since_ms or 0
        self._after = selection.after
        self._events = self._merged()

    def __iter__(self) -> Iterator[Replayed]:
        return self

    def __next__(self) -> Replayed:
        return next(self._events)

    def seek(self, to: int | ReplayPosition) -> None:
        """Goes on with the first event at or after a server time in ms, or after a position; forward or back."""
        if isinstance(to, ReplayPosition):
            self._since_ms, self._after = self._selection.since_ms or 0, to
        else:
            self._since_ms, self._after = to, None
        self._events = self._merged()

    # -- merging -----------------------------------------------------------------------------------------------------

    def _merged(self) -> Iterator[Replayed]:
        self._settled = self._settled_ms()
        # The events of a commit have one time, so nothing comes between them: commits are merged.
        waiting: list[tuple[int, str, int]] = []
        for at_ms, session in self._beginnings():
            heappush(waiting, (at_ms, session, 0))
        tracks: dict[str, _Track] = {}
        opened: OrderedDict[str, None] = OrderedDict()
        while waiting:
            _, session, seq = heappop(waiting)
            track = tracks.get(session) or self._begun(session)
            if track is not None and seq:
                yield from self._played(track)
            if track is None or not self._reads_on(track):
                tracks.pop(session, None)
                opened.pop(session, None)
                continue
            assert track.commit is not None
            heappush(waiting, (track.commit.at_ms, session, track.commit.first_seq))
            tracks[session] = track
            opened[session] = None
            opened.move_to_end(session)
            if len(opened) > MOST_OPEN:
                longest_ago, _ = opened.popitem(last=False)
                tracks[longest_ago].close()

    def _beginnings(self) -> Iterator[tuple[int, str]]:
        """Sessions, each with a time before which there is nothing of it to be replayed."""
        asked = self._selection.wanted.sessions
        sessions: Iterable[str] = self._log.sessions() if asked is None else iter(sorted(asked))
        least = max(self._since_ms, self._after.at_ms if self._after is not None else 0)
        while page := list(islice(sessions, TOGETHER)):
            stand = self._log.run(_standing(page, self._selection.from_seq))
            for session, (head, first) in zip(page, stand, strict=True):
                if head is None and first is None and asked is not None:
                    raise NotFound("SESSION_UNKNOWN", f"there is no session {session}", session=session)
                if first is not None and (head is None or head.at_ms >= least):
                    yield max(least, first.at_ms), session

    def _first_seq(self, session: str) -> int:
        """The seq with which a session begins."""
        first, after = self._selection.from_seq, self._after
        if self._since_ms:
            first = max(first, self._log.position_at(session, self._since_ms - 1).seq + 1)
        if after is not None:
            if session == after.session:
                first = max(first, after.seq + 1)
            else:
                # Of the very ms, sessions before it were replayed, and those after it were not.
                passed_ms = after.at_ms if session < after.session else after.at_ms - 1
                first = max(first, self._log.position_at(session, passed_ms).seq + 1)
        return first

    def _settled_ms(self) -> list[int]:
        """Up to which server time each partition is replayed: what is written from now on is later."""
        until = self._selection.until_ms
        (began,) = (now,) = self._log.run(_asking(TimeRequest()))
        for _ in range(TICKS):
            if now > began:
                break
            (now,) = self._log.run(_asking(TimeRequest()))
        partitions = range(self._log.keyspace.count)
        standings: list[Standing] = self._log.run(_asking(*map(StandingRequest, partitions)))
        # Under a clock that was set back, what comes is later than what is there all the same.
        last = [standing.at_ms if standing.at_ms > now else began for standing in standings]
        return last if until is None else [min(until, at_ms) for at_ms in last]

    def _begun(self, session: str) -> _Track | None:
        first = self._first_seq(session)
        try:
            state = self._state_before(session, first)
        except Damaged as damage:
            self.damages.append(damage)
            return None
        return _Track(state, first, self._settled[self._log.keyspace.partition_of(session)])

    def _reads_on(self, track: _Track) -> bool:
        """Whether there is a next commit to be replayed; the track has it then."""
        if track.is_broken:
            return False
        commit = track.next_commit(self._log)
        return commit is not None and commit.at_ms <= track.until_ms

    def _played(self, track: _Track) -> Iterator[Replayed]:
        try:
            for step in track.steps(self._log):
                if step.seq >= track.first and self._is_wanted(step):
                    yield self._replayed(step)
        except Damaged as damage:
            self.damages.append(damage)
            track.is_broken = True

    def _folded(self, session: str, seq: int) -> Session:
        state, begin = session_view.initial(session), 0
        for commit in self._log.read(session, after=seq - 1, to=seq):
            begin = commit.first_seq - 1
            break
        for _ in steps(self._log, state, to=begin):
            pass
        return state

    def _is_wanted(self, step: Step) -> bool:
        wanted = self._selection.wanted
        if step.event is None:
            return wanted.types is wanted.actors is wanted.tags is None
        return wanted.takes(step.event)

    def _replayed(self, step: Step) -> Replayed:
        state = session_view.document(step.state, digest=step.digest is not None) if self._with_state else None
        position = ReplayPosition(step.at_ms, step.session, step.seq)
        return Replayed(position, step.event, step.is_skipped, step.digest, step.traceparent, state)


class _Track:
    """A session on its way: its state at the end of a commit, and the commit that comes next."""

    def __init__(self, state: Session, first: int, until_ms: int) -> None:
        self.state = state
        self.until_ms = until_ms
        #: The first seq that is to be replayed; it may be inside the next commit.
        self.first = first
        self.commit: Commit | None = None
        self.is_broken = False
        self._reading: Iterator[Commit] | None = None

    def next_commit(self, log: EventLog) -> Commit | None:
        """The commit after the state, None at the end; it is read unless it is there."""
        if self.commit is None:
            if self._reading is None:
                self._reading = log.read(self.state.session, after=self.state.seq)
            self.commit = next(self._reading, None)
        return self.commit

    def steps(self, log: EventLog) -> Iterator[Step]:
        """The steps of the next commit. Raises Damaged."""
        commit, self.commit = self.next_commit(log), None
        if commit is not None:
            yield from of_commit(self.state, commit)

    def close(self) -> None:
        """Lets go of what was read and is not replayed yet: it is read again."""
        self.commit = self._reading = None


def _asking(*requests: Request) -> Flow[list[Any]]:
    answers = yield list(requests)
    return [taken(answer) for answer in answers]


def _standing(sessions: Collection[str], seq: int) -> Flow[list[tuple[Head | None, Commit | None]]]:
    """The head of each session (None where it cannot be read), and its commit that holds a seq, or the next one."""
    answers: list[Any] = yield [
        *(HeadRequest(session) for session in sessions),
        *(RangeRequest(session, seq, None, 1) for session in sessions),
    ]
    heads = [None if isinstance(head, Damaged) else taken(head) for head in answers[: len(sessions)]]
    pages = [taken(page) for page in answers[len(sessions) :]]
    return [(head, page[0] if page else None) for head, page in zip(heads, pages, strict=True)]
