"""What sessions are by a plain reading of all their events, with nothing of what folds, indexes or finds them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, Final, NamedTuple

from domain import Append, Event, Receipt
from domain.log.contract import EventLog
from domain.session import gate_after, kind_of
from projections.searching import Filter
from tests.projections.world import World

LEADS_TO: Final = {
    "start": "working", "test_pass": "working", "broke": "broken", "handoff": "coordinating", "completed": "completed",
    "expired": "expired",
}  # fmt: skip


class Said(NamedTuple):
    """One event, and what it did."""

    session: str
    seq: int
    at_ms: int
    actor: str
    type: str
    before: str
    after: str
    leading: str | None
    severity: str | None
    perf_delta: float | None
    data: dict[str, Any]


def events_of(log: EventLog, session: str) -> Iterator[Said]:
    """All that happened in a session."""
    state, handed_by, leading, seq = "working", None, None, 0
    for commit in log.read(session):
        for event in commit.events:
            seq += 1
            before, data, type = state, event.payload(), event.type
            if state == "coordinating" and event.actor != handed_by:
                state = "working"
            state = LEADS_TO.get(type, state)
            handed_by = event.actor if type == "handoff" else handed_by
            impact = data.get("impact") if "." not in type else None
            impact = impact or {}
            yield Said(
                session, seq, commit.at_ms, event.actor, type, before if seq > 1 else state, state, leading,
                impact.get("severity"), impact.get("perf_delta"), data,
            )  # fmt: skip
            leading = type if type in LEADS_TO else leading


class Known:
    """A session, by all its events."""

    def __init__(self, session: str, events: list[Said]) -> None:
        self.session = session
        self.events = events
        self._values: dict[str, set[str]] = {}

    @property
    def state(self) -> str:
        return self.events[-1].after

    def values(self, field: str) -> set[str]:
        """All that a session has of what it is found by."""
        if field not in self._values:
            self._values[field] = self._read(field)
        return self._values[field]

    def _read(self, field: str) -> set[str]:
        built_in = [one for one in self.events if "." not in one.type]
        match field:
            case "state":
                return {self.state}
            case "agent":
                return {one.actor for one in self.events}
            case "entity":
                return {name for one in built_in for name in (one.data.get("change") or {}).get("entity_ids") or ()}
            case "tag":
                return {tag for one in built_in for tag in one.data.get("tags", ())}
            case "priority":
                said = [one.data["priority"] for one in built_in if "priority" in one.data]
                return set(said[-1:])
            case "outcome":
                last = self.completed
                return {last.data["outcome"]} if last is not None and "outcome" in last.data else set()
            case "severity":
                return {one.severity for one in self.events if one.severity is not None}
            case "transition":
                states = {f"{one.before}>{one.after}" for one in self.events if one.before != one.after}
                leading = [one for one in self.events if one.leading and one.type in LEADS_TO]
                return states | {f"{one.leading}>{one.type}" for one in leading}
        raise AssertionError(field)

    @property
    def completed(self) -> Said | None:
        """The completion that holds still."""
        last = [one for one in self.events if one.type in ("completed", "start")][-1:]
        return last[0] if last and last[0].type == "completed" else None

    def time(self, name: str) -> int | None:
        """When it started, was appended to last, was completed."""
        if name == "completed":
            return None if self.completed is None else self.completed.at_ms
        return self.events[0 if name == "started" else -1].at_ms

    def meets(self, filter: Filter) -> bool:
        """Whether the session is one of those that are meant."""
        for field in ("state", "agent", "entity", "tag", "priority", "outcome", "severity", "transition"):
            wanted = getattr(filter, field)
            wanted = {wanted} if isinstance(wanted, str) else set(wanted)
            if wanted and not wanted & self.values(field):
                return False
        for name in ("started", "last", "completed"):
            at, after, before = self.time(name), getattr(filter, f"{name}_after"), getattr(filter, f"{name}_before")
            if after is not None and (at is None or at < after):
                return False
            if before is not None and (at is None or at >= before):
                return False
        deltas = [one.perf_delta for one in self.events if one.perf_delta is not None]
        return filter.perf_below is None or any(delta < filter.perf_below for delta in deltas)


def read(log: EventLog) -> dict[str, Known]:
    """All sessions of a log."""
    return {session: Known(session, list(events_of(log, session))) for session in log.sessions()}


def exact(deltas: list[float]) -> float:
    """The sum of deltas, without an error on the way, to a millionth."""
    return float(sum((Fraction(round(Fraction(delta) * 10**6)) for delta in deltas), Fraction()) / 10**6)


def counted(known: dict[str, Known], field: str) -> Counter[str]:
    """How many sessions have each value."""
    return Counter(value for one in known.values() for value in one.values(field))


TYPES: Final = (
    *("start", "joined", "left", "modified", "modified", "broke", "test_pass", "handoff", "checkpoint", "completed"),
    *("tool.called", "expired"),
)


#: How many sessions are appended to, and projected, at a time.
TOGETHER: Final = 2000


def generate(world: World, sessions: int, *, seed: int = 7) -> None:
    """Sessions of everything that queries ask for, in commits of some events, projected in between."""
    chance = random.Random(seed)
    gates = {f"g-{number}": "o" for number in range(sessions)}
    agents = [f"agent-{number}" for number in range(max(4, min(sessions // 8, 5000)))]
    for _ in range(5):
        appends = []
        for name in chance.sample(sorted(gates), max(1, sessions * 2 // 3)):
            events = []
            for _ in range(chance.randint(1, 5)):
                type = chance.choice(TYPES)
                after, refused = gate_after(gates[name], kind_of(type))
                if refused is None and (type != "expired" or chance.random() < 0.2):
                    gates[name] = after
                    events.append(Event.of(type, actor=chance.choice(agents), data=any_data(chance, type)))
            if events:
                appends.append(Append(name, tuple(events)))
        for at in range(0, len(appends), TOGETHER):
            done = world.log.append_many(appends[at : at + TOGETHER])
            assert all(isinstance(receipt, Receipt) for receipt in done)
            world.project()


def any_data(chance: random.Random, type: str) -> dict[str, Any]:
    """Data of an event; free data has other things under the same names."""
    if type == "tool.called":
        return {"impact": "high", "tags": 5, "priority": ["low"]} if chance.random() < 0.3 else {}
    data: dict[str, Any] = {}
    if chance.random() < 0.5:
        data["change"] = {"entity_ids": [f"src/{chance.randrange(12)}.py" for _ in range(chance.randrange(3))]}
    if type == "broke" or chance.random() < 0.1:
        impact: dict[str, Any] = {}
        if chance.random() < 0.7:
            impact["severity"] = chance.choice(("low", "medium", "high", "critical"))
        if chance.random() < 0.6:
            impact["perf_delta"] = chance.choice((-12.5, 0.1, 0.2, -0.3, 7, -1e-5, 3.3333333))
        data["impact"] = impact
    if chance.random() < 0.15:
        data["tags"] = [chance.choice(("auth", "db", "größe", "a b")) for _ in range(2)]
    if chance.random() < 0.15:
        data["priority"] = chance.choice(("low", "normal", "high"))
    if type == "completed" and chance.random() < 0.8:
        data["outcome"] = chance.choice(("merged", "given up"))
    return data
