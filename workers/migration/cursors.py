"""The cursors of durable subscriptions: they move with their sessions, as the seq up to which each was given.

Theory of operation. Before a session is opened where it goes, every subscription there has a mark of it: what comes of
it is given by the subscription elsewhere still. Then, subscription by subscription, it *leaves* where it was: under the
leases of its partitions, so that no member can acknowledge meanwhile, the mark there says up to where it was given, and
that it is given there no more. Then it *arrives*: the mark where it is says from where on it is given. Whoever dies in
between leaves a session that is given nowhere for a while, and whoever goes on finds all he needs in the marks. What is
acknowledged never comes again; what was taken and not acknowledged does.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final
from uuid import uuid4

from msgspec import Struct

from domain.errors import Conflict, Damaged, MusterError
from domain.log.contract import Head
from domain.log.protocol import Command, Flow, HeadRequest, together
from domain.log.subscribing.delivery import Place, Wanted
from domain.log.subscribing.durable import (
    MOVED_TO,
    DurableSubscriptions,
    marking,
    pack_place,
    partitions_of,
    read_place,
)
from domain.log.subscribing.reached import ARRIVED, Mark, given_flow, marks_of
from domain.log.subscribing.subscription import begin_flow
from workers.migration.ends import End, Ends
from workers.migration.selecting import pages

#: How many sessions' cursors are looked at together.
PAGE: Final = 256
#: How long a member is kept from a partition at most, if whoever keeps it from there dies, in ms.
HELD_MS: Final = 5_000


class Subscribed(Struct, frozen=True):
    """A durable subscription of an end."""

    name: str
    wanted: Wanted

    def wants(self, session: str) -> bool:
        """Whether it is given anything of a session."""
        return self.wanted.has(session)


def subscribed(end: End) -> list[Subscribed]:
    """The durable subscriptions of an end, also those that were moved away as a whole."""
    made = DurableSubscriptions(end.keyspace)
    names = [name for name in end.log.drive(made.names()) if end.log.drive(made.is_made(name))]
    return [Subscribed(name, end.log.drive(made.show(name)).wanted) for name in names]


class Cursors:
    """The cursors of what one migration moves."""

    def __init__(self, ends: Ends, task: str, say: Callable[[str], None]) -> None:
        self._ends = ends
        self._task = task
        self._say = say
        self.shared: list[Subscribed] = []
        self._there: list[Subscribed] = []

    def begin(self, moved: Collection[str]) -> None:
        """Makes the source's subscriptions at the target, unless they are there. Raises Unavailable.

        `moved`: sessions that were opened at the target before; their cursors are still to come to what is made now.
        """
        target = self._ends.target
        there = {one.name for one in subscribed(target)}
        for one in subscribed(self._ends.source):
            if one.name not in there:
                for page in pages(filter(one.wants, moved), PAGE):
                    target.replies([_expecting(target, one, session, ARRIVED) for session in page])
                make(target, one)
        self.look()

    def look(self) -> None:
        """Finds out which subscriptions both ends have. Raises Unavailable."""
        self._there = subscribed(self._ends.target)
        there = {one.name: one.wanted for one in self._there}
        here = [one for one in subscribed(self._ends.source) if one.name in there]
        self.shared = [one for one in here if one.wanted == there[one.name]]
        for one in here:
            if one not in self.shared:
                self._say(f"subscription {one.name} wants something else at the target: its cursors stay at the source")

    def expected(self, sessions: Iterable[str]) -> list[Command]:
        """What is to be written at the target before sessions are opened there: their cursors are still to come; or, of
        a subscription that the source has not, there is nothing that was given of them.
        """
        names = {one.name for one in self.shared}
        target, commands = self._ends.target, []
        for session in sessions:
            for one in self._there:
                mark = ARRIVED if one.name in names else Mark(0)
                if one.wants(session):
                    commands.append(_expecting(target, one, session, mark))
        return commands

    def waiting(self, sessions: Iterable[str]) -> int:
        """How many cursors are still to come when these are opened at the target."""
        return sum(one.wants(session) for session in sessions for one in self.shared)

    def bring(self, sessions: Collection[str], *, are_all: bool) -> int:
        """Moves the cursors of sessions that were opened at the target; returns how many are still to come.

        `are_all`: nothing is left at the source, so its subscriptions are closed, and members go to the target.
        """
        source, target = self._ends.source, self._ends.target
        left = 0
        for one in self.shared:
            open_(target, one)
            if are_all:
                close(source, one, target)
            elif source.replies([["HGET", source.keyspace.subscription(one.name), MOVED_TO]])[0] == _place(target):
                open_(source, one)  # sessions began there since
            waiting = _away(target, one, sessions)
            self._leave(source, one, waiting)
            left += self._arrive(target, one, source, waiting)
        # What the source dropped meanwhile, nobody knows a cursor of: it is given from its beginning.
        for one in self._there:
            if one.name not in {shared.name for shared in self.shared}:
                waiting = _away(target, one, sessions)
                left += self._arrive(target, one, None, waiting)
        return left

    def take_back(self, sessions: Collection[str]) -> None:
        """Sessions are about to go back to the source: from now on nothing is given of them at the target."""
        opened = _here(self._ends.target, sessions)
        for one in self._there:
            self._leave(self._ends.target, one, [session for session in opened if one.wants(session)])

    def put_back(self, back: Collection[str], stayed: Collection[str], *, are_all: bool) -> int:
        """Sessions are back at the source, others stayed: each is given where it is; returns how many cursors are still
        to come. `are_all`: none stayed.
        """
        left = 0
        source, target = self._ends.source, self._ends.target
        names = {one.name for one in self.shared}
        for one in self.shared:
            open_(source, one)
            if are_all:
                close(target, one, source)
            left += self._arrive(source, one, target, _away(source, one, back))
        for one in self._there:
            left += self._arrive(target, one, source if one.name in names else None, _away(target, one, stayed))
        return left

    def _leave(self, end: End, one: Subscribed, sessions: Collection[str]) -> None:
        """Says of sessions that they are not given here any more, and up to where they were."""
        for partition, names in _grouped(end, sessions).items():
            for page in pages(names, PAGE):
                try:
                    _left(end, one, partition, page, self._task)
                except Damaged as error:
                    self._say(f"cursors of subscription {one.name} stay: {error.code}: {error.cause}")

    def _arrive(self, end: End, one: Subscribed, other: End | None, sessions: Collection[str]) -> int:
        """Gives sessions from where they left at the other end; returns how many have not left there."""
        left = 0
        for partition, names in _grouped(end, sessions).items():
            for page in pages(names, PAGE):
                there = dict.fromkeys(page, ARRIVED) if other is None else _marks(other, one, page)
                gone = {session: mark for session, mark in there.items() if mark.is_away}
                left += len(page) - len(gone)
                _arrived(end, one, partition, gone, self._task)
        return left


def _expecting(end: End, one: Subscribed, session: str, mark: Mark) -> Command:
    return ["HSETNX", end.keyspace.of(session).reached(one.name), session, str(mark)]


def _left(end: End, one: Subscribed, partition: int, sessions: Sequence[str], task: str) -> None:
    with held(end, one, partition, task) as (token, position, stored):
        place = read_place(one.name, partition, stored)
        known = _marks(end, one, sessions)
        asked = [session for session in sessions if session not in known or not known[session].is_away]
        flows = [given_flow(session, place, known.get(session)) for session in asked]
        moved: dict[str, Mark | None] = {}
        for session, given in zip(asked, end.log.run(together(flows)), strict=True):
            if isinstance(given, MusterError):
                raise given
            moved[session] = Mark(given, is_away=True)
        # Where the sessions go, their commits are looked for from now on.
        place.recent = [anchor for anchor in place.recent if anchor.session not in moved]
        _step(end, one, partition, token, position, ["SET", 3, 1, pack_place(place), *marking(4, moved)])


def _arrived(end: End, one: Subscribed, partition: int, there: Mapping[str, Mark], task: str) -> None:
    if not there:
        return
    with held(end, one, partition, task) as (token, position, _):
        here = _marks(end, one, list(there))
        # Whoever has more of a session gave it last.
        moved: dict[str, Mark | None] = {
            session: Mark(max(mark.seq, here[session].seq))
            for session, mark in there.items()
            if session in here and here[session].is_away
        }
        if moved:
            _step(end, one, partition, token, position, marking(4, moved))


@contextmanager
def held(end: End, one: Subscribed, partition: int, task: str) -> Iterator[tuple[str, str, bytes | None]]:
    """A partition of a subscription, which no member acknowledges anything of meanwhile; what its place is."""
    keys = end.keyspace.partitions[partition]
    owner = keys.subscription_owner(one.name)
    claim = ["FCALL", "muster_claim_1", 1, owner, f"migration-{task}", uuid4().hex[:16], HELD_MS, "1"]
    token, position, place = end.replies(
        [claim, ["HGET", keys.acked(one.name), "position"], ["GET", keys.place(one.name)]]
    )
    try:
        yield token.decode(), (position or b"").decode(), place
    finally:
        with suppress(MusterError):  # else it runs out by itself
            end.ask([["FCALL", "muster_release_1", 1, owner, token]])


def _step(end: End, one: Subscribed, partition: int, token: str, position: str, operations: list[Any]) -> None:
    keys = end.keyspace.partitions[partition]
    owner, name = keys.subscription_owner(one.name), one.name
    names = [owner, keys.acked(name), keys.place(name), keys.reached(name)]
    (reply,) = end.replies([["FCALL", "muster_step_1", 4, *names, token, position, "", 0, *operations]])
    if reply[0] != b"OK":
        raise Conflict("MIGRATION_BUSY", f"partition {partition} of subscription {name} was taken meanwhile")


def _marks(end: End, one: Subscribed, sessions: Sequence[str]) -> dict[str, Mark]:
    """The marks that sessions have at an end."""
    asked = [["HGET", end.keyspace.of(session).reached(one.name), session] for session in sessions]
    found = zip(sessions, end.replies(asked), strict=True)
    return marks_of({session.encode(): stored for session, stored in found if stored is not None})


def _away(end: End, one: Subscribed, sessions: Collection[str]) -> list[str]:
    """Those of the sessions that are at an end, and by its marks are given elsewhere."""
    wanted, found = set(sessions), []
    for partition in partitions_of(end.keyspace, one.wanted):
        (stored,) = end.replies([["HGETALL", end.keyspace.partitions[partition].reached(one.name)]])
        found += [session for session, mark in marks_of(stored).items() if mark.is_away and session in wanted]
    return _here(end, found)


def _here(end: End, sessions: Iterable[str]) -> list[str]:
    """Those of the sessions that are open at an end: no copies, and none that went on from there to another place."""
    found: list[str] = []
    for page in pages(sessions, PAGE):
        heads = end.log.run(_heads(page))
        # One that cannot be read does not say that it is anywhere else.
        found += [name for name, head in zip(page, heads, strict=True) if head and not getattr(head, "is_elsewhere", 0)]
    return found


def _heads(sessions: Sequence[str]) -> Flow[list[Head | MusterError | None]]:
    return (yield [HeadRequest(session) for session in sessions])


def _grouped(end: End, sessions: Iterable[str]) -> dict[int, list[str]]:
    grouped: dict[int, list[str]] = {}
    for session in sessions:
        grouped.setdefault(end.keyspace.partition_of(session), []).append(session)
    return grouped


def make(end: End, one: Subscribed) -> None:
    """Makes a subscription that is given what is new from now on."""
    begun = begin_flow(end.keyspace, end.log.identity, None, Wanted(), "now")
    places: dict[int, Place] = {at: reader.place for at, reader in end.log.run(begun).readers.items()}  # type: ignore[union-attr]
    wanted = partitions_of(end.keyspace, one.wanted)
    made = DurableSubscriptions(end.keyspace).create(one.name, one.wanted, {at: places[at] for at in wanted})
    end.log.drive(made)


def open_(end: End, one: Subscribed) -> None:
    end.replies([["HDEL", end.keyspace.subscription(one.name), MOVED_TO]])


def _place(end: End) -> bytes:
    return str(end.place).encode()


def close(end: End, one: Subscribed, other: End) -> None:
    end.replies([["HSET", end.keyspace.subscription(one.name), MOVED_TO, str(other.place)]])
