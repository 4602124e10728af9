"""What Muster itself states in a session's log: one event by its own actor, as the functions on the server take it."""

from __future__ import annotations

from typing import Any

import msgspec

from domain.codec import encode_body
from domain.events import OWN_ACTOR, Event
from domain.log import SessionLog
from domain.log.exchange import new_id
from domain.session import kinds_of


def commit_keys(log: SessionLog, session: str) -> list[str]:
    """The keys of a commit to a session, in the order in which the append function takes them."""
    keys = log.keyspace.of(session)
    return [keys.meta, keys.sessions, keys.feed, keys.log(session), keys.head(session), keys.hold(session)]


def own_commit(
    log: SessionLog, session: str, type: str, data: dict[str, Any], *, expected: str | int = "any", known: str = ""
) -> list[Any]:
    """The arguments of a commit of one event of Muster's own."""
    event = Event(type, new_id(), OWN_ACTOR, data=msgspec.Raw(msgspec.msgpack.encode(data)))
    return _commit(log, session, expected, known, kinds_of([event]), encode_body([event]))


def no_commit(log: SessionLog, session: str) -> list[Any]:
    """The arguments of a commit that states nothing."""
    return _commit(log, session, "any", "", "", b"")


def _commit(log: SessionLog, session: str, expected: str | int, known: str, kinds: str, body: bytes) -> list[Any]:
    return [log.identity.store, log.identity.epoch, session, expected, known, "", "", "", "", kinds, body, ""]
