"""Members of a durable subscription: each holds a share of its partitions, and only who holds one may acknowledge.

Every beat a member says that it lives and renews its leases; that goes on while its program works on what it was given,
however long. Between two deliveries it settles: it drops what it lost, gives back what is more than its share as soon
as everything taken from it is acknowledged, and takes what is free. The share of a member that died is free when its
leases have run out.
"""

from __future__ import annotations

import random
import time
from collections.abc import Collection, Sequence
from threading import Lock
from typing import Any, Final
from uuid import uuid4

from domain.errors import Conflict
from domain.log.connection import raised
from domain.log.exchange import Sending, Wire
from domain.log.keys import Keyspace
from domain.log.protocol import Command, parse_time
from domain.log.subscribing.delivery import Place, Wanted
from domain.log.subscribing.durable import MOVED_TO, check_is_here, marking, pack_place, partitions_of, read_place
from domain.log.subscribing.reached import marks_of
from domain.log.subscribing.readers import FeedReader, PartitionReader, SessionReader

#: How long a member's share stays its own after its last sign of life, in ms, unless told otherwise.
DEFAULT_TTL_MS: Final = 10_000
#: How many beats that is.
BEATS: Final = 4


class Share:
    """A partition a member holds: by which token, what it reads, and what of that is acknowledged."""

    def __init__(self, token: str, reader: PartitionReader, position: str) -> None:
        self.token = token
        self.reader = reader
        #: The position the store has: what the step that acknowledges compares.
        self.position = position
        self.taken = 0
        self.is_leaving = False


class Membership:
    """One member. `beat` may run beside the other methods."""

    def __init__(self, keyspace: Keyspace, name: str, wanted: Wanted, member: str | None, ttl_ms: int) -> None:
        self.name = name
        self.member = member or f"member-{uuid4().hex[:12]}"
        self.reader = FeedReader({})
        self._keyspace = keyspace
        self.wanted = wanted
        self._partitions = partitions_of(keyspace, wanted)
        self._ttl_ms = ttl_ms
        self._shares: dict[int, Share] = {}
        self._lost: set[int] = set()
        #: Partitions that were lost with something taken from them, of which nobody was told yet.
        self._lost_unacknowledged: set[int] = set()
        self._living: list[str] = []
        self._moved_to: bytes | None = None
        self._settled_at = 0.0
        self._lock = Lock()

    def at(self, keyspace: Keyspace) -> Membership:
        """The same member at another store, to which the subscription was moved."""
        moved = Membership(keyspace, self.name, self.wanted, self.member, self._ttl_ms)
        unacknowledged = {partition for partition, share in self._shares.items() if share.taken}
        moved._lost_unacknowledged = self._lost_unacknowledged | unacknowledged
        return moved

    @property
    def beat_s(self) -> float:
        return self._ttl_ms / 1000 / BEATS

    @property
    def partitions(self) -> list[int]:
        """The partitions that are this member's share."""
        return sorted(self._shares)

    @property
    def is_due(self) -> bool:
        """Whether it is time to settle."""
        return bool(self._lost) or time.monotonic() - self._settled_at >= self.beat_s

    def took(self, partition: int) -> None:
        """A delivery was taken from a partition, and is to be acknowledged."""
        if partition in self._shares:
            self._shares[partition].taken += 1

    # -- beside everything else --------------------------------------------------------------------------------------

    def beat(self) -> Wire[None]:
        """A sign of life; all leases are renewed."""
        with self._lock:
            held = {partition: share.token for partition, share in self._shares.items()}
        members = self._keyspace.members(self.name)
        commands: list[Command] = [
            ["FCALL", "muster_renew_1", 1, self._owner(partition), token, self._ttl_ms]
            for partition, token in held.items()
        ]
        (now,) = yield Sending([["TIME"]])
        now_ms = parse_time(raised(now))
        commands += [
            ["ZADD", members, now_ms + self._ttl_ms, self.member],
            ["ZREMRANGEBYSCORE", members, "-inf", now_ms],
            ["HGET", self._keyspace.subscription(self.name), MOVED_TO],
            ["ZRANGE", members, 0, -1],
        ]
        replies = [raised(reply) for reply in (yield Sending(commands))]
        with self._lock:
            self._moved_to = replies[-2]
            self._living = sorted(name.decode() for name in replies[-1])
            for (partition, token), renewed in zip(held.items(), replies, strict=False):
                if not renewed and partition in self._shares and self._shares[partition].token == token:
                    self._lost.add(partition)

    # -- between two deliveries --------------------------------------------------------------------------------------

    def settle(self, pending: Collection[int]) -> Wire[None]:
        """Drops, gives back and takes partitions, until this member holds its share.

        Of the `pending` ones something was read that is not taken yet. Raises Conflict (MOVED_TO) if the subscription
        was moved, so that nothing is to be had here.
        """
        if not self._living:
            yield from self.beat()
        self._settled_at = time.monotonic()
        self._drop_lost()
        check_is_here(self.name, self._moved_to)
        yield from self._pass_what_nobody_wanted()
        surplus = len(self._shares) - self._fair_share()
        self._choose_leaving(max(0, surplus))
        done = [at for at, share in self._shares.items() if share.is_leaving and not share.taken and at not in pending]
        if done:
            yield from self._give_back(done)
        if surplus < 0:
            yield from self._take(-surplus)

    def _choose_leaving(self, count: int) -> None:
        """Which partitions are not read any further, to be given back once all that was taken is acknowledged.

        By lot, so that others are not left with those that nothing happens in.
        """
        leaving = [partition for partition, share in self._shares.items() if share.is_leaving]
        staying = [partition for partition in self._shares if partition not in leaving]
        for partition in leaving[count:]:
            self._shares[partition].is_leaving = False
            self._read(partition, self._shares[partition])
        for partition in random.sample(staying, max(0, count - len(leaving))):
            self._shares[partition].is_leaving = True
            self.reader.readers.pop(partition, None)

    def holds(self, reader: SessionReader | PartitionReader) -> bool:
        """Whether what was read by it is still this member's to work on."""
        return any(share.reader is reader for share in self._shares.values())

    def _pass_what_nobody_wanted(self) -> Wire[None]:
        """Where nothing taken waits to be acknowledged, the place moves by itself over what the filter left out."""
        moved = {
            partition: share
            for partition, share in self._shares.items()
            if not share.taken and (share.reader.moved or _position(share.reader.place) not in ("", share.position))
        }
        yield from self._acknowledge(moved)

    def _drop_lost(self) -> None:
        with self._lock:
            lost, self._lost = self._lost, set()
            for partition in lost:
                share = self._shares.pop(partition, None)
                if share is not None and share.taken:
                    self._lost_unacknowledged.add(partition)
        for partition in lost:
            self.reader.readers.pop(partition, None)

    def _fair_share(self) -> int:
        living = sorted({*self._living, self.member})
        each, more = divmod(len(self._partitions), len(living))
        return each + (living.index(self.member) < more)

    def _take(self, count: int) -> Wire[None]:
        others = [partition for partition in self._partitions if partition not in self._shares]
        now, *owners = yield Sending(
            [["TIME"], *(["HMGET", self._owner(partition), "worker", "deadline"] for partition in others)]
        )
        now_ms, free = parse_time(raised(now)), []
        for partition, owner in zip(others, owners, strict=True):
            holder, deadline = raised(owner)
            if holder in (None, self.member.encode()) or int(deadline or 0) <= now_ms:
                free.append(partition)
        random.shuffle(free)  # members that see the same do not all try the same
        for partition in free[:count]:
            yield from self._claim(partition)

    def _claim(self, partition: int) -> Wire[None]:
        nonce = uuid4().hex[:16]
        (reply,) = yield Sending(
            [["FCALL", "muster_claim_1", 1, self._owner(partition), self.member, nonce, self._ttl_ms, "0"]]
        )
        token = raised(reply)
        if not isinstance(token, bytes):
            return  # another one was quicker
        keys = self._keyspace.partitions[partition]
        # The lease first: who moves a subscription away says so, then takes the leases of all.
        moved_to, stored, position, marks = yield Sending(
            [
                ["HGET", self._keyspace.subscription(self.name), MOVED_TO],
                ["GET", keys.place(self.name)],
                ["HGET", keys.acked(self.name), "position"],
                ["HGETALL", keys.reached(self.name)],
            ]
        )
        check_is_here(self.name, raised(moved_to))
        place = read_place(self.name, partition, raised(stored))
        reader = PartitionReader(partition, self.wanted, place, marks_of(raised(marks)))
        share = Share(token.decode(), reader, (raised(position) or b"").decode())
        with self._lock:
            self._shares[partition] = share
        self._read(partition, share)

    def _read(self, partition: int, share: Share) -> None:
        self.reader.readers[partition] = share.reader
        self.reader.news.add(partition)

    def _give_back(self, partitions: Sequence[int]) -> Wire[None]:
        with self._lock:
            shares = {partition: self._shares.pop(partition) for partition in partitions}
        for partition in partitions:
            self.reader.readers.pop(partition, None)
        replies = yield Sending(
            [
                ["FCALL", "muster_release_1", 1, self._owner(partition), share.token]
                for partition, share in shares.items()
            ]
        )
        for reply in replies:
            raised(reply)

    def weigh(self) -> Wire[None]:
        """Reads the marks of sessions that were just heard of: they may have come from another store."""
        readers = [share.reader for share in self._shares.values()]
        unsure = [one for one in readers if one.unmarked or one.is_any_unmarked]
        if not unsure:
            return
        names = [None if one.is_any_unmarked else sorted(one.unmarked) for one in unsure]
        keys = [self._keyspace.partitions[one.partition].reached(self.name) for one in unsure]
        replies = yield Sending(
            [
                ["HGETALL", key] if asked is None else ["HMGET", key, *asked]
                for key, asked in zip(keys, names, strict=True)
            ]
        )
        for reader, asked, reply in zip(unsure, names, replies, strict=True):
            found = raised(reply)
            if asked is not None:
                found = {name.encode(): mark for name, mark in zip(asked, found, strict=True) if mark is not None}
            reader.learn(marks_of(found))
            reader.unmarked, reader.is_any_unmarked = set(), False

    # -- acknowledging -----------------------------------------------------------------------------------------------

    def acknowledge(self) -> Wire[None]:
        """Everything that was taken is done: whoever goes on begins after it.

        Raises Conflict (SHARE_LOST) if another member has a part of it now, and may be given it again; the rest is
        acknowledged.
        """
        yield from self._acknowledge({partition: share for partition, share in self._shares.items() if share.taken})
        lost, self._lost_unacknowledged = self._lost_unacknowledged, set()
        if lost:
            raise Conflict(
                "SHARE_LOST",
                f"{self.member} of subscription {self.name} was taken for dead: another member goes on with "
                f"partitions {', '.join(map(str, sorted(lost)))} from what was acknowledged before",
                partitions=sorted(lost),
            )

    def _acknowledge(self, taken: dict[int, Share]) -> Wire[None]:
        commands = [self._acknowledging(partition, share) for partition, share in taken.items()]
        replies = (yield Sending(commands, writes=True)) if commands else []
        for (partition, share), reply in zip(taken.items(), replies, strict=True):
            position = _position(share.reader.place)
            # A reply that did not come, and the same again: the first one was taken.
            if raised(reply)[0] == b"OK" or reply == [b"CURSOR_MOVED", position.encode()]:
                share.position, share.taken = position or share.position, 0
                share.reader.moved.clear()
            else:
                self._lost.add(partition)
        self._drop_lost()

    def _acknowledging(self, partition: int, share: Share) -> Command:
        keys = self._keyspace.partitions[partition]
        place = share.reader.place
        names = [self._owner(partition), keys.acked(self.name), keys.place(self.name), keys.reached(self.name)]
        arguments: list[Any] = [share.token, share.position, _position(place), share.taken]
        operations = ["SET", 3, 1, pack_place(place), *marking(4, share.reader.moved)]
        return ["FCALL", "muster_step_1", len(names), *names, *arguments, *operations]

    def leave(self) -> Wire[None]:
        """Gives back all that is held. What is not acknowledged is given to others again."""
        yield from self._give_back(list(self._shares))
        (reply,) = yield Sending([["ZREM", self._keyspace.members(self.name), self.member]])
        raised(reply)

    def _owner(self, partition: int) -> str:
        return self._keyspace.partitions[partition].subscription_owner(self.name)


def _position(place: Place) -> str:
    """The position in the feed that an acknowledged place stands for; empty where only its time is known."""
    return str(place.total) if place.total >= 0 and place.catching is None else ""
