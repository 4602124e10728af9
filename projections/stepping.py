"""A session's log event by event, with the state after each; every commit is held to the laws before it is told."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from domain.codec import Commit
from domain.errors import Damaged
from domain.events import Event
from domain.invariants import broken_law
from domain.log.contract import CommitReader
from domain.session import Session, gist_of


class Step(Struct, frozen=True):
    """One event, and the state right after it. `state` is the same object in all steps, moved on with the next.

    `event` is None in a discarded commit that nobody can read. `digest` stands where a commit ends, else it is None.
    """

    session: str
    seq: int
    at_ms: int
    event: Event | None
    is_skipped: bool
    digest: str | None
    traceparent: str | None
    state: Session


def steps(log: CommitReader, state: Session, *, to: int | None = None) -> Iterator[Step]:
    """The events after `state`, which is moved on, up to the seq `to`.

    Raises Damaged before a commit that breaks a law, and if the log ends before `to`.
    """
    if to is not None and to <= state.seq:
        return
    for commit in log.read(state.session, after=state.seq, to=to):
        for step in of_commit(state, commit):
            yield step
            if step.seq == to:
                return
    if to is not None:
        raise Damaged("TAIL_LOST", f"the log of session {state.session} ends at seq {state.seq}", session=state.session)


def of_commit(state: Session, commit: Commit) -> Iterator[Step]:
    """The events of the next commit. Raises Damaged if it breaks a law; nothing is told of it then."""
    law = broken_law(state, commit)
    if law is not None:
        raise law
    for seq, event in enumerate(_events(commit), commit.first_seq):
        if commit.skipped:
            state.skip(1)
        else:
            assert event is not None
            state.follow([gist_of(event)])
        state.dated(commit.at_ms)
        is_end = seq == commit.last_seq
        if is_end:
            state.digest = commit.digest
        digest = commit.digest if is_end else None
        yield Step(commit.session, seq, commit.at_ms, event, commit.skipped, digest, commit.traceparent, state)


def _events(commit: Commit) -> list[Event] | list[None]:
    try:
        return commit.events
    except Damaged:
        if not commit.skipped:
            raise
        return [None] * (commit.last_seq - commit.first_seq + 1)
