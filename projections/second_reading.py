"""The second reading of a log: what it means, told without the code that builds views.

A view that equals the fold of its log is right only if the fold is. So the validator reads every log twice: by the fold
(domain/session.py), and by this page. It shares with the fold neither tables nor types nor codec: a state is a plain
dictionary, a rule is written as DESIGN and README say it in words, and stored values are taken apart byte by byte. What
is slower here is slower on purpose; the only thing that counts is that no bug can be in both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from fractions import Fraction
from hashlib import sha1
from math import floor, isfinite
from typing import Any, Final

import msgspec

from domain.codec import Commit

#: The fields of a stored view, in their order.
FIELDS: Final = (
    *("session", "seq", "digest", "state", "agents", "event_types", "entities", "first_actor", "last_type"),
    *("handed_off_by", "started_at", "last_at", "tags", "priority", "outcome", "completed_at", "transitions"),
    *("type_pairs", "last_entering", "open_breaks", "last_handoff", "last_checkpoint"),
)
#: Those that are sets or counts, and their places in a stored view.
_SETS: Final = ("entities", "tags")
_COUNTS: Final = ("event_types", "transitions", "type_pairs")
#: Types a completed session still takes, beside dotted ones; `start` reopens it.
_AFTER_COMPLETED: Final = ("left", "checkpoint", "expired", "start")


class SecondReading:
    """A session's log, read commit by commit. `broken` says which law a commit broke, in words; None for none."""

    def __init__(self, session: str) -> None:
        self.broken: str | None = None
        #: The last four checkpoints by seq, each as `told` then.
        self.checkpoints: dict[int, dict[str, Any]] = {}
        self._told: dict[str, Any] = {
            "session": session, "seq": 0, "digest": sha1(session.encode()).hexdigest()[:20], "state": "working",
            "agents": {}, "event_types": {}, "entities": set(), "first_actor": None, "last_type": None,
            "handed_off_by": None, "started_at": 0, "last_at": 0, "tags": set(), "priority": None, "outcome": None,
            "completed_at": 0, "transitions": {}, "type_pairs": {}, "last_entering": None, "open_breaks": [],
            "last_handoff": 0, "last_checkpoint": 0,
        }  # fmt: skip

    @classmethod
    def from_checkpoint(cls, session: str, seq: int, checkpoints: Mapping[int, bytes]) -> SecondReading:
        """A reading that goes on from a checkpoint which was found right, with those before it."""
        reading = cls(session)
        reading.checkpoints = {at: taken_apart(stored) for at, stored in sorted(checkpoints.items())}
        told = reading.checkpoints[seq]
        counts = {name: dict(told[name]) for name in ("agents", *_COUNTS)}
        reading._told = {**told, **counts, **{name: set(told[name]) for name in _SETS}}
        return reading

    def read(self, commit: Commit) -> None:
        """Takes in one commit."""
        told = self._told
        before, count = told["seq"], commit.last_seq - commit.first_seq + 1
        hashed = f"{told['digest']}|1|{told['session']}|{before + 1}|{count}|{commit.at_ms}|".encode() + commit.body
        if commit.first_seq != before + 1 or count < 1:
            self.broken = f"after seq {before} comes seq {commit.first_seq}"
        elif sha1(hashed).hexdigest()[:20] != commit.digest:
            self.broken = f"the digest of the commit at seq {commit.first_seq} is not the hash of it"
        elif commit.at_ms < told["last_at"]:
            self.broken = f"time runs backwards at seq {commit.first_seq}"
        if self.broken is not None:
            return
        marks_a_place = False
        if commit.skipped:
            self._count("muster.skipped", count)
            told["seq"] += count
        else:
            for type, actor, data in _events(commit.body):
                self._event(type, actor, data, commit.at_ms)
                marks_a_place = marks_a_place or type in ("broke", "handoff", "completed")
        told["digest"], told["last_at"] = commit.digest, commit.at_ms
        told["started_at"] = told["started_at"] or commit.at_ms
        if marks_a_place or told["seq"] // 50 != before // 50:
            self.checkpoints[told["seq"]] = self.told()
            for old in sorted(self.checkpoints)[:-4]:
                del self.checkpoints[old]

    def told(self) -> dict[str, Any]:
        """What the log says so far: the fields of the view that should be stored, by name."""
        agents = {agent: list(part) for agent, part in self._told["agents"].items()}
        counts = {name: dict(self._told[name]) for name in _COUNTS}
        return {**self._told, "agents": agents, **counts, **{name: sorted(self._told[name]) for name in _SETS}}

    def contributed(self) -> dict[str, tuple[int, ...]]:
        """What the session adds to each agent's totals."""
        return contributed_by(self._told)

    def indexed(self) -> tuple[set[str], dict[str, int]]:
        """What should be indexed of the session."""
        return indexed_by(self._told)

    def summed(self) -> dict[str, int]:
        """What the session adds to the statistics of its partition."""
        return summed_by(self._told)

    def _event(self, type: str, actor: str, data: Any, at_ms: int) -> None:
        told = self._told
        told["seq"] += 1
        was = told["state"]
        state, is_dotted = told["state"], "." in type
        if state == "expired" and type not in ("start", "muster.log_repaired"):
            self.broken = f"{type} at seq {told['seq']} follows the session's expiry"
        elif state == "completed" and not is_dotted and type not in _AFTER_COMPLETED:
            self.broken = f"{type} at seq {told['seq']} follows the session's completion"
        if state == "coordinating" and actor not in (told["handed_off_by"], "muster"):
            state = "working"
        if type in ("start", "test_pass"):
            state = "working"
        elif type == "broke":
            state = "broken"
        elif type == "handoff":
            state, told["handed_off_by"], told["last_handoff"] = "coordinating", actor, told["seq"]
        elif type in ("completed", "expired"):
            state = type
        if told["seq"] > 1 and was != state:
            self._count(f"{was}>{state}", 1, "transitions")
        if type == "checkpoint":
            told["last_checkpoint"] = told["seq"]
        known = data if isinstance(data, dict) and not is_dotted else {}
        if type in ("start", "test_pass", "broke", "handoff", "completed", "expired"):
            if told["last_entering"] is not None:
                self._count(f"{told['last_entering']}>{type}", 1, "type_pairs")
            told["last_entering"] = type
        if type == "broke":
            told["open_breaks"] = (told["open_breaks"] + [told["seq"]])[-32:]
        elif type in ("start", "test_pass", "completed"):
            told["open_breaks"] = []
        if type == "completed":
            outcome = known.get("outcome")
            told["completed_at"], told["outcome"] = at_ms, outcome[:200] if isinstance(outcome, str) else None
        elif type == "start":
            told["completed_at"], told["outcome"] = 0, None
        told["state"], told["last_type"] = state, type
        if told["seq"] == 1 or told["first_actor"] is None:
            told["first_actor"] = actor
        if actor != "muster":
            events, first, _, _, impacts = told["agents"].get(actor, (0, told["seq"], 0, False, None))
            impacts = _with_impact(impacts, known.get("impact"))
            told["agents"][actor] = [events + 1, first, told["seq"], type != "left", impacts]
        self._count(type, 1)
        change = known.get("change")
        named = change.get("entity_ids") if isinstance(change, dict) else None
        if isinstance(named, list):
            told["entities"] |= {entity for entity in named if isinstance(entity, str)}
        tags = known.get("tags")
        for tag in tags if isinstance(tags, list) else ():
            if isinstance(tag, str) and len(tag) <= 200 and len(told["tags"]) < 64:
                told["tags"].add(tag)
        if known.get("priority") in ("low", "normal", "high"):
            told["priority"] = known["priority"]

    def _count(self, what: str, more: int, among: str = "event_types") -> None:
        counts = self._told[among]
        counts[what] = counts.get(what, 0) + more


def _with_impact(before: list[Any] | None, impact: Any) -> list[Any] | None:
    """Severities, the sum of `perf_delta` in millionths and the lowest one, after one more impact."""
    if not isinstance(impact, dict):
        return before
    severities: dict[str, int] = before[0] if before else {}
    total, lowest = before[1:] if before else (0, None)
    severity, delta = impact.get("severity"), impact.get("perf_delta")
    if isinstance(severity, str) and severity in ("low", "medium", "high", "critical"):
        severities = {**severities, severity: severities.get(severity, 0) + 1}
    if type(delta) is int or (type(delta) is float and isfinite(delta)):
        exact = min(max(Fraction(delta), Fraction(-1_000_000)), Fraction(1_000_000))
        millionths = floor(exact * 1_000_000 + Fraction(1, 2))
        total, lowest = total + millionths, millionths if lowest is None else min(lowest, millionths)
    return [severities, total, lowest]


def contributed_by(told: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """What a session that is told so adds to each agent's totals: events, sessions, in how many it is present, impacts
    by severity, what they did to performance.
    """
    found = {}
    for agent, (events, _, _, is_present, impacts) in told["agents"].items():
        severities: dict[str, int] = impacts[0] if impacts else {}
        total = impacts[1] if impacts else 0
        levels = [severities.get(severity, 0) for severity in ("low", "medium", "high", "critical")]
        found[agent] = (events, 1, 1 if is_present else 0, *levels, total)
    return found


def indexed_by(told: Mapping[str, Any]) -> tuple[set[str], dict[str, int]]:
    """What should be indexed of a session that is told so: entries without its id, and scores by name."""
    if told["seq"] == 0:
        return set(), {}
    found = {("state", told["state"])}
    for field, name in (
        *(("agent", "agents"), ("entity", "entities"), ("tag", "tags"), ("transition", "transitions")),
        ("type_pair", "type_pairs"),
    ):
        found |= {(field, value) for value in told[name]}
    found |= {(field, told[field]) for field in ("priority", "outcome") if told[field] is not None}
    scores = {"started": told["started_at"], "last": told["last_at"]}
    if told["completed_at"]:
        scores["completed"] = told["completed_at"]
    impacts = [part[4] for part in told["agents"].values() if part[4]]
    found |= {("severity", severity) for severities, _, _ in impacts for severity in severities}
    lowest = [low for _, _, low in impacts if low is not None]
    if lowest:
        scores["perf"] = min(lowest) + 10**12
    return {f"{field}\0{value}" for field, value in found if "\0" not in value}, scores


def summed_by(told: Mapping[str, Any]) -> dict[str, int]:
    """What a session that is told so adds to the statistics of its partition."""
    if told["seq"] == 0:
        return {}
    found = {"sessions": 1, "events": told["seq"], f"state {told['state']}": 1}
    found[f"length {len(bin(told['seq'])) - 2}"] = 1
    found["agents 10" if len(told["agents"]) >= 10 else f"agents {len(told['agents'])}"] = 1
    if told["priority"]:
        found[f"priority {told['priority']}"] = 1
    found["breaks"] = told["event_types"].get("broke", 0)
    if told["state"] == "completed":
        found["took_ms"] = told["completed_at"] - told["started_at"]
        seconds = found["took_ms"] // 1000
        found[f"took {len(bin(seconds)) - 2 if seconds else 0}"] = 1
    for severities, total, _ in (part[4] for part in told["agents"].values() if part[4]):
        found["perf_delta"] = found.get("perf_delta", 0) + total
        for severity, count in severities.items():
            found[f"severity {severity}"] = found.get(f"severity {severity}", 0) + count
    return {name: value for name, value in found.items() if value}


def taken_apart(stored: bytes) -> dict[str, Any]:
    """The fields of a stored view or checkpoint by name, read from its bytes alone; `unreadable` says what is wrong."""
    body = stored[8:]
    if sha1(body).digest()[:8] != stored[:8]:
        return {"unreadable": "the checksum does not fit the bytes"}
    version, values = msgspec.msgpack.decode(body)
    if not isinstance(values, list):
        return {"unreadable": "no fields"}
    if version != 2 or len(values) != len(FIELDS):
        return {"unreadable": f"{len(values)} values of version {version}"}
    fields = dict(zip(FIELDS, values, strict=True))
    return {**fields, **{name: sorted(fields[name]) for name in _SETS}}


def _events(body: bytes) -> list[tuple[str, str, Any]]:
    """Type, actor and data of the events of a body."""
    if body[:1] == b"[":
        return [(line["type"], line["actor"], line.get("data")) for line in json.loads(body)]
    try:
        events = msgspec.msgpack.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TypeError):
        # Free data of a foreign producer, that nobody has to understand.
        return [_without_foreign_data(event) for event in _RAW.decode(body)]
    return [(event[0], event[2], event[4] if len(event) > 4 else None) for event in events]


class _Entities(msgspec.Struct):
    entity_ids: list[str] | None = None


class _Data(msgspec.Struct):
    change: _Entities | None = None
    impact: msgspec.Raw = msgspec.Raw(b"")
    tags: msgspec.Raw = msgspec.Raw(b"")
    priority: msgspec.Raw = msgspec.Raw(b"")
    outcome: msgspec.Raw = msgspec.Raw(b"")


_RAW = msgspec.msgpack.Decoder(list[list[msgspec.Raw]])


def _without_foreign_data(event: list[msgspec.Raw]) -> tuple[str, str, Any]:
    type, actor = msgspec.msgpack.decode(event[0]), msgspec.msgpack.decode(event[2])
    if "." in type or len(event) < 5:
        return type, actor, None
    data = msgspec.msgpack.decode(event[4], type=_Data)
    told = {name: _readable(getattr(data, name)) for name in ("impact", "tags", "priority", "outcome")}
    return type, actor, {**told, "change": msgspec.to_builtins(data.change)}


def _readable(raw: msgspec.Raw) -> Any:
    """A value that stands in foreign data; None if nobody can read it."""
    try:
        return msgspec.msgpack.decode(raw) if raw else None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TypeError):
        return None
