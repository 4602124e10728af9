"""Forking: a new session with a copy of another one's beginning, and the mark that says where it comes from.

Theory of operation. The parent's commits are verified up to where the fork is to begin, before anything is written.
Then they are written again into the new session, with the bodies, traces and cuts that they had: seqs and ids are the
parent's; digests and times are the fork's own, for they say what was written here, and when. Last comes an event of
Muster's own, `muster.forked`, with the parent, the seq, and the parent's digest there, which proves the rest.

That is one call of the server's function for a session of up to CALL_COMMITS commits and CALL_BYTES. A longer one is
copied in several, and until the last of them it is quarantined as FORK_UNFINISHED, with what it is to be a fork of: it
takes no appends, and nobody can take it for whole. Whoever dies in between leaves it so; the same fork, asked for
again, goes on where it stands. Two who do so at a time finish one fork.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Struct

from domain.codec import Commit, encode_body, genesis
from domain.errors import Conflict, Damaged, NotFound, Refused
from domain.events import FORKED, OWN_ACTOR, Event, check_session
from domain.invariants import fold
from domain.log.contract import Forked, Head, Position, Receipt
from domain.log.protocol import (
    CALL_BYTES,
    CALL_COMMITS,
    Flow,
    ForkAnswer,
    ForkRequest,
    HeadRequest,
    RangeRequest,
    ReadFlow,
    repeated,
    taken,
)
from domain.session import Session

#: How often a fork is looked at anew that somebody else moves on meanwhile, who does the same.
ATTEMPTS: Final = 1000


class ForkPlan(Struct, frozen=True):
    """What a fork comes to: so many commits and bytes are a copy of the parent's, whose digest at `seq` is `digest`.

    `copied` events are there already; `done` is the fork, if it is there as a whole. `parent_quarantined`: the parent
    is damaged, but not before `seq`.
    """

    session: str
    parent: str
    seq: int
    digest: str
    commits: int
    bytes: int
    copied: int
    parent_quarantined: bool
    done: Forked | None


class _Step(Struct, frozen=True):
    """What is copied in one call: commits, the gate after them, and whether that is all."""

    commits: tuple[Commit, ...]
    gate: str
    is_last: bool


def fork_id(parent: str, seq: int) -> str:
    """The id of a fork that is given none: the same one for the same fork."""
    return f"{parent}@{seq}"


def plan_flow(parent: str, at: int, name: str | None) -> Flow[ForkPlan]:
    """Verifies the parent up to `at`, and says what forking it there comes to. Raises as `EventLog.fork`."""
    check_session(parent)
    session = fork_id(parent, at) if name is None else name
    check_session(session)
    if session == parent:
        raise Refused("FORK_REFUSED", f"session {parent} cannot be a fork of itself")
    answers = yield [HeadRequest(parent), HeadRequest(session)]
    stands, fork = map(taken, answers)
    if stands is None or not stands.seq:
        raise NotFound("SESSION_UNKNOWN", f"there is no session {parent}", session=parent)
    if not 1 <= at <= stands.seq:
        raise NotFound("SEQ_UNKNOWN", f"session {parent} has the seqs 1 to {stands.seq}, not {at}", session=parent)
    copying = _Copying(parent, at, after=at)
    while not copying.is_done:
        yield from copying.next_steps()
    digest = copying.view.digest
    done = yield from _done_flow(session, fork, parent, at, digest)
    copied = 0 if fork is None else min(fork.seq, at)
    return ForkPlan(session, parent, at, digest, copying.commits, copying.bytes, copied, stands.quarantined, done)


def fork_flow(plan: ForkPlan, mark_id: str, who: str) -> Flow[Forked]:
    """Carries a plan out, from where the fork stands. Raises as `EventLog.fork`."""
    if plan.done is not None:
        return plan.done
    told = {"parent": plan.parent, "seq": plan.seq, "digest": plan.digest}
    mark = encode_body([Event(FORKED, mark_id, OWN_ACTOR, data=msgspec.Raw(msgspec.msgpack.encode(told)))])
    for _ in range(ATTEMPTS):
        done = yield from _copied_flow(plan, mark, who)
        if done is not None:
            return done
    raise Conflict("LOG_MOVED", f"session {plan.session} was moved on all the while", session=plan.session)


def _copied_flow(plan: ForkPlan, mark: bytes, who: str) -> Flow[Forked | None]:
    """Copies what the fork lacks; None if somebody else, who does the same, moved it on meanwhile."""
    (answer,) = yield [HeadRequest(plan.session)]
    head: Head | None = taken(answer)
    at = Position(0, genesis(plan.session)) if head is None else head.position
    copying = _Copying(plan.parent, plan.seq, after=at.seq)
    while True:
        for step in (yield from copying.next_steps()):
            (answer,) = yield [
                ForkRequest(
                    *(plan.session, plan.parent, plan.seq, plan.digest, at, step.gate, step.commits),
                    mark=mark if step.is_last else b"",
                    who=who,
                )
            ]
            found: ForkAnswer = taken(answer)
            if found.word == "MOVED":
                return None
            if found.word == "TAKEN":
                (answer,) = yield [HeadRequest(plan.session)]
                done = yield from _done_flow(plan.session, taken(answer), plan.parent, plan.seq, plan.digest)
                if done is None:
                    raise _taken(plan.session)
                return done
            at = found.position
            if step.is_last:
                receipt = Receipt(plan.session, at.seq, at.seq, at.digest, found.at_ms, appended=1)
                return Forked(plan.session, plan.parent, plan.seq, plan.digest, receipt)


class _Copying:
    """A parent's commits up to the seq `at`, each verified, those after the seq `after` cut into steps."""

    def __init__(self, parent: str, at: int, *, after: int) -> None:
        self.view = Session(parent, digest=genesis(parent))
        self.commits = self.bytes = 0
        self._at = at
        self._after = after
        self._reading = ReadFlow(parent, to=at)
        self._pending: list[Commit] = []
        self._size = 0

    @property
    def is_done(self) -> bool:
        """All of it was read."""
        return self.view.seq == self._at

    def next_steps(self) -> Flow[list[_Step]]:
        """The steps that the next page fills; the last one of all `is_last`. Raises Damaged, Refused (FORK_REFUSED)."""
        page = yield from self._reading.next_page()
        if page is None:
            raise self._damaged(Damaged("TAIL_LOST", f"the log of session {self.view.session} ends there"))
        steps = []
        for commit in page:
            gate = self.view.gate
            self._take(commit)
            if commit.last_seq <= self._after:
                continue
            if len(self._pending) == CALL_COMMITS or (self._pending and self._size + len(commit.body) > CALL_BYTES):
                steps.append(_Step(tuple(self._pending), gate, is_last=False))
                self._pending, self._size = [], 0
            self._pending.append(commit)
            self._size += len(commit.body)
        if self.is_done:
            steps.append(_Step(tuple(self._pending), self.view.gate, is_last=True))
        return steps

    def _take(self, commit: Commit) -> None:
        try:
            fold(self.view, commit)
        except Damaged as damage:
            raise self._damaged(damage) from None
        if commit.last_seq > self._at:
            raise Refused(
                "FORK_REFUSED",
                f"seq {self._at} of session {commit.session} is inside a commit, which ends at {commit.last_seq}; "
                f"the one before it ends at {commit.first_seq - 1}",
            )
        self.commits += 1
        self.bytes += len(commit.body)

    def _damaged(self, damage: Damaged) -> Damaged:
        seq = self.view.seq
        return Damaged(
            damage.code,
            f"session {self.view.session} verifies to seq {seq} and can be forked no further: {damage.cause}",
            session=self.view.session,
            verified_seq=seq,
        )


def _done_flow(session: str, head: Head | None, parent: str, at: int, digest: str) -> Flow[Forked | None]:
    """The fork, if it is there as a whole; None if it is not, or not yet. Raises Conflict (SESSION_TAKEN)."""
    if head is None or not head.seq or (head.quarantined and head.seq <= at):
        return None
    (answer,) = yield [RangeRequest(session, at + 1, None, 1)]
    for commit in taken(answer):
        if is_mark(commit, parent, at, digest):
            return Forked(session, parent, at, digest, repeated(commit))
    raise _taken(session)


def is_mark(commit: Commit, parent: str, at: int, digest: str) -> bool:
    """Whether a commit says that all before it is a copy of what `parent` held up to the seq `at`, with this digest."""
    if commit.first_seq != at + 1:
        return False
    try:
        (event,) = commit.events
        told = event.payload()
    except (Damaged, ValueError):
        return False
    return (event.type, event.actor, told) == (FORKED, OWN_ACTOR, {"parent": parent, "seq": at, "digest": digest})


def _taken(session: str) -> Conflict:
    return Conflict("SESSION_TAKEN", f"session {session} is there already, and is not this fork", session=session)
