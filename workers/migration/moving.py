"""A migration at work: its phases, session by session, under its lease; each may be broken off and gone on with.

What a phase finds of a session it writes into the record after it was done; so a record may lag, and what is asked of
the servers decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from msgspec import Struct, structs

from domain.errors import MusterError
from workers.migration import calls
from workers.migration.comparing import Comparing, Problem
from workers.migration.copying import Copied, Copying
from workers.migration.cursors import Cursors
from workers.migration.cutting import BATCH, CuttingOver, Moved, Waiting
from workers.migration.ends import End, Ends
from workers.migration.holding import Holding
from workers.migration.record import Migration, Migrations, Move
from workers.migration.selecting import pages, selected
from workers.migration.undoing import Undoing
from workers.pacing import Pace

#: Sessions that lie so many events behind at most are sealed; the others are copied once more before.
SMALL_TAIL: Final = 512
#: States of a session that a cutover leaves as it is; those that are sealed were gone on with before.
SETTLED: Final = frozenset({"moved", "back", "elsewhere", "sealing"})
#: States of a session of which the target holds something that can be compared.
COMPARED: Final = frozenset({"copied", "sealing", "moved", "synced"})
#: How often the tail is copied before the seal, however fast the session grows.
PASSES: Final = 4


class Done(Struct):
    """What a phase did."""

    sessions: int = 0
    events: int = 0
    failed: int = 0


class Verified(Struct):
    """What was compared, and everything that was found."""

    sessions: int = 0
    commits: int = 0
    events: int = 0
    #: Of so many sessions the views of both sides were compared.
    views: int = 0
    problems: list[Problem] = []


class Moving:
    """One migration, worked on by this process."""

    def __init__(
        self, ends: Ends, migration: Migration, *, who: str, pace: Pace, say: Callable[[str], None], batch: int = BATCH
    ) -> None:
        self.ends = ends
        self.migration = migration
        self._migrations = Migrations(ends.target.store)
        self._who = who
        self._pace = pace
        self._say = say
        self._batch = batch
        self._token = ""
        self._holding = Holding(ends.target, migration, say)
        self.copying = Copying(ends, migration.id, who, pace)

    # -- phases ------------------------------------------------------------------------------------------------------

    def copy(self, sessions: Iterable[str] | None = None) -> Done:
        """Copies what is selected, or brings its copies to where their sources stand. Raises Unavailable."""
        done = Done()
        for page in pages(self._sessions(sessions)):
            known = self._known(page)
            left = [session for session in page if known[session].state not in ("moved", "elsewhere")]
            self._begin(left, known)
            found = self.copying.copy(left)
            moves: dict[str, Move] = {}
            for session, one in found.items():
                if isinstance(one, Copied):
                    moved_on = (one.position.seq, one.position.digest) != (known[session].seq, known[session].digest)
                    moves[session] = Move(
                        "sealing" if known[session].state == "sealing" else "copied",
                        one.position.seq,
                        one.position.digest or "",
                        verified=known[session].verified and not moved_on,
                    )
                    done.sessions, done.events = done.sessions + 1, done.events + one.events
                else:
                    moves[session] = self._failure(one)
                    done.failed += moves[session].state == "failed"
            self._put(moves)
        return done

    def cutover(self, sessions: Iterable[str] | None = None, *, proof: str | None = None) -> Done:
        """Moves what is selected: those first that were sealed already and not opened.

        Raises as `CuttingOver.move`, and Refused (USAGE) if the source cannot give the `proof` of a seal that is asked.
        """
        cursors = Cursors(self.ends, self.migration.id, self._say)
        cutting = CuttingOver(self.ends, self.migration.id, self._who, self.copying, cursors)
        if proof is not None:
            cutting.check_proof(proof)
        self._migrations.note(self.migration.id, proof=cutting.proof.wanted)
        cursors.begin(self._moved())
        done = Done()
        chosen = None if sessions is None else list(sessions)
        sealed = [
            session
            for session, move in self._migrations.moves(self.migration.id)
            if move.state == "sealing" and (chosen is None or session in chosen)
        ]
        for page in pages(sealed, self._batch):
            self._move(cutting, page, done, was_sealed=True)
        for page in pages(self._sessions(chosen), self._batch):
            known = self._known(page)
            left = [session for session in page if known[session].state not in SETTLED]
            self._begin(left, known)
            self._move(cutting, self._caught_up(left, done), done)
        self._bring_cursors(cursors)
        return done

    def _bring_cursors(self, cursors: Cursors) -> None:
        """Whoever is subscribed goes on at the target with what was moved, and there alone if that is everything."""
        self.check_held()
        states = {session: move.state for session, move in self._migrations.moves(self.migration.id)}
        moved = {session for session, state in states.items() if state == "moved"}
        gone = sum(state in ("moved", "elsewhere") for state in states.values())
        cursors.begin(moved)  # others may have been made meanwhile
        left = cursors.bring(moved, are_all=bool(moved) and gone >= _count(self.ends.source))
        self._migrations.note(self.migration.id, cursors_waiting=left)

    def _moved(self) -> list[str]:
        return [session for session, move in self._migrations.moves(self.migration.id) if move.state == "moved"]

    def _begin(self, sessions: list[str], known: dict[str, Move]) -> None:
        """Notes sessions before the first of them is copied: a rollback finds what was begun with by the record."""
        self._put({session: Move("begun") for session in sessions if known[session].state == "new"})

    def _caught_up(self, sessions: list[str], done: Done) -> list[str]:
        """Sessions whose copies are nearly where their sources stand; what cannot be copied is not sealed at all."""
        for _ in range(PASSES):
            found = self.copying.copy(sessions)
            sessions = [session for session in sessions if isinstance(found[session], Copied)]
            failed = {session: one for session, one in found.items() if isinstance(one, MusterError)}
            self._put({session: self._failure(one) for session, one in failed.items()})
            done.failed += sum(self._failure(one).state == "failed" for one in failed.values())
            if all(isinstance(one, MusterError) or one.events <= SMALL_TAIL for one in found.values()):
                break
        return sessions

    def _move(self, cutting: CuttingOver, sessions: list[str], done: Done, *, was_sealed: bool = False) -> None:
        if not sessions:
            return
        self.check_held()
        # Noted before they are: whoever goes on finds those first that wait for it; and that their cursors are to come.
        known = self._known(sessions)
        self._put({session: structs.replace(known[session], state="sealing", error=None) for session in sessions})
        if expected := cutting.cursors.waiting(sessions):
            waiting = self._migrations.get(self.migration.id).cursors_waiting + expected
            self._migrations.note(self.migration.id, cursors_waiting=waiting)
        found = cutting.move(sessions, are_fresh=not was_sealed)
        moves: dict[str, Move] = {}
        for session, one in found.items():
            if isinstance(one, Moved):
                moves[session] = Move(
                    "moved",
                    one.position.seq,
                    one.position.digest or "",
                    verified=True,
                    down_ms=None if was_sealed else one.down_ms,
                    proof=one.proof,
                )
                done.sessions, done.events = done.sessions + 1, done.events + one.position.seq
            elif isinstance(one, Waiting):
                moves[session] = Move("sealing", error=_told(one.error))
                done.failed += 1
            else:
                moves[session] = self._failure(one)
                done.failed += moves[session].state == "failed"
        self._put(moves)

    def _failure(self, error: MusterError) -> Move:
        if (position := calls.opened_by(error, self.migration.id)) is not None:
            return Move("moved", position.seq, position.digest or "", verified=True)
        if _is_elsewhere(error):
            return Move("elsewhere", error=error.cause)
        return Move("failed", error=_told(error))

    def verify(self, sessions: Iterable[str] | None = None) -> Verified:
        """Reads every session that was begun with on both sides, and compares. Raises Unavailable."""
        comparing = Comparing(self.ends, self.migration, self._token, self._pace)
        chosen = None if sessions is None else set(sessions)
        done = Verified()
        for page in pages(self._migrations.moves(self.migration.id)):
            moves: dict[str, Move] = {}
            for session, move in page:
                if move.state not in ("copied", "sealing", "moved", "synced") or (
                    chosen is not None and session not in chosen
                ):
                    continue
                compared = comparing.session(session, move)
                done.problems += compared.problems
                done.sessions, done.commits = done.sessions + 1, done.commits + compared.commits
                done.events += compared.events
                done.views += compared.has_views
                is_lost = any(one.code == "COPY_DIFFERS" and one.seq == 1 for one in compared.problems)
                moves[session] = structs.replace(
                    move,
                    verified=not compared.problems,
                    state="sealing" if move.state == "moved" and is_lost else move.state,
                    error=compared.problems[0].cause if compared.problems else None,
                )
            self._put(moves)
        return done

    def assert_seals(self) -> Verified:
        """Looks whether the sources of what was moved are sealed, and seals again what is not. Raises Unavailable."""
        comparing = Comparing(self.ends, self.migration, self._token, self._pace)
        done = Verified()
        for page in pages(self._migrations.moves(self.migration.id)):
            moved = {session: move for session, move in page if move.state == "moved"}
            done.problems += comparing.seals(moved)
            done.sessions += len(moved)
        return done

    def rollback(self, sessions: Iterable[str] | None = None, *, carry_back: bool = False) -> Done:
        """Undoes what this migration did. Raises as `Undoing.check_unchanged`, if nothing is to be carried back."""
        undoing = Undoing(
            self.ends, self.migration, by=self._token, who=self._who, carry_back=carry_back, say=self._say
        )
        chosen = None if sessions is None else list(sessions)
        if not carry_back:
            undoing.check_unchanged(chosen)
        cursors = Cursors(self.ends, self.migration.id, self._say)
        cursors.look()
        undone = {session for session, _ in undoing.sessions(chosen)}
        cursors.take_back(undone)
        back, failed = undoing.undo(chosen)
        returned = {session for session, move in self._migrations.moves(self.migration.id) if move.state == "back"}
        left = cursors.put_back(returned, undone - returned, are_all=not _count(self.ends.target))
        self._migrations.note(self.migration.id, cursors_waiting=left)
        return Done(sessions=back, failed=failed)

    # -- what phases share -------------------------------------------------------------------------------------------

    def _sessions(self, sessions: Iterable[str] | None) -> Iterator[str]:
        """The sessions that a phase is about: those given, or the selection; where that is a filter, also those that
        met it when they were begun with.
        """
        if sessions is not None:
            yield from sessions
            return
        begun: set[str] = set()
        if "filter" in self.migration.selection:
            begun = {session for session, _ in self._migrations.moves(self.migration.id)}
            yield from sorted(begun)
        for session in selected(self.ends.source, self.migration.selection):
            if session not in begun:
                yield session

    def _known(self, sessions: list[str]) -> dict[str, Move]:
        found = self._migrations.of(self.migration.id, sessions)
        return {session: move or Move("new") for session, move in zip(sessions, found, strict=True)}

    def _put(self, moves: dict[str, Move]) -> None:
        self._migrations.put(self.migration.id, moves)

    @contextmanager
    def phase(self, begins: str, ends: str | None = None) -> Iterator[None]:
        """A phase, under the migration's lease; see `Holding.phase`."""
        with self._holding.phase(begins, ends):
            self._token = self.copying.by = self._holding.token
            yield

    def check_held(self) -> None:
        """Raises Conflict (MIGRATION_BUSY) if another process goes on with the migration."""
        self._holding.check()


def _count(end: End) -> int:
    """How many sessions a store has, wherever they went from there."""
    return sum(end.replies([["ZCARD", keys.sessions] for keys in end.keyspace.partitions]))


def _is_elsewhere(error: MusterError) -> bool:
    """Whether a session of the source was moved to yet another place before: there is nothing to move."""
    return error.code == "MIGRATION_CONFLICT" and bool(error.facts.get("to")) and error.facts.get("seq", 0) > 0


def _told(error: MusterError) -> str:
    return f"{error.code}: {error.cause}"


def downtimes(moves: Iterable[Move]) -> dict[str, Any]:
    """How long sessions took no appends, in ms: the median, the 99th percentile, the longest."""
    measured = sorted(move.down_ms for move in moves if move.down_ms is not None)
    if not measured:
        return {"p50": None, "p99": None, "max": None}
    return {
        "p50": measured[(len(measured) - 1) // 2],
        "p99": measured[min(len(measured) - 1, int(len(measured) * 0.99))],
        "max": measured[-1],
    }
