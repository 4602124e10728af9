"""The read API: sessions and agents, now or at a seq or time.

A reader never sees a view that cannot be trusted: one that is missing or damaged is folded from the log while the
reader waits. What it gets is the same, only later.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from heapq import merge as merged
from itertools import groupby, islice
from typing import Any, Final, TypeAlias

from domain.agent import NOTHING, Totals
from domain.codec import Commit
from domain.errors import Damaged, DeadlineExceeded, NotFound, Refused
from domain.events import check_session, shortened
from domain.invariants import broken_law, is_chained
from domain.log.contract import EventLog, Head, Receipt
from domain.log.protocol import arriving, lost, moved_to, position_of, unknown_session
from domain.session import Session
from projections import agent_view, session_view, statistics, what_happened
from projections.catchup import from_log
from projections.difference import Change, changes
from projections.indexing import entries
from projections.searching import Condition, Filter, Page, Search
from projections.session_view import Folding
from projections.store import ProjectionStore

#: How many sessions are read in one round trip.
PAGE: Final = 256
#: When in a session: right after a seq, or at a time (with an offset) by the server's clock.
Moment: TypeAlias = int | datetime
_EPOCH: Final = datetime.fromtimestamp(0, UTC)


class Views:
    """What sessions and agents are doing, read from the views and, where needed, from the log."""

    def __init__(self, store: ProjectionStore, log: EventLog) -> None:
        self._store = store
        self._log = log

    def session(self, session: str, *, at_least: Receipt | None = None, wait_s: float = 5.0) -> dict[str, Any]:
        """A session as it stands.

        With `at_least`, the receipt of an append, not before that commit is in its view: read your own writes. Waits
        for it up to `wait_s`.

        Raises NotFound (SESSION_UNKNOWN), DeadlineExceeded (BEHIND, SPOOL_WAITS), Damaged (TAIL_LOST, FORK) if the log
        does not hold the commit of the receipt, and Unavailable (SESSION_ARRIVING), Conflict (MOVED_TO) for a session
        that a migration brings, or took back.
        """
        check_session(session)
        if at_least is not None:
            self._wait_for(at_least, wait_s)
        found = self._documents([session])
        if not found:
            raise unknown_session(session)
        if not found[0]["seq"]:
            self._check_here(session)
        return found[0]

    def _check_here(self, session: str) -> None:
        """Raises Unavailable (SESSION_ARRIVING), Conflict (MOVED_TO) for a name that a migration holds."""
        (head,) = self._store.heads([session])
        if head is not None and head.is_elsewhere:
            (place,) = self._store.places([session])
            to = place.get("moved_to")
            raise arriving(session, place.get("moved_from", "?")) if to is None else moved_to(session, to)

    def session_at(self, session: str, at: Moment) -> dict[str, Any]:
        """A session as it stood right after a seq, or at a time: after the last commit at or before it by the server's
        clock. The digest is None inside a commit.

        Raises NotFound (SESSION_UNKNOWN, SEQ_UNKNOWN, TIME_UNKNOWN), Refused (TIME_INVALID: a time without an offset),
        Damaged if the log is damaged before that.
        """
        seq = self.seq_at(session, at)
        (head,) = self._store.heads([session])
        view, whole = state_at(self._log, self._nearest(session, seq), seq)
        quarantined = self._quarantines([session], [head])[0]
        return session_view.document(view, quarantined=quarantined, digest=whole)

    def difference(
        self, session: str, before: Moment, after: Moment | None = None, *, other: str | None = None
    ) -> list[Change]:
        """What differs between two moments of a session, field by field; with `other`, between a moment of the session
        and one of the other. `after` None is now. Raises as `session_at`.
        """
        then = self.session_at(session, before)
        named = session if other is None else other
        return list(changes(then, self.session(named) if after is None else self.session_at(named, after)))

    def state_before(self, session: str, seq: int) -> Session:
        """The state at the end of the commit before the one that holds `seq`: where folding on to `seq` begins.

        Raises Damaged if the log is damaged before that.
        """
        for commit in self._log.read(session, after=seq - 1, to=seq):
            seq = min(seq, commit.first_seq)
        return (
            session_view.initial(session)
            if seq == 1
            else state_at(self._log, self._nearest(session, seq - 1), seq - 1)[0]
        )

    def seq_before(self, session: str, time: datetime) -> int:
        """The seq a session stood at right before a time; 0 before its first commit. Raises as `session_at`."""
        return self._log.position_at(session, server_ms_of(time) - 1).seq

    def seq_at(self, session: str, at: Moment) -> int:
        """The seq a moment of a session is at; raises as `session_at`."""
        check_session(session)
        (head,) = self._store.heads([session])
        if head is None:
            raise unknown_session(session)
        if isinstance(at, datetime):
            seq = self._log.position_at(session, server_ms_of(at)).seq
            if not seq:
                raise NotFound("TIME_UNKNOWN", f"session {session} has no commit at or before {at.isoformat()}")
            return seq
        if not 1 <= at <= head.seq:
            raise NotFound("SEQ_UNKNOWN", f"session {session} has the seqs 1 to {head.seq}, not {at}", session=session)
        return at

    def sessions(self, *, after: str | None = None, limit: int | None = None) -> Iterator[dict[str, Any]]:
        """All sessions by partition and id, beginning after the id `after`."""
        ids = self._log.sessions(after=after, limit=limit)
        while page := list(islice(ids, PAGE)):
            yield from self._documents(page)

    def find(self, filter: Filter, *, after: str | None = None, limit: int = PAGE) -> Page:
        """A page of the sessions that meet a filter, beginning after the cursor of the page before.

        Each meets it as it is given: an index that is behind, or wrong, can only lack sessions. What meets the filter
        all the while is in one of the pages; what was appended to between two pages may be in both, where the order is
        that of `last_at`.

        Raises Refused (USAGE) for what no session can have, and for a cursor of another filter.
        """
        search = Search(self._store, filter)
        candidates = search.candidates(after, limit)
        found: list[dict[str, Any]] = []
        cursor = None
        while len(found) < limit and (page := list(islice(candidates, limit - len(found)))):
            documents = self._documents([candidate.session for candidate in page], search.conditions)
            cursors = {candidate.session: candidate.cursor for candidate in page}
            found += [{**document, "cursor": cursors[document["session"]]} for document in documents]
            cursor = page[-1].cursor
        return Page(found, cursor if len(found) >= limit else None)

    def count(self, filter: Filter) -> int:
        """How many sessions meet a filter, by the indexes: as of what is projected. Raises as `find`."""
        return Search(self._store, filter).count()

    def transitions(
        self,
        wanted: Filter | None = None,
        *,
        since: int | None = None,
        until: int | None = None,
        after: str | None = None,
        limit: int = PAGE,
    ) -> Page:
        """A page of the events at which sessions went from one state, or one event that leads to a state, to another;
        or whose impact has a severity, or a perf_delta below a bound: as the filter asks, and of these times (server
        ms).

        Without any of these, every change of state. Sessions are found by their indexes, events read from their logs: a
        session whose newest events are not projected yet may be missing. Raises Refused (USAGE).
        """
        return what_happened.transitions(
            self._store, self._log, wanted or Filter(), since=since, until=until, after=after, limit=limit
        )

    def agent_events(
        self,
        agent: str,
        *,
        since: int | None = None,
        until: int | None = None,
        after: str | None = None,
        limit: int = PAGE,
    ) -> Page:
        """A page of an agent's events, session by session; as `transitions`."""
        return what_happened.events_of_agent(
            self._store, self._log, agent, since=since, until=until, after=after, limit=limit
        )

    def context(self, session: str, *, recent: int = what_happened.RECENT) -> dict[str, Any]:
        """What whoever takes a session over should know, and look at first. Raises NotFound (SESSION_UNKNOWN)."""
        check_session(session)
        (head,) = self._store.heads([session])
        view = session_view.readable(self._store.views([session])[0], session)
        if view is None:
            view = from_log(self._log, session, head.seq if head is not None else None)[0].view
        if head is None and not view.seq:
            raise unknown_session(session)
        quarantined = self._quarantines([session], [head])[0]
        return {**what_happened.context(self._log, view, recent=recent), "quarantined": quarantined}

    def statistics(self, *, agents: bool = False) -> dict[str, Any]:
        """Figures over all sessions, as of what is projected. With `agents`, how many there are too, and how many of
        them are present in some session: that reads the totals of each.
        """
        found = statistics.document(statistics.merged(self._store))
        if agents:
            present = [agent["present"] > 0 for agent in self.agents()]
            found |= {"agents": len(present), "agents_present": sum(present)}
        return found

    def statistics_over_time(
        self, bucket: str, *, since: int | None = None, until: int | None = None
    ) -> list[dict[str, Any]]:
        """How many sessions were started, completed and last appended to in each `hour` or `day` (UTC) that holds some
        of the time from `since` to `until` (server ms; without, the last 48 hours or 14 days).

        A session that was reopened is completed no more. Raises Refused (USAGE) for more than a thousand buckets.
        """
        return list(statistics.over_time(self._store, bucket, since=since, until=until))

    def entities(
        self, *, prefix: str = "", after: str | None = None, limit: int | None = None
    ) -> Iterator[dict[str, Any]]:
        """Entities by name, that begin with a prefix, after the name `after`; and how many sessions touched each."""
        return islice(statistics.entities(self._store, prefix=prefix, after=after), limit)

    def entity(self, entity: str, *, most: int = 1000) -> dict[str, Any]:
        """What was done to an entity: by the logs of its sessions, of at most `most` of them (`read` says of how many).

        Raises NotFound (ENTITY_UNKNOWN), Refused (USAGE).
        """
        found = what_happened.entity(self._store, self._log, entity, most=most)
        if not found["sessions"]:
            raise NotFound("ENTITY_UNKNOWN", f"no session touched the entity {shortened(entity)}")
        return found

    def agent(self, agent: str) -> dict[str, Any]:
        """An agent's totals. Raises NotFound (AGENT_UNKNOWN)."""
        total = NOTHING
        for partition, (part, is_listed) in enumerate(self._store.agent_parts(agent)):
            if part is not None or is_listed:
                total += self._trusted(partition, [agent], [part])[0]
        if total == NOTHING:
            raise NotFound("AGENT_UNKNOWN", f"no session names the agent {agent}", agent=agent)
        return agent_view.document(agent, total)

    def agents(self, *, after: str | None = None, limit: int | None = None) -> Iterator[dict[str, Any]]:
        """All agents by id, beginning after the id `after`."""
        parts = [self._parts(partition, after) for partition in range(self._store.keyspace.count)]
        totals = (
            (agent, sum((part for _, part in group), NOTHING))
            for agent, group in groupby(merged(*parts, key=_name), key=_name)
        )
        for agent, total in islice(totals, limit):
            yield agent_view.document(agent, total)

    def _wait_for(self, receipt: Receipt, wait_s: float) -> None:
        receipt.check_arrived()
        deadline = time.monotonic() + wait_s
        session, seen = receipt.session, receipt.position
        while True:
            view = session_view.readable(self._store.views([session])[0], session)
            head = position_of(self._store.heads([session])[0])
            if head.seq < seen.seq and not any(True for _ in self._log.read(session, after=seen.seq - 1, to=seen.seq)):
                raise lost(session, "TAIL_LOST", seen, head)
            if view is not None and view.seq >= seen.seq:
                break
            if time.monotonic() > deadline:
                stands_at = view.seq if view is not None else 0
                raise DeadlineExceeded(
                    "BEHIND", f"the view of session {session} stands at {stands_at}, not yet at {seen.seq}"
                )
            time.sleep(0.002)
        at = self._log.read(session, after=seen.seq - 1, to=seen.seq)
        if seen.digest is not None and not any(commit.digest == seen.digest for commit in at):
            raise lost(session, "FORK", seen, head)

    # -- sessions ----------------------------------------------------------------------------------------------------

    def _documents(self, sessions: Sequence[str], conditions: Sequence[Condition] = ()) -> list[dict[str, Any]]:
        """The sessions as they stand; of those that meet these conditions now."""
        heads = self._store.heads(sessions)
        stored = self._store.views(sessions)
        views = [session_view.readable(view, session) for session, view in zip(sessions, stored, strict=True)]
        quarantines = self._quarantines(sessions, heads)
        found = []
        for session, head, view, quarantined in zip(sessions, heads, views, quarantines, strict=True):
            if view is None:
                # Without a head that can be read, as far as the log goes.
                view = from_log(self._log, session, head.seq if head is not None else None)[0].view
            if conditions and not all(one.holds(entries(view), quarantined is not None) for one in conditions):
                continue
            if view.seq or head is not None:
                found.append(session_view.document(view, quarantined=quarantined))
        return found

    def _quarantines(self, sessions: Sequence[str], heads: Sequence[Head | None]) -> list[dict[str, Any] | None]:
        held = [s for s, head in zip(sessions, heads, strict=True) if head is not None and head.quarantined]
        reasons = dict(zip(held, self._store.holds(held), strict=True))
        return [reasons.get(session) for session in sessions]

    def _nearest(self, session: str, seq: int) -> Session:
        """The newest checkpoint at or before `seq` that can be trusted, else the beginning."""
        for at, stored in sorted(self._store.checkpoints(session).items(), reverse=True):
            view = session_view.readable(stored, session) if at <= seq else None
            if view is not None and view.seq == at and session_view.adds_up(view) and is_of(self._log, view):
                return view
        return session_view.initial(session)

    # -- agents ------------------------------------------------------------------------------------------------------

    def _parts(self, partition: int, after: str | None) -> Iterator[tuple[str, Totals]]:
        for page in self._store.member_pages(partition, agents=True, after=after):
            yield from zip(page, self._trusted(partition, page, self._store.totals(partition, page)), strict=True)

    def _trusted(self, partition: int, agents: Sequence[str], stored: Sequence[bytes | None]) -> list[Totals]:
        """The parts of agents; one that is missing or damaged is summed from the session views of the partition."""
        parts: list[Totals] = []
        summed: dict[str, Totals] | None = None
        for agent, part in zip(agents, stored, strict=True):
            kept = agent_view.readable(part, agent)
            if kept is None:
                if summed is None:
                    summed = self._store.summed_totals(partition)
                kept = summed.get(agent, NOTHING)
            parts.append(kept)
        return parts


def state_at(log: EventLog, view: Session, seq: int) -> tuple[Session, bool]:
    """Folds `view` on to exactly `seq`; returns it, and whether `seq` ends a commit. Raises Damaged."""
    folding = Folding(view)
    inside: Commit | None = None

    def whole() -> Iterator[Commit]:
        nonlocal inside
        for commit in log.read(view.session, after=view.seq, to=seq):
            if commit.last_seq > seq:
                inside = commit
                return
            yield commit

    folding.advance(whole())
    if inside is not None:
        law = broken_law(view, inside)
        if law is not None:
            raise law
        if inside.skipped:
            view.skip(seq - view.seq)
        else:
            for event in inside.events[: seq - view.seq]:
                view.apply(event)
        view.dated(inside.at_ms)
    if view.seq != seq:
        raise Damaged("TAIL_LOST", f"the log of session {view.session} ends at seq {view.seq}", session=view.session)
    return view, inside is None


def is_of(log: EventLog, view: Session) -> bool:
    """Whether a checkpoint is of the history that the log holds: its last commit is there, or the next one follows on
    it.
    """
    for commit in log.read(view.session, after=view.seq - 1, to=view.seq + 1):
        return commit.digest == view.digest if commit.last_seq == view.seq else is_chained(view.digest, commit)
    return False


def server_ms_of(time: datetime) -> int:
    """A time as the server's clock says it, rounded down. Raises Refused (TIME_INVALID) for one without an offset."""
    if time.utcoffset() is None:
        raise Refused("TIME_INVALID", f"the time {time.isoformat()} has no offset")
    return (time - _EPOCH) // timedelta(milliseconds=1)


def _name(part: tuple[str, Totals]) -> str:
    return part[0]
