"""What concurrent producers and readers did and saw, and whether any log could have answered so.

Every append and every read is noted when it is invoked and when it completes, on one clock that only counts.
`broken` holds a history against the final log. It knows the laws and nothing of how they are kept:

    DENSE      seqs are 1, 2, 3, …, and every commit's digest follows from the one before it
    PLACE      an acknowledged commit stands where its receipt says, with the digest it says, and exactly once
    REFUSED    no refused commit is there
    DOUBT      a commit in doubt was settled, and what it was settled as is true
    EXPECTED   a commit that expected an exact seq stands right after it
    ORDER      a commit that was acknowledged before another was invoked comes before it
    PREFIX     a reader saw a prefix of the final log, and no less than what was acknowledged before it began to read
    STRANGER   nothing is there that nobody appended
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from threading import Lock
from typing import Literal, TypeAlias

from msgspec import Struct

from domain import Commit, Receipt
from domain.codec import chain, genesis

#: What a reader sees of a commit.
Seen: TypeAlias = tuple[int, str, tuple[str, ...]]


class Appended(Struct):
    """One append, from its invocation to its end. `invoked` and `completed` are ticks of the history's clock.

    `receipt` is that of an acknowledged commit, or of one in doubt that was settled as being there.
    """

    session: str
    ids: tuple[str, ...]
    expected: int | None
    invoked: int
    completed: int = 0
    outcome: Literal["ok", "refused", "unknown", "pending"] = "pending"
    receipt: Receipt | None = None
    settled: bool = False


class Read(Struct):
    """One reading of a whole session."""

    session: str
    invoked: int
    seen: list[Seen]


class History:
    """Notes of what happened, by any number of threads."""

    def __init__(self) -> None:
        self._clock = count(1)
        self._lock = Lock()
        self.appends: list[Appended] = []
        self.reads: list[Read] = []

    def tick(self) -> int:
        """The next moment. No two are equal."""
        with self._lock:
            return next(self._clock)

    def invoke(self, session: str, ids: Sequence[str], expected: int | None) -> Appended:
        append = Appended(session, tuple(ids), expected, self.tick())
        with self._lock:
            self.appends.append(append)
        return append

    def complete(
        self, append: Appended, outcome: Literal["ok", "refused", "unknown"], receipt: Receipt | None = None
    ) -> None:
        append.outcome, append.receipt = outcome, receipt
        append.completed = self.tick()

    def settle(self, append: Appended, receipt: Receipt | None) -> None:
        """Notes what a doubt turned out to be."""
        append.receipt, append.settled = receipt, True

    def read(self, session: str, invoked: int, commits: Sequence[Commit]) -> None:
        read = Read(session, invoked, [seen(commit) for commit in commits])
        with self._lock:
            self.reads.append(read)


def seen(commit: Commit) -> Seen:
    """What there is to see of a commit."""
    return commit.first_seq, commit.digest, tuple(event.id for event in commit.events)


def broken(history: History, final: Mapping[str, Sequence[Commit]]) -> list[str]:
    """Every law that the history breaks, given what the log holds in the end: the law's name, and how."""
    found: list[str] = []
    for session in sorted({*final, *(append.session for append in history.appends)}):
        commits = final.get(session, ())
        appends = [append for append in history.appends if append.session == session]
        reads = [read for read in history.reads if read.session == session]
        found += [f"{law} in {session}" for law in _not_dense(session, commits)]
        found += [f"{law} in {session}" for law in _not_as_appended(appends, commits)]
        found += [f"{law} in {session}" for law in _out_of_order(appends, commits)]
        found += [f"{law} in {session}" for law in _misread(reads, appends, commits)]
    return found


def _not_dense(session: str, commits: Sequence[Commit]) -> Iterator[str]:
    seq, digest = 0, genesis(session)
    for commit in commits:
        size = commit.last_seq - commit.first_seq + 1
        digest = chain(digest, session, commit.first_seq, size, commit.at_ms, commit.body)
        if commit.first_seq != seq + 1 or size != len(commit.events):
            yield f"DENSE: seq {commit.first_seq} comes after {seq}"
        if commit.digest != digest:
            yield f"DENSE: the commit at seq {commit.first_seq} does not chain"
            digest = commit.digest
        seq = commit.last_seq


def _not_as_appended(appends: Sequence[Appended], commits: Sequence[Commit]) -> Iterator[str]:
    places: dict[tuple[str, ...], list[Commit]] = {}
    for commit in commits:
        places.setdefault(seen(commit)[2], []).append(commit)
    for append in appends:
        there = places.pop(append.ids, [])
        if append.outcome == "refused":
            if there:
                yield f"REFUSED: {append.ids} was refused and stands at {there[0].first_seq}"
            continue
        if append.outcome == "pending" or (append.outcome == "unknown" and not append.settled):
            yield f"DOUBT: nobody knows what became of {append.ids}"
            continue
        law = "PLACE" if append.outcome == "ok" else "DOUBT"
        receipt = append.receipt
        if receipt is None:
            if there:
                yield f"{law}: {append.ids} stands at {there[0].first_seq} and was said not to be there"
        elif [(c.first_seq, c.last_seq, c.digest) for c in there] != [
            (receipt.first_seq, receipt.last_seq, receipt.digest)
        ]:
            yield f"{law}: {append.ids} stands at {[c.first_seq for c in there]}, not once at {receipt.first_seq}"
        if there and append.expected is not None and there[0].first_seq != append.expected + 1:
            yield f"EXPECTED: {append.ids} expected seq {append.expected} and stands at {there[0].first_seq}"
    for ids, there in places.items():
        yield f"STRANGER: {ids} stands at {there[0].first_seq} and nobody appended it"


def _out_of_order(appends: Sequence[Appended], commits: Sequence[Commit]) -> Iterator[str]:
    by_ids = {append.ids: append for append in appends}
    in_log = [by_ids[ids] for commit in commits if (ids := seen(commit)[2]) in by_ids]
    # From the end: the earliest completion among those that follow must not lie before this one's invocation.
    follower: Appended | None = None
    for append in reversed(in_log):
        if follower is not None and follower.completed < append.invoked:
            yield f"ORDER: {follower.ids} was acknowledged before {append.ids} was invoked, and comes after it"
        if append.outcome == "ok" and (follower is None or append.completed < follower.completed):
            follower = append


def _misread(reads: Sequence[Read], appends: Sequence[Appended], commits: Sequence[Commit]) -> Iterator[str]:
    whole = [seen(commit) for commit in commits]
    for read in reads:
        if read.seen != whole[: len(read.seen)]:
            yield f"PREFIX: the reading at {read.invoked} saw what the log does not hold: {read.seen[-1:]}"
            continue
        last = read.seen[-1][0] if read.seen else 0
        for append in appends:
            if append.outcome == "ok" and append.completed < read.invoked:
                assert append.receipt is not None
                if append.receipt.first_seq > last:
                    yield f"PREFIX: the reading at {read.invoked} missed {append.ids}, acknowledged before"
                    break
