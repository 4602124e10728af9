"""The second reading of a log: what it means, told without the code that builds views.

A view that equals the fold of its log is right only if the fold is. So the validator reads every log twice: by the fold
(domain/session.py), and by this page. It shares with the fold neither tables nor types nor codec: a state is a plain
dictionary, a rule is written as DESIGN and README say it in words, and stored values are taken apart byte by byte. What
is slower here is slower on purpose; the only thing that counts is that no bug can be in both.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from hashlib import sha1
from math import floor, isfinite
from typing import Any, Final

import msgspec

from domain.stretch import Stretch

#: The fields of a stored view, in their order.
FIELDS: Final = (
    *("session", "seq", "digest", "state", "agents", "event_types", "entities", "first_actor", "last_type"),
    *("handed_off_by", "started_at", "last_at", "tags", "priority", "outcome", "completed_at", "transitions"),
    *("type_pairs", "last_entering", "open_breaks", "last_handoff", "last_checkpoint", "forked_from"),
    *("ttl_s", "active_at", "expiring_at"),
)
#: Those that are sets or counts, and their places in a stored view.
_SETS: Final = ("entities", "tags")
_COUNTS: Final = ("event_types", "transitions", "type_pairs")
#: Types a completed session still takes, beside dotted ones; `start` reopens it.
_AFTER_COMPLETED: Final = ("left", "checkpoint", "expired", "start")

#: A checkpoint is due after a commit that holds one of these, and where a multiple of 50 is crossed.
_MARK_A_PLACE: Final = frozenset({"broke", "handoff", "completed"})


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
            "last_handoff": 0, "last_checkpoint": 0, "forked_from": None,
            "ttl_s": 0, "active_at": 0, "expiring_at": 0,
        }  # fmt: skip

    @classmethod
    def from_checkpoint(cls, session: str, seq: int, checkpoints: Mapping[int, bytes]) -> SecondReading:
        """A reading that goes on from a checkpoint which was found right, with those before it."""
        reading = cls(session)
        reading.checkpoints = {at: taken_apart(stored) for at, stored in sorted(checkpoints.items())}
        told = reading.checkpoints[seq]
        agents = {agent: list(part) for agent, part in told["agents"].items()}
        counts = {name: dict(told[name]) for name in _COUNTS}
        reading._told = {**told, "agents": agents, **counts, **{name: set(told[name]) for name in _SETS}}
        return reading

    def read(self, commits: Stretch) -> None:
        """Takes in commits that come next."""
        good = self._unbroken(commits)
        skipped = [at for at in range(good) if commits.skipped[at]] if commits.skips else []
        contents = _contents(commits.bodies[:good], skipped)
        places: list[int] = []
        for at in reversed(range(good)):
            last, count = commits.lasts[at], commits.counts[at]
            if last // 50 != (last - count) // 50 or not _MARK_A_PLACE.isdisjoint([event[0] for event in contents[at]]):
                places.append(at)
                if len(places) == 4:
                    break
        told, begin = self._told, 0
        for at in sorted({*places, *skipped, good - 1} - {-1}):
            self._take(contents[begin : at + 1], commits.times[begin : at + 1])
            if at in skipped:
                self._count("muster.skipped", commits.counts[at])
                told["seq"] += commits.counts[at]
            told["digest"], told["last_at"] = commits.digests[at].decode(), commits.times[at]
            told["started_at"] = told["started_at"] or next(filter(None, commits.times[begin : at + 1]), 0)
            begin = at + 1
            if at in places:
                self.checkpoints[told["seq"]] = self.told()
                for old in sorted(self.checkpoints)[:-4]:
                    del self.checkpoints[old]

    def _unbroken(self, commits: Stretch) -> int:
        """How many of the commits follow on one another as the law says; what is wrong with the next one is noted."""
        told = self._told
        seq, digest, last_at = told["seq"], told["digest"].encode(), told["last_at"]
        hashed = b"%b|1|" + told["session"].encode().replace(b"%", b"%%") + b"|%d|%d|%d|%b"
        columns = (commits.lasts, commits.counts, commits.times, commits.digests, commits.bodies)
        for at, (last, count, at_ms, stored, body) in enumerate(zip(*columns, strict=True)):
            if last != seq + count or count < 1:
                self.broken = f"after seq {seq} comes seq {last - count + 1}"
            elif sha1(hashed % (digest, seq + 1, count, at_ms, body)).hexdigest()[:20].encode() != stored:
                self.broken = f"the digest of the commit at seq {seq + 1} is not the hash of it"
            elif at_ms < last_at:
                self.broken = f"time runs backwards at seq {seq + 1}"
            if self.broken is not None:
                return at
            seq, digest, last_at = last, stored, at_ms
        return len(commits)

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

    def _take(self, contents: Sequence[list[Any]], times: Sequence[int]) -> None:
        """Takes in events, one after another: those of commits, with the times of these."""
        told = self._told
        seq, agents, counts, type, first = told["seq"], told["agents"], told["event_types"], None, None
        for events, at_ms in zip(contents, times, strict=True):
            for event in events:
                type, actor = event[0], event[2]
                seq += 1
                first = first or actor
                data = event[4] if len(event) > 4 and isinstance(event[4], dict) else {}
                impacts = None
                if "." not in type:
                    self._built_in(type, actor, data, seq, at_ms)
                    impacts = data.get("impact")
                else:
                    self._dotted(type, actor, data, seq)
                counts[type] = counts.get(type, 0) + 1
                if actor == "muster":
                    if type == "muster.expiring":
                        told["expiring_at"] = _whole(data.get("expires_at_ms"))
                    continue
                told["active_at"], told["expiring_at"] = at_ms, 0
                part = agents.get(actor)
                if part is None:
                    part = agents[actor] = [0, seq, seq, True, None]
                part[0] += 1
                part[2], part[3] = seq, type != "left"
                if impacts is not None:
                    part[4] = _with_impact(part[4], impacts)
        if type is not None:
            told["first_actor"] = told["first_actor"] or first
            told["seq"], told["last_type"] = seq, type

    def _dotted(self, type: str, actor: str, data: Mapping[str, Any], seq: int) -> None:
        told = self._told
        state = told["state"]
        if state == "expired" and type not in ("muster.log_repaired", "muster.forked"):
            self.broken = f"{type} at seq {seq} follows the session's expiry"
        elif state == "coordinating" and actor not in (told["handed_off_by"], "muster"):
            told["state"] = "working"
            self._count(f"{state}>working", 1, "transitions")
        if type == "muster.agent_gone" and actor == "muster":
            part = told["agents"].get(data.get("gone")) if isinstance(data.get("gone"), str) else None
            if part is not None:
                part[3] = False
        elif type == "muster.forked" and actor == "muster":
            named = [data.get(name) for name in ("parent", "digest")]
            is_mark = all(isinstance(name, str) for name in named)
            told["forked_from"] = [named[0], seq - 1, named[1]] if is_mark else None

    def _built_in(self, type: str, actor: str, known: Mapping[str, Any], seq: int, at_ms: int) -> None:
        told = self._told
        was = state = told["state"]
        if state == "expired" and type != "start":
            self.broken = f"{type} at seq {seq} follows the session's expiry"
        elif state == "completed" and type not in _AFTER_COMPLETED:
            self.broken = f"{type} at seq {seq} follows the session's completion"
        if state == "coordinating" and actor not in (told["handed_off_by"], "muster"):
            state = "working"
        if type in ("start", "test_pass"):
            state = "working"
        elif type == "broke":
            state = "broken"
        elif type == "handoff":
            state, told["handed_off_by"], told["last_handoff"] = "coordinating", actor, seq
        elif type in ("completed", "expired"):
            state = type
        if seq > 1 and was != state:
            self._count(f"{was}>{state}", 1, "transitions")
        told["state"] = state
        if type == "checkpoint":
            told["last_checkpoint"] = seq
        if type == "extended" and _whole(known.get("ttl_s")):
            told["ttl_s"] = known["ttl_s"]
        if type in ("start", "test_pass", "broke", "handoff", "completed", "expired"):
            if told["last_entering"] is not None:
                self._count(f"{told['last_entering']}>{type}", 1, "type_pairs")
            told["last_entering"] = type
        if type == "broke":
            told["open_breaks"] = (told["open_breaks"] + [seq])[-32:]
        elif type in ("start", "test_pass", "completed"):
            told["open_breaks"] = []
        if type == "completed":
            outcome = known.get("outcome")
            told["completed_at"], told["outcome"] = at_ms, outcome[:200] if isinstance(outcome, str) else None
        elif type == "start":
            told["completed_at"], told["outcome"] = 0, None
        self._said(known)

    def _said(self, known: Mapping[str, Any]) -> None:
        told = self._told
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


def _whole(value: Any) -> int:
    return value if type(value) is int and 0 < value < 9_007_199_254_740_992 else 0


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
    if told["state"] not in ("completed", "expired"):
        since = told["active_at"] or told["started_at"]
        if told["expiring_at"]:
            scores["expiring"] = told["expiring_at"]
        elif told["ttl_s"]:
            scores["until"] = since + 1000 * told["ttl_s"]
        else:
            scores["idle"] = since
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


def _contents(bodies: Sequence[bytes], skipped: Collection[int]) -> list[list[Any]]:
    """The events of bodies; none of those that are skipped."""
    if not skipped:
        try:
            return list(map(_PLAIN.decode, bodies))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TypeError):
            pass  # one of them is JSON, or holds foreign data
    return [[] if at in skipped else _events(body) for at, body in enumerate(bodies)]


def _events(body: bytes) -> list[Any]:
    """The events of a body, each as its values in the order of the wire: the type first, the actor third, the data
    fifth where there is any.
    """
    if body[:1] == b"[":
        return [(line["type"], None, line["actor"], None, line.get("data")) for line in json.loads(body)]
    try:
        events: list[Any] = _PLAIN.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TypeError):
        # Free data of a foreign producer, that nobody has to understand.
        return [_without_foreign_data(event) for event in _RAW.decode(body)]
    return events


class _Entities(msgspec.Struct):
    entity_ids: list[str] | None = None


class _Data(msgspec.Struct):
    change: _Entities | None = None
    impact: msgspec.Raw = msgspec.Raw(b"")
    tags: msgspec.Raw = msgspec.Raw(b"")
    priority: msgspec.Raw = msgspec.Raw(b"")
    outcome: msgspec.Raw = msgspec.Raw(b"")


_PLAIN = msgspec.msgpack.Decoder()
_RAW = msgspec.msgpack.Decoder(list[list[msgspec.Raw]])


def _without_foreign_data(event: list[msgspec.Raw]) -> tuple[str, None, str, None, Any]:
    type, actor = msgspec.msgpack.decode(event[0]), msgspec.msgpack.decode(event[2])
    if "." in type or len(event) < 5:
        return type, None, actor, None, None
    data = msgspec.msgpack.decode(event[4], type=_Data)
    told = {name: _readable(getattr(data, name)) for name in ("impact", "tags", "priority", "outcome")}
    return type, None, actor, None, {**told, "change": msgspec.to_builtins(data.change)}


def _readable(raw: msgspec.Raw) -> Any:
    """A value that stands in foreign data; None if nobody can read it."""
    try:
        return msgspec.msgpack.decode(raw) if raw else None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TypeError):
        return None
