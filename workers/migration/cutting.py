"""Cutting over: a session's writers change from source to target, in an instant, and never are there two.

    1. seal the source          nobody can append: its seq and digest are final
    2. confirm the seal         at the strongest durability the source can prove, or go no further
    3. copy the tail            what came since the copy was made
    4. compare seq and digest   the target computed its digest from the bytes it was sent
    5. open the target          in one step, which also tells its workers

Whoever dies in between, or whatever breaks: until 5 the target takes nothing, and from 1 on the source takes nothing.
The same is done again from wherever it stands, because every step of it may be. A process that was thought dead has a
token that no step takes any more.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final, TypeAlias

from msgspec import Struct

from domain.errors import Damaged, DeadlineExceeded, MusterError, Refused
from domain.log.contract import Position
from workers.migration import calls
from workers.migration.calls import Sealed, Standing
from workers.migration.copying import Copied, Copying
from workers.migration.cursors import Cursors
from workers.migration.ends import End, Ends
from workers.migration.proof import Proof

#: How many sessions are sealed together. They wait together for the proof, so more of them take less time in all, and
#: each longer.
BATCH: Final = 32
#: How long the proof of a seal is waited for, in seconds.
PROOF_PATIENCE_S: Final = 15.0
#: What is wrong with a copy that is no session yet, or with a name that is another's.
_NOT_OPEN: Final = frozenset({"COPY_DIFFERS", "MIGRATION_CONFLICT", "QUARANTINED", "PARTITION_WRONG"})


class Moved(Struct, frozen=True):
    """A session that was opened on the target: where it stood then, how long nobody could append, and what proved that
    the source is sealed. `down_ms` None: the seal was there before, nobody here knows since when.
    """

    position: Position
    down_ms: float | None
    proof: str


class Waiting(Struct, frozen=True):
    """A session that is sealed and could not be opened, or nobody knows whether it is: it is to be gone on with."""

    error: MusterError


Outcome: TypeAlias = Moved | Waiting | MusterError


class CuttingOver:
    """The cutover of one migration."""

    def __init__(self, ends: Ends, task: str, who: str, copying: Copying, cursors: Cursors) -> None:
        self._ends = ends
        self.cursors = cursors
        self._task = task
        self._who = who
        self._copying = copying
        self.proof = Proof(ends.source)

    def check_proof(self, wanted: str) -> None:
        """Raises Refused (USAGE) if the source cannot prove its seals so well."""
        if not set(wanted.split("+")) <= set(self.proof.wanted.split("+")):
            raise Refused("USAGE", f"the source can prove {self.proof.wanted} of a seal, and {wanted} is wanted")

    def move(self, sessions: Sequence[str], *, are_fresh: bool = True) -> dict[str, Outcome]:
        """Moves sessions together. What keeps one from it keeps no other; that one stays at its source, open.

        `are_fresh`: they were not sealed before, so none of them was opened. If the target fails then before they are
        all copied, their sources are opened again, rather than that they wait for it.

        Raises Unavailable, DeadlineExceeded (SEAL_UNPROVED): sessions may be sealed then, and are gone on with by the
        same call, or opened again by a rollback.
        """
        began = time.monotonic()
        sealed, found = self._sealed(sessions)
        try:
            word = confirmed(self._ends.source, self.proof, sealed_with=self._last_word)
            copies = self._copying.copy(list(sealed))
        except MusterError:
            if are_fresh:
                source, by = self._ends.source, self._copying.by
                with suppress(MusterError):
                    source.ask([calls.unseal(source, session, self._task, by) for session in sealed])
            raise
        found |= self._opened_before(sealed, copies, word)
        right = {session: one for session, one in sealed.items() if is_equal(one, copies[session])}
        for session in sealed.keys() - right.keys() - found.keys():
            found[session] = self._let_go(session, sealed[session], copies[session])
        found |= self._opened(right, began, word)
        return found

    def _sealed(self, sessions: Sequence[str]) -> tuple[dict[str, Sealed], dict[str, Outcome]]:
        source, place = self._ends.source, str(self._ends.target.place)
        seals = [calls.seal(source, session, self._task, self._copying.by, "to", place) for session in sessions]
        replies = source.ask([*seals, *self.proof.commands()])
        self._last_word = self.proof.proved(replies[len(seals) :])
        sealed: dict[str, Sealed] = {}
        found: dict[str, Outcome] = {}
        for session, reply in zip(sessions, replies, strict=False):
            answer = calls.answered(session, reply)
            if isinstance(answer, Sealed):
                sealed[session] = answer
            else:
                assert isinstance(answer, MusterError)
                found[session] = answer
        return sealed, found

    def _opened_before(
        self, sealed: Mapping[str, Sealed], copies: Mapping[str, Copied | MusterError], word: str
    ) -> dict[str, Outcome]:
        """Those that were opened already, by who died before he could say so."""
        found: dict[str, Outcome] = {}
        for session, one in sealed.items():
            copy = copies[session]
            if isinstance(copy, MusterError) and (position := calls.opened_by(copy, self._task)) is not None:
                lost = _lost_seal(session, position, one.position)
                found[session] = Moved(position, None, word) if position == one.position else Waiting(lost)
        return found

    def _let_go(self, session: str, sealed: Sealed, copy: Copied | MusterError) -> Outcome:
        """Says why a session's copy is not right. Its source is opened again where the target surely is not open."""
        is_opened = isinstance(copy, MusterError) and copy.facts.get("opened_by") == self._task
        if is_opened or (isinstance(copy, MusterError) and copy.code not in _NOT_OPEN):
            assert isinstance(copy, MusterError)
            return Waiting(copy)
        self._ends.source.ask([calls.unseal(self._ends.source, session, self._task, self._copying.by)])
        if isinstance(copy, MusterError):
            return copy
        return Damaged(
            "COPY_DIFFERS",
            f"the copy of session {session} stands at seq {copy.position.seq} with digest {copy.position.digest}, "
            f"the source at {sealed.seq} with {sealed.digest}",
            session=session,
            seq=min(copy.position.seq, sealed.seq),
        )

    def _opened(self, sealed: Mapping[str, Sealed], began: float, word: str) -> dict[str, Outcome]:
        target, source, by = self._ends.target, self._ends.source, self._copying.by
        skips = source.ask([["HGET", source.keyspace.of(session).skips, session] for session in sealed])
        opens = [
            calls.open_(target, session, self._task, by, one, "" if skip is None else skip.decode(), self._who)
            for (session, one), skip in zip(sealed.items(), skips, strict=True)
        ]
        expected = self.cursors.expected(sealed)
        replies = target.ask([*expected, *opens])[len(expected) :]
        down_ms = round((time.monotonic() - began) * 1000, 3)
        found: dict[str, Outcome] = {}
        for (session, one), reply in zip(sealed.items(), replies, strict=True):
            answer = calls.answered(session, reply)
            if isinstance(answer, Standing) and answer.word == "OPENED":
                found[session] = Moved(one.position, down_ms, word)
            elif isinstance(answer, MusterError):
                found[session] = Waiting(answer)
            else:
                found[session] = self._let_go(session, one, Copied(one.position, 0))
        return found


def _lost_seal(session: str, opened: Position, sealed: Position) -> Damaged:
    return Damaged(
        "SEAL_LOST",
        f"session {session} was opened on the target at seq {opened.seq}, and its source stands at seq {sealed.seq}",
        session=session,
        seq=min(opened.seq, sealed.seq) + 1,
    )


def is_equal(sealed: Sealed, copy: Copied | MusterError) -> bool:
    """Whether a copy is all that was sealed, and nothing else."""
    return isinstance(copy, Copied) and copy.position == sealed.position


def confirmed(end: End, proof: Proof, *, sealed_with: str) -> str:
    """What proves that what was written to a server before stays there. Raises DeadlineExceeded (SEAL_UNPROVED)."""
    word, deadline = sealed_with, time.monotonic() + PROOF_PATIENCE_S
    while not proof.is_enough(word):
        if time.monotonic() > deadline:
            raise DeadlineExceeded(
                "SEAL_UNPROVED", f"{end.place.url} proves {word} of a seal, where {proof.wanted} is to be had"
            )
        word = proof.proved(end.ask(proof.commands()))
    return word
