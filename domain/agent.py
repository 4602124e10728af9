"""An agent's totals over sessions, as sums of what each session contributes.

Contributions are added and subtracted, never replaced: addition is commutative and associative, so partitions may
be folded in any order, and the difference of two states of one session moves the totals from one to the other.
"""

from __future__ import annotations

from msgspec import Struct

from domain.impact import SEVERITIES
from domain.session import Participation, Session


class Totals(Struct, array_like=True, gc=False, frozen=True):
    """What an agent did: its events, the sessions it took part in, in how many of them it is present now; its events by
    the severity they were said to have, and the sum of `perf_delta` in millionths.
    """

    events: int = 0
    sessions: int = 0
    present: int = 0
    low: int = 0
    medium: int = 0
    high: int = 0
    critical: int = 0
    perf_delta: int = 0

    def __add__(self, other: Totals) -> Totals:
        return Totals(
            self.events + other.events,
            self.sessions + other.sessions,
            self.present + other.present,
            self.low + other.low,
            self.medium + other.medium,
            self.high + other.high,
            self.critical + other.critical,
            self.perf_delta + other.perf_delta,
        )

    def __sub__(self, other: Totals) -> Totals:
        return Totals(
            self.events - other.events,
            self.sessions - other.sessions,
            self.present - other.present,
            self.low - other.low,
            self.medium - other.medium,
            self.high - other.high,
            self.critical - other.critical,
            self.perf_delta - other.perf_delta,
        )


NOTHING = Totals()


def contributions(session: Session) -> dict[str, Totals]:
    """What this session adds to the totals of each agent in it."""
    return {agent: _contribution(part) for agent, part in session.agents.items()}


def _contribution(part: Participation) -> Totals:
    if part.impacts is None:
        return Totals(part.events, 1, int(part.present))
    low, medium, high, critical = (part.impacts.severities.get(severity, 0) for severity in SEVERITIES)
    return Totals(part.events, 1, int(part.present), low, medium, high, critical, part.impacts.perf_delta)


def difference(before: dict[str, Totals], after: dict[str, Totals]) -> dict[str, Totals]:
    """What must be added so that `before` becomes `after`; agents without a difference are left out."""
    agents = before.keys() | after.keys()
    moved = {agent: after.get(agent, NOTHING) - before.get(agent, NOTHING) for agent in agents}
    return {agent: totals for agent, totals in moved.items() if totals != NOTHING}


def merge(into: dict[str, Totals], other: dict[str, Totals]) -> None:
    """Adds `other` to `into`, agent by agent."""
    for agent, totals in other.items():
        into[agent] = into.get(agent, NOTHING) + totals
