"""Durable subscriptions as programs hold them: a member that takes, acknowledges, and gives a sign of life beside."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from contextlib import suppress
from threading import Event, Thread
from typing import Any, Final, Literal

from domain.errors import Conflict, MusterError, Unavailable
from domain.log.connection import PASSES
from domain.log.exchange import Wire
from domain.log.place import Place, parse_place
from domain.log.protocol import Flow
from domain.log.subscribing.delivery import Delivery, Wanted
from domain.log.subscribing.durable import DurableSubscriptions
from domain.log.subscribing.listening import JOIN_S, FollowingTask, FollowingThread
from domain.log.subscribing.membership import Membership
from domain.log.subscribing.readers import FeedReader, Item, PartitionReader, SessionReader
from domain.log.subscribing.subscription import (
    AsyncSubscribedLog,
    AsyncSubscription,
    Driving,
    Steps,
    SubscribedLog,
    Subscribing,
    Subscription,
    Waiting,
    begin_flow,
    pause_s,
)

logger = logging.getLogger(__name__)

SILENT: Final = {"action": "subscription.silent"}
MOVED: Final = {"action": "subscription.moved"}
#: After so many failures in a row it is asked whether another store replaces the one that does not answer.
FAILURES: Final = 8
#: Over how many stores it goes at once that were moved on from.
HOPS: Final = 8


class _Member(Subscribing):
    """What both faces of a member share. Does no I/O."""

    _membership: Membership
    #: The log it was opened from, which was told of other places.
    _home: Any

    @property
    def partitions(self) -> list[int]:
        """The partitions that are this member's share now."""
        return self._membership.partitions

    @property
    def member(self) -> str:
        """The name this member goes by."""
        return self._membership.member

    def _settling(self) -> Steps[None]:
        if self._membership.is_due:
            pending = {item.reader.partition for item in self._page if isinstance(item.reader, PartitionReader)}
            try:
                yield Driving(self._membership.settle(pending))
            finally:
                self._forget_lost()
            self._is_at_end = False

    def _weighing(self) -> Steps[None]:
        yield Driving(self._membership.weigh())

    def _looks_elsewhere(self) -> bool:
        return self._failures % FAILURES == 0

    def _moved_to(self, error: Conflict | Unavailable) -> Place | None:
        """Where the subscription is; None: where whoever replaces the store is, which does not answer. Raises the error
        if it says neither.
        """
        if isinstance(error, Unavailable):
            return None
        place = parse_place(error.facts["place"]) if error.code == "MOVED_TO" else None
        if place is None:
            raise error
        return place

    def _become(self, log: Any, membership: Membership) -> None:
        """Goes on at another store. What was taken and not acknowledged is given again there."""
        logger.info("member %s goes on at %s", self.member, log.identity.store, extra=MOVED)
        self._log, self._follower, self._membership = log, log.follower, membership
        self._reader = membership.reader
        self._page.clear()
        self._failures, self._is_at_end, self._listens = 0, False, False

    def _forget_lost(self) -> None:
        """What was read of a partition that another member has now is that one's to work on."""
        kept = [item for item in self._page if self._membership.holds(item.reader)]
        self._page.clear()
        self._page.extend(kept)

    def _took(self, item: Item) -> None:
        assert isinstance(item.reader, PartitionReader)
        self._membership.took(item.reader.partition)


def _begin(membership: Membership) -> Flow[SessionReader | FeedReader]:
    yield from ()
    return membership.reader


def _places(log: SubscribedLog | AsyncSubscribedLog, after: Literal["now", "beginning"]) -> Flow[Any]:
    return begin_flow(log.keyspace, log.identity, None, Wanted(), after)


class DurableSubscription(_Member, Subscription):
    """A member of a durable subscription: as `Subscription`, and what was taken is to be acknowledged (`ack`).

    If the subscription is moved to another store, and its log was told of it (`moved`), it goes on there.
    """

    def __init__(
        self,
        log: SubscribedLog,
        follower: FollowingThread,
        membership: Membership,
        after: Literal["now", "beginning"],
    ) -> None:
        super().__init__(log, follower, None, _begin(membership))
        self._home = log
        self._after = after
        self._membership = membership
        try:
            self._make(log)
        except Conflict as error:
            if not self._follow(error):
                raise
        self._looks_after_s = membership.beat_s
        self._stop = Event()
        self._beats = Thread(target=self._beat, name="muster-member", daemon=True)
        self._beats.start()

    def get(self, timeout_s: float | None = None) -> Delivery | None:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                return super().get(left)
            except (Conflict, Unavailable) as error:
                if isinstance(error, Unavailable) and error.code not in PASSES:
                    raise
                try:
                    if self._follow(error):
                        continue
                    if isinstance(error, Conflict):
                        raise
                except Unavailable:
                    pass  # neither is where it is to be gone on
            left = math.inf if deadline is None else deadline - time.monotonic()
            if left <= 0:
                return None
            self._wait(Waiting(min(left, pause_s(self._failures)), or_until_heard=False))

    def ack(self) -> None:
        """Everything that was taken is done. Harmless to repeat.

        Raises Conflict (SHARE_LOST): other members have a part of it now; the rest is acknowledged.
        """
        try:
            self._log.drive(self._membership.acknowledge())
        finally:
            self._forget_lost()

    def close(self) -> None:
        """Leaves: what was taken and not acknowledged, other members are given at once."""
        was_closed = self.is_closed
        super().close()
        self._stop.set()
        self._beats.join(JOIN_S)
        if not was_closed:
            with suppress(MusterError):  # the leases run out by themselves
                self._log.drive(self._membership.leave())

    def end(self) -> None:
        self._stop.set()
        super().end()

    def _make(self, log: SubscribedLog) -> None:
        """Makes the subscription in a store, unless it is there."""
        made = DurableSubscriptions(log.keyspace)
        places = {}
        if not log.drive(made.is_made(self._membership.name)):
            places = {at: reader.place for at, reader in log.run(_places(log, self._after)).readers.items()}
        log.drive(made.create(self._membership.name, self._membership.wanted, places))

    def _follow(self, error: Conflict | Unavailable, hops: int = HOPS) -> bool:
        """Whether it goes on elsewhere now."""
        place = self._moved_to(error)
        is_home = place is not None and place.store == self._home.identity.store
        log = self._home if is_home else self._home.elsewhere(place)
        if log is None or log is self._log:
            return False
        try:
            self._make(log)
        except Conflict as onwards:
            if hops == 0:
                raise
            return self._follow(onwards, hops - 1)
        there = self._membership.at(log.keyspace)  # before it leaves: what it has taken, it has to be told of
        if place is not None:
            with suppress(MusterError):
                self._log.drive(self._membership.leave())
        self._follower.remove(self, None)
        self._become(log, there)
        return True

    def _beat(self) -> None:
        while not self._stop.wait(self._membership.beat_s):
            # Before the log: it goes elsewhere log first, and a new membership must not learn of the old store.
            membership = self._membership
            try:
                self._log.drive(membership.beat())
            except (MusterError, OSError, ValueError) as error:
                logger.warning("member %s gives no sign of life: %s", self.member, error, extra=SILENT)


class AsyncDurableSubscription(_Member, AsyncSubscription):
    """As `DurableSubscription`."""

    def __init__(
        self,
        log: AsyncSubscribedLog,
        follower: FollowingTask,
        membership: Membership,
        after: Literal["now", "beginning"],
    ) -> None:
        super().__init__(log, follower, None, _begin(membership))
        self._home = log
        self._membership = membership
        self._after = after
        self._looks_after_s = membership.beat_s
        self._beats: asyncio.Task[None] | None = None

    async def _begin(self) -> None:
        if self._reader is None and not self.is_closed:
            try:
                await self._make(self._log)
            except Conflict as error:
                if not await self._follow(error):
                    raise
            await super()._begin()
            self._beats = asyncio.get_running_loop().create_task(self._beat(), name="muster-member")

    async def get(self, timeout_s: float | None = None) -> Delivery | None:
        """As `DurableSubscription.get`."""
        await self._begin()
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                return await super().get(left)
            except (Conflict, Unavailable) as error:
                if isinstance(error, Unavailable) and error.code not in PASSES:
                    raise
                try:
                    if await self._follow(error):
                        continue
                    if isinstance(error, Conflict):
                        raise
                except Unavailable:
                    pass
            left = math.inf if deadline is None else deadline - time.monotonic()
            if left <= 0:
                return None
            await self._wait(Waiting(min(left, pause_s(self._failures)), or_until_heard=False))

    async def ack(self) -> None:
        """As `DurableSubscription.ack`."""
        try:
            await self._drive(self._membership.acknowledge())
        finally:
            self._forget_lost()

    async def close(self) -> None:
        """As `DurableSubscription.close`."""
        was_closed = self.is_closed
        await super().close()
        if self._beats is not None and not was_closed:
            self._beats.cancel()
            await asyncio.wait([self._beats])
            with suppress(MusterError):
                await self._drive(self._membership.leave())

    async def _make(self, log: AsyncSubscribedLog) -> None:
        made = DurableSubscriptions(log.keyspace)
        places = {}
        if not await log.drive(made.is_made(self._membership.name)):
            reader = await log.run(_places(log, self._after))
            places = {at: one.place for at, one in reader.readers.items()}
        await log.drive(made.create(self._membership.name, self._membership.wanted, places))

    async def _follow(self, error: Conflict | Unavailable, hops: int = HOPS) -> bool:
        place = self._moved_to(error)
        is_home = place is not None and place.store == self._home.identity.store
        log = self._home if is_home else await self._home.elsewhere(place)
        if log is None or log is self._log:
            return False
        try:
            await self._make(log)
        except Conflict as onwards:
            if hops == 0:
                raise
            return await self._follow(onwards, hops - 1)
        there = self._membership.at(log.keyspace)
        if place is not None:
            with suppress(MusterError):
                await self._drive(self._membership.leave())
        await self._follower.remove(self, None)
        self._become(log, there)
        return True

    async def _drive(self, wire: Wire[Any]) -> Any:
        return await self._log.drive(wire)

    async def _beat(self) -> None:
        while not self.is_closed:
            await asyncio.sleep(self._membership.beat_s)
            try:
                await self._drive(self._membership.beat())
            except (MusterError, OSError, ValueError) as error:
                logger.warning("member %s gives no sign of life: %s", self.member, error, extra=SILENT)
