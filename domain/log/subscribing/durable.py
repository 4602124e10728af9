"""Durable subscriptions: named, with a place in each partition that the store keeps, for members that come and go.

A place moves by being acknowledged, in the same step that checks the lease of whoever acknowledges. So a member that
was taken for dead, and whose share another has, cannot move it back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct

from domain.errors import Conflict, Damaged, NotFound, Refused
from domain.events import shortened
from domain.log.connection import raised
from domain.log.exchange import Sending, Wire
from domain.log.keys import Keyspace
from domain.log.protocol import Command
from domain.log.subscribing.delivery import Place, Wanted, thinned
from domain.log.subscribing.reached import Mark, Reached, marks_of

_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
_PLACE = msgspec.msgpack.Decoder(Place)
_PACKER = msgspec.msgpack.Encoder()
_WANTED = msgspec.json.Decoder(Wanted)
#: The field that says where a subscription was moved to as a whole.
MOVED_TO: Final = "moved_to"
#: How many marks an operation of a step moves: more would not fit on Lua's stack.
_MARKS: Final = 1000


def check_name(name: object) -> None:
    """Refuses what is no name of a subscription (SUBSCRIPTION_INVALID)."""
    if not isinstance(name, str) or not _NAME.match(name):
        raise Refused("SUBSCRIPTION_INVALID", f"{shortened(name)} is no name of a subscription")


def pack_place(place: Place) -> bytes:
    place.recent = thinned(place.recent)
    return _PACKER.encode(place)


def read_place(name: str, partition: int, stored: bytes | None) -> Place:
    """A place as the store keeps it. Raises Damaged (SUBSCRIPTION_DAMAGED) where there is none that can be read."""
    try:
        return _PLACE.decode(stored or b"")
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise Damaged(
            "SUBSCRIPTION_DAMAGED", f"the place of subscription {name} in partition {partition} cannot be read"
        ) from None


def read_wanted(stored: bytes) -> Wanted:
    """What a subscription wants, as the store keeps it. Raises msgspec.MsgspecError."""
    return _WANTED.decode(stored)


def marking(key: int, moved: Mapping[str, Mark | None]) -> list[Any]:
    """The operations of a step that write marks to the key of this index."""
    operations: list[Any] = []
    written = [(session, str(mark)) for session, mark in moved.items() if mark is not None]
    for at in range(0, len(written), _MARKS):
        page = [part for pair in written[at : at + _MARKS] for part in pair]
        operations += ["HSET", key, len(page), *page]
    dropped = [session for session, mark in moved.items() if mark is None]
    for at in range(0, len(dropped), _MARKS):
        names = dropped[at : at + _MARKS]
        operations += ["HDEL", key, len(names), *names]
    return operations


def check_is_here(name: str, moved_to: bytes | None) -> None:
    """Raises Conflict (MOVED_TO) if a subscription was moved: `facts["place"]` says where it is."""
    if moved_to is not None:
        place = moved_to.decode()
        raise Conflict("MOVED_TO", f"subscription {name} was moved to {place}", subscription=name, place=place)


class Durable(Struct, frozen=True):
    """What the store knows of a durable subscription. Places that cannot be read are None.

    `moved_to`: the place it was moved to as a whole.
    """

    name: str
    wanted: Wanted
    partitions: list[int]
    places: dict[int, Place | None]
    members: list[str]
    moved_to: str | None = None


class DurableSubscriptions:
    """The durable subscriptions of a store. Each method is a wire."""

    def __init__(self, keyspace: Keyspace) -> None:
        self._keyspace = keyspace

    def create(self, name: str, wanted: Wanted, places: dict[int, Place]) -> Wire[None]:
        """Makes it, or finishes making it, unless it is there: then its places stay as they are.

        Raises Refused (SUBSCRIPTION_DIFFERS) if it is there and wants something else, Conflict (MOVED_TO) if it is
        elsewhere now.
        """
        about = self._keyspace.subscription(name)
        asked = msgspec.json.encode(wanted, order="deterministic")
        made = raised((yield Sending([["HSETNX", about, "wanted", asked]]))[0])
        (stored,) = yield Sending([["HGET", about, "wanted"]])
        if _WANTED.decode(raised(stored)) != wanted:
            raise Refused(
                "SUBSCRIPTION_DIFFERS",
                f"subscription {name} exists and wants {raised(stored).decode()}, not {asked.decode()}",
            )
        is_ready, moved_to = yield Sending([["HGET", about, "ready"], ["HGET", about, MOVED_TO]])
        check_is_here(name, raised(moved_to))
        if raised(is_ready) and not made:
            return
        commands: list[Command] = [["ZADD", self._keyspace.subscriptions, 0, name]]
        commands += [
            ["SET", self._keyspace.partitions[partition].place(name), pack_place(place), "NX"]
            for partition, place in places.items()
        ]
        commands.append(["HSET", about, "ready", 1])
        for reply in (yield Sending(commands)):
            raised(reply)

    def is_made(self, name: str) -> Wire[bool]:
        """Whether its places are there."""
        (reply,) = yield Sending([["HGET", self._keyspace.subscription(name), "ready"]])
        return raised(reply) is not None

    def names(self) -> Wire[list[str]]:
        """The names of all, by name."""
        (reply,) = yield Sending([["ZRANGE", self._keyspace.subscriptions, 0, -1]])
        return [name.decode() for name in raised(reply)]

    def show(self, name: str) -> Wire[Durable]:
        """What the store knows of one. Raises NotFound (SUBSCRIPTION_UNKNOWN)."""
        about = self._keyspace.subscription(name)
        stored, moved_to, now, members = yield Sending(
            [
                ["HGET", about, "wanted"],
                ["HGET", about, MOVED_TO],
                ["TIME"],
                ["ZRANGE", self._keyspace.members(name), 0, -1, "WITHSCORES"],
            ]
        )
        if raised(stored) is None:
            raise NotFound("SUBSCRIPTION_UNKNOWN", f"there is no subscription {shortened(name)}")
        wanted = _WANTED.decode(stored)
        partitions = partitions_of(self._keyspace, wanted)
        replies = yield Sending([["GET", self._keyspace.partitions[at].place(name)] for at in partitions])
        places: dict[int, Place | None] = {}
        for partition, reply in zip(partitions, replies, strict=True):
            try:
                places[partition] = read_place(name, partition, raised(reply))
            except Damaged:
                places[partition] = None
        now_ms = int(raised(now)[0]) * 1000
        scored = zip(raised(members)[::2], members[1::2], strict=True)
        living = [member.decode() for member, deadline in scored if float(deadline) > now_ms]
        place = raised(moved_to)
        return Durable(name, wanted, partitions, places, living, None if place is None else place.decode())

    def reached(self, name: str, wanted: Wanted) -> Wire[dict[int, Reached]]:
        """How far one is in each of its partitions. Raises Damaged (SUBSCRIPTION_DAMAGED) for marks that are none."""
        partitions = partitions_of(self._keyspace, wanted)
        keys = [self._keyspace.partitions[partition] for partition in partitions]
        replies = yield Sending(
            [command for of in keys for command in (["GET", of.place(name)], ["HGETALL", of.reached(name)])]
        )
        found: dict[int, Reached] = {}
        for partition, stored, marks in zip(partitions, replies[::2], replies[1::2], strict=True):
            try:
                place = read_place(name, partition, raised(stored))
            except Damaged:
                place = None
            known = marks_of(raised(marks))
            found[partition] = Reached(place, {session: str(mark) for session, mark in known.items()})
        return found

    def drop(self, name: str, who: str) -> Wire[None]:
        """Forgets it, places and all; the audit stream keeps who did.

        Raises NotFound (SUBSCRIPTION_UNKNOWN), Refused (SUBSCRIPTION_IN_USE).
        """
        found = yield from self.show(name)
        if found.members:
            raise Refused("SUBSCRIPTION_IN_USE", f"subscription {name} has members: {', '.join(found.members)}")
        commands: list[Command] = [["HDEL", self._keyspace.subscription(name), "ready"]]
        for partition in found.partitions:
            keys = self._keyspace.partitions[partition]
            kept = (keys.place(name), keys.acked(name), keys.reached(name), keys.subscription_owner(name))
            commands += [["DEL", key] for key in kept]
        commands += [
            ["DEL", self._keyspace.members(name)],
            ["ZREM", self._keyspace.subscriptions, name],
            ["DEL", self._keyspace.subscription(name)],
            ["XADD", self._keyspace.audit, "*", "who", who, "what", "subscription dropped", "subscription", name],
        ]
        for reply in (yield Sending(commands)):
            raised(reply)


def partitions_of(keyspace: Keyspace, wanted: Wanted) -> list[int]:
    """The partitions a subscriber reads."""
    if wanted.sessions is None:
        return list(range(keyspace.count))
    return sorted({keyspace.partition_of(session) for session in wanted.sessions})
