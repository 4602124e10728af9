"""An agent at work in a session: it joins, keeps the lease, says what it does, and leaves.

    with log.session("s-1", "agent-7") as s:
        s.modified(change={"element_type": "function", "entity_ids": ["parse"]})
        s.test_pass()

What the agent says is written once, here, for both faces: `R` is what an append gives, a receipt or the promise of one.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Mapping, Sequence
from threading import Event as Flag
from threading import Thread
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, Self, TypedDict, TypeVar, Unpack
from uuid import uuid4

import msgspec

from domain.errors import Conflict, MusterError, Refused, Unavailable
from domain.events import Change, Event, Impact, Transition
from domain.log.contract import Position, Receipt

if TYPE_CHECKING:
    from domain.log.lease import AsyncLease, Lease
    from domain.log.memory import MemoryLog
    from domain.log.redis_streams import AsyncSessionLog, SessionLog

R = TypeVar("R")
logger = logging.getLogger(__name__)

#: How often a lease is renewed in its time to live.
RENEWALS: Final = 3


class Known(TypedDict, total=False):
    """The known fields in the data of built-in events; `data` holds others. `id` makes a repeat harmless, `time` is the
    producer's claim (RFC 3339).
    """

    change: Change | Mapping[str, Any]
    transition: Transition | Mapping[str, Any]
    impact: Impact | Mapping[str, Any]
    metadata: Mapping[str, Any]
    tags: Sequence[str]
    priority: Literal["low", "normal", "high"]
    data: Mapping[str, Any]
    id: str
    time: str


class Working(ABC, Generic[R]):
    """What an agent may say in a session. Each call appends one commit; raises as `log.append`."""

    def __init__(self, session: str, agent: str, *, exclusive: bool, ttl_ms: int) -> None:
        self.session = session
        self.agent = agent
        #: The receipt of the last append.
        self.receipt: Receipt | None = None
        self._exclusive = exclusive
        self._ttl_ms = ttl_ms
        self._has_left = False

    @property
    def position(self) -> Position | None:
        """Where the session stood after the last append; None while that waits in the spool."""
        return self.receipt.position if self.receipt is not None and not self.receipt.is_spooled else None

    @abstractmethod
    def append(self, *events: Event) -> R:
        """Appends events, the agent's own, as one commit."""

    @abstractmethod
    def handoff(self, to: str, **known: Unpack[Known]) -> R:
        """Hands the session, and its lease, to another agent, and leaves, in one commit."""

    def event(self, type: str, data: Mapping[str, Any] | None = None, *, id: str = "", time: str | None = None) -> R:
        """Appends an event of any type, such as `tool.called`."""
        return self.append(Event.of(type, actor=self.agent, data=data, id=id or uuid4().hex, time=time))

    def start(self, **known: Unpack[Known]) -> R:
        """The session begins, or begins again."""
        return self._did("start", known)

    def modified(self, **known: Unpack[Known]) -> R:
        """Something was worked on: `change` says what."""
        return self._did("modified", known)

    def broke(self, **known: Unpack[Known]) -> R:
        """Something broke: `impact` says how badly."""
        return self._did("broke", known)

    def test_pass(self, **known: Unpack[Known]) -> R:
        """Tests pass."""
        return self._did("test_pass", known)

    def checkpoint(self, **known: Unpack[Known]) -> R:
        """A place to come back to."""
        return self._did("checkpoint", known)

    def completed(self, outcome: str | None = None, **known: Unpack[Known]) -> R:
        """The session is done; `outcome` is how, in the producer's words."""
        return self._did("completed", known, outcome=outcome)

    def extended(self, ttl_s: int, **known: Unpack[Known]) -> R:
        """The session may idle for so long from now on, in seconds (60 s to 7 d)."""
        return self._did("extended", known, ttl_s=ttl_s)

    def _did(self, type: str, known: Known, **more: Any) -> R:
        return self.append(self._built(type, known, **more))

    def _built(self, type: str, known: Known, **more: Any) -> Event:
        fields: dict[str, Any] = {**known, **more}
        data, id, time = fields.pop("data", None) or {}, fields.pop("id", ""), fields.pop("time", None)
        stated = {name: _plain(value) for name, value in fields.items() if value is not None}
        if twice := stated.keys() & data.keys():
            raise Refused("KEY_DUPLICATE", f"`data` and a field of its own both say {', '.join(sorted(twice))}")
        return Event.of(type, actor=self.agent, data={**data, **stated}, id=id or uuid4().hex, time=time)

    def _own(self, events: Sequence[Event]) -> Sequence[Event]:
        if others := {event.actor for event in events} - {self.agent}:
            raise Refused("ACTOR_INVALID", f"{self.agent} is at work here; {', '.join(sorted(others))} is not")
        return events

    def _is_over(self, error: MusterError) -> bool:
        """Whether an agent need not say that it leaves: it lost its lease, or the session has expired."""
        return isinstance(error, Conflict) or error.code in ("GATE_REFUSED", "LEASE_REQUIRED")


class WorkingSession(Working[Receipt]):
    """An agent at work through a blocking log, for `with`. See `SessionLog.session`."""

    def __init__(self, log: SessionLog | MemoryLog, session: str, agent: str, *, exclusive: bool, ttl_ms: int) -> None:
        super().__init__(session, agent, exclusive=exclusive, ttl_ms=ttl_ms)
        self._log = log
        self._lease: Lease | None = None
        self._stop = Flag()

    def append(self, *events: Event) -> Receipt:
        self.receipt = self._log.append(self.session, self._own(events), known=self.receipt)
        return self.receipt

    def handoff(self, to: str, **known: Unpack[Known]) -> Receipt:
        event = self._built("handoff", known)
        receipt = self._log.handoff(self.session, self.agent, to, data=event.payload(), event_id=event.id, leaves=True)
        self.receipt, self._has_left = receipt, True
        return receipt

    def __enter__(self) -> Self:
        if self._exclusive:
            self._lease = self._log.lease(self.session, self.agent, self._ttl_ms)
        try:
            self.append(Event.of("joined", actor=self.agent, id=uuid4().hex))
        except BaseException:
            self._give_back()
            raise
        if self._lease is not None:
            Thread(target=self._renew, args=(self._lease,), name="muster-lease", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        try:
            if not self._has_left:
                self.append(Event.of("left", actor=self.agent, id=uuid4().hex))
        except MusterError as failed:
            if error is None and not self._is_over(failed):
                raise
        finally:
            self._give_back()

    def _give_back(self) -> None:
        if self._lease is not None:
            try:
                self._lease.release()
            except MusterError as error:
                logger.warning("the lease of %s runs out by itself: %s", self.session, error)

    def _renew(self, lease: Lease) -> None:
        while not self._stop.wait(self._ttl_ms / 1000 / RENEWALS):
            try:
                lease.renew()
            except Unavailable as error:
                logger.warning("the lease of %s could not be renewed: %s", self.session, error)
            except MusterError:
                return  # it is lost: the next append says so


class AsyncWorkingSession(Working[Awaitable[Receipt]]):
    """An agent at work through an asyncio log, for `async with`. See `SessionLog.session`."""

    def __init__(self, log: AsyncSessionLog, session: str, agent: str, *, exclusive: bool, ttl_ms: int) -> None:
        super().__init__(session, agent, exclusive=exclusive, ttl_ms=ttl_ms)
        self._log = log
        self._lease: AsyncLease | None = None
        self._renewing: asyncio.Task[None] | None = None

    async def append(self, *events: Event) -> Receipt:
        receipt = await self._log.append(self.session, self._own(events), known=self.receipt)
        self.receipt = receipt
        return receipt

    async def handoff(self, to: str, **known: Unpack[Known]) -> Receipt:
        event = self._built("handoff", known)
        receipt = await self._log.handoff(
            self.session, self.agent, to, data=event.payload(), event_id=event.id, leaves=True
        )
        self.receipt, self._has_left = receipt, True
        return receipt

    async def __aenter__(self) -> Self:
        if self._exclusive:
            self._lease = await self._log.lease(self.session, self.agent, self._ttl_ms).take()
        try:
            await self.append(Event.of("joined", actor=self.agent, id=uuid4().hex))
        except BaseException:
            await self._give_back()
            raise
        if self._lease is not None:
            self._renewing = asyncio.get_running_loop().create_task(self._renew(self._lease), name="muster-lease")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.wait([self._renewing])
        try:
            if not self._has_left:
                await self.append(Event.of("left", actor=self.agent, id=uuid4().hex))
        except MusterError as failed:
            if error is None and not self._is_over(failed):
                raise
        finally:
            await self._give_back()

    async def _give_back(self) -> None:
        if self._lease is not None:
            try:
                await self._lease.release()
            except MusterError as error:
                logger.warning("the lease of %s runs out by itself: %s", self.session, error)

    async def _renew(self, lease: AsyncLease) -> None:
        while True:
            await asyncio.sleep(self._ttl_ms / 1000 / RENEWALS)
            try:
                await lease.renew()
            except Unavailable as error:
                logger.warning("the lease of %s could not be renewed: %s", self.session, error)
            except MusterError:
                return


def _plain(value: Any) -> Any:
    """A field as plain data, without the parts that say nothing."""
    if isinstance(value, msgspec.Struct):
        return {name: part for name, part in msgspec.to_builtins(value).items() if part is not None}
    return value
