"""The second reading of a log: what it means, told without the code that builds views.

A view that equals the fold of its log is right only if the fold is. So the validator reads every log twice: by the fold
(domain/session.py), and by this page. It shares with the fold neither tables nor types nor codec: a state is a plain
dictionary, a rule is written as DESIGN and README say it in words, and stored values are taken apart byte by byte. What
is slower here is slower on purpose; the only thing that counts is that no bug can be in both.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from hashlib import sha1
from typing import Any, Final

import msgspec

from domain.stretch import Stretch

#: The fields of a stored view, in their order.
FIELDS: Final = (
    *("session", "seq", "digest", "state", "agents", "event_types", "entities", "first_actor", "last_type"),
    *("handed_off_by", "started_at", "last_at"),
)
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
            "handed_off_by": None, "started_at": 0, "last_at": 0,
        }  # fmt: skip

    @classmethod
    def from_checkpoint(cls, session: str, seq: int, checkpoints: Mapping[int, bytes]) -> SecondReading:
        """A reading that goes on from a checkpoint which was found right, with those before it."""
        reading = cls(session)
        reading.checkpoints = {at: taken_apart(stored) for at, stored in sorted(checkpoints.items())}
        told = reading.checkpoints[seq]
        agents = {agent: list(part) for agent, part in told["agents"].items()}
        reading._told = {**told, "agents": agents, "event_types": dict(told["event_types"])}
        reading._told["entities"] = set(told["entities"])
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
            self._take([event for events in contents[begin : at + 1] for event in events])
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
        copied = {"agents": agents, "event_types": dict(self._told["event_types"])}
        return {**self._told, **copied, "entities": sorted(self._told["entities"])}

    def contributed(self) -> dict[str, tuple[int, int, int]]:
        """What the session adds to each agent's totals: events, sessions, in how many it is present."""
        return contributed_by(self._told)

    def _take(self, events: list[Any]) -> None:
        """Takes in events, one after another."""
        told = self._told
        seq, state, agents, counts = told["seq"], told["state"], told["agents"], told["event_types"]
        for event in events:
            type, actor = event[0], event[2]
            seq += 1
            is_dotted = "." in type
            if state == "expired" and type not in ("start", "muster.log_repaired"):
                self.broken = f"{type} at seq {seq} follows the session's expiry"
            elif state == "completed" and not is_dotted and type not in _AFTER_COMPLETED:
                self.broken = f"{type} at seq {seq} follows the session's completion"
            if state == "coordinating" and actor not in (told["handed_off_by"], "muster"):
                state = "working"
            if not is_dotted:
                if type in ("start", "test_pass"):
                    state = "working"
                elif type == "broke":
                    state = "broken"
                elif type == "handoff":
                    state, told["handed_off_by"] = "coordinating", actor
                elif type in ("completed", "expired"):
                    state = type
                change = event[4].get("change") if len(event) > 4 and isinstance(event[4], dict) else None
                if isinstance(change, dict):
                    told["entities"] |= set(change.get("entity_ids") or ())
            counts[type] = counts.get(type, 0) + 1
            if actor == "muster":
                continue
            part = agents.get(actor)
            if part is None:
                agents[actor] = [1, seq, seq, type != "left"]
            else:
                part[0] += 1
                part[2], part[3] = seq, type != "left"
        if events:
            told["first_actor"] = told["first_actor"] or events[0][2]
            told["seq"], told["state"], told["last_type"] = seq, state, events[-1][0]

    def _count(self, type: str, more: int) -> None:
        counts = self._told["event_types"]
        counts[type] = counts.get(type, 0) + more


def contributed_by(told: Mapping[str, Any]) -> dict[str, tuple[int, int, int]]:
    """What a session that is told so adds to each agent's totals: events, sessions, in how many it is present."""
    return {agent: (part[0], 1, 1 if part[3] else 0) for agent, part in told["agents"].items()}


def taken_apart(stored: bytes) -> dict[str, Any]:
    """The fields of a stored view or checkpoint by name, read from its bytes alone; `unreadable` says what is wrong."""
    body = stored[8:]
    if sha1(body).digest()[:8] != stored[:8]:
        return {"unreadable": "the checksum does not fit the bytes"}
    version, values = msgspec.msgpack.decode(body)
    if version != 1 or len(values) != len(FIELDS):
        return {"unreadable": f"{len(values)} values of version {version}"}
    fields = dict(zip(FIELDS, values, strict=True))
    fields["entities"] = sorted(fields["entities"])
    return fields


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


_PLAIN = msgspec.msgpack.Decoder()
_RAW = msgspec.msgpack.Decoder(list[list[msgspec.Raw]])


def _without_foreign_data(event: list[msgspec.Raw]) -> tuple[str, None, str, None, Any]:
    type, actor = msgspec.msgpack.decode(event[0]), msgspec.msgpack.decode(event[2])
    if "." in type or len(event) < 5:
        return type, None, actor, None, None
    return type, None, actor, None, msgspec.to_builtins(msgspec.msgpack.decode(event[4], type=_Data))
