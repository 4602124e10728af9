"""Keeping a standby: every session of the source, there for all to read, closed for appends, and equal to the byte.

Theory of operation. The source's feed tells which sessions have new commits; where it does not reach back, the heads of
a whole partition are compared. A session's new commits are appended to its copy with the seqs, times and digests they
have, and the standby computes each digest again: what it holds is verified as it goes. Its workers build views as they
would of any append. How far each partition is stands in the record, and is only a hint: where a session goes on is what
its own copy says.

A session that was written on both sides is a conflict: it is named with the first seq that differs, and nothing happens
to it unless a policy was given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, Final, Literal

from msgspec import Struct

from domain.codec import Commit, genesis
from domain.errors import Conflict, MusterError, Unavailable
from domain.invariants import gate_through
from domain.log.contract import Head, Position
from domain.log.protocol import Command, chunks
from domain.log.skips import decode_skips
from domain.session import OPEN_GATE
from projections.skipping import DISCARDED
from workers.migration import calls
from workers.migration.calls import Sealed, Standing
from workers.migration.ends import Ends
from workers.migration.mirror import Mirror
from workers.migration.record import Migration, Migrations, Move
from workers.migration.selecting import PAGE, pages
from workers.pacing import Pace
from workers.recovery import Recovery

Policy = Literal["manual", "source", "target", "keep-both"]
POLICIES: Final = ("manual", "source", "target", "keep-both")


class Lag(Struct, frozen=True):
    """How far the standby is behind: events, and for how long the oldest of them has been waiting."""

    events: int
    seconds: float


class Synced(Struct):
    """What a round brought, and what is left."""

    sessions: int = 0
    events: int = 0
    conflicts: int = 0
    failed: int = 0


class Syncing:
    """One direction, from source to standby. `by` is the token of the migration's lease."""

    def __init__(
        self,
        ends: Ends,
        migration: Migration,
        *,
        by: str,
        who: str,
        policy: Policy,
        pace: Pace,
        say: Callable[[str], None],
    ) -> None:
        self._ends = ends
        self._task = migration.id
        self._migrations = Migrations(ends.target.store)
        self._by = by
        self._who = who
        self._policy = policy
        self._pace = pace
        self._say = say
        self.mirror = Mirror(ends.target, migration.id, say)
        #: Looked at again every round: an operator may have settled them.
        moves = self._migrations.moves(migration.id)
        self._conflicts = {session for session, move in moves if move.state == "conflict"}

    def round(self) -> Synced:
        """Brings everything that is new; what keeps one session from it keeps no other. Raises Unavailable."""
        done = Synced()
        at = self._migrations.positions(self._task)
        for partition in range(self._ends.source.keyspace.count):
            if not self._migrations.renew(self._task, self._by):
                raise Conflict("MIGRATION_BUSY", f"another process goes on with migration {self._task}")
            reached = self._partition(partition, at.get(partition), done)
            if reached != at.get(partition):
                self._migrations.reached(self._task, partition, reached)
        self.mirror.look(self._ends.source)
        done.conflicts = len(self._conflicts)
        return done

    def sessions(self, sessions: Iterable[str], done: Synced, *, are_closed: bool = False) -> None:
        """Brings what is new of these sessions; of those that were moved elsewhere nothing, unless a failover closed
        them.
        """
        for page in pages(sessions, PAGE):
            heads, there = self._ends.source.log.heads(page), self._ends.target.log.heads(page)
            moves: dict[str, Move] = {}
            for session, head, copy in zip(page, heads, there, strict=True):
                if head is None or not head.seq or (head.is_elsewhere and not are_closed):
                    continue
                try:
                    brought = self._session(session, head, copy)
                except Unavailable:
                    raise
                except MusterError as error:
                    moves[session] = self._hindered(session, error, done)
                    continue
                self._conflicts.discard(session)
                moves[session] = brought
                before = copy.seq if copy is not None else 0
                done.sessions, done.events = done.sessions + 1, done.events + max(0, brought.seq - before)
                self._pace.took(max(0, brought.seq - before))
            self._migrations.put(self._task, moves)

    # -- a partition -------------------------------------------------------------------------------------------------

    def _partition(self, partition: int, position: int | None, done: Synced) -> int:
        """Brings what is new in a partition of the source; returns up to where its feed is done with."""
        store = self._ends.source.store
        total = store.total(partition)
        if position is not None and position == total:
            self.sessions(sorted(one for one in self._conflicts if self._is_in(one, partition)), done)
            return total
        entries = store.feed_after(partition, position) if position is not None and position <= total else []
        reached = position
        for entry in entries:
            if reached != entry.begins_after:
                break
            reached = entry.position
        if reached is None or reached < total:
            # The feed does not tell of all: every session of the partition is looked at.
            for page in store.member_pages(partition):
                self.sessions(page, done)
            return total
        names = {span.session for entry in entries for span in entry.spans}
        self.sessions(sorted(names | {one for one in self._conflicts if self._is_in(one, partition)}), done)
        return reached

    def _is_in(self, session: str, partition: int) -> bool:
        return self._ends.source.keyspace.partition_of(session) == partition

    # -- a session ---------------------------------------------------------------------------------------------------

    def _session(self, session: str, head: Head, copy: Head | None) -> Move:
        if head.quarantined:
            raise Conflict("SYNC_CONFLICT", f"session {session} is quarantined at the source", session=session, seq=0)
        if copy is None or (copy.seq == 0 and not copy.quarantined):
            return self._brought(session, Position(0, genesis(session)), OPEN_GATE, head.policy)
        if not self._goes_on_from(session, copy):
            return self._settled(session, head, copy)
        if not copy.is_elsewhere:
            self._held(session)
        return self._brought(session, copy.position, copy.gate, head.policy)

    def _goes_on_from(self, session: str, copy: Head) -> bool:
        """Whether the source's history goes through where the standby's stands."""
        commits = self._ends.source.log.read(session, after=copy.seq - 1, to=copy.seq)
        return any((one.last_seq, one.digest) == (copy.seq, copy.digest) for one in commits)

    def _held(self, session: str) -> Sealed:
        """Closes a session on the standby that was open there: from now on it is written at the source alone."""
        target, place = self._ends.target, str(self._ends.source.place)
        command = calls.seal(target, session, self._task, self._by, "from", place)
        answer = calls.answered(session, target.ask([command])[0])
        if isinstance(answer, MusterError):
            raise answer
        assert isinstance(answer, Sealed)
        return answer

    def _brought(self, session: str, at: Position, gate: str, policy: str) -> Move:
        """Brings what comes after a position, what was discarded, and who may append once the standby takes over."""
        target, place = self._ends.target, str(self._ends.source.place)
        rest: Iterator[list[Commit]] = chunks(self._ends.source.log.read(session, after=at.seq))
        for chunk in chain(rest, [[]]):  # the last call brings the policy, where nothing else is new
            gate = gate_through(gate, chunk)
            command = calls.bring(target, session, self._task, place, at, gate, chunk, policy=policy)
            answer = calls.answered(session, target.ask([command])[0])
            if isinstance(answer, MusterError):
                raise answer
            at = Position(chunk[-1].last_seq, chunk[-1].digest) if chunk else at
            if not isinstance(answer, Standing) or answer.position.seq < at.seq:
                raise Conflict("LOG_MOVED", f"session {session} was moved on while it was brought", session=session)
        self._bring_skips(session)
        return Move("synced", at.seq, at.digest or "", verified=True)

    def _bring_skips(self, session: str) -> None:
        """What an operator discarded at the source is discarded on the standby; its audit stream bears it out."""
        ends = (self._ends.source, self._ends.target)
        there, here = (end.ask([["HGET", end.keyspace.of(session).skips, session]])[0] for end in ends)
        if there is None or there == here:
            return
        keys = self._ends.target.keyspace.of(session)
        known = decode_skips(here)
        # The audit first: a skip that it does not tell of counts as forged.
        noted: list[Command] = [
            [
                *("XADD", keys.audit, "*", "who", self._who, "what", DISCARDED, "session", session),
                *("seq", skip.from_seq, "to_seq", skip.to_seq, "digest", skip.digest),
                *("why", "discarded where it came from"),
            ]
            for skip in decode_skips(there)
            if skip not in known
        ]
        self._ends.target.ask([*noted, ["HSET", keys.skips, session, there]])

    # -- conflicts ---------------------------------------------------------------------------------------------------

    def _settled(self, session: str, head: Head, copy: Head) -> Move:
        """What the policy makes of a session that was written on both sides. Raises Conflict (SYNC_CONFLICT)."""
        seq = self._first_difference(session)
        if self._policy == "target":
            return Move("kept", seq, error=f"SYNC_CONFLICT: the standby's history counts, from seq {seq} on")
        if self._policy == "manual":
            raise Conflict(
                "SYNC_CONFLICT",
                f"session {session} was written on both sides: they differ from seq {seq} on "
                f"(the source stands at {head.seq}, the standby at {copy.seq})",
                session=session,
                seq=seq,
            )
        if self._policy == "keep-both":
            kept = self._ends.target.log.fork(session, copy.seq, who=self._who)
            self._say(f"session {session} differs from seq {seq} on: the standby's is kept as {kept.session}")
        else:
            self._say(f"session {session} differs from seq {seq} on: the source's counts, the other is put aside")
        self._yielded(session)
        return self._brought(session, Position(0, genesis(session)), OPEN_GATE, head.policy)

    def _yielded(self, session: str) -> None:
        target, held = self._ends.target, self._held(session)
        command = calls.yield_(target, session, self._task, held.position, target.now_ms(), self._who)
        answer = calls.answered(session, target.ask([command])[0])
        if isinstance(answer, MusterError) or answer == Standing("STANDS", held.position):
            raise Conflict("LOG_MOVED", f"session {session} was moved on while it was put aside", session=session)
        partition = target.keyspace.partition_of(session)
        recovery = Recovery(target.store, target.log, who=f"recovery:migration:{self._task}", progress=self._say)
        if target.store.cursor(partition).position is not None:
            recovery.forget(partition, [session])
        recovery.forget_own(partition, [session])

    def _first_difference(self, session: str) -> int:
        """The first seq at which both sides do not hold the same."""
        source, target = self._ends.source.log.read(session), self._ends.target.log.read(session)
        seq = 1
        for one, other in zip(source, target, strict=False):
            if (one.last_seq, one.digest) != (other.last_seq, other.digest):
                return one.first_seq
            seq = one.last_seq + 1
        return seq

    def _hindered(self, session: str, error: MusterError, done: Synced) -> Move:
        if session not in self._conflicts:
            self._say(f"{error.code}: {error.cause}")
        self._conflicts.add(session)
        done.failed += error.code != "SYNC_CONFLICT"
        seq: Any = error.facts.get("seq", 0)
        return Move("conflict", int(seq), error=f"{error.code}: {error.cause}")


def lag_of(ends: Ends, task: str) -> Lag:
    """How far a standby is behind, by the source's own numbers."""
    source, at = ends.source, Migrations(ends.target.store).positions(task)
    events, oldest = 0, None
    for partition in range(source.keyspace.count):
        total, position = source.store.total(partition), at.get(partition, 0)
        if total > position:
            events += total - position
            entry = source.store.oldest_after(partition, position)
            if entry is not None:
                oldest = min(entry.at_ms, oldest or entry.at_ms)
    return Lag(events, 0.0 if oldest is None else max(0.0, (source.now_ms() - oldest) / 1000))
