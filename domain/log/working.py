"""An agent at work in a session: it joins, keeps the lease, gives signs of life, says what it does, and leaves.

    with log.session("s-1", "agent-7") as s:
        s.modified(change={"element_type": "function", "entity_ids": ["parse"]})
        s.test_pass()

To be a member (`joined`, `left`) is said by events; to be there is shown by heartbeats, which cost none. An agent that
is silent for too long is reported gone by Muster, and joins again by itself when it comes back.

What the agent says is written once, here, for both faces: `R` is what an append gives, a receipt or the promise of one.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Mapping, Sequence
from threading import Event as Flag
from threading import Lock, Thread
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, Self, TypedDict, TypeVar, Unpack
from uuid import uuid4

import msgspec

from domain.errors import Conflict, MusterError, OutcomeUnknown, Refused, Unavailable
from domain.events import Change, Event, Impact, Transition
from domain.log.contract import Expected, Position, Receipt

if TYPE_CHECKING:
    from domain.log.lease import AsyncLease, Lease
    from domain.log.memory import MemoryLog
    from domain.log.redis_streams import AsyncSessionLog, SessionLog

R = TypeVar("R")
logger = logging.getLogger(__name__)

#: How often a lease is renewed in its time to live, and a sign of life given in the silence that is allowed.
RENEWALS: Final = 3
#: How long an agent may be silent before it is reported gone, unless told otherwise, in seconds.
SILENT_AFTER_S: Final = 60.0


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

    def __init__(self, session: str, agent: str, *, exclusive: bool, ttl_ms: int, silent_after_s: float | None) -> None:
        self.session = session
        self.agent = agent
        #: The receipt of the last append.
        self.receipt: Receipt | None = None
        self._exclusive = exclusive
        self._ttl_ms = ttl_ms
        self._silent_after_s = silent_after_s
        self._has_left = False

    @property
    def position(self) -> Position | None:
        """Where the session stood after the last append; None while that waits in the spool."""
        return self.receipt.position if self.receipt is not None and not self.receipt.is_spooled else None

    @abstractmethod
    def append(self, *events: Event, expected: Expected = "any") -> R:
        """Appends events, the agent's own, as one commit."""

    @abstractmethod
    def handoff(self, to: str, **known: Unpack[Known]) -> R:
        """Hands the session, and its lease, to another agent, and leaves, in one commit."""

    def event(self, type: str, data: Mapping[str, Any] | None = None, *, id: str = "", time: str | None = None) -> R:
        """Appends an event of any type, such as `tool.called`."""
        return self.append(Event.of(type, actor=self.agent, data=data, id=id or uuid4().hex, time=time))

    def create(self, *, ttl_s: int | None = None, **known: Unpack[Known]) -> R:
        """The session begins here, with tags, a priority, metadata, and how long it may idle at a time (60 s to 7 d).

        Raises Conflict (SEQ_CONFLICT) if it is there already; said again with the same `id`, it is the same commit.
        """
        events = [self._built("start", known)]
        if ttl_s is not None:
            id = f"{known['id']}:ttl"[-200:] if known.get("id") else uuid4().hex
            events.append(Event.of("extended", actor=self.agent, data={"ttl_s": ttl_s}, id=id))
        return self.append(*events, expected="new")

    def join(self, **known: Unpack[Known]) -> R:
        """The agent becomes a member; `with` does it by itself."""
        return self._did("joined", known)

    def leave(self, **known: Unpack[Known]) -> R:
        """The agent is a member no more; `with` does it by itself."""
        return self._did("left", known)

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

    def _joined(self) -> Event:
        return Event.of("joined", actor=self.agent, id=uuid4().hex)

    @property
    def _keep_every_s(self) -> float | None:
        """How often the lease is to be renewed and a sign of life given; None where there is neither."""
        times = [self._ttl_ms / 1000] if self._exclusive else []
        times += [self._silent_after_s] if self._silent_after_s is not None else []
        return min(times) / RENEWALS if times else None

    def _own(self, events: Sequence[Event]) -> Sequence[Event]:
        if others := {event.actor for event in events} - {self.agent}:
            raise Refused("ACTOR_INVALID", f"{self.agent} is at work here; {', '.join(sorted(others))} is not")
        return events

    def _is_over(self, error: MusterError) -> bool:
        """Whether an agent need not say that it leaves: it lost its lease, or the session has expired."""
        return isinstance(error, Conflict) or error.code in ("GATE_REFUSED", "LEASE_REQUIRED")


class WorkingSession(Working[Receipt]):
    """An agent at work through a blocking log, for `with`. See `SessionLog.session`."""

    def __init__(self, log: SessionLog | MemoryLog, session: str, agent: str, **options: Any) -> None:
        super().__init__(session, agent, **options)
        self._log = log
        self._lease: Lease | None = None
        self._stop = Flag()
        #: Held while something is kept, so that nothing is kept any more once the agent has left.
        self._keeping = Lock()

    def append(self, *events: Event, expected: Expected = "any") -> Receipt:
        self.receipt = self._log.append(self.session, self._own(events), expected=expected, known=self.receipt)
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
            self.append(self._joined())
        except BaseException:
            self._give_back()
            raise
        if self._keep_every_s is not None:
            Thread(target=self._keep, args=(self._keep_every_s,), name="muster-presence", daemon=True).start()
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
            with self._keeping:
                self._give_back()

    def _give_back(self) -> None:
        try:
            if self._silent_after_s is not None:
                self._log.heartbeat(self.session, self.agent, silent_after_s=0)
            if self._lease is not None:
                self._lease.release()
        except MusterError as error:
            about = {"action": "log.lease_left", "session": self.session}
            logger.warning("the lease of %s runs out by itself: %s", self.session, error, extra=about)

    def _keep(self, every_s: float) -> None:
        is_there = False
        while True:
            with self._keeping:
                if self._stop.is_set():
                    return
                try:
                    if self._lease is not None:
                        self._lease.renew()
                    if self._silent_after_s is not None:
                        known = self._log.heartbeat(self.session, self.agent, silent_after_s=self._silent_after_s)
                        if is_there and not known:
                            self._log.append(self.session, self._joined())  # it was reported gone
                        is_there = True
                except (Unavailable, OutcomeUnknown) as error:
                    about = {"action": "log.presence_unrenewed", "session": self.session}
                    logger.warning("the presence in %s could not be renewed: %s", self.session, error, extra=about)
                except MusterError:
                    return  # the lease is lost, or the session over: the next append says so
            self._stop.wait(every_s)


class AsyncWorkingSession(Working[Awaitable[Receipt]]):
    """An agent at work through an asyncio log, for `async with`. See `SessionLog.session`."""

    def __init__(self, log: AsyncSessionLog, session: str, agent: str, **options: Any) -> None:
        super().__init__(session, agent, **options)
        self._log = log
        self._lease: AsyncLease | None = None
        self._keeping: asyncio.Task[None] | None = None

    async def append(self, *events: Event, expected: Expected = "any") -> Receipt:
        receipt = await self._log.append(self.session, self._own(events), expected=expected, known=self.receipt)
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
            await self.append(self._joined())
        except BaseException:
            await self._give_back()
            raise
        if self._keep_every_s is not None:
            keep = self._keep(self._keep_every_s)
            self._keeping = asyncio.get_running_loop().create_task(keep, name="muster-presence")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait([self._keeping])
        try:
            if not self._has_left:
                await self.append(Event.of("left", actor=self.agent, id=uuid4().hex))
        except MusterError as failed:
            if error is None and not self._is_over(failed):
                raise
        finally:
            await self._give_back()

    async def _give_back(self) -> None:
        try:
            if self._silent_after_s is not None:
                await self._log.heartbeat(self.session, self.agent, silent_after_s=0)
            if self._lease is not None:
                await self._lease.release()
        except MusterError as error:
            about = {"action": "log.lease_left", "session": self.session}
            logger.warning("the lease of %s runs out by itself: %s", self.session, error, extra=about)

    async def _keep(self, every_s: float) -> None:
        is_there = False
        while True:
            try:
                if self._lease is not None:
                    await self._lease.renew()
                if self._silent_after_s is not None:
                    known = await self._log.heartbeat(self.session, self.agent, silent_after_s=self._silent_after_s)
                    if is_there and not known:
                        await self._log.append(self.session, self._joined())
                    is_there = True
            except (Unavailable, OutcomeUnknown) as error:
                about = {"action": "log.presence_unrenewed", "session": self.session}
                logger.warning("the presence in %s could not be renewed: %s", self.session, error, extra=about)
            except MusterError:
                return
            await asyncio.sleep(every_s)


def _plain(value: Any) -> Any:
    """A field as plain data, without the parts that say nothing."""
    if isinstance(value, msgspec.Struct):
        return {name: part for name, part in msgspec.to_builtins(value).items() if part is not None}
    return value
