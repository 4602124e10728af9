"""What can happen in a session: the event, the built-in types, and the rules of their fields.

An event is one fact, stated by one actor. Built-in types are bare words whose `data` has known fields; any other
type has a dot and carries free data. The data of an event is kept exactly as it was encoded: Muster reads from it,
and never rewrites it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from domain.errors import Damaged, Refused

#: Identifiers of sessions, actors and events.
IDENTIFIER: Final = re.compile(r"[A-Za-z0-9._:@/+-]{1,200}\Z")
#: Types of the user's own: lower-case words joined by dots.
DOTTED_TYPE: Final = re.compile(r"[a-z0-9_]+(?:\.[a-z0-9_]+)+\Z")
MAX_TYPE_LENGTH: Final = 128
#: The highest shape an event may have.
MAX_SHAPE: Final = 65_535
#: What a built-in type of a newer release looks like.
BARE_TYPE: Final = re.compile(r"[a-z0-9_]+\Z")
#: The actor and the prefix of types that are Muster's own.
OWN_ACTOR: Final = "muster"
OWN_TYPE_PREFIX: Final = "muster."
#: An operator accepted that a session lost what followed here; data: code, first_bad_seq, given_up_to, who, why.
LOG_REPAIRED: Final = "muster.log_repaired"
#: An agent gave no sign of life for too long; data: gone (the agent), silent_since (RFC 3339).
AGENT_GONE: Final = "muster.agent_gone"
#: Nothing came for as long as the session may idle: it expires unless something comes; data: expires_at_ms (server ms).
EXPIRING: Final = "muster.expiring"
#: All before it is a copy of another session's beginning; data: parent, seq (its last one copied), digest (there).
FORKED: Final = "muster.forked"

#: Data that nests deeper is no data: beyond what any limit of a producer's library should be set to.
_READABLE_DEPTH: Final = 500
#: An empty map in MessagePack: the data of an event that carries none.
NO_DATA: Final = b"\x80"

EntityId = Annotated[str, Meta(max_length=1024, pattern=r"^[^\x00-\x1f\x7f-\x9f]*\Z")]
Shape = Annotated[int, Meta(ge=1, le=65535)]
Text = Annotated[str, Meta(max_length=65536)]


class Change(Struct):
    """What was worked on."""

    element_type: Literal["function", "cluster", "spec", "benchmark", "session"] | None = None
    entity_ids: list[EntityId] | None = None
    operation: Literal["added", "modified", "deleted", "renamed", "init"] | None = None
    affected_lines: int | None = None
    semantic_hash: Text | None = None


class Transition(Struct, rename={"from_": "from"}):
    """What the producer says about its own state. Kept, never drives the session's state."""

    from_: Text | None = None
    to: Text | None = None
    verified_by: Literal["test", "build", "manual", "agent"] | None = None
    confidence: Annotated[float, Meta(ge=0, le=1)] | None = None


class Impact(Struct):
    """What broke, and how badly."""

    severity: Literal["low", "medium", "high", "critical"] | None = None
    tests_failed: list[Text] | None = None
    perf_delta: float | None = None
    external_ref: Text | None = None


class Details(Struct):
    """The known fields in the data of every built-in type. All are optional; other keys are kept."""

    change: Change | None = None
    transition: Transition | None = None
    impact: Impact | None = None
    metadata: dict[str, Any] | None = None
    tags: list[Text] | None = None
    priority: Literal["low", "normal", "high"] | None = None


class HandoffDetails(Details):
    """`to`: the agent the session is handed to."""

    to: Text | None = None


class CompletedDetails(Details):
    """`outcome`: how it ended, in the producer's words."""

    outcome: Text | None = None


class ExtendedDetails(Details):
    """`ttl_s`: idle time from now on, in seconds (60 s to 7 d)."""

    ttl_s: Annotated[int, Meta(ge=60, le=604800)] | None = None


#: The built-in types, each with the shape of its data.
BUILT_IN: Final[Mapping[str, type[Details]]] = {
    "start": Details,
    "joined": Details,
    "left": Details,
    "modified": Details,
    "broke": Details,
    "test_pass": Details,
    "handoff": HandoffDetails,
    "checkpoint": Details,
    "completed": CompletedDetails,
    "extended": ExtendedDetails,
    "expired": Details,
}


class Event(Struct, array_like=True, frozen=True, gc=False):
    """One fact: what happened (`type`), who says so (`actor`), under which `id`, and since when (`time`, the
    producer's claim).

    The field order is the wire's: new fields are appended with defaults, never reordered. `data` holds a
    MessagePack map; `Event.of` packs it from a mapping, `event.payload()` unpacks it. `shape` is the version of what
    `data` looks like for this type, as its producer states it (domain/upcast.py).
    """

    type: str
    id: str
    actor: str
    time: str | None = None
    data: Raw = Raw(NO_DATA)
    shape: Shape = 1

    @classmethod
    def of(
        cls,
        type: str,
        *,
        actor: str,
        data: Mapping[str, Any] | None = None,
        id: str = "",
        time: str | None = None,
        shape: int = 1,
    ) -> Event:
        """A valid event. Without an id, the log gives it one when it is appended.

        Raises Refused (TYPE_UNKNOWN, TYPE_RESERVED, ACTOR_INVALID, ID_INVALID, TIME_INVALID, FIELD_INVALID,
        NUMBER_INVALID, TEXT_NOT_UNICODE, NESTED_TOO_DEEP) if a rule is broken.
        """
        data = {} if data is None else data
        if not isinstance(data, Mapping):
            raise Refused("FIELD_INVALID", "`data` must be an object")
        check_plain(data)
        return cls._checked(type, actor, id or None, time, data, shape)

    @classmethod
    def _checked(
        cls, type: str, actor: str, id: str | None, time: str | None, data: Mapping[str, Any], shape: int
    ) -> Event:
        check_type(type)
        check_actor(actor)
        if id is not None and not is_identifier(id):
            raise Refused("ID_INVALID", f"the event id {shortened(id)} is not an identifier")
        if time is not None:
            check_time(time)
        if shape != 1 or shape is True:
            check_shape(type, shape)
        packed = pack(data) if data else NO_DATA
        check_details(type, data)
        return cls(type, id or "", actor, time, Raw(packed), shape)

    def payload(self) -> dict[str, Any]:
        """The data, unpacked. Raises Damaged (EVENT_UNREADABLE) for data that no producer's library writes."""
        try:
            return _PLAIN_PAYLOAD.decode(self.data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            pass  # what is wrong with it is found out below, or it only nests deeper
        try:
            value = _PAYLOAD.decode(self.data)
            check_plain(value, max_depth=_READABLE_DEPTH)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, Refused) as error:
            raise Damaged(
                "EVENT_UNREADABLE", f"the data of event {shortened(self.id)} is unreadable: {error}"
            ) from None
        return value


class ChangedEntities(Struct, gc=False):
    """Of a `change`, what a fold looks for."""

    entity_ids: list[str] | None = None


_NOTHING: Final = Raw(b"")


class FoldedData(Struct, gc=False):
    """Of an event's data, what a fold looks for. What stays encoded is looked into only where it is there: few events
    have it, and free data may have something else under the same name.
    """

    change: ChangedEntities | None = None
    impact: Raw = _NOTHING
    tags: Raw = _NOTHING
    priority: Raw = _NOTHING
    outcome: Raw = _NOTHING
    #: Of `extended`.
    ttl_s: Raw = _NOTHING
    #: Of `muster.agent_gone`: the agent.
    gone: Raw = _NOTHING
    #: Of `muster.expiring`.
    expires_at_ms: Raw = _NOTHING
    #: Of `muster.forked`.
    parent: Raw = _NOTHING
    digest: Raw = _NOTHING


class Gist(Struct, array_like=True, gc=False):
    """An event as a fold needs it. Its fields stand where those of `Event` do."""

    type: str
    id: str
    actor: str
    time: str | None = None
    data: FoldedData | None = None
    shape: Shape = 1


def checked_event(
    type: str, actor: str, id: str | None, time: str | None, data: Mapping[str, Any], shape: int
) -> Event:
    """An event whose data is known to be plain JSON already (no NaN, bounded depth), as it is after parsing a line."""
    return Event._checked(type, actor, id, time, data, shape)


def is_identifier(value: object) -> bool:
    """Whether this may be the id of a session, an actor or an event."""
    return isinstance(value, str) and IDENTIFIER.match(value) is not None


def is_type(type: str) -> bool:
    """Whether this may be the type of an event: a built-in one, or words joined by dots."""
    return type in BUILT_IN or (len(type) <= MAX_TYPE_LENGTH and DOTTED_TYPE.match(type) is not None)


def check_session(session: object) -> None:
    """Refuses what is no session id (SESSION_INVALID)."""
    if not isinstance(session, str) or not IDENTIFIER.match(session):
        raise Refused("SESSION_INVALID", f"the session {shortened(session)} is not an identifier")


def check_actor(actor: object) -> None:
    """Refuses what is no actor a producer may name (ACTOR_INVALID, ACTOR_RESERVED)."""
    if not isinstance(actor, str) or not IDENTIFIER.match(actor):
        raise Refused("ACTOR_INVALID", f"the actor {shortened(actor)} is not an identifier")
    if actor == OWN_ACTOR:
        raise Refused("ACTOR_RESERVED", f"the actor {actor!r} is reserved")


def check_type(type: object) -> None:
    """Refuses what is no type a producer may use (TYPE_UNKNOWN, TYPE_RESERVED)."""
    if not isinstance(type, str):
        raise Refused("TYPE_UNKNOWN", f"the type {shortened(type)} is no text")
    if type in BUILT_IN:
        return
    if not is_type(type):
        raise Refused("TYPE_UNKNOWN", f"the type {shortened(type)} is neither built in nor words joined by dots")
    if type.startswith(OWN_TYPE_PREFIX):
        raise Refused("TYPE_RESERVED", f"the type {shortened(type)} is reserved")


def check_shape(type: str, shape: object) -> None:
    """Refuses what is no shape of an event of this type (FIELD_INVALID)."""
    if not isinstance(shape, int) or isinstance(shape, bool) or not 1 <= shape <= MAX_SHAPE:
        raise Refused("FIELD_INVALID", f"`shape` {shortened(shape)} is no whole number from 1 to {MAX_SHAPE}")
    if shape != 1 and type in BUILT_IN:
        raise Refused("FIELD_INVALID", f"the built-in type {type} has shape 1 and no other")


def check_time(time: object) -> None:
    """Refuses what is no RFC 3339 time with an offset (TIME_INVALID). The text itself is kept, not the instant."""
    try:
        msgspec.convert(time if isinstance(time, str) else None, _Instant)
    except (msgspec.ValidationError, UnicodeEncodeError):
        raise Refused("TIME_INVALID", f"the time {shortened(time)} is not RFC 3339") from None


def check_details(type: str, data: Mapping[str, Any]) -> None:
    """Refuses known fields of a built-in type that break their rule (FIELD_INVALID)."""
    shape = BUILT_IN.get(type)
    if shape is None or not data:
        return
    try:
        msgspec.convert(data, shape)
    except msgspec.ValidationError as error:
        raise Refused("FIELD_INVALID", f"in `data` of {type}: {error}") from None


def check_plain(value: object, *, max_depth: int = 32) -> None:
    """Refuses values that JSON cannot carry to every reader: NaN, other keys than text, foreign types, endless
    nesting.
    """
    pending: list[tuple[object, int]] = [(value, 1)]
    while pending:
        item, depth = pending.pop()
        if type(item) in _LEAVES or isinstance(item, (str, int)):
            continue
        if isinstance(item, float):
            if item != item or item in (float("inf"), float("-inf")):
                raise Refused("NUMBER_INVALID", f"{item} is not a finite number")
            continue
        if depth > max_depth:
            raise Refused("NESTED_TOO_DEEP", f"the data nests deeper than {max_depth} levels")
        # What is plain for sure is not looked at again: most of what there is.
        if type(item) is dict or isinstance(item, Mapping):
            if not _TEXT.issuperset(map(type, item)) and not all(isinstance(key, str) for key in item):
                raise Refused("FIELD_INVALID", "every key in `data` must be text")
            pending += [(child, depth + 1) for child in item.values() if type(child) not in _LEAVES]
        elif isinstance(item, (list, tuple)):
            pending += [(child, depth + 1) for child in item if type(child) not in _LEAVES]
        else:
            raise Refused("FIELD_INVALID", f"`data` holds a {type(item).__name__}, which JSON does not know")


#: Types whose every value is plain.
_LEAVES: Final = frozenset({str, bool, int, type(None)})
_TEXT: Final = frozenset({str})


def pack(value: object) -> bytes:
    """MessagePack of plain data. Raises Refused (NUMBER_INVALID, TEXT_NOT_UNICODE) for what it cannot hold."""
    try:
        return _PACKER.encode(value)
    except OverflowError:
        raise Refused("NUMBER_INVALID", "an integer has more than 64 bits") from None
    except UnicodeEncodeError:
        raise Refused("TEXT_NOT_UNICODE", "a text holds half of a surrogate pair") from None


def shortened(value: object, limit: int = 60) -> str:
    """A value as it stands in an error's cause: quoted, and never longer than `limit`."""
    text = ascii(value)
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"


def _plain(depth: int) -> Any:
    """The type of plain data that nests so deep at most, as `check_plain` has it."""
    leaf: Any = str | bool | int | None | Annotated[float, Meta(ge=-sys.float_info.max, le=sys.float_info.max)]
    if not depth:
        return leaf
    within = _plain(depth - 1)
    return leaf | list[within] | dict[str, within]  # type: ignore[valid-type]


_PAYLOAD = msgspec.msgpack.Decoder(dict[str, Any])
#: Nearly all data there is, checked while it is decoded.
_PLAIN_PAYLOAD: msgspec.msgpack.Decoder[dict[str, Any]] = msgspec.msgpack.Decoder(dict[str, _plain(3)])  # type: ignore[misc]

_Instant = Annotated[datetime, Meta(tz=True)]


def _as_dict(value: object) -> dict[Any, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise NotImplementedError(f"a {type(value).__name__} is no plain data")


_PACKER = msgspec.msgpack.Encoder(enc_hook=_as_dict)
