"""From an append's reply until its event is in the session's view, at 200 events/s, against the append itself."""

from __future__ import annotations

from statistics import quantiles

from tests.bench.arena import Arena
from tests.bench.fleet import PACE, paced, running
from tests.bench.row import Contestant, Measure, Ratio, Row


def prepare(arena: Arena) -> Measure:
    _, log, store = arena.keep(running())
    count = arena.many(800, least=20)

    def measure() -> dict[str, float]:
        appends, visible = (quantiles(times, n=100) for times in paced(log, store, lambda made: made == count))
        return {
            f"{what}, {name}": times[at] * 1000
            for what, times in (("append", appends), ("visible", visible))
            for name, at in (("p50", 49), ("p99", 98))
        }

    return measure


ROW = Row(
    f"append's reply → visible, {PACE} events/s, two workers",
    "ms",
    [Contestant("Muster", prepare)],
    [Ratio("visible, p50", "append, p50", at_most=4), Ratio("visible, p99", "append, p99", at_most=8)],
)
