"""Durable subscriptions as programs hold them: a member that takes, acknowledges, and gives a sign of life beside."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from threading import Event, Thread
from typing import Any, Final, Literal

from domain.errors import MusterError
from domain.log.exchange import Wire
from domain.log.protocol import Flow
from domain.log.subscribing.delivery import Wanted
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
    begin_flow,
)

logger = logging.getLogger(__name__)

SILENT: Final = {"action": "subscription.silent"}


class _Member(Subscribing):
    """What both faces of a member share. Does no I/O."""

    _membership: Membership

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
    """A member of a durable subscription: as `Subscription`, and what was taken is to be acknowledged (`ack`)."""

    def __init__(
        self,
        log: SubscribedLog,
        follower: FollowingThread,
        membership: Membership,
        after: Literal["now", "beginning"],
    ) -> None:
        made = DurableSubscriptions(log.keyspace)
        places = {}
        if not log.drive(made.is_made(membership.name)):
            places = {at: reader.place for at, reader in log.run(_places(log, after)).readers.items()}
        log.drive(made.create(membership.name, membership.wanted, places))
        super().__init__(log, follower, None, _begin(membership))
        self._membership = membership
        self._looks_after_s = membership.beat_s
        self._stop = Event()
        self._beats = Thread(target=self._beat, name="muster-member", daemon=True)
        self._beats.start()

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

    def _beat(self) -> None:
        while not self._stop.wait(self._membership.beat_s):
            try:
                self._log.drive(self._membership.beat())
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
        self._membership = membership
        self._after = after
        self._looks_after_s = membership.beat_s
        self._beats: asyncio.Task[None] | None = None

    async def _begin(self) -> None:
        if self._reader is None and not self.is_closed:
            made = DurableSubscriptions(self._log.keyspace)
            places = {}
            if not await self._drive(made.is_made(self._membership.name)):
                reader = await self._run(_places(self._log, self._after))
                places = {at: one.place for at, one in reader.readers.items()}
            await self._drive(made.create(self._membership.name, self._membership.wanted, places))
            await super()._begin()
            self._beats = asyncio.get_running_loop().create_task(self._beat(), name="muster-member")

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

    async def _drive(self, wire: Wire[Any]) -> Any:
        return await self._log.drive(wire)

    async def _beat(self) -> None:
        while not self.is_closed:
            await asyncio.sleep(self._membership.beat_s)
            try:
                await self._drive(self._membership.beat())
            except (MusterError, OSError, ValueError) as error:
                logger.warning("member %s gives no sign of life: %s", self.member, error, extra=SILENT)
