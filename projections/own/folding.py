"""Folding a session's commits with the user's code, which may fail at any event.

The same laws of a history are asked as for the built-in views. What the user's code raises is one more way for a commit
to be poison: the fold stands before that commit, whatever the code had changed already, and says what happened.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from itertools import islice
from typing import Final

from domain.codec import Commit
from domain.errors import Damaged
from domain.invariants import broken_law
from domain.session import gate_after, kinds_of
from projections.parking import fingerprint
from projections.projection import Definition, Fold, RecordedEvent
from projections.store import Parked

#: How many commits are folded before the states are encoded: what is folded again when one of them fails.
_STRETCH: Final = 128


class Folding:
    """A fold in progress. `encoded` are its bytes at the end of the last commit that is in.

    `carefully`: no commit is asked for before the one before it is in.
    """

    def __init__(self, definition: Definition, fold: Fold, *, carefully: bool = False) -> None:
        self._definition = definition
        self._stretch = 1 if carefully else _STRETCH
        self.encoded = definition.encode(fold)
        self.fold = self._reread(fold.session)

    def advance(self, commits: Iterable[Commit], to_seq: int) -> Parked | None:
        """Folds commits up to `to_seq`, or to the last one before one that fails; then returns why it did."""
        remaining = iter(commits)
        try:
            while stretch := list(islice(remaining, self._stretch)):
                try:
                    for commit in stretch:
                        self._move(commit)
                    self.encoded = self._definition.encode(self.fold)
                except Exception:
                    self._one_by_one(stretch)
            if self.fold.seq < to_seq:
                at = self.fold.seq
                raise Damaged("TAIL_LOST", f"the log of session {self.fold.session} ends at seq {at}, not at {to_seq}")
        except Damaged as failed:
            self.fold = self._reread(self.fold.session)
            same = fingerprint(failed.code, failed.cause, self.fold.session)
            return Parked(failed.code, failed.cause, self.fold.seq + 1, same, failed.facts.get("attempts", 1))
        return None

    def _one_by_one(self, stretch: Iterable[Commit]) -> None:
        """Folds commits again from where the states were encoded last, so that only the one that fails is left out."""
        self.fold = self._reread(self.fold.session)
        for commit in stretch:
            try:
                self._move(commit)
                self.encoded = self._definition.encode(self.fold)
            except Damaged:
                raise
            except Exception as error:
                raise failure(self._definition, error) from error

    def _move(self, commit: Commit) -> None:
        fold = self.fold
        law = broken_law(fold, commit)
        if law is not None:
            raise law
        if not commit.skipped:
            self._apply(commit)
            fold.gate = gate_after(fold.gate, kinds_of(commit.events))[0]
        fold.seq, fold.digest, fold.last_at = commit.last_seq, commit.digest, commit.at_ms

    def _apply(self, commit: Commit) -> None:
        definition, projection, states = self._definition, self._definition.projection, self.fold.states
        for seq, event in enumerate(commit.events, commit.first_seq):
            recorded = RecordedEvent(commit.session, seq, commit.at_ms, projection.upcasters.upcast(event))
            for key in definition.keys_of(recorded):
                state = states[key] if key in states else projection.initial(key)
                states[key] = projection.apply(state, recorded)

    def _reread(self, session: str) -> Fold:
        fold = self._definition.decode(self.encoded, session)
        if fold is None:
            raise Damaged("PROJECTION_FAILED", f"{self._definition.label} gave states that cannot be read again")
        return fold


def failure(definition: Definition, error: Exception) -> Damaged:
    """What the user's code raised, as the reason a session is parked: the error, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].name}, line {frames[-1].lineno}" if frames else ""
    return Damaged("PROJECTION_FAILED", f"{definition.label} raised {type(error).__name__}: {error}"[:300] + where)
