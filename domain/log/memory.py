"""The log in memory: the same protocol, answered by Python instead of a server.

For tests of what is built on a log, and for trying things out. It keeps the laws of the log and passes its contract
tests, but keeps nothing: when the process ends, its events are gone.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import copy
from typing import Any, TypeVar

from msgspec import Struct, structs

from domain.codec import DEFAULT_LIMITS, Commit, Limits, chain, genesis
from domain.errors import MusterError
from domain.events import Event
from domain.log.blocking import BlockingReads
from domain.log.contract import Append, AppendRequest, Expected, Forked, Head, Policy, Position, Receipt
from domain.log.exchange import new_id
from domain.log.feed import FeedEntry, Span
from domain.log.forking import fork_flow, plan_flow
from domain.log.keys import DEFAULT_PARTITIONS, Keyspace
from domain.log.lease import DEFAULT_TTL_MS, Lease, Tokens, handing_off
from domain.log.protocol import (
    BeatRequest,
    FeedRequest,
    Flow,
    ForkAnswer,
    ForkRequest,
    HeadRequest,
    LeaseRequest,
    PolicyRequest,
    RangeRequest,
    RegistryRequest,
    RenewRequest,
    Request,
    Searching,
    SkipsRequest,
    Standing,
    StandingRequest,
    StretchRequest,
    TimeRequest,
    Unsettled,
    append_flow,
    append_many_flow,
    as_events,
    as_position,
    beat_flow,
    conflict,
    expected_required,
    gate_refused,
    lease_held,
    lease_lost,
    lease_required,
    lost,
    policy_flow,
    quarantined,
    repeated,
    resolve_flow,
    unknown_session,
    with_ids,
)
from domain.log.skips import NO_SKIPS, Skips
from domain.log.store import Identity
from domain.log.subscribing.delivery import Wanted
from domain.log.subscribing.listening import Listeners
from domain.log.subscribing.subscription import After, Subscription, begin_flow
from domain.log.tracing import current_traceparent
from domain.log.working import SILENT_AFTER_S, WorkingSession
from domain.session import OPEN_GATE, gate_after
from domain.stretch import Stretch

T = TypeVar("T")


class _Hold(Struct):
    """Who holds a session's lease."""

    holder: str = ""
    token: str = ""
    deadline: int = 0
    ttl_ms: int = 0


class MemoryLog(BlockingReads):
    """A log in memory. `clock_ms` gives the time in ms since 1970. See `EventLog` for what each method promises."""

    def __init__(
        self, *, clock_ms: Callable[[], int], partitions: int = DEFAULT_PARTITIONS, limits: Limits = DEFAULT_LIMITS
    ) -> None:
        self.keyspace = Keyspace("memory", "memory", partitions)
        self.limits = limits
        self._clock_ms = clock_ms
        self._commits: dict[str, list[Commit]] = {}
        self._feeds: list[list[FeedEntry]] = [[] for _ in range(partitions)]
        self._heads: dict[str, Head] = {}
        self._holds: dict[str, _Hold] = {}
        self._skips: dict[str, Skips] = {}
        #: Until when each agent in a session may be silent. Nobody looks after the log in memory, and reports it gone.
        self._beats: dict[tuple[str, str], int] = {}
        #: Forks that are being made, and of what: parent, seq, digest.
        self._unfinished: dict[str, tuple[str, int, str]] = {}
        self.tokens = Tokens()
        self.identity = Identity("memory", 1, partitions)
        self._listeners = Listeners(self.keyspace)

    def another(self) -> MemoryLog:
        """Another producer's log on the same sessions."""
        log = copy(self)
        log.tokens = Tokens()
        return log

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
        return self.run(append_flow(self._completed(append), self.limits))

    def append_many(self, appends: Sequence[Append]) -> list[Receipt | MusterError]:
        return self.run(append_many_flow([self._completed(append) for append in appends], self.limits))

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
        return self.run(
            append_flow(self._completed(handing_off(session, agent, to, data, event_id, leaves=leaves)), self.limits)
        )

    def fork(self, session: str, at: int, name: str | None = None, *, who: str = "") -> Forked:
        return self.run(fork_flow(self.run(plan_flow(session, at, name)), new_id(), who))

    def set_policy(self, session: str, policy: Policy) -> None:
        self.run(policy_flow(session, policy))

    def heartbeat(self, session: str, agent: str, *, silent_after_s: float = SILENT_AFTER_S) -> bool:
        return self.look(beat_flow(session, agent, silent_after_s))

    def _completed(self, append: Append) -> Append:
        token = append.token or self.tokens.of(append.session, append.events)
        append = structs.replace(append, token=token, traceparent=append.traceparent or current_traceparent())
        if append.dedupe:
            return append
        given = tuple(event.id for event in append.events if event.id)
        return structs.replace(append, events=with_ids(append.events, new_id.many), ids=given)

    def skip(self, session: str, seq: int, digest: str) -> None:
        """Discards the commit that ends at `seq` with `digest`, as an operator does on a server."""
        self._skips[session] = self._skips.get(session, NO_SKIPS) | {(seq, digest)}

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
        return Subscription(self, self._listeners, session, beginning)

    def look(self, flow: Flow[T]) -> T:
        return self.run(flow)

    def resolve(self, doubt: AppendRequest) -> Receipt | None:
        found = self.run(resolve_flow(doubt))
        assert not isinstance(found, Unsettled), "in memory there is no delay"
        return found

    def is_spooled(self, session: str) -> bool:
        """Whether commits of a session wait in a spool; there is none."""
        return False

    def close(self) -> None:
        pass

    def _exchange(self, requests: list[Request]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> Any:
        match request:
            case AppendRequest():
                return self._append(request)
            case LeaseRequest():
                return self._lease(request)
            case RenewRequest():
                return self._renew(request)
            case PolicyRequest():
                return self._policy(request)
            case ForkRequest():
                return self._fork(request)
            case TimeRequest():
                return self._clock_ms()
            case HeadRequest(session):
                return self._heads.get(session)
            case RangeRequest(session, from_seq, to_seq, count, backward):
                commits = self._commits.get(session, [])
                low = bisect_left(commits, from_seq, key=_last_seq)
                high = len(commits) if to_seq is None else bisect_left(commits, to_seq + 1, key=_last_seq)
                found = commits[low:high]
                return found[::-1][:count] if backward else found[:count]
            case BeatRequest(session, agent, silent_ms):
                return self._beat(session, agent, silent_ms)
            case StretchRequest(session, from_seq, count):
                commits = self._commits.get(session, [])
                low = bisect_left(commits, from_seq, key=_last_seq)
                return Stretch.of(session, commits[low : low + count])
            case SkipsRequest(session):
                return self._skips.get(session, NO_SKIPS)
            case RegistryRequest(partition, after, count):
                here = sorted(
                    session
                    for session in self._commits
                    if self.keyspace.partition_of(session) == partition and (after is None or session > after)
                )
                return here[:count]
            case StandingRequest(partition):
                last = self._feeds[partition][-1:]
                return Standing(last[0].position, last[0].at_ms, 1) if last else Standing(0, 0, 1)
            case FeedRequest(partition, position, count):
                feed = self._feeds[partition]
                begin = bisect_left(feed, position + 1, key=_position)
                return feed[begin : begin + count]

    def _append(self, request: AppendRequest) -> Receipt | Searching | MusterError:
        session, kinds, body = request.session, request.kinds, request.body
        head = self._head(session)
        expected = 0 if request.expected == "new" else request.expected

        loss = self._lost(request, head)
        if loss is not None:
            return loss
        found = self._repeated(request, head.seq)
        if found is not None:
            return repeated(found)
        if request.ids and request.expected == "any" and self._holds_part(request):
            return Searching(head.position)
        if head.quarantined:
            return quarantined(session, "FORK_UNFINISHED", head.seq + 1)
        fenced = self._fenced(request, head)
        if fenced is not None:
            return fenced
        if expected not in ("any", head.seq):
            return conflict(session, request.expected, head.seq)
        gate, refused = gate_after(head.gate, kinds)
        if refused is not None:
            return gate_refused(session, refused + 1, head.gate, head.seq)

        written = self._written(session, len(kinds), body, request.traceparent)
        self._heads[session] = Head(written.last_seq, written.digest, gate, written.at_ms, head.flags)
        hold = self._holds.get(session)
        if head.policy == "leased" and hold is not None:
            hold.deadline = self._clock_ms() + hold.ttl_ms
            if request.heir is not None:
                hold.holder, hold.token = request.heir, ""
        return Receipt(session, written.first_seq, written.last_seq, written.digest, written.at_ms, appended=len(kinds))

    def _written(self, session: str, count: int, body: bytes, traceparent: str | None) -> Commit:
        """The next commit of a session, written into log and feed; its head is the caller's to write."""
        head, feed = self._head(session), self._feeds[self.keyspace.partition_of(session)]
        first, last = head.seq + 1, head.seq + count
        at_ms = max(self._clock_ms(), feed[-1].at_ms if feed else 0)
        digest = chain(head.digest, session, first, count, at_ms, body)
        commit = Commit(session, first, last, at_ms, digest, body, traceparent)
        self._commits.setdefault(session, []).append(commit)
        total = (feed[-1].position if feed else 0) + count
        feed.append(FeedEntry(total, at_ms, [Span(session, first, last, len(body))]))
        self._listeners.tell(self.keyspace.partition_of(session), (session,))
        return commit

    def _fork(self, request: ForkRequest) -> ForkAnswer:
        session, head = request.session, self._head(request.session)
        of = (request.parent, request.seq, request.digest)
        if head.quarantined:
            if self._unfinished.get(session) != of:
                return ForkAnswer("TAKEN", Position(0), 0)
        elif head.seq:
            return ForkAnswer("TAKEN", Position(0), 0)
        if head.position != request.at:
            return ForkAnswer("MOVED", Position(0), 0)
        for commit in request.commits:
            count = commit.last_seq - commit.first_seq + 1
            self._copy(session, count, commit.body, commit.traceparent, request.gate)
            if commit.skipped:
                self.skip(session, self._head(session).seq, self._head(session).digest)
        self._unfinished[session] = of
        flags = head.flags.strip("q-")
        if request.mark:
            self._copy(session, 1, request.mark, None, request.gate)
            del self._unfinished[session]
        else:
            flags += "q"
        head = self._heads[session] = structs.replace(self._head(session), flags=flags or "-")
        return ForkAnswer("FORKED" if request.mark else "COPIED", head.position, head.at_ms)

    def _copy(self, session: str, count: int, body: bytes, traceparent: str | None, gate: str) -> None:
        commit = self._written(session, count, body, traceparent)
        self._heads[session] = Head(commit.last_seq, commit.digest, gate, commit.at_ms)

    def _head(self, session: str) -> Head:
        return self._heads.get(session) or Head(0, genesis(session), OPEN_GATE, 0)

    def _lost(self, request: AppendRequest, head: Head) -> MusterError | None:
        """What the producer saw and the log does not hold."""
        seen = request.known
        if seen is None or seen.seq == 0 or seen.digest is None:
            return None
        if seen.seq > head.seq:
            return lost(request.session, "TAIL_LOST", seen, head.position)
        commits = self._commits[request.session]
        at = bisect_left(commits, seen.seq, key=_last_seq)
        if (commits[at].last_seq, commits[at].digest) != (seen.seq, seen.digest):
            return lost(request.session, "FORK", seen, head.position)
        return None

    def _fenced(self, request: AppendRequest, head: Head) -> MusterError | None:
        """Why the session's policy does not let this producer append."""
        session, hold = request.session, self._holds.get(request.session, _Hold())
        if head.policy == "leased":
            if request.token is None:
                return lease_required(session, hold.holder)
            if request.token != hold.token or self._clock_ms() > hold.deadline:
                return lease_lost(session, hold.holder)
        elif request.token is not None:
            return lease_lost(session, "")
        elif head.policy == "strict" and request.expected == "any":
            return expected_required(session, head.seq)
        return None

    def _holds_part(self, request: AppendRequest) -> bool:
        """Whether one of the events came in another commit, after what the producer knew."""
        known = request.known.seq if request.known is not None else 0
        commits = self._commits.get(request.session, [])
        later = commits[bisect_left(commits, known + 1, key=_last_seq) :]
        return any(event.id in request.ids for commit in later for event in commit.events)

    def _lease(self, request: LeaseRequest) -> str | MusterError:
        hold = self._holds.setdefault(request.session, _Hold())
        left = hold.deadline - self._clock_ms()
        if hold.holder not in ("", request.agent) and left >= 0:
            return lease_held(request.session, hold.holder, left)
        hold.holder, hold.token, hold.ttl_ms = request.agent, request.nonce, request.ttl_ms
        hold.deadline = self._clock_ms() + request.ttl_ms
        self._heads[request.session] = structs.replace(self._head(request.session), flags="l")
        return hold.token

    def _renew(self, request: RenewRequest) -> bool:
        hold = self._holds.get(request.session, _Hold())
        if hold.token != request.token or hold.token == "":
            return False
        if request.ttl_ms is None:
            hold.token, hold.deadline = "", 0
        else:
            hold.deadline = self._clock_ms() + request.ttl_ms
        return True

    def _beat(self, session: str, agent: str, silent_ms: int) -> bool | MusterError:
        was_there = self._beats.pop((session, agent), None) is not None
        if silent_ms and session not in self._heads:
            return unknown_session(session)
        if silent_ms:
            self._beats[session, agent] = self._clock_ms() + silent_ms
        return was_there

    def _policy(self, request: PolicyRequest) -> MusterError | None:
        head, hold = self._head(request.session), self._holds.get(request.session, _Hold())
        left = hold.deadline - self._clock_ms()
        if head.policy == "leased" and request.policy != "leased" and hold.holder and left >= 0:
            return lease_held(request.session, hold.holder, left)
        flags = {"any": "-", "strict": "s", "leased": "l"}[request.policy]
        self._heads[request.session] = structs.replace(head, flags=flags)
        return None

    def _repeated(self, request: AppendRequest, seq: int) -> Commit | None:
        """This very commit, where a retry of it would find it."""
        commits = self._commits.get(request.session, [])
        if request.expected == "any":
            after = seq if request.known is None else request.known.seq
        else:
            after = 0 if request.expected == "new" else int(request.expected)
        for commit in commits[bisect_left(commits, after + 1, key=_last_seq) :]:
            if commit.body == request.body and (request.expected == "any" or commit.first_seq == after + 1):
                return commit
        return None


def _position(entry: FeedEntry) -> int:
    return entry.position


def _last_seq(commit: Commit) -> int:
    return commit.last_seq
