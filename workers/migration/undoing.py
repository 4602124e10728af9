"""Rolling back: what one migration did is undone, and nothing else.

    1. seal the target, confirmed      nobody can append anywhere
    2. carry back what came since      with its seqs and digests, or refuse and open the target again
    3. open the source                 it holds all that was ever appended
    4. drop the copy                   its name says from then on that the session is at the source

As in a cutover at most one side takes appends at any instant, and every step may be done again. Sessions that were on
the target before are no part of the record, and no step names them. What the target's workers derived from the copies
goes with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from msgspec import structs

from domain.codec import genesis
from domain.errors import Conflict, Damaged, MusterError, Unavailable
from domain.invariants import gate_through
from domain.log.contract import Position
from domain.log.protocol import chunks
from workers.migration import calls
from workers.migration.calls import Sealed, Standing
from workers.migration.comparing import is_sealed
from workers.migration.cutting import confirmed
from workers.migration.ends import End, Ends
from workers.migration.proof import Proof
from workers.migration.record import Migration, Migrations, Move
from workers.migration.selecting import PAGE, pages
from workers.recovery import Recovery


class Undoing:
    """The rollback of one migration. `by` is the token of its lease."""

    def __init__(
        self, ends: Ends, migration: Migration, *, by: str, who: str, carry_back: bool, say: Callable[[str], None]
    ) -> None:
        self._ends = ends
        self._task = migration.id
        self._migrations = Migrations(ends.target.store)
        self._by = by
        self._who = who
        self._carry_back = carry_back
        self._say = say
        self._proofs = {id(end): Proof(end) for end in (ends.source, ends.target)}

    def sessions(self, chosen: Sequence[str] | None = None) -> Iterator[tuple[str, Move]]:
        """What there is to undo."""
        for session, move in self._migrations.moves(self._task):
            if move.state not in ("back", "elsewhere") and (chosen is None or session in chosen):
                yield session, move

    def appended(self, chosen: Sequence[str] | None = None) -> dict[str, tuple[int, int]]:
        """Sessions that were appended to on the target since they were moved: from which seq to which."""
        found: dict[str, tuple[int, int]] = {}
        for page in pages(self.sessions(chosen), PAGE):
            heads = self._ends.target.log.heads([session for session, _ in page])
            for (session, move), head in zip(page, heads, strict=True):
                if move.state == "moved" and head is not None and head.seq > move.seq:
                    found[session] = (move.seq + 1, head.seq)
        return found

    def undo(self, chosen: Sequence[str] | None = None) -> tuple[int, int]:
        """Undoes it; returns how many sessions are back, and how many could not be."""
        back = failed = 0
        for page in pages(list(self.sessions(chosen)), PAGE):
            if not self._migrations.renew(self._task, self._by):
                raise Conflict("MIGRATION_BUSY", f"another process goes on with migration {self._task}")
            moves: dict[str, Move] = {}
            for session, move, outcome in self._undone(page):
                if isinstance(outcome, MusterError):
                    moves[session] = structs.replace(move, error=f"{outcome.code}: {outcome.cause}")
                    failed += 1
                    self._say(f"not rolled back: {outcome.code}: {outcome.cause}")
                else:
                    moves[session] = Move("back", outcome.seq, outcome.digest or "")
                    back += 1
            self._migrations.put(self._task, moves)
        self._forget_derived([session for session, move in self._migrations.moves(self._task) if move.state == "back"])
        return back, failed

    def check_unchanged(self, chosen: Sequence[str] | None = None) -> None:
        """Raises Conflict (ROLLBACK_REFUSED) if sessions were appended to on the target."""
        if appended := self.appended(chosen):
            named = ", ".join(
                f"{session} (seqs {low} to {high})" for session, (low, high) in list(appended.items())[:8]
            )
            more = f" and {len(appended) - 8} more" if len(appended) > 8 else ""
            raise Conflict(
                "ROLLBACK_REFUSED", f"the target was appended to since: {named}{more}", sessions=list(appended)
            )

    # -- sessions ----------------------------------------------------------------------------------------------------

    def _undone(self, page: Sequence[tuple[str, Move]]) -> Iterator[tuple[str, Move, Position | MusterError]]:
        """Undoes sessions together, so that they wait together for what proves their seals."""
        source, target = self._ends.source, self._ends.target
        opened = self._opened([session for session, _ in page])
        back = [calls.seal(target, session, self._task, self._by, "to", str(source.place)) for session in opened]
        proof = self._proofs[id(target)]
        replies = target.ask([*back, *proof.commands()])
        confirmed(target, proof, sealed_with=proof.proved(replies[len(back) :]))
        sealed = {name: calls.answered(name, reply) for name, reply in zip(opened, replies, strict=False)}
        for session, move in page:
            answer = sealed.get(session)
            try:
                if answer is None:
                    yield session, move, self._withdrawn(session)
                elif isinstance(answer, Sealed):
                    yield session, move, self._returned(session, answer)
                else:
                    assert isinstance(answer, MusterError)
                    yield session, move, answer
            except MusterError as error:
                if isinstance(error, Unavailable):
                    raise
                yield session, move, error

    def _opened(self, sessions: Sequence[str]) -> list[str]:
        """Those that this migration opened on the target. No step touches any other session that is there.

        Their copies are claimed first: what has not been opened by now cannot be any more, by whoever was at it.
        """
        target, place = self._ends.target, str(self._ends.source.place)
        claims = [
            calls.stage(target, session, self._task, self._by, place, Position(0, genesis(session)), ())
            for session in sessions
        ]
        found = []
        for session, reply in zip(sessions, target.ask(claims), strict=True):
            answer = calls.answered(session, reply)
            if isinstance(answer, Conflict) and answer.facts.get("opened_by") == self._task:
                found.append(session)
        return found

    def _withdrawn(self, session: str) -> Position:
        """Takes back a copy that was not opened: its source is opened, if it was sealed for it, then the copy goes."""
        source, target = self._ends.source, self._ends.target
        was_sealed = is_sealed(source, session, self._task)
        if was_sealed:
            self._open_source(session)
        hold = target.keyspace.of(session).hold(session)
        (told,) = target.ask([["HMGET", hold, "moved_task", "moved_seq", "moved_digest"]])
        task, seq, digest = told
        if task == self._task.encode() and seq is not None:
            at = Position(int(seq), digest.decode())
            place = str(source.place) if was_sealed else ""
            self._expect(session, target, calls.drop(target, session, self._task, at, place, self._who), "DROPPED")
        return self._position(session)

    def _returned(self, session: str, there: Sealed) -> Position:
        """Takes back a session that was opened on the target, which is sealed now."""
        source, target = self._ends.source, self._ends.target
        try:
            here = self._sealed_source(session)
            if not self._holds(source, session, there.position):
                self._carry(session, here, there)
            if here.token != there.token:
                # The lease went on at the target: whoever held it before must not hold it again.
                source.ask([["HDEL", source.keyspace.of(session).hold(session), "moved_token"]])
            self._open_source(session)
        except MusterError:
            if not self._is_source_open(session):
                target.ask([calls.unseal(target, session, self._task, self._by)])
            raise
        drop = calls.drop(target, session, self._task, there.position, str(source.place), self._who)
        self._expect(session, target, drop, "DROPPED")
        return self._position(session)

    def _sealed_source(self, session: str) -> Sealed:
        source = self._ends.source
        command = calls.seal(source, session, self._task, self._by, "to", str(self._ends.target.place))
        answer = calls.answered(session, source.ask([command])[0])
        if not isinstance(answer, Sealed):
            assert isinstance(answer, MusterError)
            raise answer
        return answer

    def _carry(self, session: str, here: Sealed, there: Sealed) -> None:
        """Brings to the source what was appended on the target. Raises Conflict, Damaged if they went apart."""
        source, target = self._ends.source, self._ends.target
        if not self._holds(target, session, here.position):
            raise Damaged(
                "COPY_DIFFERS",
                f"source and target of session {session} went apart at or before seq {min(here.seq, there.seq)}",
                session=session,
            )
        if not self._carry_back:
            raise Conflict(
                "ROLLBACK_REFUSED",
                f"session {session} was appended to on the target, up to seq {there.seq}",
                sessions=[session],
            )
        at, gate = here.position, here.gate
        for chunk in chunks(target.log.read(session, after=here.seq)):
            gate = gate_through(gate, chunk)
            self._expect(session, source, calls.bring(source, session, self._task, "", at, gate, chunk), "BROUGHT")
            at = Position(chunk[-1].last_seq, chunk[-1].digest)
        proof = self._proofs[id(source)]
        confirmed(source, proof, sealed_with="")
        if at != there.position:
            raise Damaged("COPY_DIFFERS", f"what was carried back of session {session} ends at seq {at.seq}")

    def _holds(self, end: End, session: str, position: Position) -> bool:
        """Whether a session's log goes through a position."""
        if position == Position(0, genesis(session)):
            return True
        commits = end.log.read(session, after=position.seq - 1, to=position.seq)
        return any((one.last_seq, one.digest) == (position.seq, position.digest) for one in commits)

    def _open_source(self, session: str) -> None:
        source = self._ends.source
        self._sealed_source(session)  # whoever sealed it last may open it: from now on that is this process
        self._expect(session, source, calls.unseal(source, session, self._task, self._by), "OPEN")

    def _is_source_open(self, session: str) -> bool:
        head = self._ends.source.log.head(session)
        return head is not None and not head.is_elsewhere

    def _position(self, session: str) -> Position:
        head = self._ends.source.log.head(session)
        return Position(0, genesis(session)) if head is None else head.position

    def _expect(self, session: str, end: End, command: list[object], word: str) -> None:
        answer = calls.answered(session, end.ask([command])[0])
        if isinstance(answer, MusterError):
            raise answer
        if not isinstance(answer, Standing) or answer.word != word:
            raise Conflict(
                "MIGRATION_CONFLICT", f"session {session} moved on while it was rolled back", session=session
            )

    # -- what derived from them --------------------------------------------------------------------------------------

    def _forget_derived(self, sessions: Sequence[str]) -> None:
        """Takes away what the target's workers built of the copies: views, checkpoints, their part of all sums."""
        target = self._ends.target
        by_partition: dict[int, list[str]] = {}
        for session in sessions:
            by_partition.setdefault(target.keyspace.partition_of(session), []).append(session)
        recovery = Recovery(target.store, target.log, who=f"recovery:migration:{self._task}", progress=self._say)
        for partition, names in sorted(by_partition.items()):
            if target.store.cursor(partition).position is not None:
                recovery.forget(partition, names)
            recovery.forget_own(partition, names)
