"""What a row of the bench is: contestants that do the same work, and ratios of what was measured.

A row is one small file in a folder of tests/bench/rows, found by its name; it holds one `ROW`. Its contestants are
prepared all together and measured in turn, round after round, so that whatever else the machine does in a second
falls on all of them. What is judged is a ratio of one round, never a figure alone: figures are the machine's.

    def prepare(arena):                         # not timed
        log = arena.log()
        def measure():                          # one round; returns events/s, seconds, bytes: the row's unit
            ...
        return measure

    ROW = Row("what is measured", "events/s", [Contestant("Muster", prepare), …], [Ratio("Muster", "…", at_least=0.8)])
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from tests.bench.arena import Arena

#: One round: a figure in the row's unit, or several by name.
Measure = Callable[[], "float | Mapping[str, float]"]


class Kind(Enum):
    """What a contestant stands for."""

    MUSTER = "muster"
    LIMIT = "limit"  #: what the machine gives at best, with nothing of what Muster promises
    PEER = "peer"  #: what a user would pick instead


class Missing(Exception):
    """Raised while a contestant is prepared: it cannot run here, and why. The row goes on without it."""


class Contestant(Struct, frozen=True):
    """Who does the work. `prepare` gets everything ready and returns what is timed.

    `x`: the place on the row's curve, such as the number of sessions that the work is done among; what stands before
    the last ", " of a figure's name is then the curve it belongs to.
    """

    name: str
    prepare: Callable[[Arena], Measure]
    kind: Kind = Kind.MUSTER
    x: float | None = None


class Ratio(Struct, frozen=True):
    """A figure over another one of the same round, and what it should be; without a goal it is told and not judged.

    `over` several: over the highest of those that ran. `out_of_reach`: why a goal is missed for now; it is then told as
    such, and does not fail the run.
    """

    of: str
    over: str | tuple[str, ...]
    at_least: float | None = None
    at_most: float | None = None
    what: str = ""
    out_of_reach: str | None = None

    @property
    def label(self) -> str:
        """As it stands in the table."""
        over = self.over if isinstance(self.over, str) else "the fastest peer"
        return self.what or f"{self.of} / {over}"

    def in_round(self, figures: Mapping[str, float]) -> float | None:
        """The ratio in one round; None where somebody did not run."""
        names = (self.over,) if isinstance(self.over, str) else self.over
        found = [figures[name] for name in names if name in figures]
        return figures[self.of] / max(found) if self.of in figures and found and max(found) > 0 else None

    def is_reached(self, value: float) -> bool:
        """Whether this value is what it should be."""
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)


class Row(Struct, frozen=True):
    """Contestants that do the same work, and what is held against what.

    `axis` names what the contestants' `x` counts: the row is a curve then. `rounds` at most; fewer where time runs out.
    `is_quick`: measured by `--quick` too.
    """

    what: str
    unit: str
    contestants: Sequence[Contestant]
    ratios: Sequence[Ratio] = ()
    axis: str | None = None
    rounds: int = 5
    is_quick: bool = True


def ahead_of(
    muster: str, peers: Sequence[Contestant], *, nothing_to_win: Mapping[str, str] | None = None
) -> list[Ratio]:
    """Muster before each peer, where more is better; `nothing_to_win`: which of them it need not beat, and why."""
    reasons = nothing_to_win or {}
    return [Ratio(muster, peer.name, at_least=1.0, out_of_reach=reasons.get(peer.name)) for peer in peers]


def flat(curve: str, first: float, last: float, at_most: float) -> Ratio:
    """What must not grow: the last point of a curve over the first, where less is better."""
    return Ratio(point(curve, last), point(curve, first), at_most=at_most)


def point(curve: str, x: float) -> str:
    """The name of a figure that is a point of a curve."""
    return f"{curve}, {x:,}"
