"""What is written: the same events for everybody.

`event` is 200 B as Muster encodes it, id included. A *life* is what a fold meets: an agent that works, breaks, mends
and hands over, in the proportions of real logs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from domain import Append, Event, SessionLog
from domain.codec import encode_body
from domain.log.keys import Keyspace

#: Bytes of an encoded event, id included.
EVENT_BYTES: Final = 200


def event(number: int = 0) -> Event:
    """One event of EVENT_BYTES. Without an id: the log gives it one."""
    return Event.of(
        "tool.called",
        actor="agent-07",
        data={
            "tool": "edit",
            "path": f"src/module_{number % 1000:03}.py",
            "note": "x" * 93,
            "line": 1000 + number % 50,
        },
    )


def payload(number: int = 0) -> dict[str, Any]:
    """The same event as peers write it: a JSON object of about the same size."""
    made = event(number)
    return {"type": made.type, "actor": made.actor, "id": f"{number:032x}", "data": made.payload()}


def body(number: int = 0) -> bytes:
    """The same event as it stands in the log."""
    made = event(number)
    return encode_body([Event(made.type, f"{number:032x}", made.actor, made.time, made.data)])


def life(count: int) -> list[Event]:
    """The first events of a session's life."""
    return [_step(number) for number in range(count)]


def _step(number: int) -> Event:
    actor = f"agent-{number // 40 % 5}"
    change = {
        "element_type": "function",
        "entity_ids": [f"module_{number % 23}.py:f{number % 7}"],
        "operation": "modified",
        "affected_lines": number % 60,
    }
    if number == 0:
        return Event.of("start", actor=actor, data={"tags": ["bench"]})
    match number % 40:
        case 0:
            return Event.of("joined", actor=actor)
        case 17:
            return Event.of("broke", actor=actor, data={"impact": {"severity": "high", "tests_failed": ["test_a"]}})
        case 21:
            return Event.of("test_pass", actor=actor)
        case 39:
            return Event.of("handoff", actor=actor, data={"to": f"agent-{(number // 40 + 1) % 5}"})
        case at if at % 3 == 0:
            return Event.of("modified", actor=actor, data={"change": change})
        case _:
            return Event.of(
                "tool.called", actor=actor, data={"tool": "edit", "path": f"src/{number % 99}.py", "ok": True}
            )


def fill(log: SessionLog, sessions: Sequence[str], length: int, *, commit: int) -> int:
    """Gives every session a life of `length` events in commits of so many; returns how many events that is."""
    events = life(length)
    commits = [tuple(events[at : at + commit]) for at in range(0, length, commit)]
    for part in commits:
        for at in range(0, len(sessions), 1000):
            log.append_many([Append(session, part) for session in sessions[at : at + 1000]])
    return length * len(sessions)


def identifier(text: str) -> str:
    """A text as an identifier may be written."""
    return "".join(character if character.isalnum() else "-" for character in text)


def in_partition(keyspace: Keyspace, partition: int | None, count: int, *, prefix: str = "p") -> list[str]:
    """Names of sessions that all lie in one partition, or with None evenly in all."""
    found: list[str] = []
    number = 0
    while len(found) < count:
        wanted = len(found) % keyspace.count if partition is None else partition
        name = f"{prefix}-{number}"
        if keyspace.partition_of(name) == wanted:
            found.append(name)
        number += 1
    return found
