"""Copying sessions to where they go, commit by commit as they were appended: same seqs, times, digests, bytes.

Theory of operation. A copy arrives under a name of its own, and nobody sees it: the session's name is claimed, so that
nobody can begin another one there. Each call adds commits to where the copy stands, which the target keeps beside it
and moves in the same step; it computes every digest again. So what a copy holds is what it says, a call that was sent
twice adds nothing, and whoever goes on asks the copy where it stands. A source whose history was rewritten below that
(it lost its tail, or an operator gave a damaged end up) is copied from the beginning.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct

from domain.codec import Commit, genesis
from domain.errors import Damaged, Misconfigured, MusterError, Unavailable
from domain.log.contract import Position
from domain.log.protocol import CALL_BYTES, Command, chunks, quarantined
from workers.migration import calls
from workers.migration.calls import Standing
from workers.migration.ends import Ends
from workers.pacing import Pace


class Copied(Struct, frozen=True):
    """Where a session's copy stands by now, and how many events came to it."""

    position: Position
    events: int


class Copying:
    """The copies of one migration."""

    def __init__(self, ends: Ends, task: str, who: str, pace: Pace) -> None:
        self._ends = ends
        self._task = task
        self._who = who
        self._pace = pace
        #: The token of the migration's lease: what one process has begun, another takes over, and never both do.
        self.by = ""

    def copy(self, sessions: Sequence[str]) -> dict[str, Copied | MusterError]:
        """Brings the copies of sessions to where their sources stand; what keeps one from it keeps no other.

        Raises Unavailable.
        """
        heads = dict(zip(sessions, self._ends.source.log.heads(sessions), strict=True))
        at = self.standing(sessions)
        found: dict[str, Copied | MusterError] = {}
        begun: list[str] = []
        for session in sessions:
            stands, head = at[session], heads[session]
            if isinstance(stands, MusterError):
                found[session] = stands
            elif head is not None and head.quarantined:
                found[session] = quarantined(session, "its log is damaged", head.seq + 1)
            elif head is None or stands == head.position:
                found[session] = Copied(stands, 0)
            else:
                begun.append(session)
        batch = _Batch(self._ends, self._task, self.by)
        whole = [session for session in begun if _is_at_beginning(at[session])]
        for session, read in zip(whole, self._ends.source.log.read_each(whole), strict=True):
            self._send(batch, session, _position(at[session]), read, found)
        for session in begun:
            if session not in whole:
                position = self._checked(session, _position(at[session]))
                rest = self._ends.source.log.read(session, after=position.seq)
                self._send(batch, session, position, rest, found)
        batch.flush(found)
        return found

    def standing(self, sessions: Sequence[str]) -> dict[str, Position | MusterError]:
        """Where the copies of sessions stand; the names of those that have none are claimed."""
        target, place = self._ends.target, str(self._ends.source.place)
        claims = [
            calls.stage(target, session, self._task, self.by, place, Position(0, genesis(session)), ())
            for session in sessions
        ]
        found: dict[str, Position | MusterError] = {}
        for session, reply in zip(sessions, target.ask(claims), strict=True):
            answer = calls.answered(session, reply)
            found[session] = answer.position if isinstance(answer, Standing) else _error(answer)
        return found

    def _checked(self, session: str, at: Position) -> Position:
        """Where to go on: where the copy stands, if the source's history goes through there; else a new beginning."""
        for commit in self._ends.source.log.read(session, after=at.seq - 1, to=at.seq):
            if (commit.last_seq, commit.digest) == (at.seq, at.digest):
                return at
        target = self._ends.target
        target.ask([calls.drop(target, session, self._task, at, "", self._who)])
        begun = self.standing([session])[session]
        if isinstance(begun, MusterError):
            raise begun
        return begun

    def _send(
        self,
        batch: _Batch,
        session: str,
        at: Position,
        commits: Iterable[Commit],
        found: dict[str, Copied | MusterError],
    ) -> None:
        found[session] = Copied(at, 0)
        for chunk in chunks(commits):
            batch.add(session, at, chunk, found)
            events = chunk[-1].last_seq - chunk[0].first_seq + 1
            at = Position(chunk[-1].last_seq, chunk[-1].digest)
            self._pace.took(events)


class _Batch:
    """Calls that travel together."""

    def __init__(self, ends: Ends, task: str, by: str) -> None:
        self._by = by
        self._target = ends.target
        self._place = str(ends.source.place)
        self._task = task
        self._calls: list[tuple[str, Position, int, Command]] = []
        self._bytes = 0

    def add(self, session: str, at: Position, chunk: Sequence[Commit], found: dict[str, Copied | MusterError]) -> None:
        command = calls.stage(self._target, session, self._task, self._by, self._place, at, chunk)
        end = Position(chunk[-1].last_seq, chunk[-1].digest)
        self._calls.append((session, end, chunk[-1].last_seq - at.seq, command))
        self._bytes += sum(len(commit.body) for commit in chunk)
        if self._bytes > CALL_BYTES:
            self.flush(found)

    def flush(self, found: dict[str, Copied | MusterError]) -> None:
        sent, self._calls, self._bytes = self._calls, [], 0
        replies = self._target.ask([command for *_, command in sent])
        for (session, end, events, _), reply in zip(sent, replies, strict=True):
            before = found.get(session)
            if isinstance(before, MusterError):
                continue  # what came after it had nothing to go on from
            answer = calls.answered(session, reply)
            if isinstance(answer, Standing) and (answer.word == "STAGED" or answer.position.seq >= end.seq):
                found[session] = Copied(end, events + (before.events if before is not None else 0))
            elif isinstance(answer, Standing):
                found[session] = Damaged(
                    "COPY_DIFFERS",
                    f"the copy of session {session} stands at seq {answer.position.seq}, where it should not",
                    session=session,
                    seq=answer.position.seq,
                )
            else:
                found[session] = _error(answer)


def _is_at_beginning(at: Position | MusterError) -> bool:
    return isinstance(at, Position) and at.seq == 0


def _position(at: Position | MusterError) -> Position:
    assert isinstance(at, Position)
    return at


def _error(answer: object) -> MusterError:
    """Why one session cannot be copied. What keeps all from it (no memory, no rights) is raised."""
    if isinstance(answer, Unavailable | Misconfigured):
        raise answer
    assert isinstance(answer, MusterError)
    return answer
