"""Verification: every commit of a session on both sides, each chain computed again from the bytes, then held together.

Counts prove nothing here. Of each side the first commit that is missing, altered or in another's place is named; where
both sides chain and still differ, it is the first seq at which they do. Of a session that was moved, the source must
end where it was sealed, and be sealed; what the target holds after that is its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Literal

from msgspec import Struct

from domain.codec import Commit, genesis
from domain.errors import MusterError
from domain.invariants import is_chained, is_dense
from domain.log.contract import Position
from domain.log.protocol import parse_entry
from projections import session_view
from workers.migration import calls
from workers.migration.calls import Sealed
from workers.migration.ends import End, Ends
from workers.migration.record import Migration, Move
from workers.pacing import Pace

Side = Literal["source", "target"]
PAGE: Final = 512


class Problem(Struct, frozen=True):
    """What is wrong with a session: from which seq on, on which side, and how bad that is."""

    session: str
    seq: int
    side: Side
    code: str
    severity: str
    cause: str
    schema: str = "muster.migration-problem/1"


class Compared(Struct, frozen=True):
    """What was read of a session, and what was found."""

    problems: list[Problem]
    commits: int
    events: int
    #: Whether the views that workers of both sides built were held together.
    has_views: bool = False


class Comparing:
    """Compares the sessions of a migration, and seals again what a source opened."""

    def __init__(self, ends: Ends, migration: Migration, by: str, pace: Pace) -> None:
        self._ends = ends
        self._migration = migration
        self._by = by
        self._pace = pace

    def session(self, session: str, move: Move) -> Compared:
        """Reads a session on both sides, and its seal, if it was moved."""
        moved = Position(move.seq, move.digest) if move.state == "moved" else None
        problems: list[Problem] = []
        is_seen = move.state in ("moved", "synced")
        copy = self._ends.target.log.read(session) if is_seen else staged(self._ends.target, session)
        counting = _Counting()
        problems += compare(
            session, counting.counted(self._ends.source.log.read(session)), copy, moved=moved, copied=move.seq
        )
        has_views = False
        if moved is not None:
            problems += self._seal(session, moved)
            problems += self._opened(session)
            has_views, differs = self._views(session, moved)
            problems += differs
        self._pace.took(counting.events)
        return Compared(problems, counting.commits, counting.events, has_views)

    def _views(self, session: str, moved: Position) -> tuple[bool, list[Problem]]:
        """Whether both sides built a view of the session as it was moved, and whether they are the same to the byte."""
        stored = [end.store.views([session])[0] for end in (self._ends.source, self._ends.target)]
        views = [session_view.readable(one, session) for one in stored]
        if not all(view is not None and view.seq == moved.seq for view in views):
            return False, []  # one is not built yet, or the session went on
        if stored[0] == stored[1]:
            return True, []
        cause = f"the views of session {session} at seq {moved.seq} differ, and its commits do not"
        return True, [Problem(session, moved.seq, "target", "VIEW_DIFFERS", "error", cause)]

    def seals(self, moved: Mapping[str, Move]) -> list[Problem]:
        """Looks at the seals of these sessions alone."""
        found: list[Problem] = []
        for session, move in moved.items():
            found += self._seal(session, Position(move.seq, move.digest))
        return found

    def _seal(self, session: str, moved: Position) -> Iterator[Problem]:
        """A seal that is not there is put back, and named: until now the source took appends."""
        if is_sealed(self._ends.source, session, self._migration.id):
            return
        source, place = self._ends.source, str(self._ends.target.place)
        command = calls.seal(source, session, self._migration.id, self._by, "to", place)
        answer = calls.answered(session, source.ask([command])[0])
        done = "it is sealed again" if isinstance(answer, Sealed) else f"it cannot be sealed again: {answer}"
        yield Problem(
            session, moved.seq + 1, "source", "SEAL_LOST", "critical",
            f"the source of session {session} took appends again, though it was moved at seq {moved.seq}; {done}",
        )  # fmt: skip

    def _opened(self, session: str) -> Iterator[Problem]:
        """A target that lost what opened the session holds a copy that is still on its way. One that was moved on from
        there is another migration's.
        """
        if is_sealed(self._ends.target, session, self._migration.id) or not self._ends.target.log.head(session):
            yield Problem(
                session, 1, "target", "COPY_DIFFERS", "critical",
                f"session {session} was opened on the target, and is not open there",
            )  # fmt: skip


class _Counting:
    """Counts the commits that go through."""

    def __init__(self) -> None:
        self.commits = self.events = 0

    def counted(self, commits: Iterable[Commit]) -> Iterator[Commit]:
        for commit in commits:
            self.commits += 1
            self.events += max(0, commit.last_seq - commit.first_seq + 1)
            yield commit


def compare(
    session: str, source: Iterable[Commit], copy: Iterable[Commit], *, moved: Position | None, copied: int
) -> list[Problem]:
    """What is wrong with a session whose copy should go up to seq `copied`; with one that was `moved`, it may go on."""
    there, here = _Side(session, "source", source), _Side(session, "target", copy)
    end = copied if moved is None else moved.seq
    while there.seq < end and here.seq < end:
        one, other = there.next(), here.next()
        if one is None or other is None:
            break
        if not _are_equal(one, other):
            return [there.problem("COPY_DIFFERS", one.first_seq, "both sides chain, and hold other commits", "target")]
    for side in (there, here):
        while side.seq < end and side.next() is not None:
            pass
        if side.found is None and side.seq < end:
            side.found = side.problem("TAIL_LOST", side.seq + 1, f"it ends at seq {side.seq}, not at {end}")
    if moved is None:
        extra = here.next() if here.found is None else None
        if extra is not None:
            here.found = here.problem("LOG_AHEAD", extra.first_seq, f"the copy holds more than the {end} it was given")
        there.rest()
    else:
        here.rest()
        extra = there.next() if there.found is None else None
        if extra is not None:
            cause = f"it was moved at seq {end}, and took appends after that"
            there.found = there.problem("SEAL_LOST", extra.first_seq, cause)
    return [side.found for side in (there, here) if side.found is not None]


class _Side:
    """One side of a session, read as far as it is right."""

    def __init__(self, session: str, side: Side, commits: Iterable[Commit]) -> None:
        self._session = session
        self._side = side
        self._commits = iter(commits)
        self.seq = 0
        self._digest = genesis(session)
        self.found: Problem | None = None

    def next(self) -> Commit | None:
        """The next commit that is as it was appended; None at the end, and at the first that is not."""
        commit = next(self._commits, None) if self.found is None else None
        if commit is None:
            return None
        if not is_dense(self.seq, commit):
            cause = f"after seq {self.seq} comes a commit of seqs {commit.first_seq} to {commit.last_seq}"
            self.found = self.problem("LOG_GAP", self.seq + 1, cause)
        elif not is_chained(self._digest, commit):
            self.found = self.problem("LOG_ALTERED", commit.first_seq, "the commit is not what its digest says")
        else:
            self.seq, self._digest = commit.last_seq, commit.digest
            return commit
        return None

    def rest(self) -> None:
        """Reads on to the end."""
        while self.next() is not None:
            pass

    def problem(self, code: str, seq: int, cause: str, side: Side | None = None) -> Problem:
        named = side or self._side
        return Problem(self._session, seq, named, code, "critical", f"session {self._session} on the {named}: {cause}")


def _are_equal(one: Commit, other: Commit) -> bool:
    return (one.first_seq, one.last_seq, one.at_ms, one.digest, one.body, one.traceparent) == (
        *(other.first_seq, other.last_seq, other.at_ms),
        *(other.digest, other.body, other.traceparent),
    )


def staged(end: End, session: str) -> Iterator[Commit]:
    """The commits of a copy that was not opened yet."""
    low = "-"
    while True:
        (page,) = end.ask([["XRANGE", end.keyspace.of(session).arriving(session), low, "+", "COUNT", PAGE]])
        if isinstance(page, MusterError):
            raise page
        yield from (parse_entry(session, entry) for entry in page)
        if len(page) < PAGE:
            return
        low = "(" + page[-1][0].decode()


def is_sealed(end: End, session: str, task: str) -> bool:
    """Whether a source is closed by a task."""
    head: Any = end.log.head(session)
    (owner,) = end.ask([["HGET", end.keyspace.of(session).hold(session), "moved_task"]])
    return head is not None and head.is_elsewhere and owner == task.encode()
