"""The logs that the contract is held against, behind one blocking face."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any, Protocol, TypeVar

import pytest

from domain import Append, AsyncSessionLog, Commit, Event, Head, Limits, MemoryLog, MusterError, Receipt
from domain.codec import chain, genesis
from domain.log import ConnectionState, EventLog, Expected
from domain.log.contract import AppendRequest, Forked, Policy, Position
from domain.log.forking import ForkPlan, fork_flow
from domain.log.lease import DEFAULT_TTL_MS, AsyncLease
from domain.log.protocol import Flow, ForkRequest, Request
from domain.log.subscribing.delivery import Delivery, SubscriptionPosition
from domain.log.subscribing.subscription import AsyncSubscription
from domain.log.working import SILENT_AFTER_S, AsyncWorkingSession
from domain.stretch import Stretch, one_by_one

T = TypeVar("T")
_NUMBERS = count(1)


class RunnableLog(EventLog, Protocol):
    """A log that also runs flows of the protocol by hand, so that a test can step in between two of its steps."""

    def run(self, flow: Flow[T]) -> T: ...


class Blocking:
    """An asyncio log behind the blocking face: each call runs its coroutine to the end, in an event loop of its own."""

    def __init__(self, opening: Callable[[], Coroutine[Any, Any, AsyncSessionLog]]) -> None:
        self._runner = asyncio.Runner()
        try:
            self._log = self._runner.run(opening())
        except BaseException:
            self._runner.close()
            raise

    def append(
        self,
        session: str,
        events: Event | Sequence[Event],
        *,
        expected: Expected = "any",
        known: Receipt | Position | int | None = None,
        dedupe: bool = False,
        traceparent: str | None = None,
    ) -> Receipt:
        return self._runner.run(
            self._log.append(session, events, expected=expected, known=known, dedupe=dedupe, traceparent=traceparent)
        )

    def lease(self, session: str, agent: str, ttl_ms: int = DEFAULT_TTL_MS) -> Any:
        return BlockingLease(self._runner, self._runner.run(self._log.lease(session, agent, ttl_ms).take()))

    def handoff(
        self,
        session: str,
        agent: str,
        to: str,
        *,
        data: Mapping[str, Any] | None = None,
        event_id: str = "",
        leaves: bool = False,
    ) -> Receipt:
        return self._runner.run(self._log.handoff(session, agent, to, data=data, event_id=event_id, leaves=leaves))

    def session(
        self,
        session: str,
        agent: str,
        *,
        exclusive: bool = True,
        ttl_ms: int = DEFAULT_TTL_MS,
        silent_after_s: float | None = SILENT_AFTER_S,
    ) -> Any:
        work = self._log.session(session, agent, exclusive=exclusive, ttl_ms=ttl_ms, silent_after_s=silent_after_s)
        return BlockingWork(self._runner, work)

    def heartbeat(self, session: str, agent: str, *, silent_after_s: float = SILENT_AFTER_S) -> bool:
        return self._runner.run(self._log.heartbeat(session, agent, silent_after_s=silent_after_s))

    def fork(self, session: str, at: int, name: str | None = None, *, who: str = "") -> Forked:
        return self._runner.run(self._log.fork(session, at, name, who=who))

    def set_policy(self, session: str, policy: Policy) -> None:
        self._runner.run(self._log.set_policy(session, policy))

    def append_many(self, appends: Sequence[Append]) -> list[Receipt | MusterError]:
        return self._runner.run(self._log.append_many(appends))

    def head(self, session: str) -> Head | None:
        return self._runner.run(self._log.head(session))

    def heads(self, sessions: Sequence[str]) -> list[Head | None]:
        return self._runner.run(self._log.heads(sessions))

    def read(self, session: str, *, after: int = 0, to: int | None = None) -> Iterator[Commit]:
        return self._each(self._log.read(session, after=after, to=to))

    def read_each(self, sessions: Sequence[str]) -> Iterator[Iterator[Commit]]:
        return (self.read(session) for session in sessions)  # the asyncio face has no such method

    def stretches(self, session: str, *, after: int = 0) -> Iterator[Stretch]:
        return one_by_one(self.read(session, after=after))

    def stretches_each(self, sessions: Sequence[str]) -> Iterator[Iterator[Stretch]]:
        return (self.stretches(session) for session in sessions)

    def resolve(self, doubt: AppendRequest) -> Receipt | None:
        return self._runner.run(self._log.resolve(doubt))

    def read_back(self, session: str, *, before: int | None = None) -> Iterator[Commit]:
        return self._each(self._log.read_back(session, before=before))

    def position_at(self, session: str, at_ms: int) -> Position:
        return self._runner.run(self._log.position_at(session, at_ms))

    def sessions(self, *, after: str | None = None, limit: int | None = None) -> Iterator[str]:
        return self._each(self._log.sessions(after=after, limit=limit))

    def run(self, flow: Flow[T]) -> T:
        return self._runner.run(self._log.run(flow))

    @property
    def connection(self) -> ConnectionState:
        return self._log.connection

    def subscribe(self, session: str | None = None, **options: Any) -> Any:
        return BlockingSubscription(self._runner, self._log.subscribe(session, **options))

    def close(self) -> None:
        self._runner.run(self._log.close())
        self._runner.close()

    def _each(self, items: AsyncIterator[T]) -> Iterator[T]:
        async def following() -> T:
            return await anext(items)

        while True:
            try:
                item = self._runner.run(following())
            except StopAsyncIteration:
                return
            yield item


class BlockingLease:
    """An asyncio log's lease behind the blocking face."""

    def __init__(self, runner: asyncio.Runner, lease: AsyncLease) -> None:
        self._runner = runner
        self._lease = lease

    def __enter__(self) -> BlockingLease:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def append(self, events: Event | Sequence[Event], **options: Any) -> Receipt:
        return self._runner.run(self._lease.append(events, **options))

    def renew(self) -> None:
        self._runner.run(self._lease.renew())

    def release(self) -> None:
        self._runner.run(self._lease.release())

    def handoff(self, to: str, *, data: Mapping[str, Any] | None = None, event_id: str = "") -> Receipt:
        return self._runner.run(self._lease.handoff(to, data=data, event_id=event_id))


class BlockingWork:
    """An asyncio log's agent at work behind the blocking face."""

    def __init__(self, runner: asyncio.Runner, work: AsyncWorkingSession) -> None:
        self._runner = runner
        self._work = work

    def __enter__(self) -> BlockingWork:
        self._runner.run(self._work.__aenter__())
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self._runner.run(self._work.__aexit__(*exc_info))

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._work, name)
        return (lambda *args, **options: self._runner.run(found(*args, **options))) if callable(found) else found


class BlockingSubscription:
    """An asyncio log's subscription behind the blocking face. Between two calls its event loop stands still."""

    def __init__(self, runner: asyncio.Runner, subscription: AsyncSubscription) -> None:
        self._runner = runner
        self._subscription = subscription
        runner.run(subscription.__aenter__())

    def __enter__(self) -> BlockingSubscription:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Delivery]:
        while (delivery := self.get()) is not None:
            yield delivery

    def get(self, timeout_s: float | None = None) -> Delivery | None:
        return self._runner.run(self._subscription.get(timeout_s))

    @property
    def position(self) -> SubscriptionPosition:
        return self._subscription.position

    @property
    def is_caught_up(self) -> bool:
        return self._subscription.is_caught_up

    def accept_loss(self) -> None:
        self._runner.run(self._subscription.accept_loss())

    def close(self) -> None:
        self._runner.run(self._subscription.close())


class MakeLog(Protocol):
    """Opens a log of the kind under test, on one and the same store every time."""

    def __call__(self, limits: Limits = Limits()) -> RunnableLog: ...  # noqa: B008 (a frozen value)


def new_session() -> str:
    """A session id that no test used before."""
    return f"s-{next(_NUMBERS)}"


def note(id: str = "", **data: Any) -> Event:
    """An event without any effect on the state."""
    return Event.of("note.made", actor="agent-1", id=id, data=data)


def notes(*ids: str) -> tuple[Event, ...]:
    """One event for each id."""
    return tuple(note(id) for id in ids)


def ids(commits: Iterator[Commit]) -> list[str]:
    """The ids of all events of commits, in order."""
    return [event.id for commit in commits for event in commit.events]


def assert_chained(session: str, commits: Sequence[Commit], head: Head | None) -> None:
    """Every commit follows on the one before it by seq, digest and time, and the head stands at the last."""
    seq, digest, at_ms = 0, genesis(session), 0
    for commit in commits:
        assert commit.first_seq == seq + 1
        assert commit.at_ms >= at_ms
        size = commit.last_seq - commit.first_seq + 1
        digest = chain(digest, session, commit.first_seq, size, commit.at_ms, commit.body)
        assert commit.digest == digest
        assert len(commit.events) == size
        seq, at_ms = commit.last_seq, commit.at_ms
    if commits:
        assert head is not None
        assert (head.seq, head.digest, head.at_ms) == (seq, digest, at_ms)
    else:
        assert head is None


def disturbed(flow: Flow[T], disturb: Callable[[], object]) -> Flow[T]:
    """The flow, with another producer quicker than its first append."""
    requests: list[Request] = next(flow)
    disturbances = [disturb]
    try:
        while True:
            if disturbances and any(isinstance(request, AppendRequest) for request in requests):
                # In a thread, because an asyncio log runs this flow within an event loop, where no other can run.
                with ThreadPoolExecutor(1) as others:
                    others.submit(disturbances.pop()).result()
            requests = flow.send((yield requests))
    except StopIteration as done:
        result: T = done.value
        return result


def refused(call: Callable[[], object], error: type[MusterError], code: str) -> MusterError:
    """Runs the call, which must raise this error with this code, and returns the error."""
    with pytest.raises(error) as raised:
        call()
    assert raised.value.code == code, f"raised {raised.value}"
    return raised.value


#: Conformance: mypy holds every log against the face the contract uses.
def _conformance(memory: MemoryLog, blocking: Blocking) -> list[RunnableLog]:
    return [memory, blocking]


def asking(requests: list[Request]) -> Flow[list[Any]]:
    """Requests as a flow."""
    return (yield requests)


def broken_off(log: RunnableLog, plan: ForkPlan) -> None:
    """A fork whose maker dies after one more step of copying."""
    flow = fork_flow(plan, "mark", "")
    requests, copied = next(flow), False
    while not copied:
        copied = any(isinstance(request, ForkRequest) for request in requests)
        requests = flow.send(log.run(asking(requests)))
    flow.close()
