"""The log in memory: the same protocol, answered by Python instead of a server.

For tests of what is built on a log, and for trying things out. It keeps the laws of the log and passes its contract
tests, but keeps nothing: when the process ends, its events are gone.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from domain.codec import DEFAULT_LIMITS, Commit, Limits, chain, genesis
from domain.errors import MusterError
from domain.events import Event
from domain.log.blocking import BlockingReads
from domain.log.contract import Append, AppendRequest, Expected, Head, Receipt
from domain.log.keys import DEFAULT_PARTITIONS, Keyspace
from domain.log.protocol import (
    HeadRequest,
    RangeRequest,
    RegistryRequest,
    Request,
    TimeRequest,
    Unsettled,
    append_flow,
    append_many_flow,
    as_events,
    conflict,
    deduped,
    gate_refused,
    resolve_flow,
    with_ids,
)
from domain.log.redis_streams import new_id
from domain.session import OPEN_GATE, gate_after

T = TypeVar("T")


class MemoryLog(BlockingReads):
    """A log in memory. `clock_ms` gives the time in ms since 1970. See `EventLog` for what each method promises."""

    def __init__(
        self, *, clock_ms: Callable[[], int], partitions: int = DEFAULT_PARTITIONS, limits: Limits = DEFAULT_LIMITS
    ) -> None:
        self.keyspace = Keyspace("memory", "memory", partitions)
        self.limits = limits
        self._clock_ms = clock_ms
        self._commits: dict[str, list[Commit]] = {}
        self._heads: dict[str, Head] = {}

    def append(
        self,
        session: str,
        events: Event | Sequence[Event],
        *,
        expected: Expected = "any",
        dedupe: bool = False,
        traceparent: str | None = None,
    ) -> Receipt:
        if dedupe:
            return self.run(deduped(session, as_events(events), expected, traceparent, self.limits))
        return self.run(
            append_flow(Append(session, with_ids(as_events(events), new_id), expected, None, traceparent), self.limits)
        )

    def append_many(self, appends: Sequence[Append]) -> list[Receipt | MusterError]:
        named = [Append(a.session, with_ids(a.events, new_id), a.expected, a.known, a.traceparent) for a in appends]
        return self.run(append_many_flow(named, self.limits))

    def resolve(self, doubt: AppendRequest) -> Receipt | None:
        found = self.run(resolve_flow(doubt))
        assert not isinstance(found, Unsettled), "in memory there is no delay"
        return found

    def close(self) -> None:
        pass

    def _exchange(self, requests: list[Request]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> Any:
        match request:
            case AppendRequest():
                return self._append(request)
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
            case RegistryRequest(partition, after, count):
                here = sorted(
                    session
                    for session in self._commits
                    if self.keyspace.partition_of(session) == partition and (after is None or session > after)
                )
                return here[:count]

    def _append(self, request: AppendRequest) -> Receipt | MusterError:
        session, kinds, body = request.session, request.kinds, request.body
        head = self._heads.get(session) or Head(0, genesis(session), OPEN_GATE, 0)
        expected = 0 if request.expected == "new" else request.expected

        repeated = self._repeated(request, head.seq)
        if repeated is not None:
            count = len(kinds)
            return Receipt(
                session, repeated.first_seq, repeated.last_seq, repeated.digest, repeated.at_ms, 0, duplicates=count
            )
        if expected not in ("any", head.seq):
            return conflict(session, request.expected, head.seq)
        gate, refused = gate_after(head.gate, kinds)
        if refused is not None:
            return gate_refused(session, refused + 1, head.gate, head.seq)

        first, last = head.seq + 1, head.seq + len(kinds)
        at_ms = max(self._clock_ms(), head.at_ms)
        digest = chain(head.digest, session, first, len(kinds), at_ms, body)
        commit = Commit(session, first, last, at_ms, digest, body, request.traceparent)
        self._commits.setdefault(session, []).append(commit)
        self._heads[session] = Head(last, digest, gate, at_ms)
        return Receipt(session, first, last, digest, at_ms, appended=len(kinds))

    def _repeated(self, request: AppendRequest, seq: int) -> Commit | None:
        """This very commit, where a retry of it would find it."""
        commits = self._commits.get(request.session, [])
        if request.expected == "any":
            after = seq if request.known is None else request.known
        else:
            after = 0 if request.expected == "new" else int(request.expected)
        for commit in commits[bisect_left(commits, after + 1, key=_last_seq) :]:
            if commit.body == request.body and (request.expected == "any" or commit.first_seq == after + 1):
                return commit
        return None


def _last_seq(commit: Commit) -> int:
    return commit.last_seq
