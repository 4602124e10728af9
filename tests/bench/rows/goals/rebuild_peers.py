"""The same events, written one at a time, are folded again from the first: Muster's recovery, against peers that fold.

Muster also checks every law and digest, compares with what is stored, and writes views, checkpoints and totals.
UmaDB brings no fold: it is read and folded by hand, which is told and not judged.
"""

from __future__ import annotations

from tests.bench.arena import Arena
from tests.bench.history import History
from tests.bench.peers.eventsourcing_library import (
    EVENTSOURCING,
    EVENTSOURCING_POSTGRESQL,
    on_postgresql,
    on_sqlite,
)
from tests.bench.peers.peer import folding
from tests.bench.peers.umadb import UMADB
from tests.bench.peers.umadb import opened as open_umadb
from tests.bench.row import Contestant, Measure, Ratio, Row


def prepare(arena: Arena) -> Measure:
    made = History.of(arena, "many", sessions=arena.many(500, least=300, smoke=2), length=200, commit=1)

    def measure() -> float:
        made.forget()
        return made.rebuild()

    return measure


MUSTER = Contestant("Muster, rebuild", prepare)
OUT_OF_REACH = (
    "ten times the peer is 1.5 µs an event; a single commit takes 0.7 to receive and parse, 0.7 for its digest, "
    "1 to decode and fold, 1 to compare and write views, totals and indexes, which the peer does not (cProfile, CPU)"
)
FOLDING = [folding(EVENTSOURCING, on_sqlite), folding(EVENTSOURCING_POSTGRESQL, on_postgresql)]

ROW = Row(
    "rebuild from zero, against peers that replay the same events",
    "events/s",
    [MUSTER, *FOLDING, folding(UMADB, open_umadb)],
    [
        Ratio(MUSTER.name, tuple(peer.name for peer in FOLDING), at_least=10, out_of_reach=OUT_OF_REACH),
        Ratio(MUSTER.name, UMADB.name),
    ],
)
