"""The view of an agent: its totals over all sessions, kept as one part a partition and merged when read.

A part is never folded from events. It moves in the step that replaces a session's view, by the difference between
what the old view contributed and what the new one does.
"""

from __future__ import annotations

from typing import Any, Final

from msgspec import Struct

from domain.agent import Totals
from domain.errors import Damaged
from domain.impact import SEVERITIES, as_number
from projections.sealed import Seal, seal

VERSION: Final = 2


class _Part(Struct, array_like=True, frozen=True):
    agent: str
    totals: Totals


_SEAL = Seal(VERSION, _Part)


def encode(agent: str, totals: Totals) -> bytes:
    """The stored bytes of an agent's part in a partition."""
    return seal(VERSION, _Part(agent, totals))


def decode(agent: str, stored: bytes) -> Totals:
    """An agent's part. Raises Damaged (VIEW_UNREADABLE), also if it is another agent's."""
    part: _Part = _SEAL.open(stored)
    if part.agent != agent:
        raise Damaged("VIEW_UNREADABLE", f"the totals are of {part.agent}, not of {agent}")
    return part.totals


def readable(stored: bytes | None, agent: str) -> Totals | None:
    """An agent's part, or None where there is none that can be trusted."""
    if stored is None:
        return None
    try:
        return decode(agent, stored)
    except Damaged:
        return None


def document(agent: str, totals: Totals) -> dict[str, Any]:
    """The agent as readers get it."""
    return {
        "agent": agent,
        "events": totals.events,
        "sessions": totals.sessions,
        "present": totals.present,
        "severities": {severity: getattr(totals, severity) for severity in SEVERITIES if getattr(totals, severity)},
        "perf_delta": as_number(totals.perf_delta),
    }
