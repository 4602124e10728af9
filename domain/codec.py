"""Bytes to events and back: the commit's body, the digest chain, a producer's line, and the limits of all three.

A commit's body is one MessagePack array of events, or a JSON array of producer's lines from producers that have no
MessagePack; the first byte tells which. Body bytes are kept as they came, because the digest is over them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from hashlib import sha1
from itertools import repeat
from typing import Any, Final, Generic, NoReturn, TypeVar, overload

import msgspec
from msgspec import Raw, Struct

from domain.errors import Damaged, Refused
from domain.events import (
    NO_DATA,
    Event,
    Gist,
    Shape,
    check_plain,
    check_session,
    checked_event,
    pack,
    shortened,
)

#: What the names of functions and the digest say about the shape of a commit. Its meaning never changes.
WIRE_VERSION: Final = 1
#: Hex digits of a digest: 80 bits, against accidents and forks, not against forgers.
DIGEST_LENGTH: Final = 20


class Limits(Struct, frozen=True):
    """Upper bounds of what producers may send; a store may set lower ones for commits."""

    event_bytes: int = 256 * 1024
    commit_bytes: int = 4 * 1024 * 1024
    commit_events: int = 1000
    depth: int = 32

    @property
    def line_bytes(self) -> int:
        """The longest line that can hold a legal event, every character of it escaped."""
        return 6 * self.event_bytes + 4096


DEFAULT_LIMITS: Final = Limits()


T = TypeVar("T")


class _once(Generic[T]):  # noqa: N801 - a decorator
    """`functools.cached_property` without its lock, which takes as long as decoding an event before Python 3.12."""

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self._compute = compute
        self._name = compute.__name__
        self.__doc__ = compute.__doc__

    @overload
    def __get__(self, instance: None, owner: object = None) -> _once[T]: ...
    @overload
    def __get__(self, instance: object, owner: object = None) -> T: ...
    def __get__(self, instance: object | None, owner: object = None) -> _once[T] | T:
        if instance is None:
            return self
        value = instance.__dict__[self._name] = self._compute(instance)
        return value


class Commit(msgspec.Struct, frozen=True, dict=True):
    """One stream entry: the events from `first_seq` to `last_seq`, appended atomically at `at_ms` (server time).

    `events` decodes the body and raises Damaged (EVENT_UNREADABLE) if it holds something else than it claims.
    """

    session: str
    first_seq: int
    last_seq: int
    at_ms: int
    digest: str
    body: bytes
    traceparent: str | None = None
    #: An operator discarded it: a fold passes it over. Whoever reads commits from a log marks them so.
    skipped: bool = False

    @_once
    def events(self) -> list[Event]:
        """The events, in order."""
        events = decode_body(self.body)
        if len(events) != self.last_seq - self.first_seq + 1:
            raise Damaged(
                "EVENT_UNREADABLE",
                f"the commit at seq {self.first_seq} of {self.session} holds {len(events)} events, "
                f"not {self.last_seq - self.first_seq + 1}",
                seq=self.first_seq,
            )
        return events

    @_once
    def gists(self) -> list[Gist] | None:
        """The events as a fold needs them, in order; None where they are not to be had so, and `events` says why.

        Nearly all commits give them, in a third of the time that `events` and its data take.
        """
        try:
            gists = _GISTS.decode(self.body)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            return None
        return gists if len(gists) == self.last_seq - self.first_seq + 1 else None


def genesis(session: str) -> str:
    """The digest a session begins with, before its first commit."""
    return sha1(session.encode()).hexdigest()[:DIGEST_LENGTH]


def chain(previous: str, session: str, first_seq: int, count: int, at_ms: int, body: bytes) -> str:
    """The digest after a commit: a hash over the digest before it and all of the commit but its trace."""
    prefix = f"{previous}|{WIRE_VERSION}|{session}|{first_seq}|{count}|{at_ms}|"
    return sha1(prefix.encode() + body).hexdigest()[:DIGEST_LENGTH]


def are_chained(
    previous: str,
    session: str,
    firsts: Sequence[int],
    counts: Sequence[int],
    times: Sequence[int],
    digests: Sequence[bytes],
    bodies: Sequence[bytes],
) -> bool:
    """Whether every one of these commits carries the digest that `chain` gives it, the first one after `previous`."""
    if {*map(len, digests)} != {DIGEST_LENGTH}:
        return False
    parts = zip(
        (previous.encode(), *digests[:-1]),
        repeat(f"{WIRE_VERSION}|{session}".encode(), len(digests)),
        _in_digits(firsts),
        _in_digits(counts),
        _in_digits(times),
        bodies,
        strict=True,
    )
    hashed = "".join([whole.hexdigest()[:DIGEST_LENGTH] for whole in map(sha1, map(b"|".join, parts))])
    return hashed.encode() == b"".join(digests)


def _in_digits(numbers: Sequence[int]) -> list[bytes]:
    """Numbers as they are written; a list writes them faster than they write themselves."""
    return str([*numbers])[1:-1].encode().split(b", ")


def encode_body(events: Sequence[Event], limits: Limits = DEFAULT_LIMITS) -> bytes:
    """The body of a commit. Raises Refused (COMMIT_EMPTY, EVENT_TOO_LARGE, COMMIT_TOO_LARGE)."""
    if not events:
        raise Refused("COMMIT_EMPTY", "a commit holds no event")
    if len(events) > limits.commit_events:
        raise Refused("COMMIT_TOO_LARGE", f"{len(events)} events in a commit are more than {limits.commit_events}")
    body = _EVENTS.encode(events)
    if len(body) > limits.event_bytes:
        for event in events:
            check_size(event, limits)
    if len(body) > limits.commit_bytes:
        raise Refused("COMMIT_TOO_LARGE", f"{len(body)} bytes in a commit are more than {limits.commit_bytes}")
    return body


def check_size(event: Event, limits: Limits = DEFAULT_LIMITS) -> int:
    """The encoded size of an event in bytes. Raises Refused (EVENT_TOO_LARGE)."""
    size = len(_EVENTS.encode(event))
    if size > limits.event_bytes:
        raise Refused(
            "EVENT_TOO_LARGE", f"{size} bytes in event {shortened(event.id)} are more than {limits.event_bytes}"
        )
    return size


def decode_body(body: bytes) -> list[Event]:
    """The events of a body, MessagePack or JSON. Raises Damaged (EVENT_UNREADABLE)."""
    try:
        if body[:1] == b"[":
            return [_from_foreign(line) for line in _FOREIGN.decode(body)]
        return _BODY.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, Refused) as error:
        raise Damaged("EVENT_UNREADABLE", f"a commit's body cannot be decoded: {error}") from None


def gists_of(bodies: Sequence[bytes]) -> list[list[Gist]] | None:
    """The events of commits as a fold needs them; None where one of the bodies does not give them (`Commit.gists`)."""
    try:
        return list(map(_GISTS.decode, bodies))
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None


def fingerprint(event: Event) -> int:
    """A number by which two events with the same id are the same event, within one process."""
    data = NO_DATA
    if event.data != NO_DATA:
        try:
            data = _CANONICAL.encode(msgspec.msgpack.decode(event.data))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TypeError):
            data = bytes(event.data)  # of a foreign producer, and unreadable: the same bytes are the same event
    return hash((event.type, event.actor, event.time, data, event.shape))


def parse_line(line: bytes, limits: Limits = DEFAULT_LIMITS) -> tuple[str, Event]:
    """A producer's line as (session, event). Raises Refused with the rule the line breaks.

    A line without an id gives an event without one; who needs an id asks for it with `require_id`.
    """
    if len(line) > limits.line_bytes:
        raise Refused("LINE_TOO_LONG", f"the line is longer than {limits.line_bytes} bytes")
    fields = _line_fields(line, limits)
    for name in fields:
        if name not in _LINE_FIELDS:
            raise Refused("FIELD_UNKNOWN", f"the key {shortened(name)} is unknown")
    for name in ("session", "type", "actor"):
        if name not in fields:
            raise Refused("FIELD_MISSING", f"the field {name!r} is missing")
    data = fields.get("data", {})
    if not isinstance(data, dict):
        raise Refused("FIELD_INVALID", "`data` must be an object")
    check_session(fields["session"])
    event = checked_event(
        fields["type"], fields["actor"], fields.get("id"), fields.get("time"), data, fields.get("shape", 1)
    )
    check_size(event, limits)
    return fields["session"], event


def require_id(event: Event) -> None:
    """Refuses an event without an id (FIELD_MISSING), as files must not hold one."""
    if not event.id:
        raise Refused("FIELD_MISSING", "the field 'id' is missing")


def id_of_line(line: bytes) -> str | None:
    """The id of a line that was refused, where it can be read at all."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return None
    found = fields.get("id") if isinstance(fields, dict) else None
    return found if isinstance(found, str) else None


def format_line(session: str, event: Event) -> bytes:
    """An event as a producer's line, without the line break. `parse_line` gives the same event back."""
    fields: dict[str, Any] = {"session": session, "type": event.type, "actor": event.actor}
    if event.id:
        fields["id"] = event.id
    if event.time is not None:
        fields["time"] = event.time
    if event.shape != 1:
        fields["shape"] = event.shape
    fields["data"] = event.payload()
    return msgspec.json.encode(fields)


_EVENTS = msgspec.msgpack.Encoder()
_BODY = msgspec.msgpack.Decoder(list[Event])
_GISTS = msgspec.msgpack.Decoder(list[Gist])
_CANONICAL = msgspec.msgpack.Encoder(order="deterministic")
_JSON = msgspec.json.Encoder()
_LINE_FIELDS: Final = frozenset({"session", "type", "actor", "id", "time", "data", "shape"})


class _ForeignEvent(Struct, forbid_unknown_fields=True):
    """An event in the body of a producer without MessagePack: its line, without the session."""

    type: str
    id: str
    actor: str
    time: str | None = None
    data: dict[str, Any] = {}
    shape: Shape = 1


_FOREIGN = msgspec.json.Decoder(list[_ForeignEvent])


def _from_foreign(line: _ForeignEvent) -> Event:
    data = Raw(pack(line.data)) if line.data else Raw(NO_DATA)
    return Event(line.type, line.id, line.actor, line.time, data, line.shape)


def _line_fields(line: bytes, limits: Limits) -> dict[str, Any]:
    """The fields of a line, strictly read.

    msgspec is fast but lets the last of two equal keys win. A line that is the same after decoding and encoding had
    none, so only lines written in another way (spaces, escapes) take the strict and slower reader. Nesting is
    bounded by counting the brackets, which is never too low.
    """
    if line.count(b"{") + line.count(b"[") <= limits.depth:
        try:
            fields = msgspec.json.decode(line)
            if isinstance(fields, dict) and _JSON.encode(fields) == line:
                return fields
        except (msgspec.MsgspecError, UnicodeDecodeError):
            pass
    return _strict_fields(line, limits)


def _strict_fields(line: bytes, limits: Limits) -> dict[str, Any]:
    try:
        text = line.decode()
        fields = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
    except UnicodeDecodeError:
        raise Refused("TEXT_NOT_UNICODE", "the line is not UTF-8") from None
    except RecursionError:
        raise Refused("NESTED_TOO_DEEP", f"the line nests deeper than {limits.depth} levels") from None
    except ValueError as error:
        raise Refused("LINE_NOT_JSON", f"the line is not one JSON value: {error}") from None
    if not isinstance(fields, dict):
        raise Refused("LINE_NOT_OBJECT", f"the line is a JSON {type(fields).__name__}, not an object")
    check_plain(fields, max_depth=limits.depth + 1)  # the line itself is one level around the data
    try:
        _JSON.encode(fields).decode()
    except UnicodeEncodeError:
        raise Refused("TEXT_NOT_UNICODE", "a text holds half of a surrogate pair") from None
    return fields


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise Refused("KEY_DUPLICATE", f"the key {shortened(key)} stands twice in one object")
            seen.add(key)
    return fields


def _no_constant(name: str) -> NoReturn:
    raise Refused("NUMBER_INVALID", f"{name} is not a finite number")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise Refused("NUMBER_INVALID", f"{text} is not a finite number")
    return value
