"""What happened in sessions: transitions, the events of an agent, what the next agent needs to know.

An index says in which sessions something happened, their logs say what and when. So whatever is told here stands in a
log as it is told; a session that the index does not know of yet is missing. Pages go session by session; a cursor says
after which seq of which session the next page begins.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

from domain.codec import Commit
from domain.errors import Damaged, Refused
from domain.events import BUILT_IN, Event, shortened
from domain.impact import SEVERITIES, units
from domain.log.contract import EventLog
from domain.session import COORDINATING, ENTERS, Session
from projections import session_view
from projections.searching import STATES, Filter, Page, Search, pair_of
from projections.session_view import rfc3339
from projections.stepping import of_commit
from projections.store import ProjectionStore

#: The beginnings of so many logs are read in one round trip.
TOGETHER: Final = 16
#: How many events of a session the next agent is shown.
RECENT: Final = 20
#: How many entities of a session are named.
ENTITIES: Final = 200


class Step(NamedTuple):
    """An event and the state of its session around it. `previous`: the last event before it that led to a state."""

    seq: int
    at_ms: int
    event: Event
    before: str | None
    after: str
    previous: str | None


def steps(session: str, commits: Iterable[Commit]) -> Iterator[Step]:
    """A session's events with its states, up to where its log breaks a law."""
    view = session_view.initial(session)
    try:
        for commit in commits:
            before, previous = view.state if view.seq else None, view.last_entering
            for step in of_commit(view, commit):
                if step.event is not None and not step.is_skipped:
                    yield Step(step.seq, step.at_ms, step.event, before, view.state, previous)
                before, previous = view.state, view.last_entering
    except Damaged:
        return


# -- over many sessions ------------------------------------------------------------------------------------------------


def transitions(
    store: ProjectionStore,
    log: EventLog,
    wanted: Filter,
    *,
    since: int | None,
    until: int | None,
    after: str | None,
    limit: int,
) -> Page:
    """The events that `wanted` asks for by transition, severity or perf_delta; without any, each that changed a state.

    The agent of the filter is the one that did it; what else it asks for, the session has to meet now.
    """
    is_wanted = _meeting(wanted)

    def told(session: str, commits: Iterator[Commit]) -> Iterator[dict[str, Any]]:
        for step in steps(session, commits):
            if (since is None or step.at_ms >= since) and (until is None or step.at_ms < until):
                severity, delta = impact_of(step.event)
                if is_wanted(step, severity, delta):
                    yield {
                        "session": session,
                        "seq": step.seq,
                        "time": rfc3339(step.at_ms),
                        "actor": step.event.actor,
                        "type": step.event.type,
                        "from": step.before,
                        "to": step.after,
                        "previous_type": step.previous,
                        "severity": severity,
                        "perf_delta": delta,
                    }

    return _paged(store, log, _sessions_of(wanted, since, until), told, after, limit)


def events_of_agent(
    store: ProjectionStore,
    log: EventLog,
    agent: str,
    *,
    since: int | None,
    until: int | None,
    after: str | None,
    limit: int,
) -> Page:
    """The events of an agent, session by session."""

    def told(session: str, commits: Iterator[Commit]) -> Iterator[dict[str, Any]]:
        for commit in _readable(commits):
            if (since is None or commit.at_ms >= since) and (until is None or commit.at_ms < until):
                for seq, event in enumerate(commit.events, commit.first_seq):
                    if event.actor == agent:
                        yield event_document(session, seq, commit, event)

    return _paged(store, log, _sessions_of(Filter(agent=agent), since, until), told, after, limit)


def _sessions_of(wanted: Filter, since: int | None, until: int | None) -> Filter:
    """The filter of sessions in which something may have happened within these times."""
    after, before = wanted.last_after, wanted.started_before
    if since is not None:
        after = since if after is None else max(since, after)
    if until is not None:
        before = until if before is None else min(until, before)
    fields = {name: getattr(wanted, name) for name in wanted.__struct_fields__}
    return Filter(**{**fields, "last_after": after, "started_before": before})


def _meeting(wanted: Filter) -> Callable[[Step, str | None, float | None], bool]:
    """Whether an event is one that a filter asks for."""
    pairs = {pair_of(pair) for pair in _several(wanted.transition)}
    of_states = {pair for pair in pairs if set(pair) <= set(STATES)}
    of_types = pairs - of_states
    severities, agents = set(_several(wanted.severity)), set(_several(wanted.agent))
    below = None if wanted.perf_below is None else units(wanted.perf_below)
    is_any = not (pairs or severities) and below is None

    def is_wanted(step: Step, severity: str | None, delta: float | None) -> bool:
        if agents and step.event.actor not in agents:
            return False
        changed = step.before is not None and step.before != step.after
        if is_any:
            return changed
        if pairs and not (
            (changed and (step.before, step.after) in of_states)
            or (step.event.type in ENTERS and (step.previous, step.event.type) in of_types)
        ):
            return False
        if severities and severity not in severities:
            return False
        lowered = units(delta)
        return below is None or (lowered is not None and lowered < below)

    return is_wanted


def _several(values: str | Sequence[str]) -> Sequence[str]:
    return (values,) if isinstance(values, str) else values


def _paged(
    store: ProjectionStore,
    log: EventLog,
    wanted: Filter,
    told: Callable[[str, Iterator[Commit]], Iterator[dict[str, Any]]],
    after: str | None,
    limit: int,
) -> Page:
    """A page of what is told of the sessions that meet a filter."""
    search = Search(store, wanted)
    seq, place = _parsed(after) if after is not None else (0, None)
    found: list[dict[str, Any]] = []
    candidates = search.candidates(place, TOGETHER)

    def take(candidate_cursor: str, records: Iterator[dict[str, Any]]) -> str | None:
        for record in records:
            cursor = f"{record['seq']}/{candidate_cursor}"
            found.append({**record, "cursor": cursor})
            if len(found) >= limit:
                return cursor
        return None

    if limit <= 0:
        return Page([], after)
    if place is not None:
        session = _session_of(place)
        rest = (record for record in told(session, log.read(session)) if record["seq"] > seq)
        if (cursor := take(place, rest)) is not None:
            return Page(found, cursor)
    while page := list(islice(candidates, TOGETHER)):
        for candidate, commits in zip(page, log.read_each([one.session for one in page]), strict=True):
            if (cursor := take(candidate.cursor, told(candidate.session, commits))) is not None:
                return Page(found, cursor)
    return Page(found, None)


def _parsed(cursor: str) -> tuple[int, str]:
    seq, _, place = cursor.partition("/")
    if not seq.isdigit() or not place:
        raise Refused("USAGE", f"{shortened(cursor)} is no cursor of a page of events")
    return int(seq), place


def _session_of(place: str) -> str:
    """The session that a cursor of a search stands at."""
    order, _, rest = place.partition(":")
    return rest if order == "id" else rest.partition(":")[2]


def _readable(commits: Iterator[Commit]) -> Iterator[Commit]:
    """Commits that are not discarded, up to one that cannot be read."""
    try:
        for commit in commits:
            if not commit.skipped:
                commit.events  # noqa: B018 - raises for a body that cannot be read
                yield commit
    except Damaged:
        return


def entity(store: ProjectionStore, log: EventLog, name: str, *, most: int) -> dict[str, Any]:
    """What was done to an entity, by the logs of the sessions that touched it: of at most so many of them, in the order
    of the search; `read` says of how many, `sessions` how many there are.
    """
    search = Search(store, Filter(entity=name))
    sessions = search.count()
    events = breaks = read = 0
    agents: Counter[str] = Counter()
    states: Counter[str] = Counter()
    times: list[int] = []
    candidates = islice(search.candidates(None, TOGETHER), most)
    while page := [one.session for one in islice(candidates, TOGETHER)]:
        for session, commits in zip(page, log.read_each(page), strict=True):
            state = None
            for step in steps(session, commits):
                state = step.after
                if step.event.type in BUILT_IN and name in _entities(_payload(step.event)):
                    events += 1
                    breaks += step.event.type == "broke"
                    agents[step.event.actor] += 1
                    times += [step.at_ms]
            read += 1
            states[state or ""] += 1
    return {
        "entity": name,
        "sessions": sessions,
        "read": read,
        "by_state": dict(sorted(states.items())),
        "events": events,
        "breaks": breaks,
        "agents": dict(sorted(agents.items())),
        "first_at": rfc3339(min(times, default=0)),
        "last_at": rfc3339(max(times, default=0)),
    }


# -- of one event ------------------------------------------------------------------------------------------------------


def impact_of(event: Event) -> tuple[str | None, float | None]:
    """The severity and the perf_delta that an event states, each None where it states none."""
    impact = _payload(event).get("impact") if event.type in BUILT_IN else None
    if not isinstance(impact, dict):
        return None, None
    severity, delta = impact.get("severity"), impact.get("perf_delta")
    return severity if severity in SEVERITIES else None, delta if units(delta) is not None else None


def event_document(session: str, seq: int, commit: Commit, event: Event) -> dict[str, Any]:
    """An event as readers get it."""
    return {
        "session": session,
        "seq": seq,
        "time": rfc3339(commit.at_ms),
        "type": event.type,
        "actor": event.actor,
        "id": event.id,
        "claimed_time": event.time,
        "data": _payload(event),
    }


def _payload(event: Event) -> dict[str, Any]:
    """An event's data; nothing where nobody can read it."""
    try:
        return event.payload()
    except Damaged:
        return {}


# -- for the next agent ------------------------------------------------------------------------------------------------


def context(log: EventLog, view: Session, *, recent: int = RECENT) -> dict[str, Any]:
    """What whoever takes a session over should know, from the newest events, and what to look at first."""
    last = list(islice(_newest(log, view), recent))
    breaks = [_event_at(log, view.session, seq) for seq in view.open_breaks]
    handoff = _event_at(log, view.session, view.last_handoff)
    checkpoint = _event_at(log, view.session, view.last_checkpoint)
    open_breaks = [event for event in breaks if event is not None]
    built_in = [event for event in last if event["type"] in BUILT_IN]
    touched = dict.fromkeys(entity for event in built_in for entity in _entities(event["data"]))
    return {
        "session": view.session,
        "seq": view.seq,
        "state": view.state,
        "tags": sorted(view.tags),
        "priority": view.priority,
        "present": sorted(agent for agent, part in view.agents.items() if part.present),
        "look_first": _look_first(view, open_breaks, handoff, last),
        "open_breaks": open_breaks,
        "handoff": handoff,
        "last_checkpoint": checkpoint,
        "entities": sorted(view.entities)[:ENTITIES],
        "entities_in_all": len(view.entities),
        "entities_lately": list(touched),
        "recent": last,
    }


def _newest(log: EventLog, view: Session) -> Iterator[dict[str, Any]]:
    for commit in _readable(log.read_back(view.session, before=view.seq + 1)):
        for seq, event in reversed(list(enumerate(commit.events, commit.first_seq))):
            if seq <= view.seq:
                yield event_document(view.session, seq, commit, event)


def _event_at(log: EventLog, session: str, seq: int) -> dict[str, Any] | None:
    for commit in _readable(log.read(session, after=seq - 1, to=seq)) if seq else ():
        return event_document(session, seq, commit, commit.events[seq - commit.first_seq])
    return None


def _entities(data: dict[str, Any]) -> list[str]:
    """The entities that the data of a built-in event names."""
    change = data.get("change")
    named = change.get("entity_ids") if isinstance(change, dict) else None
    return named if isinstance(named, list) else []


def _look_first(
    view: Session, breaks: Sequence[dict[str, Any]], handoff: dict[str, Any] | None, last: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """What to look at, the most urgent first: open breaks by severity, the newer one before the older; then what the
    agent before said when it handed off; without either the last event.
    """

    def urgency(event: dict[str, Any]) -> tuple[int, int]:
        impact = event["data"].get("impact")
        severity = impact.get("severity") if isinstance(impact, dict) else None
        return (SEVERITIES.index(severity) if severity in SEVERITIES else -1, event["seq"])

    found = [{"why": "an open break", **_brief(event)} for event in sorted(breaks, key=urgency, reverse=True)]
    if handoff is not None and view.state == COORDINATING:
        found.append({"why": "handed off", **_brief(handoff)})
    if not found and last:
        found.append({"why": "the last event", **_brief(last[0])})
    return found


def _brief(event: dict[str, Any]) -> dict[str, Any]:
    """An event without its data, but with what it says of change and impact, and of a handoff."""
    data = event["data"]
    said = {name: data[name] for name in ("impact", "change", "to", "reason") if name in data}
    return {name: event[name] for name in ("seq", "time", "type", "actor")} | said
