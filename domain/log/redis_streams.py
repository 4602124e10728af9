"""The log on Redis Streams: the blocking and the asyncio shell over `domain.log.protocol`.

A shell sends commands, waits, retries, and knows nothing of what they mean. redis-py's own retries are off: they
would send a write again without telling. Here a request is sent again only because the protocol made that harmless.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from threading import Lock
from typing import Any, Self, TypeVar
from uuid import uuid4

import redis
import redis.asyncio
from msgspec import structs

from domain.codec import DEFAULT_LIMITS, Commit, Limits, encode_body
from domain.errors import Misconfigured, MusterError, OutcomeUnknown, Refused
from domain.events import Event
from domain.log.blocking import BlockingReads
from domain.log.connection import (
    LOCALHOST,
    Connecting,
    connect,
    connect_async,
    connection_error,
    raised,
    send,
    send_async,
)
from domain.log.contract import Append, AppendRequest, Expected, Head, Policy, Position, Receipt
from domain.log.grouping import TaskGrouping, ThreadGrouping
from domain.log.keys import DEFAULT_PARTITIONS, Keyspace
from domain.log.lease import DEFAULT_TTL_MS, AsyncLease, Lease, Tokens, handing_off
from domain.log.protocol import (
    Call,
    Command,
    Flow,
    Protocol,
    ReadBackFlow,
    ReadFlow,
    RegistryFlow,
    Request,
    Unsettled,
    append_flow,
    append_many_flow,
    as_events,
    as_position,
    deduped,
    head_flow,
    policy_flow,
    resolve_flow,
    with_ids,
)
from domain.log.store import Identity, check_version, create_commands, open_commands, parse_open

T = TypeVar("T")

#: How many commits without a reply a log remembers.
REMEMBERED_DOUBTS = 1024
#: How many sessions a log remembers the last seq of, so that an append anywhere need not ask for the head first.
REMEMBERED_SESSIONS = 65536


def new_id() -> str:
    """An id for an event that came without one."""
    return uuid4().hex


class _ServerClock:
    """The server's clock, as last heard of. It may jump, so a commit it takes for late is given a new time once."""

    def __init__(self) -> None:
        self._ahead_ms = 0.0

    def learn(self, server_ms: int) -> None:
        self._ahead_ms = server_ms - time.monotonic() * 1000

    def now(self) -> int:
        return int(time.monotonic() * 1000 + self._ahead_ms)


class _Shell:
    """What both shells share: the protocol of the open store, the last seq known of each session, and commits in doubt.

    A commit is in doubt while no reply came to it: then it counts what was known when it was first sent, not what
    is known since, or its repeat would not be recognised.
    """

    def __init__(self, keyspace: Keyspace, identity: Identity, connecting: Connecting, limits: Limits) -> None:
        self.keyspace = keyspace
        self.identity = identity
        self.limits = limits
        self.connecting = connecting
        self._protocol = Protocol(keyspace, identity.store, identity.epoch)
        self.tokens = Tokens()
        self._known: OrderedDict[str, Position] = OrderedDict()
        self._doubted: OrderedDict[tuple[str, bytes], Position] = OrderedDict()
        self._remembering = Lock()
        self._clock = _ServerClock()
        self._lifetime_ms = int(1000 * (connecting.retry_for_s + connecting.timeout_s))

    def _completed(self, append: Append) -> Append:
        """The append with ids for events that have none, what is known of its session, and the lease's token."""
        given = tuple(event.id for event in append.events if event.id)
        events = with_ids(append.events, new_id)
        known = append.known
        if known is None:
            if self._doubted and events:
                known = self._doubted.get((append.session, encode_body(events, self.limits)))
            if known is None:
                known = self._known.get(append.session)
        token = append.token or self.tokens.of(append.session, events)
        return structs.replace(append, events=events, known=known, token=token, ids=given)

    def _stamped(self, requests: Sequence[Request]) -> list[Request]:
        """The requests, each append with the time after which the server is to refuse it."""
        not_after = self._clock.now() + self._lifetime_ms
        return [
            structs.replace(request, not_after=not_after) if isinstance(request, AppendRequest) else request
            for request in requests
        ]

    def _mistimed(self, requests: Sequence[Request], answers: Sequence[Any]) -> list[int]:
        """Which appends were refused as late although their time is not over here: then the server's clock jumped.

        None of them is there, and none will come: they may be sent again with another time.
        """
        late = []
        for index, (request, answer) in enumerate(zip(requests, answers, strict=True)):
            is_late = isinstance(answer, Refused) and answer.code == "TOO_LATE"
            if is_late and isinstance(request, AppendRequest) and (request.not_after or 0) > self._clock.now():
                late.append(index)
        for index in late:
            self._clock.learn(answers[index].facts["server_ms"])
        return late

    def _doubt(self, requests: Sequence[Request]) -> None:
        """Notes commits that were sent and got no reply."""
        for request in requests:
            if isinstance(request, AppendRequest) and request.known is not None:
                self._doubted[request.session, request.body] = request.known
                if len(self._doubted) > REMEMBERED_DOUBTS:
                    self._doubted.popitem(last=False)

    def _settle(self, requests: Sequence[Request]) -> None:
        """Forgets the doubts about commits that got a reply."""
        if self._doubted:
            for request in requests:
                if isinstance(request, AppendRequest):
                    self._doubted.pop((request.session, request.body), None)

    def _remember(self, receipt: Receipt | MusterError) -> None:
        if isinstance(receipt, Receipt):
            with self._remembering:
                known = self._known.get(receipt.session)
                if receipt.digest is not None and (known is None or known.seq < receipt.last_seq):
                    self._known[receipt.session] = receipt.position
                    self._known.move_to_end(receipt.session)
                if len(self._known) > REMEMBERED_SESSIONS:
                    self._known.popitem(last=False)


def _are_appends(requests: Sequence[Request]) -> bool:
    """Whether requests are to travel with those of other callers: reads do not wait for writes."""
    return all(isinstance(request, AppendRequest) for request in requests)


def _doubtful(unknown: OutcomeUnknown, requests: Sequence[Request]) -> OutcomeUnknown:
    """The error of a group, as the error of those of its requests that are the caller's."""
    return OutcomeUnknown("OUTCOME_UNKNOWN", unknown.cause, doubts=tuple(requests))


def _with(answers: Sequence[Any], places: Sequence[int], again: Sequence[Any]) -> list[Any]:
    """The answers, with those at some places replaced."""
    replaced = dict(zip(places, again, strict=True))
    return [replaced.get(place, answer) for place, answer in enumerate(answers)]


def _distribute(calls: Sequence[Call], replies: Sequence[Any], count: int) -> list[Any]:
    """The answers to `count` requests, from the replies to the calls they became."""
    answers: list[Any] = [None] * count
    for call, reply in zip(calls, replies, strict=True):
        found: list[Any]
        if isinstance(reply, Exception):
            found = [connection_error(reply)] * len(call.places)
        else:
            try:
                found = call.answers(reply)
            except MusterError as error:
                found = [error] * len(call.places)
        for place, answer in zip(call.places, found, strict=True):
            answers[place] = answer
    return answers


class SessionLog(_Shell, BlockingReads):
    """The log on Redis Streams, blocking. Safe to share between threads. See `EventLog` for what each method
    promises.
    """

    def __init__(
        self, client: redis.Redis, keyspace: Keyspace, identity: Identity, connecting: Connecting, limits: Limits
    ) -> None:
        super().__init__(keyspace, identity, connecting, limits)
        self.client = client
        self._appends = ThreadGrouping(self._send_requests)

    @classmethod
    def open(
        cls,
        url: str | Connecting = LOCALHOST,
        *,
        environment: str = "dev",
        namespace: str = "main",
        partitions: int | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> Self:
        """Connects to a server and opens the store on it.

        Raises Unavailable (UNREACHABLE), Misconfigured (STORE_MISSING, PARTITIONS_DIFFER, SERVER_TOO_OLD,
        ACCESS_DENIED).
        """
        connecting = Connecting(url) if isinstance(url, str) else url
        client = connect(connecting)
        try:
            replies = send(client, open_commands(environment, namespace), connecting, wrote=False)
            identity, now = parse_open([raised(reply) for reply in replies], environment, namespace, partitions)
        except BaseException:
            client.close()
            raise
        log = cls(client, Keyspace(environment, namespace, identity.partitions), identity, connecting, limits)
        log._clock.learn(now)
        return log

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        self.client.close()

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
        flow: Flow[Receipt]
        if dedupe:
            token = self.tokens.of(session, as_events(events))
            flow = deduped(session, as_events(events), expected, traceparent, self.limits, token)
        else:
            append = Append(session, as_events(events), expected, as_position(known), traceparent)
            flow = append_flow(self._completed(append), self.limits)
        receipt = self.run(flow)
        self._remember(receipt)
        return receipt

    def lease(self, session: str, agent: str, ttl_ms: int = DEFAULT_TTL_MS) -> Lease:
        return Lease(self, session, agent, ttl_ms, new_id())

    def handoff(
        self, session: str, agent: str, to: str, *, data: Mapping[str, Any] | None = None, event_id: str = ""
    ) -> Receipt:
        append = self._completed(handing_off(session, agent, to, data, event_id))
        receipt = self.run(append_flow(append, self.limits))
        self._remember(receipt)
        return receipt

    def set_policy(self, session: str, policy: Policy) -> None:
        self.run(policy_flow(session, policy))

    def append_many(self, appends: Sequence[Append]) -> list[Receipt | MusterError]:
        receipts = self.run(append_many_flow([self._completed(append) for append in appends], self.limits))
        for receipt in receipts:
            self._remember(receipt)
        return receipts

    def resolve(self, doubt: AppendRequest) -> Receipt | None:
        while isinstance(found := self.run(resolve_flow(doubt)), Unsettled):
            time.sleep(found.ms / 1000)
        return found

    def _exchange(self, requests: list[Request]) -> list[Any]:
        if not _are_appends(requests):
            return self._send_requests(requests)
        stamped = self._stamped(requests)
        answers = self._send_appends(stamped)
        mistimed = self._mistimed(stamped, answers)
        if mistimed:
            again = self._send_appends(self._stamped([stamped[index] for index in mistimed]))
            answers = _with(answers, mistimed, again)
        return answers

    def _send_appends(self, requests: list[Request]) -> list[Any]:
        try:
            return self._appends.exchange(requests)
        except OutcomeUnknown as unknown:
            raise _doubtful(unknown, requests) from unknown

    def _send_requests(self, requests: list[Request]) -> list[Any]:
        calls = self._protocol.calls(requests)
        wrote = any(call.writes for call in calls)
        try:
            replies = send(self.client, [call.command for call in calls], self.connecting, wrote=wrote)
        except OutcomeUnknown:
            self._doubt(requests)
            raise
        self._settle(requests)
        return _distribute(calls, replies, len(requests))


class AsyncSessionLog(_Shell):
    """The log on Redis Streams for asyncio. See `EventLog` for what each method promises."""

    def __init__(
        self,
        client: redis.asyncio.Redis,
        keyspace: Keyspace,
        identity: Identity,
        connecting: Connecting,
        limits: Limits,
    ) -> None:
        super().__init__(keyspace, identity, connecting, limits)
        self.client = client
        self._appends = TaskGrouping(self._send_requests)

    @classmethod
    async def open(
        cls,
        url: str | Connecting = LOCALHOST,
        *,
        environment: str = "dev",
        namespace: str = "main",
        partitions: int | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> Self:
        """As `SessionLog.open`."""
        connecting = Connecting(url) if isinstance(url, str) else url
        client = connect_async(connecting)
        try:
            replies = await send_async(client, open_commands(environment, namespace), connecting, wrote=False)
            identity, now = parse_open([raised(reply) for reply in replies], environment, namespace, partitions)
        except BaseException:
            await client.aclose()
            raise
        log = cls(client, Keyspace(environment, namespace, identity.partitions), identity, connecting, limits)
        log._clock.learn(now)
        return log

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self.client.aclose()

    async def append(
        self,
        session: str,
        events: Event | Sequence[Event],
        *,
        expected: Expected = "any",
        known: Receipt | Position | int | None = None,
        dedupe: bool = False,
        traceparent: str | None = None,
    ) -> Receipt:
        flow: Flow[Receipt]
        if dedupe:
            token = self.tokens.of(session, as_events(events))
            flow = deduped(session, as_events(events), expected, traceparent, self.limits, token)
        else:
            append = Append(session, as_events(events), expected, as_position(known), traceparent)
            flow = append_flow(self._completed(append), self.limits)
        receipt = await self.run(flow)
        self._remember(receipt)
        return receipt

    def lease(self, session: str, agent: str, ttl_ms: int = DEFAULT_TTL_MS) -> AsyncLease:
        return AsyncLease(self, session, agent, ttl_ms, new_id())

    async def handoff(
        self, session: str, agent: str, to: str, *, data: Mapping[str, Any] | None = None, event_id: str = ""
    ) -> Receipt:
        append = self._completed(handing_off(session, agent, to, data, event_id))
        receipt = await self.run(append_flow(append, self.limits))
        self._remember(receipt)
        return receipt

    async def set_policy(self, session: str, policy: Policy) -> None:
        await self.run(policy_flow(session, policy))

    async def append_many(self, appends: Sequence[Append]) -> list[Receipt | MusterError]:
        receipts = await self.run(append_many_flow([self._completed(append) for append in appends], self.limits))
        for receipt in receipts:
            self._remember(receipt)
        return receipts

    async def resolve(self, doubt: AppendRequest) -> Receipt | None:
        while isinstance(found := await self.run(resolve_flow(doubt)), Unsettled):
            await asyncio.sleep(found.ms / 1000)
        return found

    async def head(self, session: str) -> Head | None:
        return (await self.heads([session]))[0]

    async def heads(self, sessions: Sequence[str]) -> list[Head | None]:
        return await self.run(head_flow(sessions))

    def read(self, session: str, *, after: int = 0, to: int | None = None) -> AsyncIterator[Commit]:
        return self._pages(ReadFlow(session, after=after, to=to))

    def read_back(self, session: str, *, before: int | None = None) -> AsyncIterator[Commit]:
        return self._pages(ReadBackFlow(session, before=before))

    async def sessions(self, *, after: str | None = None, limit: int | None = None) -> AsyncIterator[str]:
        left = limit
        async for session in self._pages(RegistryFlow(self.keyspace, after)):
            if left is not None:
                if left == 0:
                    return
                left -= 1
            yield session

    async def _pages(self, reading: ReadFlow | ReadBackFlow | RegistryFlow) -> AsyncIterator[Any]:
        while (page := await self.run(reading.next_page())) is not None:
            for item in page:
                yield item

    async def run(self, flow: Flow[T]) -> T:
        """Runs a flow of the protocol to its end, and returns its result."""
        try:
            requests = next(flow)
            while True:
                requests = flow.send(await self._exchange(requests))
        except StopIteration as done:
            result: T = done.value
            return result

    async def _exchange(self, requests: list[Request]) -> list[Any]:
        if not _are_appends(requests):
            return await self._send_requests(requests)
        stamped = self._stamped(requests)
        answers = await self._send_appends(stamped)
        mistimed = self._mistimed(stamped, answers)
        if mistimed:
            again = await self._send_appends(self._stamped([stamped[index] for index in mistimed]))
            answers = _with(answers, mistimed, again)
        return answers

    async def _send_appends(self, requests: list[Request]) -> list[Any]:
        try:
            return await self._appends.exchange(requests)
        except OutcomeUnknown as unknown:
            raise _doubtful(unknown, requests) from unknown

    async def _send_requests(self, requests: list[Request]) -> list[Any]:
        calls = self._protocol.calls(requests)
        wrote = any(call.writes for call in calls)
        try:
            replies = await send_async(self.client, [call.command for call in calls], self.connecting, wrote=wrote)
        except OutcomeUnknown:
            self._doubt(requests)
            raise
        self._settle(requests)
        return _distribute(calls, replies, len(requests))


def create_store(
    client: redis.Redis,
    *,
    environment: str = "dev",
    namespace: str = "main",
    partitions: int | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> tuple[Identity, bool]:
    """Makes a store on a server, or finishes making it; returns it and whether it is new. Also loads the functions.

    `partitions` None takes those of the store that is there, and DEFAULT_PARTITIONS for a new one.

    Raises Misconfigured (PARTITIONS_DIFFER, SERVER_TOO_OLD) if another store is there that does not fit.
    """
    connecting = Connecting(retry_for_s=0)
    keyspace = Keyspace(environment, namespace, partitions or DEFAULT_PARTITIONS)

    def ask(commands: list[Command]) -> list[Any]:
        return [raised(reply) for reply in send(client, commands, connecting, wrote=True)]

    opening = open_commands(environment, namespace)
    replies = ask(opening)
    is_new = b"ready" not in replies[0]
    if is_new:
        check_version(replies[1])
    else:
        parse_open(replies, environment, namespace, partitions)
    claim, _, ready = create_commands(keyspace, uuid4().hex, limits)
    ask(claim)
    if is_new:
        store, found = (value.decode() for value in ask([["HMGET", keyspace.store_meta, "store", "partitions"]])[0])
        if int(found) != keyspace.count:
            raise Misconfigured(
                "PARTITIONS_DIFFER", f"the store was begun with {found} partitions, not {keyspace.count}"
            )
        ask(create_commands(keyspace, store, limits)[1])
        ask(ready)
    return parse_open(ask(opening), environment, namespace, partitions)[0], is_new
