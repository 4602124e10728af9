"""A session's lease: the exclusive right of one agent to append, with a token that every append of the holder carries.

The token is the fence. A holder that was paused past its deadline, or replaced, finds its appends refused, whatever it
believes; so it need not be told, and cannot do harm before it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from domain.events import Event
from domain.log.contract import Append, Receipt
from domain.log.protocol import lease_flow, release_flow, renew_flow

if TYPE_CHECKING:
    from domain.log.memory import MemoryLog
    from domain.log.redis_streams import AsyncSessionLog, SessionLog

#: How long a lease is held after the last sign of life of its holder, unless told otherwise, in ms.
DEFAULT_TTL_MS: Final = 30_000


class Tokens:
    """The tokens of the leases that are held through a log, by session and agent."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, str], str] = {}

    def hold(self, session: str, agent: str, token: str) -> None:
        self._held[session, agent] = token

    def drop(self, session: str, agent: str, token: str) -> None:
        """Forgets a token, unless the agent took the lease again since."""
        if self._held.get((session, agent)) == token:
            del self._held[session, agent]

    def of(self, session: str, events: Sequence[Event]) -> str | None:
        """The token that events carry: that of the one agent who states them all, if it holds the lease."""
        if not self._held or not events:
            return None
        agent = events[0].actor
        return self._held.get((session, agent)) if all(event.actor == agent for event in events) else None


class Lease:
    """A lease held through a blocking log; leaving `with` gives it back. See `EventLog.lease`."""

    def __init__(self, log: SessionLog | MemoryLog, session: str, agent: str, ttl_ms: int, nonce: str) -> None:
        self.session = session
        self.agent = agent
        self.ttl_ms = ttl_ms
        self._log = log
        self._token: str = log.run(lease_flow(session, agent, nonce, ttl_ms))
        log.tokens.hold(session, agent, self._token)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def append(self, events: Event | Sequence[Event], **options: Any) -> Receipt:
        """As `log.append` to the session."""
        return self._log.append(self.session, events, **options)

    def renew(self) -> None:
        """Moves the deadline to `ttl_ms` from now, as every append does.

        Raises Conflict (LEASE_LOST) if somebody took the lease meanwhile.
        """
        self._log.run(renew_flow(self.session, self._token, self.ttl_ms))

    def release(self) -> None:
        """Gives the lease back. One that is lost, passed on or given back already is let be; and one under which
        commits wait in the spool runs out by itself, or they would be refused when they arrive.
        """
        self._log.tokens.drop(self.session, self.agent, self._token)
        if not self._log.is_spooled(self.session):
            self._log.run(release_flow(self.session, self._token))

    def handoff(self, to: str, *, data: Mapping[str, Any] | None = None, event_id: str = "") -> Receipt:
        """As `log.handoff`, from the holder."""
        return self._log.handoff(self.session, self.agent, to, data=data, event_id=event_id)


class AsyncLease:
    """A lease held through an asyncio log: taken when `async with` is entered (or by `take`), given back when left."""

    def __init__(self, log: AsyncSessionLog, session: str, agent: str, ttl_ms: int, nonce: str) -> None:
        self.session = session
        self.agent = agent
        self.ttl_ms = ttl_ms
        self._log = log
        self._nonce = nonce
        self._token = ""

    async def take(self) -> Self:
        """Takes the lease. Raises Conflict (LEASE_HELD)."""
        self._token = await self._log.run(lease_flow(self.session, self.agent, self._nonce, self.ttl_ms))
        self._log.tokens.hold(self.session, self.agent, self._token)
        return self

    async def __aenter__(self) -> Self:
        return await self.take()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.release()

    async def append(self, events: Event | Sequence[Event], **options: Any) -> Receipt:
        """As `log.append` to the session."""
        return await self._log.append(self.session, events, **options)

    async def renew(self) -> None:
        """As `Lease.renew`."""
        await self._log.run(renew_flow(self.session, self._token, self.ttl_ms))

    async def release(self) -> None:
        """As `Lease.release`."""
        self._log.tokens.drop(self.session, self.agent, self._token)
        if not self._log.is_spooled(self.session):
            await self._log.run(release_flow(self.session, self._token))

    async def handoff(self, to: str, *, data: Mapping[str, Any] | None = None, event_id: str = "") -> Receipt:
        """As `Lease.handoff`."""
        return await self._log.handoff(self.session, self.agent, to, data=data, event_id=event_id)


def handing_off(
    session: str, agent: str, to: str, data: Mapping[str, Any] | None, event_id: str, *, leaves: bool = False
) -> Append:
    """The commit that hands a session off: a `handoff` event, and the lease if it carries its token."""
    event = Event.of("handoff", actor=agent, id=event_id, data={**(data or {}), "to": to})
    left = Event.of("left", actor=agent, id=f"{event_id}:left"[-200:] if event_id else "")
    return Append(session, (event, left) if leaves else (event,), heir=to)
