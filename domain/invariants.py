"""The laws of a history, each as one named predicate over a commit and what stands before it.

Everything that reads a log to build or to judge something asks `broken_law`; nothing folds a commit that breaks one.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from itertools import chain as joined
from operator import add
from typing import Protocol

from domain.codec import Commit, are_chained, chain, gists_of
from domain.errors import Damaged
from domain.events import BARE_TYPE, BUILT_IN, MAX_TYPE_LENGTH, Gist, is_identifier, is_type, shortened
from domain.session import Session, gate_after, gist_of, kinds_of, says_more
from domain.stretch import Stretch


class Standing(Protocol):
    """Where a fold of a session stands: all that the laws need to know of what came before a commit."""

    @property
    def seq(self) -> int: ...
    @property
    def digest(self) -> str: ...
    @property
    def gate(self) -> str: ...
    @property
    def last_at(self) -> int: ...
    @property
    def agents(self) -> Container[str]: ...
    @property
    def event_types(self) -> Container[str]: ...


def is_dense(seq: int, commit: Commit) -> bool:
    """The commit begins right after `seq` and holds at least one event."""
    return commit.first_seq == seq + 1 and commit.last_seq >= commit.first_seq


def is_chained(digest: str, commit: Commit) -> bool:
    """The commit's digest is the hash of `digest` and its own content."""
    count = commit.last_seq - commit.first_seq + 1
    return commit.digest == chain(digest, commit.session, commit.first_seq, count, commit.at_ms, commit.body)


def is_next(session: Standing, commit: Commit) -> bool:
    """The commit follows on what stands before it, and is as it was appended."""
    return is_dense(session.seq, commit) and is_in_order(session.last_at, commit) and is_chained(session.digest, commit)


def is_legal(gate: str, commit: Commit) -> bool:
    """The transition table takes every event of the commit, beginning at `gate`."""
    return gate_after(gate, kinds_of(commit.events))[1] is None


def gate_of(gate: str, commit: Commit) -> str:
    """The gate after a commit; one that cannot be read, or should not be there, moves none."""
    try:
        after, refused = gate_after(gate, kinds_of(commit.events))
    except Damaged:
        return gate
    return gate if refused is not None else after


def gate_through(gate: str, commits: Iterable[Commit]) -> str:
    """The gate after all of them."""
    for commit in commits:
        gate = gate_of(gate, commit)
    return gate


def stranger(session: Standing, commit: Commit) -> tuple[str, str] | None:
    """The first type, actor or shape of the commit that is none, as a code and words; None if all are known.

    EVENT_NEWER: it is of a built-in type, or of a shape of one, that a newer release may know. Of types and actors only
    those are looked at that are new to the session.
    """
    for event in commit.events:
        if event.actor not in session.agents and not is_identifier(event.actor):
            return "EVENT_UNREADABLE", f"names the actor {shortened(event.actor)}"
        if event.type not in session.event_types and not is_type(event.type):
            is_bare = len(event.type) <= MAX_TYPE_LENGTH and BARE_TYPE.match(event.type)
            return "EVENT_NEWER" if is_bare else "EVENT_UNREADABLE", f"names the type {shortened(event.type)}"
        if event.shape != 1 and event.type in BUILT_IN:
            return "EVENT_NEWER", f"holds {event.type} in shape {event.shape}"
    return None


def is_in_order(at_ms: int, commit: Commit) -> bool:
    """Server time does not run backwards within a session."""
    return commit.at_ms >= at_ms


def broken_law(session: Standing, commit: Commit) -> Damaged | None:
    """The first law that `commit` breaks as the successor of `session`'s last commit; None if it breaks none.

    One that was discarded must follow on and be as it was appended, like any other; what is in it is not looked at.

    LOG_GAP: commits are missing before it; LOG_TRIMMED: all before it are. LOG_ALTERED: its content is not what was
    appended. EVENT_UNREADABLE and EVENT_ILLEGAL: it is as it was appended, by a producer that broke the rules.
    """
    if not is_dense(session.seq, commit):
        return Damaged(
            "LOG_GAP" if session.seq else "LOG_TRIMMED",
            f"after seq {session.seq} of session {commit.session} comes seq {commit.first_seq}",
            seq=session.seq + 1,
        )
    if not is_chained(session.digest, commit) or not is_in_order(session.last_at, commit):
        return Damaged(
            "LOG_ALTERED",
            f"{_named(commit)} does not carry the digest {commit.digest} of its content",
            seq=commit.first_seq,
        )
    if commit.skipped:
        return None
    try:
        strange = stranger(session, commit)
        if strange is not None:
            code, words = strange
            return Damaged(code, f"{_named(commit)} {words}", seq=commit.first_seq)
        if is_legal(session.gate, commit):
            return None
    except Damaged as unreadable:
        return unreadable
    return Damaged("EVENT_ILLEGAL", f"{_named(commit)} is illegal", seq=commit.first_seq)


def _named(commit: Commit) -> str:
    return f"the commit at seq {commit.first_seq} of session {commit.session}"


def fold(session: Session, commit: Commit) -> None:
    """Moves `session` on by one whole commit. Raises Damaged for one that breaks a law, and changes nothing then."""
    gists = commit.gists if is_next(session, commit) and not commit.skipped else None
    if gists is None or not session.takes(gists):
        law = broken_law(session, commit)
        if law is not None:
            raise law
        gists = [] if commit.skipped else [gist_of(event) for event in commit.events]
    if commit.skipped:
        session.skip(commit.last_seq - session.seq)
    else:
        session.follow(gists)
    session.digest = commit.digest
    session.dated(commit.at_ms)


def lawful(session: Session, stretch: Stretch) -> list[list[Gist]] | None:
    """The events of a stretch, commit by commit, if it breaks no law as what comes next; at a stroke.

    None: it may break one, or holds what is not plain. `fold` says so of each commit, or folds it.
    """
    if stretch.skips or not stretch:
        return None
    lasts, counts, times = stretch.lasts, stretch.counts, stretch.times
    firsts = [session.seq + 1, *[last + 1 for last in lasts[:-1]]]
    is_dense_throughout = min(counts) >= 1 and list(map(add, firsts, counts)) == [last + 1 for last in lasts]
    if not is_dense_throughout or times[0] < session.last_at or sorted(times) != list(times):
        return None
    if not are_chained(session.digest, stretch.session, firsts, counts, times, stretch.digests, stretch.bodies):
        return None
    gists = gists_of(stretch.bodies)
    if gists is None or list(map(len, gists)) != list(counts) or not session.takes(list(joined.from_iterable(gists))):
        return None
    return gists


def fold_lawful(session: Session, stretch: Stretch, gists: list[list[Gist]], begin: int, end: int) -> None:
    """Moves `session` on by some commits of a stretch that is `lawful`: at a stroke, but for those that say more."""
    counted = begin
    for at in range(begin, end):
        if says_more(gists[at]):
            _count(session, stretch, gists, counted, at)
            session.follow(gists[at])
            session.dated(stretch.times[at])
            counted = at + 1
    _count(session, stretch, gists, counted, end)
    session.digest = stretch.digests[end - 1].decode()


def _count(session: Session, stretch: Stretch, gists: list[list[Gist]], begin: int, end: int) -> None:
    """Takes in commits of which none says more than that something happened."""
    if begin < end:
        times = stretch.times[begin:end]
        session.started_at = session.started_at or next(filter(None, times), 0)
        session.count(list(joined.from_iterable(gists[begin:end])))
        session.dated(times[-1])
