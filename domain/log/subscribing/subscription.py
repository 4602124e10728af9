"""Subscriptions as programs hold them: iterators over what is delivered, blocking and asyncio.

A subscription pulls: it holds a page and a place, however much is written, so a slow consumer costs nothing and loses
nothing. It waits by itself while the server is away, as long as it takes.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Collection, Generator
from threading import Condition, Lock
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, Self, TypeAlias, TypeVar

from msgspec import Struct

from domain.errors import Misconfigured, MusterError, Refused, Unavailable
from domain.events import check_session
from domain.log.connection import PASSES
from domain.log.contract import Position, Receipt
from domain.log.exchange import Wire
from domain.log.keys import Keyspace
from domain.log.place import Place as StorePlace
from domain.log.protocol import Flow, Request, Standing, StandingRequest, TimeRequest, head_flow, taken
from domain.log.store import Identity
from domain.log.subscribing.delivery import Anchor, Delivery, Place, SubscriptionPosition, Wanted, thinned
from domain.log.subscribing.listening import FollowingTask, FollowingThread, Listeners
from domain.log.subscribing.readers import FeedReader, Item, PartitionReader, SessionReader
from domain.log.subscribing.stride import Stride

if TYPE_CHECKING:
    from domain.log.memory import MemoryLog

T = TypeVar("T")

#: Where a subscription begins: at what is written from now on, at the very beginning, after a seq (or receipt) of its
#: one session, or after the place of another subscription.
After: TypeAlias = Literal["now", "beginning"] | int | Receipt | Position | SubscriptionPosition | str
#: How often the server's clock is looked at until a ms has passed: more often than there is time for in one.
PASSING: Final = 10_000
#: The longest pause between two looks while the server is away, in seconds.
LONGEST_PAUSE_S: Final = 1.0
#: How long a subscription that hears nothing waits before it looks for itself, in seconds.
LOOKS_AFTER_S: Final = 30.0


class _OpenLog(Protocol):
    keyspace: Keyspace
    identity: Identity


class SubscribedLog(_OpenLog, Protocol):
    """What a blocking subscription needs of its log."""

    follower: FollowingThread

    def elsewhere(self, place: StorePlace | None) -> SubscribedLog | None: ...

    def run(self, flow: Flow[T]) -> T: ...

    def look(self, flow: Flow[T]) -> T: ...

    def drive(self, wire: Wire[T]) -> T: ...


class AsyncSubscribedLog(_OpenLog, Protocol):
    """What an asyncio subscription needs of its log."""

    follower: FollowingTask

    async def elsewhere(self, place: StorePlace | None) -> AsyncSubscribedLog | None: ...

    async def run(self, flow: Flow[T]) -> T: ...

    async def look(self, flow: Flow[T]) -> T: ...

    async def drive(self, wire: Wire[T]) -> T: ...


def begin_flow(
    keyspace: Keyspace, identity: Identity, session: str | None, wanted: Wanted, after: After
) -> Flow[SessionReader | FeedReader]:
    """The reader of a subscription that begins there. Raises Refused (POSITION_INVALID, USAGE) for a place that is
    none, Misconfigured (STORE_CHANGED) for a place in another store.
    """
    if session is not None:
        check_session(session)
    if isinstance(after, str) and after not in ("now", "beginning"):
        after = SubscriptionPosition.parse(after)
    if isinstance(after, SubscriptionPosition):
        places = _places_of(after, keyspace, identity, session)
    elif session is not None:
        places = {0: (yield from _place_in_session(session, after))}
    elif after == "beginning":
        places = {partition: Place() for partition in range(keyspace.count)}
    elif after == "now":
        places = yield from _places_now(range(keyspace.count))
    else:
        raise Refused("USAGE", "a seq is a place in one session: name the session too")
    if session is not None:
        return SessionReader(session, wanted, places[0])
    return FeedReader({at: PartitionReader(at, wanted, place) for at, place in places.items()})


def _places_of(
    position: SubscriptionPosition, keyspace: Keyspace, identity: Identity, session: str | None
) -> dict[int, Place]:
    # Of one session, what was given last proves that this log is the same: the subscription looks for it first.
    is_provable = session is not None and position.session == session and bool(position.places.get(0, Place()).recent)
    if position.store != identity.store and not is_provable:
        raise Misconfigured("STORE_CHANGED", f"the position is one in the store {position.store}, not in this one")
    whole = set(range(keyspace.count)) if session is None else {0}
    if position.session != session or position.places.keys() != whole:
        raise Refused("POSITION_INVALID", "the position is that of a subscription to something else")
    return position.places


def _place_in_session(session: str, after: Any) -> Flow[Place]:
    if after == "now":
        (head,) = yield from head_flow([session])
        after = head.position if head is not None else 0
    if isinstance(after, Receipt):
        if after.session != session:
            raise Refused("POSITION_INVALID", f"a receipt of session {after.session} is no place in {session}")
        after = after.position
    if isinstance(after, Position):
        anchors = [Anchor(session, after.seq, after.digest, 0)] if after.digest and after.seq else []
        return Place(after.seq, recent=anchors)
    seq = 0 if after == "beginning" else after
    if not isinstance(seq, int) or isinstance(seq, bool) or seq < 0:
        raise Refused("POSITION_INVALID", f"{after!r} is no seq")
    return Place(seq)


def _places_now(partitions: Collection[int]) -> Flow[dict[int, Place]]:
    """Where partitions stand: at a time that has passed, so that all that is written from now on is later."""
    places: dict[int, Place] = {}
    for attempt in range(PASSING):
        left = [partition for partition in partitions if partition not in places]
        if not left:
            break
        requests: list[Request] = [TimeRequest(), *(StandingRequest(partition) for partition in left)]
        now, *found = yield requests
        for partition, answer in zip(left, found, strict=True):
            standing: Standing = taken(answer)
            if standing.at_ms != taken(now) or attempt == PASSING - 1:
                places[partition] = Place(standing.total, standing.at_ms)
    return places


class Reading(Struct, frozen=True):
    """A flow that a subscription wants to be run."""

    flow: Flow[Any]


class Driving(Struct, frozen=True):
    """A wire that a subscription wants to be run."""

    wire: Wire[Any]


class Waiting(Struct, frozen=True):
    """For how many seconds a subscription wants to wait, unless it is closed; or until it hears something, too."""

    seconds: float
    or_until_heard: bool


Steps: TypeAlias = Generator[Reading | Driving | Waiting, Any, T]


class Subscribing:
    """What both faces share. Does no I/O: a face runs the steps of `_getting`."""

    _follower: Any

    def __init__(self, log: _OpenLog, session: str | None) -> None:
        self._log: Any = log
        self._session = session
        self._reader: SessionReader | FeedReader | None = None
        self._page: deque[Item] = deque()
        self._stride = Stride()
        self._failures = 0
        self._lock = Lock()
        self._rumours: set[int] = set()
        self._has_heard = True
        self._is_at_end = False
        self._listens = False
        self._looks_after_s = LOOKS_AFTER_S
        self.is_closed = False

    @property
    def position(self) -> SubscriptionPosition:
        """Where the subscription stands: after what was taken from it last. Give it as `after` to go on from there."""
        reader = self._begun
        if isinstance(reader, SessionReader):
            places = {0: reader.place}
        else:
            places = {at: one.place for at, one in reader.readers.items()}
        for place in places.values():
            place.recent = thinned(place.recent)
        return SubscriptionPosition(self._log.identity.store, self._log.identity.epoch, self._session, places)

    @property
    def is_caught_up(self) -> bool:
        """Whether everything was taken that the store held when it was last looked at."""
        return self._is_at_end and not self._page

    @property
    def _begun(self) -> SessionReader | FeedReader:
        if self._reader is None:
            raise Refused("USAGE", "the subscription has not begun: `async with` begins it")
        return self._reader

    def _note(self, partitions: Collection[int] | None) -> None:
        with self._lock:
            self._rumours.update(range(self._log.keyspace.count) if partitions is None else partitions)
            self._has_heard = True

    def _look_at_what_was_heard(self) -> bool:
        """Hands on where there may be something new; returns whether there may."""
        with self._lock:
            has_heard, self._has_heard = self._has_heard, False
            rumours, self._rumours = self._rumours, set()
        if isinstance(self._reader, FeedReader):
            self._reader.news.update(rumours)
        return has_heard

    def _settling(self) -> Steps[None]:
        """What is to be done between two deliveries."""
        yield from ()

    def _weighing(self) -> Steps[None]:
        """What is to be known before a page that was read is taken from."""
        yield from ()

    def _looks_elsewhere(self) -> bool:
        """Whether, after a failure, it is time to look whether all there is to be had is elsewhere by now."""
        return False

    def _took(self, item: Item) -> None:
        """A delivery is handed out."""

    def _getting(self, timeout_s: float | None) -> Steps[Delivery | None]:
        """The steps to the next delivery; None at the timeout, or when closed."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        if not self._listens:
            self._note(None)  # nobody tells it of anything before it waits for the first time
        while not self.is_closed:
            wait = Waiting(self._looks_after_s, or_until_heard=True)
            try:
                yield from self._settling()
                if (delivery := self._next_of_page()) is not None:
                    return delivery
                if (yield from self._read_on()):
                    continue
            except Unavailable as error:
                self._failures += 1
                self._note(None)
                if error.code not in PASSES or self._looks_elsewhere():
                    raise
                wait = Waiting(pause_s(self._failures), or_until_heard=False)
            left = wait.seconds if deadline is None else min(wait.seconds, deadline - time.monotonic())
            if left <= 0:
                return None
            if not (yield Waiting(left, wait.or_until_heard)):
                self._note(None)  # it heard nothing for long: it looks for itself
        return None

    def _next_of_page(self) -> Delivery | None:
        while self._page:
            item = self._page.popleft()
            if (delivery := item.take()) is not None:
                self._took(item)
                return delivery
        return None

    def _read_on(self) -> Steps[bool]:
        """Reads the next page, if there may be one; returns whether more may follow at once."""
        if not self._look_at_what_was_heard() and self._is_at_end:
            return False
        self._is_at_end = False
        try:
            page = yield Reading(self._begun.next_page(self._stride))
            yield from self._weighing()
        except Unavailable:
            self._stride.shorten()
            raise
        self._failures = 0
        if page:
            self._stride.lengthen()
        self._is_at_end = page is None
        self._page.extend(page or ())
        return page is not None


def pause_s(failures: int) -> float:
    return random.uniform(0.5, 1.0) * min(LONGEST_PAUSE_S, 0.02 * 2.0 ** min(failures, 8))


class Subscription(Subscribing):
    """A blocking iterator of deliveries; leaving `with` closes it. One thread at a time takes from it.

    An error that it raises (TAIL_LOST, FORK: what was delivered is lost, see `accept_loss`; ACCESS_DENIED) does not end
    it: who asks again goes on, or is told again.
    """

    def __init__(
        self,
        log: SubscribedLog | MemoryLog,
        follower: FollowingThread | Listeners,
        session: str | None,
        beginning: Flow[SessionReader | FeedReader],
    ) -> None:
        super().__init__(log, session)
        self._follower = follower
        self._woken = Condition(self._lock)
        self._reader = self._log.run(beginning)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Delivery:
        delivery = self.get()
        if delivery is None:
            raise StopIteration
        return delivery

    def get(self, timeout_s: float | None = None) -> Delivery | None:
        """The next delivery; None if none came in time, or the subscription is closed.

        While the server is away, it may take as long as one command may (`timeout_s` of the connection) on top.
        """
        steps = self._getting(timeout_s)
        try:
            step = next(steps)
            while True:
                if isinstance(step, Waiting):
                    step = steps.send(self._wait(step))
                    continue
                try:
                    with self._follower.turns:
                        page = self._log.look(step.flow) if isinstance(step, Reading) else self._log.drive(step.wire)
                except MusterError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(page)
        except StopIteration as done:
            delivery: Delivery | None = done.value
            return delivery

    def _wait(self, wait: Waiting) -> bool:
        if not self._listens:
            self._listens = True
            self._follower.add(self, self._session)
            self._note(None)  # what came before it listened, nobody told it of
        with self._woken:
            return self._woken.wait_for(
                lambda: self.is_closed or (wait.or_until_heard and self._has_heard), wait.seconds
            )

    def accept_loss(self) -> None:
        """Goes on although what was delivered is lost: after the last of it that the store still holds. What came since
        is delivered, at seqs that were delivered before with something else in them.
        """
        self._log.run(self._begun.accept_loss())

    def heard(self, partitions: Collection[int] | None) -> None:
        self._note(partitions)
        with self._woken:
            self._woken.notify_all()

    def end(self) -> None:
        with self._woken:
            self.is_closed = True
            self._woken.notify_all()

    def close(self) -> None:
        """Ends the subscription, also for a thread that waits on it. May be called from any thread, and again."""
        self.end()
        self._follower.remove(self, self._session)


class AsyncSubscription(Subscribing):
    """An asyncio iterator of deliveries; leaving `async with` closes it. As `Subscription`; it begins when it is
    entered, or first asked.
    """

    def __init__(
        self,
        log: AsyncSubscribedLog,
        follower: FollowingTask,
        session: str | None,
        beginning: Flow[SessionReader | FeedReader],
    ) -> None:
        super().__init__(log, session)
        self._run = log.run
        self._follower = follower
        self._beginning = beginning
        self._woken = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self._begin()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delivery:
        delivery = await self.get()
        if delivery is None:
            raise StopAsyncIteration
        return delivery

    async def _begin(self) -> None:
        if self._reader is None and not self.is_closed:
            self._reader = await self._run(self._beginning)

    async def get(self, timeout_s: float | None = None) -> Delivery | None:
        """As `Subscription.get`."""
        await self._begin()
        steps = self._getting(timeout_s)
        try:
            step = next(steps)
            while True:
                if isinstance(step, Waiting):
                    step = steps.send(await self._wait(step))
                    continue
                try:
                    async with self._follower.turns:
                        if isinstance(step, Reading):
                            page = await self._log.look(step.flow)
                        else:
                            page = await self._log.drive(step.wire)
                except MusterError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(page)
        except StopIteration as done:
            delivery: Delivery | None = done.value
            return delivery

    async def _wait(self, wait: Waiting) -> bool:
        if not self._listens:
            self._listens = True
            self._follower.add(self, self._session)
            self._note(None)
        self._woken.clear()
        if self.is_closed or (wait.or_until_heard and self._has_heard):
            return True
        try:
            async with asyncio.timeout(wait.seconds):
                await self._woken.wait()
                if not wait.or_until_heard and not self.is_closed:
                    await asyncio.sleep(wait.seconds)
        except TimeoutError:
            return False
        return True

    async def accept_loss(self) -> None:
        """As `Subscription.accept_loss`."""
        await self._run(self._begun.accept_loss())

    def heard(self, partitions: Collection[int] | None) -> None:
        self._note(partitions)
        self._woken.set()

    def end(self) -> None:
        self.is_closed = True
        self._woken.set()

    async def close(self) -> None:
        """Ends the subscription, also for a task that waits on it. May be called again."""
        self.end()
        await self._follower.remove(self, self._session)
