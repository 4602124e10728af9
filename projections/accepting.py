"""Accepting that a damaged log lost its end: the session goes on after its longest verified prefix, and says so.

Nothing of this happens by itself. What is given up is put aside as it was, under a key of its own, and named in the
audit stream; an event of Muster's own stands in its place, so that every reader of the log is told.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Struct, structs

from domain.codec import encode_body
from domain.errors import Conflict, NotFound
from domain.events import LOG_REPAIRED, OWN_ACTOR, Event
from domain.log import SessionLog
from domain.log.exchange import new_id
from projections.drift import Examination, Validator
from projections.store import ProjectionStore

#: How often a session is read anew that changed meanwhile.
ATTEMPTS: Final = 5


class Accepted(Struct, frozen=True):
    """What was accepted: `given_up` entries of the log, after the verified `prefix`; the event that says so has `seq`
    and `digest`. The log as it was is kept at `aside` (None: there was none).
    """

    session: str
    prefix: int
    given_up: int
    code: str | None
    first_bad_seq: int | None
    aside: str | None
    seq: int | None = None
    digest: str | None = None


def given_up(store: ProjectionStore, log: SessionLog, session: str) -> tuple[Accepted, Examination]:
    """What accepting the loss would give up. Raises NotFound (NOT_QUARANTINED)."""
    keys = store.keyspace.of(session)
    (found,) = Validator(store, log).examine(store.keyspace.partition_of(session), [session])
    if not found.quarantined:
        raise NotFound("NOT_QUARANTINED", f"session {session} is not quarantined", session=session)
    prefix, damage = found.verified.seq, found.damage
    entries = store.client.xlen(keys.log(session)) if found.snapshot.last_entry else 0
    good = sum(1 for _ in log.read(session, to=prefix)) if prefix and entries else 0
    return Accepted(
        session,
        prefix,
        entries - good,
        damage.code if damage is not None else None,
        damage.first_bad_seq if damage is not None else None,
        keys.damaged(store.server_ms(), session) if entries else None,
    ), found


def accept(store: ProjectionStore, log: SessionLog, session: str, *, who: str, why: str) -> Accepted:
    """Gives up what follows the verified prefix of a quarantined session, which goes on from there.

    Raises NotFound (NOT_QUARANTINED), Conflict (LOG_MOVED) if the session changes all the while.
    """
    keys, identity = store.keyspace.of(session), log.identity
    for _ in range(ATTEMPTS):
        accepted, found = given_up(store, log, session)
        verified, snapshot = found.verified, found.snapshot
        told = {
            "code": accepted.code,
            "first_bad_seq": accepted.first_bad_seq,
            "given_up_to": max(snapshot.last_seq, snapshot.head.seq if snapshot.head is not None else 0),
            "who": who,
            "why": why,
        }
        event = Event(LOG_REPAIRED, new_id(), OWN_ACTOR, data=msgspec.Raw(msgspec.msgpack.encode(told)))
        aside = accepted.aside or keys.damaged(0, session)
        names = (
            *(keys.meta, keys.sessions, keys.feed, keys.log(session), keys.head(session), keys.hold(session)),
            *(keys.lost, keys.audit, aside, keys.session_index),
        )
        arguments: tuple[Any, ...] = (
            *(identity.store, identity.epoch, session, snapshot.last_entry),
            *(verified.seq, verified.digest, verified.gate, encode_body([event]), who, why),
        )
        word, *receipt = store.client.fcall("muster_repair_1", len(names), *names, *arguments)
        if word == b"REPAIRED":
            seq, digest, _ = receipt
            return structs.replace(accepted, seq=int(seq), digest=digest.decode())
    raise Conflict("LOG_MOVED", f"session {session} changed while its log was read, {ATTEMPTS} times", session=session)
