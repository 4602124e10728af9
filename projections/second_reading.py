"""The second reading of a log: what it means, told without the code that builds views.

A view that equals the fold of its log is right only if the fold is. So the validator reads every log twice: by the fold
(domain/session.py), and by this page. It shares with the fold neither tables nor types nor codec: a state is a plain
dictionary, a rule is written as DESIGN and README say it in words, and stored values are taken apart byte by byte. What
is slower here is slower on purpose; the only thing that counts is that no bug can be in both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha1
from typing import Any, Final

import msgspec

from domain.codec import Commit

#: The fields of a stored view, in their order.
FIELDS: Final = (
    *("session", "seq", "digest", "state", "agents", "event_types", "entities", "first_actor", "last_type"),
    *("handed_off_by", "started_at", "last_at", "forked_from"),
)
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
            "handed_off_by": None, "started_at": 0, "last_at": 0, "forked_from": None,
        }  # fmt: skip

    @classmethod
    def from_checkpoint(cls, session: str, seq: int, checkpoints: Mapping[int, bytes]) -> SecondReading:
        """A reading that goes on from a checkpoint which was found right, with those before it."""
        reading = cls(session)
        reading.checkpoints = {at: taken_apart(stored) for at, stored in sorted(checkpoints.items())}
        told = reading.checkpoints[seq]
        reading._told = {**told, "agents": dict(told["agents"]), "event_types": dict(told["event_types"])}
        reading._told["entities"] = set(told["entities"])
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
                self._event(type, actor, data)
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
        copied = {"agents": agents, "event_types": dict(self._told["event_types"])}
        return {**self._told, **copied, "entities": sorted(self._told["entities"])}

    def contributed(self) -> dict[str, tuple[int, int, int]]:
        """What the session adds to each agent's totals: events, sessions, in how many it is present."""
        return contributed_by(self._told)

    def _event(self, type: str, actor: str, data: Any) -> None:
        told = self._told
        told["seq"] += 1
        state, is_dotted = told["state"], "." in type
        if state == "expired" and type not in ("start", "muster.log_repaired", "muster.forked"):
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
            state, told["handed_off_by"] = "coordinating", actor
        elif type in ("completed", "expired"):
            state = type
        told["state"], told["last_type"] = state, type
        if told["seq"] == 1 or told["first_actor"] is None:
            told["first_actor"] = actor
        if actor != "muster":
            events, first, *_ = told["agents"].get(actor, (0, told["seq"]))
            told["agents"][actor] = [events + 1, first, told["seq"], type != "left"]
        elif type == "muster.forked":
            named = [data.get(name) for name in ("parent", "digest")] if isinstance(data, dict) else []
            is_mark = len(named) == 2 and all(isinstance(name, str) for name in named)
            told["forked_from"] = [named[0], told["seq"] - 1, named[1]] if is_mark else None
        self._count(type, 1)
        change = data.get("change") if isinstance(data, dict) and not is_dotted else None
        if isinstance(change, dict):
            told["entities"] |= set(change.get("entity_ids") or ())

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
    if version != 2 or len(values) != len(FIELDS):
        return {"unreadable": f"{len(values)} values of version {version}"}
    fields = dict(zip(FIELDS, values, strict=True))
    fields["entities"] = sorted(fields["entities"])
    return fields


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


_RAW = msgspec.msgpack.Decoder(list[list[msgspec.Raw]])


def _without_foreign_data(event: list[msgspec.Raw]) -> tuple[str, str, Any]:
    type, actor = msgspec.msgpack.decode(event[0]), msgspec.msgpack.decode(event[2])
    if "." in type or len(event) < 5:
        return type, actor, None
    return type, actor, msgspec.to_builtins(msgspec.msgpack.decode(event[4], type=_Data))
