"""The log on Redis Streams: the blocking and the asyncio shell over `domain.log.protocol`.

A shell sends commands, waits, retries, and knows nothing of what they mean. redis-py's own retries are off: they
would send a write again without telling. Here a request is sent again only because the protocol made that harmless.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Final, Literal, Self, TypeVar
from uuid import uuid4

import redis
import redis.asyncio
from msgspec import structs

from domain.codec import DEFAULT_LIMITS, Commit, Limits
from domain.errors import Misconfigured, MusterError, OutcomeUnknown, Unavailable
from domain.events import Event
from domain.log.ahead import Asked, AskedAhead, AskedLater, Sent, answers_at_once
from domain.log.archive.place import Archive, NotGiven, open_archive
from domain.log.blocking import BlockingReads
from domain.log.connection import (
    LOCALHOST,
    PASSES,
    Connecting,
    Line,
    connect,
    connect_async,
    raised,
    send,
    send_async,
)
from domain.log.contract import Append, AppendRequest, Expected, Forked, Head, Policy, Position, Receipt
from domain.log.durability import parse_durability
from domain.log.exchange import Exchanges, Fetching, Sending, ServerSeen, Wire, new_id, replaces_wire
from domain.log.following import Asking, Finding, Following, FollowingStep, Succeeding
from domain.log.forking import fork_flow, plan_flow
from domain.log.grouping import TaskGrouping, ThreadGrouping
from domain.log.keys import DEFAULT_PARTITIONS, Keyspace
from domain.log.lease import DEFAULT_TTL_MS, AsyncLease, Lease, handing_off
from domain.log.observing import Observer
from domain.log.place import Place
from domain.log.protocol import (
    Command,
    Flow,
    ReadBackFlow,
    ReadFlow,
    RegistryFlow,
    Request,
    Unsettled,
    append_flow,
    append_many_flow,
    as_events,
    as_position,
    beat_flow,
    head_flow,
    policy_flow,
    resolve_flow,
    seek_flow,
    taken,
)
from domain.log.spooling.appending import Steps
from domain.log.spooling.draining import DrainingTask, DrainingThread, Pass, ping_steps
from domain.log.spooling.spool import Spool
from domain.log.store import Identity, check_version, create_commands, open_commands, parse_open
from domain.log.subscribing.delivery import Wanted
from domain.log.subscribing.durable import check_name
from domain.log.subscribing.listening import FollowingTask, FollowingThread
from domain.log.subscribing.member import AsyncDurableSubscription, DurableSubscription
from domain.log.subscribing.membership import DEFAULT_TTL_MS as MEMBER_TTL_MS
from domain.log.subscribing.membership import Membership
from domain.log.subscribing.subscription import After, AsyncSubscription, Subscription, begin_flow
from domain.log.timing import Timing
from domain.log.witness import Loss, Witness
from domain.log.working import SILENT_AFTER_S, AsyncWorkingSession, WorkingSession

T = TypeVar("T")


#: How long the server may take a commit at most, in seconds, where it is sent again for as long as it takes: whoever
#: meets that end after an outage of a day is told that it is too late, and appends anew.
LONGEST_LIFE_S: Final = 86_400.0
#: How often whoever waits for the spool looks at it, in seconds.
LOOK_S: Final = 0.02


def _are_appends(requests: Sequence[Request]) -> bool:
    """Whether requests are to travel with those of other callers: reads do not wait for writes."""
    return not [request for request in requests if not isinstance(request, AppendRequest)]


def _doubtful(unknown: OutcomeUnknown, requests: Sequence[Request]) -> OutcomeUnknown:
    """The error of a group, as the error of those of its requests that are the caller's."""
    return OutcomeUnknown("OUTCOME_UNKNOWN", unknown.cause, doubts=tuple(requests))


def _each(error: MusterError, requests: Sequence[Request]) -> list[MusterError]:
    """The error of an exchange, as the answer to each of its requests."""
    if not isinstance(error, OutcomeUnknown):
        return [error] * len(requests)
    return [OutcomeUnknown(error.code, error.cause, doubts=(request,)) for request in requests]


def _with(answers: Sequence[Any], places: Sequence[int], again: Sequence[Any]) -> list[Any]:
    """The answers, with those at some places replaced."""
    replaced = dict(zip(places, again, strict=True))
    return [replaced.get(place, answer) for place, answer in enumerate(answers)]


def _exchange_options(
    connecting: Connecting,
    limits: Limits,
    durability: str,
    server: ServerSeen,
    spool: Spool | None,
    archive: Archive | str | None,
    follows: bool,
) -> dict[str, Any]:
    """How a log over this connection exchanges requests."""
    if spool is not None and connecting.retry_for_s > LONGEST_LIFE_S:
        raise Misconfigured(
            "SETTING_INVALID", "with a spool, retry_for_s is how long an append waits before it: not inf"
        )
    return {
        "line": Line(),
        "observer": Observer(connecting.slow_append_s),
        "spool": spool,
        "archive": _as_archive(archive),
        "limits": limits,
        "durability": parse_durability(durability),
        "server": server,
        "lifetime_ms": int(1000 * min(connecting.retry_for_s + connecting.timeout_s, LONGEST_LIFE_S)),
        # Shorter than the connection waits for the reply to it.
        "wait_ms": max(1, int(500 * connecting.timeout_s)),
        "following_s": connecting.retry_for_s if follows else None,
    }


def _others(connecting: Connecting, moved: Sequence[str | Connecting]) -> list[Connecting]:
    """How the places are reached that sessions may be moved to: as the log's own, but for the address."""
    return [structs.replace(connecting, url=one) if isinstance(one, str) else one for one in moved]


def _as_spool(spool: Spool | str | Path | None) -> Spool | None:
    return Spool(spool) if isinstance(spool, (str, Path)) else spool


def _as_archive(archive: Archive | str | None) -> Archive:
    return open_archive(archive) if isinstance(archive, str) else archive or NotGiven()


def _opened_store(
    replies: list[Any] | Unavailable, environment: str, namespace: str, partitions: int | None, spool: Spool | None
) -> tuple[Identity, int | None]:
    """The store by the replies to `open_commands`, and the server's time; where there are none, the store whose commits
    the spool takes. Raises why there are none, if it never met that store.
    """
    if isinstance(replies, Unavailable):
        met = spool.identity(environment, namespace) if spool is not None and replies.code in PASSES else None
        if met is None:
            raise replies
        return met, None
    identity, now = parse_open([raised(reply) for reply in replies], environment, namespace, partitions)
    if spool is not None:
        spool.belongs_to(environment, namespace, identity)
    return identity, now


class SessionLog(Exchanges, BlockingReads):
    """The log on Redis Streams, blocking. Safe to share between threads. See `EventLog` for what each method
    promises.
    """

    def __init__(
        self, client: redis.Redis, keyspace: Keyspace, identity: Identity, connecting: Connecting, **options: Any
    ) -> None:
        super().__init__(keyspace, identity, **options)
        self.client = client
        self.connecting = connecting
        self._appends: ThreadGrouping[Request] = ThreadGrouping(self._send_timed)
        self._candidates: list[Connecting] = []
        self._found: dict[str, SessionLog] = {}
        self._finding = Lock()
        self.follower = FollowingThread(keyspace, self.drive, connecting.timeout_s)
        self._drainer = DrainingThread(self.spool, self.drain) if self.spool is not None else None

    @classmethod
    def open(
        cls,
        url: str | Connecting = LOCALHOST,
        *,
        environment: str = "dev",
        namespace: str = "main",
        partitions: int | None = None,
        limits: Limits = DEFAULT_LIMITS,
        durability: str = "memory",
        spool: Spool | str | Path | None = None,
        archive: Archive | str | None = None,
        moved: Sequence[str | Connecting] = (),
    ) -> Self:
        """Connects to a server and opens the store on it.

        `durability` is what a commit must have reached when its receipt is given: `memory` (the server replied),
        `local` (on its disk), `replicated(k)` (in the memory of k replicas). A commit that is written and reaches
        less raises OutcomeUnknown (DURABILITY_SHORT).

        `spool` is a local file that takes commits while the server is away, and sends them by itself, in the order of
        each session, when it is back. An append waits for the server for `retry_for_s`, and not at all once it is known
        to be away; its receipt is `spooled`. A spool that met the store before lets it be opened during an outage.

        `archive` is where the old commits of sessions lie, if they are archived: a folder, or `s3://bucket/prefix`.
        They are read as if they were still on the server; without it, who reads them is told ARCHIVE_NOT_GIVEN.

        `moved` are servers that sessions may be moved to. What is asked about a session that was is asked there then,
        with the same requests; without, its appends raise Conflict (MOVED_TO). Subscriptions, and lists of sessions,
        are of this server alone.

        Raises Unavailable (UNREACHABLE), Misconfigured (STORE_MISSING, PARTITIONS_DIFFER, SERVER_TOO_OLD,
        ACCESS_DENIED, SPOOL_DIFFERS).
        """
        connecting = Connecting(url) if isinstance(url, str) else url
        server = ServerSeen()
        options = _exchange_options(connecting, limits, durability, server, _as_spool(spool), archive, bool(moved))
        client = connect(connecting, server.met)
        try:
            replies: list[Any] | Unavailable
            try:
                opening = open_commands(environment, namespace)
                replies = send(client, opening, connecting, wrote=False, line=options["line"])
            except Unavailable as away:
                replies = away
            identity, now = _opened_store(replies, environment, namespace, partitions, options["spool"])
        except BaseException:
            client.close()
            raise
        log = cls(client, Keyspace(environment, namespace, identity.partitions), identity, connecting, **options)
        log._candidates = _others(connecting, moved)
        if now is not None:
            log.clock.learn(now)
        if log.spool is not None and not log.spool.is_empty():
            log._wake()
        return log

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        self.follower.close()
        if self._drainer is not None:
            self._drainer.close()
        for log in self._found.values():
            log.close()
        self.client.close()
        if self.spool is not None:
            self.spool.close()

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
        append = Append(session, as_events(events), expected, as_position(session, known), traceparent, dedupe=dedupe)
        return self._append(append)

    def _append(self, append: Append) -> Receipt:
        if self._observer.tracer is None or not self._observer.is_told():
            return self._append_completed(self._completed(append))
        with self._observer.span([append]):
            return self._append_completed(self._completed(append))

    def _append_completed(self, append: Append) -> Receipt:
        if self.spool is not None:
            (answer,) = self._append_or_spool(self.spool, [append])
            receipt: Receipt = taken(answer)
            return receipt
        receipt = self.run(append_flow(append, self.limits))
        log = self if self._following is None else self._log_of(append.session)
        return log.drive(log._acknowledged(receipt))

    def _append_or_spool(self, spool: Spool, appends: Sequence[Append]) -> list[Receipt | MusterError]:
        answers = self._walk(self._appending(spool, appends))
        if any(isinstance(answer, Receipt) and answer.is_spooled for answer in answers):
            self._wake()
        return answers

    def session(
        self,
        session: str,
        agent: str,
        *,
        exclusive: bool = True,
        ttl_ms: int = DEFAULT_TTL_MS,
        silent_after_s: float | None = SILENT_AFTER_S,
    ) -> WorkingSession:
        return WorkingSession(self, session, agent, exclusive=exclusive, ttl_ms=ttl_ms, silent_after_s=silent_after_s)

    def lease(self, session: str, agent: str, ttl_ms: int = DEFAULT_TTL_MS) -> Lease:
        return Lease(self, session, agent, ttl_ms, new_id())

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
        return self._append(handing_off(session, agent, to, data, event_id, leaves=leaves))

    def fork(self, session: str, at: int, name: str | None = None, *, who: str = "") -> Forked:
        forked = self.run(fork_flow(self.run(plan_flow(session, at, name)), new_id(), who))
        self.witness.told(forked.receipt)
        return structs.replace(forked, receipt=self.drive(self._acknowledged(forked.receipt)))

    def set_policy(self, session: str, policy: Policy) -> None:
        self.run(policy_flow(session, policy))

    def heartbeat(self, session: str, agent: str, *, silent_after_s: float = SILENT_AFTER_S) -> bool:
        return self._log_of(session).look(beat_flow(session, agent, silent_after_s))

    def append_many(self, appends: Sequence[Append]) -> list[Receipt | MusterError]:
        if self._observer.tracer is None or not self._observer.is_told():
            return self._append_each(appends)
        with self._observer.span(appends):
            return self._append_each(appends)

    def _append_each(self, appends: Sequence[Append]) -> list[Receipt | MusterError]:
        completed = [self._completed(append) for append in appends]
        if self.spool is not None:
            return self._append_or_spool(self.spool, completed)
        return self.drive(self._all_acknowledged(self.run(append_many_flow(completed, self.limits))))

    def subscribe(
        self,
        session: str | None = None,
        *,
        types: str | Collection[str] | None = None,
        actors: str | Collection[str] | None = None,
        tags: str | Collection[str] | None = None,
        after: After = "now",
    ) -> Subscription:
        wanted = Wanted.of(session, types, actors, tags)
        beginning = begin_flow(self.keyspace, self.identity, session, wanted, after)
        return Subscription(self, self.follower, session, beginning)

    def subscribe_as(
        self,
        name: str,
        *,
        sessions: str | Collection[str] | None = None,
        types: str | Collection[str] | None = None,
        actors: str | Collection[str] | None = None,
        tags: str | Collection[str] | None = None,
        after: Literal["now", "beginning"] = "now",
        member: str | None = None,
        ttl_ms: int = MEMBER_TTL_MS,
    ) -> DurableSubscription:
        """Becomes a member of a durable subscription, which is made if there is none of this name.

        Its members share its partitions, and what one does not acknowledge (`ack`) before it ends, or is counted out
        for having given no sign of life for `ttl_ms`, another is given. `after` is where it begins when it is made.
        Otherwise as `subscribe`. Raises Refused (SUBSCRIPTION_INVALID, SUBSCRIPTION_DIFFERS) too.
        """
        check_name(name)
        membership = Membership(self.keyspace, name, Wanted.of(sessions, types, actors, tags), member, ttl_ms)
        return DurableSubscription(self, self.follower, membership, after)

    def compare(self) -> list[Loss]:
        """Holds every receipt and position this log remembers against the server; returns what is lost, by session.

        It happens by itself when the server changed. What is lost is reported into the store (`muster epoch show`).
        """
        self._server.changed = True
        return self.drive(self._comparing())

    def compare_if_changed(self) -> list[Loss]:
        """As `compare`, if connections lead to another server, or to one that started again, since the last time."""
        return self.compare() if self._server.changed else []

    def resolve(self, doubt: AppendRequest) -> Receipt | None:
        log = self._log_of(doubt.session)
        while isinstance(found := log.run(resolve_flow(doubt)), Unsettled):
            time.sleep(found.ms / 1000)
        return found

    # -- the spool -----------------------------------------------------------------------------------------------------

    def drain(self) -> Pass:
        """Sends a page of what waits in the spool. It happens by itself."""
        assert self.spool is not None
        with self.spool.sending() as is_ours:
            return self._walk(self._draining(self.spool) if is_ours else ping_steps(), once=True)

    def drained(self, timeout_s: float = math.inf) -> bool:
        """Waits until the spool holds nothing but what is held, so long at most; returns whether it came to that."""
        until = time.monotonic() + timeout_s
        while self.spool is not None and not self.spool.is_empty():
            if time.monotonic() > until:
                return False
            time.sleep(LOOK_S)
        return True

    def _wake(self) -> None:
        if self._drainer is not None:
            self._drainer.wake()

    def _walk(self, steps: Steps[T], once: bool = False) -> T:
        """Does what steps ask for, to their end, and returns their result; `once`: nothing is sent again."""
        try:
            step = next(steps)
            while True:
                found: Any
                if isinstance(step, list):
                    try:
                        found = self._exchange(step, once)
                    except MusterError as error:
                        found = _each(error, step)
                elif callable(step):
                    found = step()
                else:
                    found = self.drive(step, once)
                step = steps.send(found)
        except StopIteration as done:
            result: T = done.value
            return result

    # -- exchanges -----------------------------------------------------------------------------------------------------

    def _exchange(self, requests: list[Request], once: bool = False) -> list[Any]:
        if not _are_appends(requests):
            return self._send_requests(requests, once)
        if self._held_back and (wait_s := self._wait_s(requests)) > 0:
            time.sleep(wait_s)
        stamped = self._stamped(requests)
        answers = self._send_appends(stamped, once)
        mistimed = self._mistimed(stamped, answers)
        if mistimed:
            again = self._send_appends(self._stamped([stamped[index] for index in mistimed]), once)
            answers = _with(answers, mistimed, again)
        self._settle(stamped, answers)
        return answers

    def _send_appends(self, requests: list[Request], once: bool) -> list[Any]:
        began = time.perf_counter()
        try:
            timed = self._send_timed(requests, once) if once else self._appends.exchange(requests)
        except OutcomeUnknown as unknown:
            self._doubt(requests)
            self._observer.answered(requests, [unknown] * len(requests), began)
            raise _doubtful(unknown, requests) from unknown
        except MusterError as error:
            self._observer.answered(requests, [error] * len(requests), began)
            raise
        except BaseException:  # the caller is cancelled, and the commits are on their way
            self._doubt(requests)
            raise
        answers = [answer for answer, _ in timed]
        self._observer.answered(requests, answers, began, timed[0][1] if timed else None)
        return answers

    def _send_timed(self, requests: list[Request], once: bool = False) -> list[tuple[Any, Timing]]:
        """The answers, each with when its request was sent: whoever waited for others to send it learns it so."""
        timing = Timing(time.perf_counter())
        answers = self._answers(requests, once, timing)
        self._observer.sent(answers, timing)
        return [(answer, timing) for answer in answers]

    def _send_requests(self, requests: list[Request], once: bool = False) -> list[Any]:
        return self._answers(requests, once)

    def _answers(self, requests: list[Request], once: bool, timing: Timing | None = None) -> list[Any]:
        """The answers to requests, wherever their sessions are."""
        if self._following is None:
            return self.drive(self._answering(requests), once, timing)
        return self._follow(self._following, requests, once)

    def _follow(self, following: Following, requests: list[Request], once: bool) -> list[Any]:
        """The answers to requests, each from where its session is."""
        steps = following.steps(requests)
        try:
            step: FollowingStep = next(steps)
            while True:
                found: Any = None
                if isinstance(step, Asking):
                    found = self._asked_at(step, once)
                elif isinstance(step, Finding):
                    found = self._find(step)
                elif isinstance(step, Succeeding):
                    found = self._succeed()
                else:
                    time.sleep(step.seconds)
                step = steps.send(found)
        except StopIteration as done:
            answers: list[Any] = done.value
            return answers

    def _asked_at(self, step: Asking, once: bool) -> list[Any] | MusterError:
        try:
            if step.store is None:
                return self.drive(self._answering(step.requests), once)
            return self._found[step.store]._exchange(step.requests, once)
        except MusterError as error:
            if isinstance(error, OutcomeUnknown):
                self._doubt(step.requests)
            return error

    def _find(self, step: Finding) -> bool | MusterError:
        """Whether one of the places this log was told of is this one; it is opened then."""
        with self._finding:
            failure: MusterError | None = None
            for connecting in () if step.place.store in self._found else self._candidates:
                try:
                    log = SessionLog.open(
                        connecting,
                        environment=step.place.environment,
                        namespace=step.place.namespace,
                        limits=self.limits,
                        durability=self._durability.word,
                        archive=self.archive,
                    )
                except MusterError as error:
                    failure = error if isinstance(error, Unavailable) else failure
                    continue
                if log.identity.store == step.place.store:
                    self._found[step.place.store] = log
                    break
                log.close()
        if step.place.store not in self._found:
            return False if failure is None else failure
        if step.session is not None:
            self._hand_over(step.session, self._found[step.place.store].witness)
        return True

    def _succeed(self) -> str | None:
        """The store that replaces this one, if one of the places this log was told of does; it is opened then."""
        own, keyspace = self.identity.store, self.keyspace
        with self._finding:
            for connecting in self._candidates:
                try:
                    log = SessionLog.open(
                        connecting,
                        environment=keyspace.environment,
                        namespace=keyspace.namespace,
                        limits=self.limits,
                        durability=self._durability.word,
                        archive=self.archive,
                    )
                except MusterError:
                    continue
                if log.drive(replaces_wire(log.keyspace)) == own:
                    if self._found.setdefault(log.identity.store, log) is not log:
                        log.close()
                    self._hand_all_over(self._found[log.identity.store])
                    return log.identity.store
                log.close()
        return None

    def elsewhere(self, place: Place | None) -> SessionLog | None:
        """The log at a place, or (None) of the store that replaces this one; None if this log was not told of it.

        Raises Unavailable.
        """
        if self._following is None:
            return None
        if place is None:
            store = self._succeed()
            return None if store is None else self._found[store]
        found = self._find(Finding(place, None))
        if isinstance(found, MusterError):
            raise found
        return self._found[place.store] if found else None

    def _log_of(self, session: str) -> SessionLog:
        store = None if self._following is None else self._following.store_of(session)
        return self if store is None else self._found[store]

    def _witness_of(self, session: str) -> Witness:
        return self._log_of(session).witness

    def ask(self, requests: list[Request]) -> Asked:
        if self._following is not None and not self._following.is_at_home():
            return AskedLater(partial(self._send_requests, requests))
        wire = self._asking(requests)
        sending = next(wire)
        assert isinstance(sending, Sending)
        sent = Sent(self.client, sending.commands)
        return AskedAhead(sent, partial(answers_at_once, wire), partial(self._send_requests, requests))

    def look(self, flow: Flow[T]) -> T:
        """Runs a flow that only reads. What gets no answer is not sent again: who looks asks for less next time."""
        return self.drive(self._asked(flow), once=True)

    def drive(self, wire: Wire[T], once: bool = False, timing: Timing | None = None) -> T:
        """Sends what a wire yields, to its end, and returns its result; `once`: nothing is sent again."""
        try:
            sending = next(wire)
            while True:
                if self._server.has_moved:
                    self._server.has_moved = False
                    self.client.connection_pool.disconnect(inuse_connections=False)
                try:
                    replies = (
                        self._fetch(sending) if isinstance(sending, Fetching) else self._send(sending, once, timing)
                    )
                except MusterError as error:
                    sending = wire.throw(error)
                else:
                    sending = wire.send(replies)
        except StopIteration as done:
            result: T = done.value
            return result

    def _send(self, sending: Sending, once: bool, timing: Timing | None) -> list[Any]:
        return send(
            self.client,
            sending.commands,
            self.connecting,
            wrote=sending.writes,
            once=once or sending.once,
            line=self._line,
            timing=timing,
        )


class AsyncSessionLog(Exchanges):
    """The log on Redis Streams for asyncio. See `EventLog` for what each method promises."""

    def __init__(
        self,
        client: redis.asyncio.Redis,
        keyspace: Keyspace,
        identity: Identity,
        connecting: Connecting,
        **options: Any,
    ) -> None:
        super().__init__(keyspace, identity, **options)
        self.client = client
        self.connecting = connecting
        self._appends = TaskGrouping(self._send_timed)
        self._candidates: list[Connecting] = []
        self._found: dict[str, AsyncSessionLog] = {}
        self.follower = FollowingTask(keyspace, self.drive, connecting.timeout_s)
        self._drainer = DrainingTask(self.spool, self.drain) if self.spool is not None else None

    @classmethod
    async def open(
        cls,
        url: str | Connecting = LOCALHOST,
        *,
        environment: str = "dev",
        namespace: str = "main",
        partitions: int | None = None,
        limits: Limits = DEFAULT_LIMITS,
        durability: str = "memory",
        spool: Spool | str | Path | None = None,
        archive: Archive | str | None = None,
        moved: Sequence[str | Connecting] = (),
    ) -> Self:
        """As `SessionLog.open`."""
        connecting = Connecting(url) if isinstance(url, str) else url
        server = ServerSeen()
        options = _exchange_options(connecting, limits, durability, server, _as_spool(spool), archive, bool(moved))
        client = connect_async(connecting, server.met)
        try:
            replies: list[Any] | Unavailable
            try:
                opening = open_commands(environment, namespace)
                replies = await send_async(client, opening, connecting, wrote=False, line=options["line"])
            except Unavailable as away:
                replies = away
            identity, now = _opened_store(replies, environment, namespace, partitions, options["spool"])
        except BaseException:
            await client.aclose()
            raise
        log = cls(client, Keyspace(environment, namespace, identity.partitions), identity, connecting, **options)
        log._candidates = _others(connecting, moved)
        if now is not None:
            log.clock.learn(now)
        if log.spool is not None and not log.spool.is_empty():
            log._wake()
        return log

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self.follower.close()
        if self._drainer is not None:
            await self._drainer.close()
        for log in self._found.values():
            await log.close()
        await self.client.aclose()
        if self.spool is not None:
            self.spool.close()

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
        append = Append(session, as_events(events), expected, as_position(session, known), traceparent, dedupe=dedupe)
        return await self._append(append)

    async def _append(self, append: Append) -> Receipt:
        if self._observer.tracer is None or not self._observer.is_told():
            return await self._append_completed(self._completed(append))
        with self._observer.span([append]):
            return await self._append_completed(self._completed(append))

    async def _append_completed(self, append: Append) -> Receipt:
        if self.spool is not None:
            (answer,) = await self._append_or_spool(self.spool, [append])
            receipt: Receipt = taken(answer)
            return receipt
        receipt = await self.run(append_flow(append, self.limits))
        log = self if self._following is None else self._log_of(append.session)
        return await log.drive(log._acknowledged(receipt))

    async def _append_or_spool(self, spool: Spool, appends: Sequence[Append]) -> list[Receipt | MusterError]:
        answers = await self._walk(self._appending(spool, appends))
        if any(isinstance(answer, Receipt) and answer.is_spooled for answer in answers):
            self._wake()
        return answers

    def session(
        self,
        session: str,
        agent: str,
        *,
        exclusive: bool = True,
        ttl_ms: int = DEFAULT_TTL_MS,
        silent_after_s: float | None = SILENT_AFTER_S,
    ) -> AsyncWorkingSession:
        return AsyncWorkingSession(
            self, session, agent, exclusive=exclusive, ttl_ms=ttl_ms, silent_after_s=silent_after_s
        )

    def lease(self, session: str, agent: str, ttl_ms: int = DEFAULT_TTL_MS) -> AsyncLease:
        return AsyncLease(self, session, agent, ttl_ms, new_id())

    async def handoff(
        self,
        session: str,
        agent: str,
        to: str,
        *,
        data: Mapping[str, Any] | None = None,
        event_id: str = "",
        leaves: bool = False,
    ) -> Receipt:
        return await self._append(handing_off(session, agent, to, data, event_id, leaves=leaves))

    async def fork(self, session: str, at: int, name: str | None = None, *, who: str = "") -> Forked:
        forked = await self.run(fork_flow(await self.run(plan_flow(session, at, name)), new_id(), who))
        self.witness.told(forked.receipt)
        return structs.replace(forked, receipt=await self.drive(self._acknowledged(forked.receipt)))

    async def set_policy(self, session: str, policy: Policy) -> None:
        await self.run(policy_flow(session, policy))

    async def heartbeat(self, session: str, agent: str, *, silent_after_s: float = SILENT_AFTER_S) -> bool:
        return await self._log_of(session).look(beat_flow(session, agent, silent_after_s))

    async def append_many(self, appends: Sequence[Append]) -> list[Receipt | MusterError]:
        if self._observer.tracer is None or not self._observer.is_told():
            return await self._append_each(appends)
        with self._observer.span(appends):
            return await self._append_each(appends)

    async def _append_each(self, appends: Sequence[Append]) -> list[Receipt | MusterError]:
        completed = [self._completed(append) for append in appends]
        if self.spool is not None:
            return await self._append_or_spool(self.spool, completed)
        return await self.drive(self._all_acknowledged(await self.run(append_many_flow(completed, self.limits))))

    def subscribe(
        self,
        session: str | None = None,
        *,
        types: str | Collection[str] | None = None,
        actors: str | Collection[str] | None = None,
        tags: str | Collection[str] | None = None,
        after: After = "now",
    ) -> AsyncSubscription:
        wanted = Wanted.of(session, types, actors, tags)
        beginning = begin_flow(self.keyspace, self.identity, session, wanted, after)
        return AsyncSubscription(self, self.follower, session, beginning)

    def subscribe_as(
        self,
        name: str,
        *,
        sessions: str | Collection[str] | None = None,
        types: str | Collection[str] | None = None,
        actors: str | Collection[str] | None = None,
        tags: str | Collection[str] | None = None,
        after: Literal["now", "beginning"] = "now",
        member: str | None = None,
        ttl_ms: int = MEMBER_TTL_MS,
    ) -> AsyncDurableSubscription:
        """As `SessionLog.subscribe_as`."""
        check_name(name)
        membership = Membership(self.keyspace, name, Wanted.of(sessions, types, actors, tags), member, ttl_ms)
        return AsyncDurableSubscription(self, self.follower, membership, after)

    async def compare(self) -> list[Loss]:
        """Holds every receipt and position this log remembers against the server; returns what is lost, by session.

        It happens by itself when the server changed. What is lost is reported into the store (`muster epoch show`).
        """
        self._server.changed = True
        return await self.drive(self._comparing())

    async def compare_if_changed(self) -> list[Loss]:
        """As `compare`, if connections lead to another server, or to one that started again, since the last time."""
        return await self.compare() if self._server.changed else []

    async def resolve(self, doubt: AppendRequest) -> Receipt | None:
        log = self._log_of(doubt.session)
        while isinstance(found := await log.run(resolve_flow(doubt)), Unsettled):
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

    async def position_at(self, session: str, at_ms: int) -> Position:
        return await self.run(seek_flow(session, at_ms))

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

    # -- the spool -----------------------------------------------------------------------------------------------------

    async def drain(self) -> Pass:
        """As `SessionLog.drain`."""
        assert self.spool is not None
        with self.spool.sending() as is_ours:
            return await self._walk(self._draining(self.spool) if is_ours else ping_steps(), once=True)

    async def drained(self, timeout_s: float = math.inf) -> bool:
        """As `SessionLog.drained`."""
        until = time.monotonic() + timeout_s
        while self.spool is not None and not self.spool.is_empty():
            if time.monotonic() > until:
                return False
            await asyncio.sleep(LOOK_S)
        return True

    def _wake(self) -> None:
        if self._drainer is not None:
            self._drainer.wake()

    async def _walk(self, steps: Steps[T], once: bool = False) -> T:
        try:
            step = next(steps)
            while True:
                found: Any
                if isinstance(step, list):
                    try:
                        found = await self._exchange(step, once)
                    except MusterError as error:
                        found = _each(error, step)
                elif callable(step):
                    found = await asyncio.to_thread(step)
                else:
                    found = await self.drive(step, once)
                step = steps.send(found)
        except StopIteration as done:
            result: T = done.value
            return result

    # -- exchanges -----------------------------------------------------------------------------------------------------

    async def _exchange(self, requests: list[Request], once: bool = False) -> list[Any]:
        if not _are_appends(requests):
            return await self._send_requests(requests, once)
        if self._held_back and (wait_s := self._wait_s(requests)) > 0:
            await asyncio.sleep(wait_s)
        stamped = self._stamped(requests)
        answers = await self._send_appends(stamped, once)
        mistimed = self._mistimed(stamped, answers)
        if mistimed:
            again = await self._send_appends(self._stamped([stamped[index] for index in mistimed]), once)
            answers = _with(answers, mistimed, again)
        self._settle(stamped, answers)
        return answers

    async def _send_appends(self, requests: list[Request], once: bool) -> list[Any]:
        began = time.perf_counter()
        try:
            timed = await (self._send_timed(requests, once) if once else self._appends.exchange(requests))
        except OutcomeUnknown as unknown:
            self._doubt(requests)
            self._observer.answered(requests, [unknown] * len(requests), began)
            raise _doubtful(unknown, requests) from unknown
        except MusterError as error:
            self._observer.answered(requests, [error] * len(requests), began)
            raise
        except BaseException:  # the caller is cancelled, and the commits are on their way
            self._doubt(requests)
            raise
        answers = [answer for answer, _ in timed]
        self._observer.answered(requests, answers, began, timed[0][1] if timed else None)
        return answers

    async def _send_timed(self, requests: list[Request], once: bool = False) -> list[tuple[Any, Timing]]:
        """As `SessionLog._send_timed`."""
        timing = Timing(time.perf_counter())
        answers = await self._answers(requests, once, timing)
        self._observer.sent(answers, timing)
        return [(answer, timing) for answer in answers]

    async def _send_requests(self, requests: list[Request], once: bool = False) -> list[Any]:
        return await self._answers(requests, once)

    async def _answers(self, requests: list[Request], once: bool, timing: Timing | None = None) -> list[Any]:
        if self._following is None:
            return await self.drive(self._answering(requests), once, timing)
        return await self._follow(self._following, requests, once)

    async def _follow(self, following: Following, requests: list[Request], once: bool) -> list[Any]:
        steps = following.steps(requests)
        try:
            step: FollowingStep = next(steps)
            while True:
                found: Any = None
                if isinstance(step, Asking):
                    found = await self._asked_at(step, once)
                elif isinstance(step, Finding):
                    found = await self._find(step)
                elif isinstance(step, Succeeding):
                    found = await self._succeed()
                else:
                    await asyncio.sleep(step.seconds)
                step = steps.send(found)
        except StopIteration as done:
            answers: list[Any] = done.value
            return answers

    async def _asked_at(self, step: Asking, once: bool) -> list[Any] | MusterError:
        try:
            if step.store is None:
                return await self.drive(self._answering(step.requests), once)
            return await self._found[step.store]._exchange(step.requests, once)
        except MusterError as error:
            if isinstance(error, OutcomeUnknown):
                self._doubt(step.requests)
            return error

    async def _find(self, step: Finding) -> bool | MusterError:
        failure: MusterError | None = None
        for connecting in self._candidates:
            if step.place.store in self._found:
                break
            try:
                log = await AsyncSessionLog.open(
                    connecting,
                    environment=step.place.environment,
                    namespace=step.place.namespace,
                    limits=self.limits,
                    durability=self._durability.word,
                    archive=self.archive,
                )
            except MusterError as error:
                failure = error if isinstance(error, Unavailable) else failure
                continue
            if log.identity.store != step.place.store or self._found.setdefault(step.place.store, log) is not log:
                await log.close()
        if step.place.store not in self._found:
            return False if failure is None else failure
        if step.session is not None:
            self._hand_over(step.session, self._found[step.place.store].witness)
        return True

    async def _succeed(self) -> str | None:
        own, keyspace = self.identity.store, self.keyspace
        for connecting in self._candidates:
            try:
                log = await AsyncSessionLog.open(
                    connecting,
                    environment=keyspace.environment,
                    namespace=keyspace.namespace,
                    limits=self.limits,
                    durability=self._durability.word,
                    archive=self.archive,
                )
            except MusterError:
                continue
            if await log.drive(replaces_wire(log.keyspace)) == own:
                if self._found.setdefault(log.identity.store, log) is not log:
                    await log.close()
                self._hand_all_over(self._found[log.identity.store])
                return log.identity.store
            await log.close()
        return None

    async def elsewhere(self, place: Place | None) -> AsyncSessionLog | None:
        """As `SessionLog.elsewhere`."""
        if self._following is None:
            return None
        if place is None:
            store = await self._succeed()
            return None if store is None else self._found[store]
        found = await self._find(Finding(place, None))
        if isinstance(found, MusterError):
            raise found
        return self._found[place.store] if found else None

    def _log_of(self, session: str) -> AsyncSessionLog:
        store = None if self._following is None else self._following.store_of(session)
        return self if store is None else self._found[store]

    def _witness_of(self, session: str) -> Witness:
        return self._log_of(session).witness

    async def look(self, flow: Flow[T]) -> T:
        """As `SessionLog.look`."""
        return await self.drive(self._asked(flow), once=True)

    async def drive(self, wire: Wire[T], once: bool = False, timing: Timing | None = None) -> T:
        """Sends what a wire yields, to its end, and returns its result; `once`: nothing is sent again."""
        try:
            sending = next(wire)
            while True:
                if self._server.has_moved:
                    self._server.has_moved = False
                    await self.client.connection_pool.disconnect(inuse_connections=False)
                try:
                    if isinstance(sending, Fetching):
                        replies = await asyncio.to_thread(self._fetch, sending)
                    else:
                        replies = await self._send(sending, once, timing)
                except MusterError as error:
                    sending = wire.throw(error)
                else:
                    sending = wire.send(replies)
        except StopIteration as done:
            result: T = done.value
            return result

    async def _send(self, sending: Sending, once: bool, timing: Timing | None) -> list[Any]:
        return await send_async(
            self.client,
            sending.commands,
            self.connecting,
            wrote=sending.writes,
            once=once or sending.once,
            line=self._line,
            timing=timing,
        )


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
    if is_new and b"restoring" not in replies[0]:
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
