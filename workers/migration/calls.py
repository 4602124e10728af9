"""The functions that move sessions (domain/log/functions.lua), as commands, and what their replies mean.

Each may be sent again: one that was done already answers as it did, or says where things stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from msgspec import Struct

from domain.codec import Commit
from domain.errors import Conflict, Damaged, MusterError
from domain.log.contract import Position
from domain.log.protocol import Command, damaged, refused, unknown_session
from workers.migration.ends import End


class Sealed(Struct, frozen=True):
    """A session that is closed for appends: where it stands for good, and who may append where it goes."""

    seq: int
    digest: str
    gate: str
    at_ms: int
    flags: str
    policy: str
    holder: str
    token: str
    left_ms: int
    ttl_ms: int
    counter: int

    @property
    def position(self) -> Position:
        return Position(self.seq, self.digest)


class Standing(Struct, frozen=True):
    """Where a session, or its copy, stands; `word` is the reply's."""

    word: str
    position: Position


def seal(end: End, session: str, task: str, by: str, direction: Literal["to", "from"], place: str) -> Command:
    """Closes a session."""
    return _call(end, "muster_seal_1", session, ("log", "head", "hold"), [task, by, direction, place])


def unseal(end: End, session: str, task: str, by: str) -> Command:
    """Opens it again; whoever closed it last may."""
    return _call(end, "muster_unseal_1", session, ("log", "head", "hold"), [task, by])


def stage(end: End, session: str, task: str, by: str, place: str, at: Position, commits: Sequence[Commit]) -> Command:
    """Adds commits to a copy that nobody sees; without any, claims the name."""
    keys = ("sessions", "head", "hold", "arriving")
    return _call(end, "muster_stage_1", session, keys, [task, by, place, at.seq, at.digest, *_packed(commits)])


def open_(end: End, session: str, task: str, by: str, sealed: Sealed, skips: str, who: str) -> Command:
    """Makes a copy the session."""
    keys = ("sessions", "feed", "log", "head", "hold", "arriving", "skips", "audit")
    told = [sealed.seq, sealed.digest, sealed.gate, sealed.at_ms, sealed.flags, sealed.policy, sealed.holder]
    lease = [sealed.token, sealed.left_ms, sealed.ttl_ms, sealed.counter]
    return _call(end, "muster_open_1", session, keys, [task, by, *told, *lease, skips, who])


def bring(
    end: End,
    session: str,
    task: str,
    place: str,
    at: Position,
    gate: str,
    commits: Sequence[Commit],
    *,
    policy: str = "",
) -> Command:
    """Adds commits to a session that is closed, for everybody to see; without a policy that is left as it is."""
    keys = ("sessions", "feed", "log", "head", "hold")
    return _call(
        end, "muster_bring_1", session, keys, [task, place, at.seq, at.digest, gate, policy, *_packed(commits)]
    )


def drop(end: End, session: str, task: str, at: Position, place: str, who: str) -> Command:
    """Takes a copy away."""
    keys = ("sessions", "log", "head", "hold", "arriving", "skips", "audit")
    return _call(end, "muster_drop_1", session, keys, [task, at.seq, at.digest, place, who])


def yield_(end: End, session: str, task: str, at: Position, at_ms: int, who: str) -> Command:
    """Puts the log of a session aside that went another way than where it is kept equal with."""
    keys = end.keyspace.of(session)
    names = [keys.meta, keys.sessions, keys.log(session), keys.head(session), keys.hold(session)]
    names += [keys.damaged(at_ms, session), keys.skips, keys.audit]
    return ["FCALL", "muster_yield_1", len(names), *names, *end.identity, session, task, at.seq, at.digest, who]


def _call(end: End, function: str, session: str, kinds: Sequence[str], arguments: list[Any]) -> Command:
    keys = end.keyspace.of(session)
    names = [keys.meta]
    for kind in kinds:
        key = getattr(keys, kind)
        names.append(key if isinstance(key, str) else key(session))
    return ["FCALL", function, len(names), *names, *end.identity, session, *arguments]


def _packed(commits: Sequence[Commit]) -> list[Any]:
    return [
        part
        for one in commits
        for part in (one.last_seq - one.first_seq + 1, one.at_ms, one.digest, one.body, one.traceparent or "")
    ]


def answered(session: str, reply: Any) -> Sealed | Standing | MusterError:
    """What a reply of one of these functions means."""
    if isinstance(reply, MusterError):
        return reply
    word, *rest = [value.decode() if isinstance(value, bytes) else str(value) for value in reply]
    match word:
        case "SEALED":
            seq, digest, gate, at_ms, flags, policy, holder, token, left, ttl, counter = rest
            return Sealed(
                int(seq), digest, gate, int(at_ms), flags, policy, holder, token, int(left), int(ttl), int(counter)
            )
        case "DROPPED" | "YIELDED":
            return Standing(word, Position(0))
        case "OPEN" | "STAGED" | "STANDS" | "OPENED" | "BROUGHT":
            return Standing(word, Position(int(rest[0]), rest[1]))
        case "CHAIN":
            return Damaged(
                "COPY_DIFFERS",
                f"the commit at seq {rest[0]} of session {session} is not what its digest says, or does not go on "
                "from its copy",
                session=session,
                seq=int(rest[0]),
            )
        case "TAKEN":
            return taken(session, *rest)
        case "ABSENT":
            return unknown_session(session)
        case "REFUSED":
            return refused(session, *rest)
        case "DAMAGED":
            return damaged(session, *rest)
    raise AssertionError(f"unknown answer {word!r}")


def taken(
    session: str,
    seq: str,
    digest: str,
    flags: str,
    task: str,
    to: str,
    origin: str,
    opened_by: str,
    opened_seq: str,
    opened_digest: str,
) -> Conflict:
    """Another session has the name, or another task holds it."""
    what = f"session {session} is there already, at seq {seq}"
    if "m" in flags:
        where = f"was moved to {to}" if to else f"arrives from {origin}"
        what = f"session {session} is held there by task {task}: it {where}"
    facts: dict[str, Any] = {"session": session, "seq": int(seq), "digest": digest, "task": task, "to": to}
    facts |= {"opened_by": opened_by, "opened": Position(int(opened_seq), opened_digest), "is_open": "m" not in flags}
    return Conflict("MIGRATION_CONFLICT", what, **facts)


def opened_by(error: MusterError, task: str) -> Position | None:
    """Where a session stood when the task opened it; None if it is none that the task opened."""
    is_opened = error.code == "MIGRATION_CONFLICT" and error.facts.get("opened_by") == task
    return error.facts["opened"] if is_opened and error.facts["is_open"] else None
