"""A commit as a line of JSON, and back, to the byte.

What a reader wants to see is there as plain JSON: session, seqs, time, digest, events. Where encoding those again
would not give the very bytes that were appended, the bytes are in the line too: digests are over them.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import Any

import msgspec
from msgspec import Raw, Struct

from domain.codec import Commit
from domain.errors import Damaged
from domain.events import NO_DATA, Event, Shape


class LineUnreadable(ValueError):
    """A line holds no commit. Whoever reads the file knows what that means for it."""


class _Told(Struct, omit_defaults=True):
    """An event of a line."""

    type: str
    id: str
    actor: str
    time: str | None = None
    data: dict[str, Any] = {}
    shape: Shape = 1


class _Line(Struct, omit_defaults=True):
    """A commit of a line. `body` (base64) is there where `events` do not give it; without it, `events` do."""

    session: str
    first_seq: int
    last_seq: int
    at_ms: int
    digest: str
    events: list[_Told] | None = None
    body: str | None = None
    traceparent: str | None = None


def encode_line(commit: Commit) -> bytes:
    """The line of a commit, without its end."""
    line = _Line(
        commit.session,
        commit.first_seq,
        commit.last_seq,
        commit.at_ms,
        commit.digest,
        _told(commit),
        traceparent=commit.traceparent,
    )
    encoded = _LINE.encode(line)
    try:
        if decode_line(encoded).body == commit.body:
            return encoded
    except LineUnreadable:
        pass
    line.body = b64encode(commit.body).decode()
    return _LINE.encode(line)


def decode_line(encoded: bytes) -> Commit:
    """The commit of a line. Raises LineUnreadable."""
    try:
        line = _DECODER.decode(encoded)
        body = b64decode(line.body, validate=True) if line.body is not None else _body(line.events or [])
    except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError) as error:
        raise LineUnreadable(f"a line is no commit: {error}") from None
    return Commit(
        line.session, line.first_seq, line.last_seq, line.at_ms, line.digest, body, traceparent=line.traceparent
    )


def _told(commit: Commit) -> list[_Told] | None:
    """The events, for whoever reads the file; None where they cannot be read."""
    try:
        return [
            _Told(event.type, event.id, event.actor, event.time, event.payload(), event.shape)
            for event in commit.events
        ]
    except Damaged:
        return None


def _body(events: list[_Told]) -> bytes:
    return _BODY.encode(
        [
            Event(
                told.type,
                told.id,
                told.actor,
                told.time,
                Raw(_DATA.encode(told.data)) if told.data else _NONE,
                told.shape,
            )
            for told in events
        ]
    )


_LINE = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(_Line)
_BODY = msgspec.msgpack.Encoder()
_DATA = msgspec.msgpack.Encoder()
_NONE = Raw(NO_DATA)
