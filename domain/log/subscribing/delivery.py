"""What a subscriber asks for, what it is given, and the place it can go on from. Does no I/O."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection, Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct

from domain.errors import Damaged, MusterError, Refused
from domain.events import Event, check_actor, check_session, check_type, shortened

#: How many of the commits delivered last a place holds, so that a loss can be named and gone back behind.
REMEMBERED: Final = 64
#: How many of the newest of these a text holds.
KEPT: Final = 8


class Delivery(Struct, frozen=True):
    """One event, as it stands in its session at `seq`, written at `at_ms` (server time).

    `digest` is the session's after the commit the event came in. `skipped`: an operator discarded that commit, and
    folds pass it over. `event` is None where the commit cannot be read or is not there; `error` says why. Such a
    delivery is made whatever is wanted, once for the commit, so that nothing is missing in silence.
    """

    session: str
    seq: int
    event: Event | None
    at_ms: int
    digest: str
    traceparent: str | None = None
    skipped: bool = False
    error: MusterError | None = None


class Wanted(Struct, frozen=True):
    """Which events a subscriber wants; None: whatever it is. A type may end with `.*` for all that begin so."""

    sessions: frozenset[str] | None = None
    types: frozenset[str] | None = None
    actors: frozenset[str] | None = None
    tags: frozenset[str] | None = None

    @classmethod
    def of(
        cls,
        sessions: str | Collection[str] | None = None,
        types: str | Collection[str] | None = None,
        actors: str | Collection[str] | None = None,
        tags: str | Collection[str] | None = None,
    ) -> Wanted:
        """As told. Raises Refused (SESSION_INVALID, TYPE_UNKNOWN, ACTOR_INVALID, FIELD_INVALID) for what no event has:
        a subscriber that misspelled it would wait for ever.
        """
        wanted = cls(_chosen(sessions), _chosen(types), _chosen(actors), _chosen(tags))
        for session in wanted.sessions or ():
            check_session(session)
        for type in wanted.types or ():
            if not type.startswith("muster."):
                check_type(type[:-1] + "x" if type.endswith(".*") else type)
        for actor in wanted.actors or ():
            check_actor(actor)
        for tag in wanted.tags or ():
            if not isinstance(tag, str):
                raise Refused("FIELD_INVALID", f"the tag {shortened(tag)} is no text")
        return wanted

    def has(self, session: str) -> bool:
        """Whether anything of a session may be wanted."""
        return self.sessions is None or session in self.sessions

    def takes(self, event: Event) -> bool:
        """Whether an event of a session that is wanted is wanted itself."""
        if self.actors is not None and event.actor not in self.actors:
            return False
        if self.types is not None and not (event.type in self.types or self._has_prefix(event.type)):
            return False
        return self.tags is None or not self.tags.isdisjoint(_tags_of(event))

    def _has_prefix(self, type: str) -> bool:
        assert self.types is not None
        return any(wanted.endswith(".*") and type.startswith(wanted[:-1]) for wanted in self.types)


class Anchor(Struct, array_like=True, frozen=True):
    """A commit that was delivered: if the log still holds it, it holds all that its partition wrote before."""

    session: str
    seq: int
    digest: str
    at_ms: int


class Catching(Struct, array_like=True):
    """How far a partition is read from registry and logs, because its feed does not reach back far enough.

    Delivered is what was written from the place's time on to `to_at_ms`: of the sessions before `session`, and of that
    one up to `seq` (None: all). Then the feed is followed from `to_total`.
    """

    to_total: int
    to_at_ms: int
    session: str = ""
    seq: int | None = None


class Place(Struct, array_like=True):
    """How far a partition was delivered (of one session: `total` is its seq).

    `total`: all up to this running total of its events; -1 if only the time is known. `at_ms`: when the last of them
    was written; of what was written in that very ms `ties` names the sessions, up to which seq, None standing for all.
    So the place can be found again where the feed is gone: times grow in the order of the feed.
    """

    total: int = 0
    at_ms: int = 0
    ties: dict[str, int] | None = None
    catching: Catching | None = None
    recent: list[Anchor] = msgspec.field(default_factory=list)


class SubscriptionPosition(Struct, frozen=True):
    """Where a subscription stands, as text to be kept (`str`) and read again (`parse`): it goes on after it."""

    store: str
    epoch: int
    session: str | None
    places: dict[int, Place]

    def __str__(self) -> str:
        return base64.urlsafe_b64encode(_PACKER.encode(self)).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> SubscriptionPosition:
        """The position that was kept. Raises Refused (POSITION_INVALID)."""
        try:
            return _UNPACKER.decode(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        except (binascii.Error, ValueError, TypeError, msgspec.MsgspecError):
            raise Refused("POSITION_INVALID", f"{shortened(text)} is no position of a subscription") from None


_PACKER = msgspec.msgpack.Encoder()
_UNPACKER = msgspec.msgpack.Decoder(SubscriptionPosition)


def thinned(anchors: Sequence[Anchor]) -> list[Anchor]:
    """Of the commits delivered last those that are kept in a text: the newest, and ever fewer of the older ones."""
    kept, distance = list(anchors[-KEPT:]), 2 * KEPT
    while distance <= len(anchors):
        kept.insert(0, anchors[-distance])
        distance *= 2
    return kept


def lost_error(lost: Sequence[Anchor], *, is_replaced: bool) -> Damaged:
    """Commits that were delivered are not in the log any more: a failover or a repair took them."""
    code = "FORK" if is_replaced else "TAIL_LOST"
    first: dict[str, int] = {}
    for one in lost:
        first[one.session] = min(one.seq, first.get(one.session, one.seq))
    named = ", ".join(f"{session} at seq {seq}" for session, seq in list(first.items())[:8])
    more = f" and {len(first) - 8} sessions more" if len(first) > 8 else ""
    return Damaged(
        code,
        f"what this subscription was given is not in the log any more: the commits that end {named}{more}",
        session=lost[0].session,
        first_bad_seq=first[lost[0].session],
        lost=[(one.session, one.seq) for one in lost],
    )


class _Tagged(Struct):
    tags: Any = None


_TAGGED = msgspec.msgpack.Decoder(_Tagged)


def _tags_of(event: Event) -> Sequence[str]:
    try:
        tags = _TAGGED.decode(event.data).tags
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ()
    return [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else ()


def _chosen(given: str | Collection[str] | None) -> frozenset[str] | None:
    """One or many, as a set. Raises Refused (FIELD_INVALID) for none at all: nothing would ever come."""
    if given is None:
        return None
    chosen = frozenset((given,) if isinstance(given, str) else given)
    if not chosen:
        raise Refused("FIELD_INVALID", "a subscription that wants none of something is never given anything")
    return chosen
