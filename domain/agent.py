"""An agent's totals over sessions, as sums of what each session contributes.

Contributions are added and subtracted, never replaced: addition is commutative and associative, so partitions may
be folded in any order, and the difference of two states of one session moves the totals from one to the other.
"""

from __future__ import annotations

from msgspec import Struct

from domain.session import Session


class Totals(Struct, array_like=True, gc=False, frozen=True):
    """What an agent did: its events, the sessions it took part in, and in how many of them it is present now."""

    events: int = 0
    sessions: int = 0
    present: int = 0

    def __add__(self, other: Totals) -> Totals:
        return Totals(self.events + other.events, self.sessions + other.sessions, self.present + other.present)

    def __sub__(self, other: Totals) -> Totals:
        return Totals(self.events - other.events, self.sessions - other.sessions, self.present - other.present)


NOTHING = Totals()


def contributions(session: Session) -> dict[str, Totals]:
    """What this session adds to the totals of each agent in it."""
    return {agent: Totals(part.events, 1, int(part.present)) for agent, part in session.agents.items()}


def difference(before: dict[str, Totals], after: dict[str, Totals]) -> dict[str, Totals]:
    """What must be added so that `before` becomes `after`; agents without a difference are left out."""
    agents = before.keys() | after.keys()
    moved = {agent: after.get(agent, NOTHING) - before.get(agent, NOTHING) for agent in agents}
    return {agent: totals for agent, totals in moved.items() if totals != NOTHING}


def merge(into: dict[str, Totals], other: dict[str, Totals]) -> None:
    """Adds `other` to `into`, agent by agent."""
    for agent, totals in other.items():
        into[agent] = into.get(agent, NOTHING) + totals
